"""The client of a system of desktop services: 64 bytes that hold the length, then the text, both ways."""
import socket

HEADER = 64
FORMAT = 'utf-8'
END = '&END'
PORTS = {'LIFE_GEN': 5467}


class micro_client:
    def __init__(self, key):
        self.client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.client.connect(('127.0.0.1', PORTS[key]))

    def send_message(self, msg):
        self.send(msg)
        length = int(self.client.recv(HEADER).decode(FORMAT))
        return self.client.recv(length).decode(FORMAT)

    def send(self, msg):
        message = msg.encode(FORMAT)
        header = str(len(message)).encode(FORMAT)
        self.client.send(header + b' ' * (HEADER - len(header)))
        self.client.send(message)

    def end(self):
        self.send(END)
        return self.client.recv(1)


client = micro_client('LIFE_GEN')
print(client.send_message('categories'))
print(client.send_message('naïve ☃'))
print(client.end())
