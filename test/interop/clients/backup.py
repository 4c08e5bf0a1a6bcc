import socket
s = socket.socket()
port = 12345
s.connect(('127.0.0.1', port))
request = "revert"
s.send(request.encode())
s.recv(1024).decode()
