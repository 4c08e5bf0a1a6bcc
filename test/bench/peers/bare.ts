/** The least that a line echo can be: `node:net`, one write a message. The rest is held against it. */
import net from 'node:net';
import { once } from 'node:events';
import { Flight, type Connection, type Load, type Peer } from '../load.ts';

export const peer: Peer = {
  async listen() {
    const server = net.createServer({ noDelay: true }, (socket) => {
      onLine(socket, (line) => socket.write(`${line}\n`));
      socket.on('error', () => socket.destroy());
    });
    server.listen(0, '127.0.0.1', 4096);
    await once(server, 'listening');
    return (server.address() as net.AddressInfo).port;
  },

  async connect(port) {
    const socket = net.connect({ port, host: '127.0.0.1', noDelay: true });
    await once(socket, 'connect');
    return new BareConnection(socket);
  },
};

class BareConnection implements Connection {
  readonly #socket: net.Socket;
  #flight: Flight | undefined;

  constructor(socket: net.Socket) {
    this.#socket = socket;
    onLine(socket, (line) => this.#flight?.reply(line));
  }

  run(inFlight: number, load: Load): Promise<void> {
    this.#flight = new Flight(inFlight, load, (text) => this.#socket.write(`${text}\n`));
    this.#flight.start();
    return this.#flight.finished;
  }
}

/** Only what is new is split, so that a line of many chunks costs no more than its bytes. */
function onLine(socket: net.Socket, take: (line: string) => void): void {
  let held = '';
  socket.setEncoding('utf8');
  socket.on('data', (chunk: string) => {
    const lines = chunk.split('\n');
    lines[0] = held + lines[0];
    held = lines.pop() ?? '';
    for (const line of lines) take(line);
  });
}
