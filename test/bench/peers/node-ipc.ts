/**
 * Events over npm's `node-ipc` on TCP. It matches no replies to requests: they come in order. Of all
 * packages here, its version alone is pinned: others carried malicious code (CVE-2022-23812).
 */
import { once } from 'node:events';
import type { Socket } from 'node:net';
import { freePort } from '../../helpers/free_port.ts';
import { Flight, type Connection, type Load, type Peer } from '../load.ts';

/** As much of `node-ipc` as is used here; it brings no types. */
interface Server {
  on(event: 'connect', take: (socket: Socket) => void): void;
  on(event: 'text', take: (text: string, socket: Socket) => void): void;
  emit(socket: Socket, event: 'text', text: string): void;
  start(): void;
}
interface Client {
  socket: Socket;
  on(event: 'connect' | 'text', take: (text: string) => void): void;
  emit(event: 'text', text: string): void;
}
interface Ipc {
  config: { silent: boolean; maxConnections: number };
  server: Server;
  of: { echo: Client };
  serveNet(host: string, port: number, started: () => void): void;
  connectToNet(name: 'echo', host: string, port: number): void;
}

const { default: { IPCModule } } = (await import(process.env['BENCH_PACKAGE'] ?? 'node-ipc')) as {
  default: { IPCModule: new () => Ipc };
};

export const peer: Peer = {
  async listen({ maxConnections }) {
    const port = await freePort(); // it takes 0 for its default, 8000
    const ipc = silent(maxConnections);
    await new Promise<void>((resolve) => {
      ipc.serveNet('127.0.0.1', port, resolve);
      ipc.server.on('connect', (socket) => socket.setNoDelay(true));
      ipc.server.on('text', (text, socket) => ipc.server.emit(socket, 'text', text));
      ipc.server.start();
    });
    return port;
  },

  async connect(port) {
    const ipc = silent(1);
    ipc.connectToNet('echo', '127.0.0.1', port);
    ipc.of.echo.socket.setNoDelay(true);
    await once(ipc.of.echo.socket, 'connect');
    return new IpcConnection(ipc.of.echo);
  },
};

class IpcConnection implements Connection {
  readonly #client: Client;
  #flight: Flight | undefined;

  constructor(client: Client) {
    this.#client = client;
    client.on('text', (text) => this.#flight?.reply(text));
  }

  run(inFlight: number, load: Load): Promise<void> {
    this.#flight = new Flight(inFlight, load, (text) => this.#client.emit('text', text));
    this.#flight.start();
    return this.#flight.finished;
  }
}

function silent(maxConnections: number): Ipc {
  const ipc = new IPCModule();
  Object.assign(ipc.config, { silent: true, maxConnections });
  return ipc;
}
