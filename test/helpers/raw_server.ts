/** A server that is nothing but sockets: for what a client must bear. */
import { once } from 'node:events';
import { createServer, type AddressInfo, type Socket } from 'node:net';
import { within } from './deadline.ts';

export class RawServer {
  readonly sockets = new Set<Socket>();
  port = 0;
  #accepted = 0;
  readonly #server;

  private constructor(onSocket: (socket: Socket, number: number) => unknown) {
    this.#server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
      this.sockets.add(socket);
      socket.on('close', () => this.sockets.delete(socket));
      socket.on('error', () => {}); // the client may well reset
      onSocket(socket, this.#accepted++);
    });
  }

  /** Listens on a free port of 127.0.0.1; each connection is given to `onSocket` with its number. */
  static async listen(onSocket: (socket: Socket, number: number) => unknown): Promise<RawServer> {
    const server = new RawServer(onSocket);
    server.#server.listen(0, '127.0.0.1');
    await once(server.#server, 'listening');
    server.port = (server.#server.address() as AddressInfo).port;
    return server;
  }

  /** Listens, does `task`, and leaves no socket behind. */
  static async with<T>(onSocket: (socket: Socket, number: number) => unknown,
    task: (server: RawServer) => Promise<T>): Promise<T> {
    const server = await RawServer.listen(onSocket);
    try {
      return await task(server);
    } finally {
      await server.close();
    }
  }

  get accepted(): number {
    return this.#accepted;
  }

  async close(): Promise<void> {
    const closed = once(this.#server, 'close');
    this.#server.close();
    for (const socket of this.sockets) socket.destroy();
    await within(2_000, closed, 'the end of a raw server');
  }
}

/** Calls `onLine` for each whole line that comes, without its LF; ends when the peer does. */
export function eachLine(socket: Socket, onLine: (line: string) => unknown): void {
  let held = '';
  socket.setEncoding('utf8').on('data', (text: string) => {
    const lines = (held + text).split('\n');
    held = lines.pop() ?? '';
    for (const line of lines) onLine(line);
  });
  socket.on('end', () => socket.end());
}
