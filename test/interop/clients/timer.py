"""Asks a timer as its users do, a number at a time, from a REQ socket: each send waits for its reply."""
import zmq

context = zmq.Context()
socket = context.socket(zmq.REQ)
socket.connect("tcp://127.0.0.1:8888")

while True:
    message_prompt1 = input("Enter your time in hours.")
    message_prompt2 = input("Enter your time in minutes.")
    message_prompt3 = input("Enter your time in seconds.")
    socket.send_string(message_prompt1)
    message_prompt1 = socket.recv()
    socket.send_string(message_prompt2)
    message_prompt2 = socket.recv()
    socket.send_string(message_prompt3)
    message_prompt3 = socket.recv()
    print('From client:', message_prompt1)
    print('From client:', message_prompt2)
    print('From client:', message_prompt3)
