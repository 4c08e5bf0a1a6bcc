"""A ZeroMQ framework's parts, as its documentation tells them: `framework.py client|server|router|worker|heartbeats`.

A message is multipart: an event's name and JSON. Clients and workers are DEALERs; a router has a ROUTER in front and
a DEALER at its back; heartbeats go to a port of their own, by a DEALER that never reads.
"""
import json
import sys
import time
import uuid

import zmq

context = zmq.Context()


def make(kind, linger=0):
    socket = context.socket(kind)
    socket.linger = linger
    return socket


def say(**facts):
    print(json.dumps(facts), flush=True)


def answer(socket, handle):
    """What servers and workers do: drops what is shorter than [client id, '', event, json]."""
    while True:
        parts = socket.recv_multipart()
        if len(parts) < 4:
            say(dropped=len(parts))
            continue
        client_id, _, event, data = parts[0], parts[1], parts[2].decode(), json.loads(parts[3])
        socket.send_multipart([client_id, b'', event.encode(), json.dumps(handle(event, data)).encode()])


def handle_message(event, data):
    if event == 'sleep':
        time.sleep(data)
    if event == 'message':
        return f'Processed: {data}'
    return {'event': event, 'data': data}


def client(port):
    """Sends an event for each line of JSON, prints what it gets."""
    socket = make(zmq.DEALER)
    socket.rcvtimeo = 5_000
    socket.connect(f'tcp://127.0.0.1:{port}')
    for line in sys.stdin:
        event_name, event_data = json.loads(line)
        socket.send_multipart([b'', event_name.encode(), json.dumps(event_data).encode()])
        try:
            parts = socket.recv_multipart()
        except zmq.Again:
            say(error='no response')
            continue
        say(parts=[part.decode() for part in parts])


def server():
    socket = make(zmq.ROUTER)
    say(port=socket.bind_to_random_port('tcp://127.0.0.1'))
    answer(socket, handle_message)


def worker(port):
    socket = make(zmq.DEALER)
    socket.connect(f'tcp://127.0.0.1:{port}')
    say(ready=True)
    answer(socket, handle_message)


def router():
    front, back = make(zmq.ROUTER), make(zmq.DEALER)
    say(front=front.bind_to_random_port('tcp://127.0.0.1'), back=back.bind_to_random_port('tcp://127.0.0.1'))
    poller = zmq.Poller()
    poller.register(front, zmq.POLLIN)
    poller.register(back, zmq.POLLIN)
    while True:
        ready = dict(poller.poll())
        if front in ready:
            back.send_multipart(front.recv_multipart())
        if back in ready:
            front.send_multipart(back.recv_multipart())


def heartbeats(port, node_id, interval_ms):
    socket = make(zmq.DEALER)
    socket.connect(f'tcp://127.0.0.1:{port}')
    session_id, missed_count = str(uuid.uuid4()), 0
    say(session_id=session_id)
    while True:
        beat = {'node_id': node_id, 'session_id': session_id, 'node_type': 'WORKER', 'last_heartbeat': time.time(),
                'missed_count': missed_count}
        socket.send_multipart([b'', b'heartbeat', json.dumps(beat).encode()])
        time.sleep(int(interval_ms) / 1000)


globals()[sys.argv[1]](*sys.argv[2:])
