/** The server's process: `node server.js PEER`. */
import { subscribe } from 'node:diagnostics_channel';
import { setTimeout as sleep } from 'node:timers/promises';
import { answer } from './child.ts';
import type { Peer } from './load.ts';

const ACCEPT_TIMEOUT_MS = 20_000;
const COLLECTIONS = 4; // one full collection leaves what finalizers and the young generation still hold

const { peer } = (await import(`./peers/${process.argv[2]}.js`)) as { peer: Peer };
let accepted = 0;
subscribe('net.server.socket', () => { accepted++; });

const commands = {
  listen: (options: { maxMessageBytes: number; maxConnections: number }) => peer.listen(options),

  /** Microseconds of CPU, user and system, since the start. */
  cpu: () => cpuMicros(),

  /** Bytes in use once so many sockets were accepted in all and the garbage is gone. */
  async memory({ accepts }: { accepts: number }): Promise<{ resident: number; heap: number }> {
    const giveUpAt = performance.now() + ACCEPT_TIMEOUT_MS;
    while (accepted < accepts) {
      if (performance.now() > giveUpAt) {
        throw new Error(`Cannot measure: ${accepted} of ${accepts} sockets were accepted`);
      }
      await sleep(5);
    }
    for (let i = 0; i < COLLECTIONS; i++) {
      await sleep(25);
      globalThis.gc?.();
    }
    const { rss, heapUsed } = process.memoryUsage();
    return { resident: rss, heap: heapUsed };
  },
};
export type ServerCommands = typeof commands;

function cpuMicros(): number {
  const { user, system } = process.cpuUsage();
  return user + system;
}

answer(commands);
