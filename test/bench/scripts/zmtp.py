"""`zmtp.py router` is a bare ROUTER that echoes; `zmtp.py measure ROUNDS PORT…` measures servers by turns."""
import json
import sys
import time

import zmq

FLIGHT, SECONDS, BIG = 64, 0.8, 100 * 1024 * 1024
context = zmq.Context()


def router():
    socket = context.socket(zmq.ROUTER)
    print(socket.bind_to_random_port('tcp://127.0.0.1'), flush=True)
    while True:
        socket.send_multipart(socket.recv_multipart())


def dealer(port):
    socket = context.socket(zmq.DEALER)
    socket.linger, socket.rcvtimeo = 0, 30_000
    socket.connect(f'tcp://127.0.0.1:{port}')
    return socket


def rate(port):
    """Replies a second, with so many requests under way."""
    socket, message, count = dealer(port), [b'', b'a message of some thirty bytes'], 0
    for _ in range(FLIGHT):
        socket.send_multipart(message)
    end = time.perf_counter() + SECONDS / 4  # until all are warm
    while time.perf_counter() < end:
        socket.recv_multipart()
        socket.send_multipart(message)
    began = time.perf_counter()
    end = began + SECONDS
    while (now := time.perf_counter()) < end:
        for _ in range(FLIGHT):
            socket.recv_multipart()
            socket.send_multipart(message)
        count += FLIGHT
    for _ in range(FLIGHT):
        if socket.recv_multipart() != message:
            raise ValueError('not the same message')
    socket.close()
    return count / (now - began)


def big(port):
    """Milliseconds for one message of 100 MiB, there and back; the better of two."""
    socket, message, best = dealer(port), [b'', b'x' * BIG], float('inf')
    for _ in range(2):
        began = time.perf_counter()
        socket.send_multipart(message, copy=False)
        reply = socket.recv_multipart(copy=False)
        best = min(best, time.perf_counter() - began)
        if reply[1].buffer != message[1]:
            raise ValueError('not the same bytes')
    socket.close()
    return 1000 * best


if sys.argv[1] == 'router':
    router()
rounds, ports = int(sys.argv[2]), sys.argv[3:]
for number in range(rounds):
    order = ports if number % 2 == 0 else ports[::-1]
    rates = {port: rate(port) for port in order}
    bigs = {port: big(port) for port in order}
    print(json.dumps({'rates': [rates[port] for port in ports], 'ms': [bigs[port] for port in ports]}), flush=True)
