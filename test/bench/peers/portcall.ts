/** The kit, used as its README says. */
import { MicroClient } from '../../../lib/micro_client.ts';
import { MicroServer } from '../../../lib/micro_server.ts';
import type { Connection, Load, Peer } from '../load.ts';

const TIMEOUT_MS = 60_000;

export const peer: Peer = {
  async listen({ maxMessageBytes, maxConnections }) {
    const server = new MicroServer((message) => message, 0, { maxMessageBytes, maxConnections });
    const { port } = await server.startListening();
    if (port === undefined) throw new Error('Cannot find the port: the address has none');
    return port;
  },

  async connect(port, { maxMessageBytes }) {
    const options = { maxMessageBytes, timeoutMs: TIMEOUT_MS };
    return new KitConnection(new MicroClient(`tcp://127.0.0.1:${port}`, options));
  },
};

class KitConnection implements Connection {
  readonly #client: MicroClient;

  constructor(client: MicroClient) {
    this.#client = client;
  }

  async run(inFlight: number, load: Load): Promise<void> {
    await Promise.all(Array.from({ length: inFlight }, () => this.#loop(load)));
  }

  async #loop(load: Load): Promise<void> {
    while (!load.over) {
      const text = load.next();
      load.check(text, await this.#client.sendMessage(text));
    }
  }
}
