"""Servers as people write them with pyzmq: `server.py rep|router|broker`. Prints its port."""
import sys

import zmq


def rep(socket):
    while True:
        message = socket.recv_string()
        if message == 'parts':
            socket.send_multipart([b'one', b'', b'three'])
        elif message == 'binary':
            socket.send(b'\xff\xfe')
        else:
            socket.send_string(message.upper())


def router(socket):
    """Counts on the envelope of a REQ, as most examples do."""
    while True:
        identity, _, message = socket.recv_multipart()
        socket.send_multipart([identity, b'', message.decode().upper().encode()])


def broker(socket):
    """Returns any envelope, and answers each ten requests in the wrong order."""
    waiting = []
    while True:
        *envelope, message = socket.recv_multipart()
        waiting.append([*envelope, message.upper()])
        if len(waiting) == 10 or not socket.poll(50):
            while waiting:
                socket.send_multipart(waiting.pop())


kind = {'rep': zmq.REP, 'router': zmq.ROUTER, 'broker': zmq.ROUTER}[sys.argv[1]]
server = zmq.Context().socket(kind)
server.linger = 0
print(server.bind_to_random_port('tcp://127.0.0.1'), flush=True)
globals()[sys.argv[1]](server)
