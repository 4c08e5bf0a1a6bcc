"""ZeroMQ's sockets, driven by lines of JSON: see ../helpers/pyzmq.ts. One line in, one line out."""
import base64
import json
import sys
import time

import zmq
from zmq.utils.monitor import recv_monitor_message

FAILURES = {zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
            zmq.EVENT_HANDSHAKE_FAILED_AUTH}
context = zmq.Context()
sockets, monitors = [], []


def make(kind, options, connect=None, bind=False, watch=False):
    socket = context.socket(getattr(zmq, kind))
    socket.linger = 0
    socket.rcvtimeo = socket.sndtimeo = 10_000
    for name, value in options.items():
        value = value.encode() if isinstance(value, str) else value
        socket.setsockopt(getattr(zmq, name), value)
    sockets.append(socket)
    monitors.append(socket.get_monitor_socket() if watch else None)
    port = socket.bind_to_random_port('tcp://127.0.0.1') if bind else None
    if connect is not None:
        socket.connect(connect)
    return {'socket': len(sockets) - 1, 'port': port}


def unpack(parts):
    return [base64.b64decode(part) for part in parts]


def pack(parts):
    return [base64.b64encode(part).decode() for part in parts]


def send(socket, messages):
    for parts in messages:
        sockets[socket].send_multipart(unpack(parts))


def receive(socket, count=1):
    return [pack(sockets[socket].recv_multipart()) for _ in range(count)]


def bounce(socket, size, times=1, head=()):
    """Sends so many bytes, and checks that they come back."""
    message = [*unpack(head), b'0123456789abcdef' * (size // 16)]
    for _ in range(times):
        sockets[socket].send_multipart(message, copy=False)
        back = [frame.bytes for frame in sockets[socket].recv_multipart(copy=False)]
        if back != message:
            raise ValueError(f'sent {size} bytes, got {[len(part) for part in back]}')


def failure(socket, ms):
    """The name of the next failed handshake."""
    end = time.monotonic() + ms / 1000
    while monitors[socket].poll(max(0, int(1000 * (end - time.monotonic())))):
        event = recv_monitor_message(monitors[socket])
        if event['event'] in FAILURES:
            return {'event': zmq.Event(event['event']).name, 'value': int(event['value'])}
    return None


def close(socket):
    sockets[socket].close()


def curve_keys():
    return [key.decode() for key in zmq.curve_keypair()] if zmq.has('curve') else None


def sleep(ms):
    time.sleep(ms / 1000)


commands = {command.__name__: command for command in
            (make, send, receive, bounce, failure, close, curve_keys, sleep)}
print(json.dumps({'zmq': zmq.zmq_version(), 'pyzmq': zmq.pyzmq_version()}), flush=True)
for line in sys.stdin:
    name, arguments = json.loads(line)
    try:
        answer = {'value': commands[name](**arguments)}
    except Exception as error:
        answer = {'error': f'{type(error).__name__}: {error}'}
    print(json.dumps(answer), flush=True)
