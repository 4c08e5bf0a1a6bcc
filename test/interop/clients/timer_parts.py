"""Asks a timer for all three numbers in one message of three parts."""
import zmq

context = zmq.Context()
socket = context.socket(zmq.REQ)
socket.connect("tcp://127.0.0.1:8888")
socket.send_multipart([b'0', b'0', b'5'])
print('From client:', socket.recv_multipart())
