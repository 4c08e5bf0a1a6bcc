/** JSON-RPC over TCP through npm's `jayson`, whose TCP client opens a connection for each call. */
import { once } from 'node:events';
import type { AddressInfo, Server, Socket } from 'node:net';
import type { Connection, Load, Peer } from '../load.ts';

type Callback = (error: unknown, result?: string) => void;

/** As much of `jayson` as is used here; what types it brings are there once it is installed. */
interface Client {
  request(method: 'echo', params: [string], callback: (error: unknown, response: Response) => void): void;
}
interface Response { result?: string }
interface Jayson {
  Server: new (methods: { echo: (params: [string], callback: Callback) => void }) => { tcp(): Server };
  Client: { tcp(options: { port: number; host: string; noDelay: boolean }): Client };
}

const { default: jayson } = (await import(process.env['BENCH_PACKAGE'] ?? 'jayson')) as { default: Jayson };

export const peer: Peer = {
  async listen() {
    const server = new jayson.Server({ echo: ([text], callback) => callback(null, text) }).tcp();
    server.on('connection', (socket: Socket) => socket.setNoDelay(true));
    server.listen(0, '127.0.0.1', 4096);
    await once(server, 'listening');
    return (server.address() as AddressInfo).port;
  },

  async connect(port) {
    return new JaysonConnection(jayson.Client.tcp({ port, host: '127.0.0.1', noDelay: true }));
  },
};

class JaysonConnection implements Connection {
  readonly #client: Client;

  constructor(client: Client) {
    this.#client = client;
  }

  /** Not a `Flight`: calls on connections of their own end in any order. */
  async run(inFlight: number, load: Load): Promise<void> {
    await Promise.all(Array.from({ length: inFlight }, () => this.#loop(load)));
  }

  async #loop(load: Load): Promise<void> {
    while (!load.over) {
      const text = load.next();
      load.check(text, await this.#call(text));
    }
  }

  #call(text: string): Promise<string> {
    return new Promise((resolve, reject) => {
      this.#client.request('echo', [text], (error, response) => {
        if (error) reject(error);
        else resolve(response.result ?? '');
      });
    });
  }
}
