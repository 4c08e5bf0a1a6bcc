/**
 * JSON-RPC through npm's `jayson` over WebSockets, its fastest way: its TCP client, which opens a
 * connection for each call, came to a half of this one at a time, and to an eighth in flight.
 */
import { once, type EventEmitter } from 'node:events';
import type { AddressInfo } from 'node:net';
import { byCallback, type Peer } from '../load.ts';

/** As much of `jayson` as is used here; what types it brings are there once it is installed. */
interface WebSocketServer extends EventEmitter {
  address(): AddressInfo;
}
interface Client {
  ws: EventEmitter;
  request(method: string, params: unknown[], take: (error: unknown, response: Response) => void): void;
}
interface Response { result: string }
type Method = (params: string[], reply: (error: null, result?: string) => void) => void;
interface Jayson {
  Server: new (methods: Record<string, Method>) => { websocket(options: object): WebSocketServer };
  Client: { websocket(options: { url: string }): Client };
}

const { default: jayson } = (await import(process.env['BENCH_PACKAGE'] ?? 'jayson')) as { default: Jayson };

const JSON_BYTES = 1024; // more than is ever around a text

export const peer: Peer = {
  async listen({ maxMessageBytes }) {
    const server = new jayson.Server({ echo: ([text], reply) => reply(null, text) })
      .websocket({ host: '127.0.0.1', port: 0, maxPayload: maxMessageBytes + JSON_BYTES });
    await once(server, 'listening');
    return server.address().port;
  },

  async connect(port) {
    const client = jayson.Client.websocket({ url: `ws://127.0.0.1:${port}` });
    await once(client.ws, 'open');
    return byCallback((text, take) => client.request('echo', [text], (error, response) => {
      if (error) throw error;
      take(response.result);
    }));
  },
};
