/** WebSockets through npm's `ws` on both sides, without compression, from where the runner found it. */
import { once, type EventEmitter } from 'node:events';
import type { AddressInfo } from 'node:net';
import { Flight, type Connection, type Load, type Peer } from '../load.ts';

/** As much of `ws` as is used here; it brings no types. */
interface WebSocket extends EventEmitter {
  send(text: string): void;
}
interface WebSocketServer extends EventEmitter {
  address(): AddressInfo;
}
interface WebSocketModule {
  WebSocket: new (url: string, options: object) => WebSocket;
  WebSocketServer: new (options: object) => WebSocketServer;
}

const { default: ws } = (await import(process.env['BENCH_PACKAGE'] ?? 'ws')) as { default: WebSocketModule };

export const peer: Peer = {
  async listen({ maxMessageBytes }) {
    const server = new ws.WebSocketServer({
      port: 0, host: '127.0.0.1', perMessageDeflate: false, maxPayload: maxMessageBytes,
    });
    server.on('connection', (socket: WebSocket) => {
      socket.on('message', (data: Buffer) => socket.send(data.toString()));
    });
    await once(server, 'listening');
    return server.address().port;
  },

  async connect(port, { maxMessageBytes }) {
    const socket = new ws.WebSocket(`ws://127.0.0.1:${port}`, {
      perMessageDeflate: false, maxPayload: maxMessageBytes,
    });
    await once(socket, 'open');
    return new WsConnection(socket);
  },
};

class WsConnection implements Connection {
  readonly #socket: WebSocket;
  #flight: Flight | undefined;

  constructor(socket: WebSocket) {
    this.#socket = socket;
    socket.on('message', (data: Buffer) => this.#flight?.reply(data.toString()));
  }

  run(inFlight: number, load: Load): Promise<void> {
    this.#flight = new Flight(inFlight, load, (text) => this.#socket.send(text));
    this.#flight.start();
    return this.#flight.finished;
  }
}
