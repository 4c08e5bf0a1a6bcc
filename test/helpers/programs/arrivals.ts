/** A server that echoes and notes when its clients came. */
import { MicroServer } from '../../../lib/micro_server.ts';
import { answer, given, ready } from '../child.ts';

const { address, listen = true } = given<{ address: number; listen?: boolean }>();
const arrivals: number[] = [];
const server = new MicroServer({
  callback: (message) => message,
  connected: () => { arrivals.push(Date.now()); },
}, address);

answer({
  /** Resolves with the time when it was bound. */
  async start() {
    await server.startListening();
    return Date.now();
  },
  arrivals: () => arrivals,
});
if (listen) await server.startListening();
ready({});
