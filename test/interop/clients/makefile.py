"""Lines, by the file that Python makes of a socket."""
import socket

with socket.create_connection(('127.0.0.1', 5467)) as s, s.makefile('rw', encoding='utf-8') as file:
    for text in ('hello', 'naïve ☃'):
        print(text, file=file, flush=True)
        print(file.readline(), end='')
