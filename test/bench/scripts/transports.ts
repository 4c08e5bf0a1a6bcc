/**
 * `node --import tsx test/bench/scripts/transports.ts [seconds]`: calls a second over each transport, client and server
 * in one process (inproc also in two threads), in turns, so that a busy machine slows them all.
 */
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { MicroClient } from '../../../lib/micro_client.ts';
import { MicroServer } from '../../../lib/micro_server.ts';
import { startThread } from '../../helpers/thread.ts';
import '../../../lib/transports/inproc.ts';

const SECONDS = Number(process.argv[2] ?? 24);
const ROUNDS = 6;
const TEXT = 'a line of text as people write them, about a hundred bytes long, all told: 0123456789';
const folder = mkdtempSync(join(tmpdir(), 'portcall-bench-transports-'));
const addresses = { tcp: 'tcp://127.0.0.1:0', ipc: `ipc://${folder}/s`, inproc: 'inproc://bench' };
const clients: Record<string, MicroClient> = {};
const servers: MicroServer[] = [];
for (const [name, address] of Object.entries(addresses)) {
  const server = new MicroServer((message) => message, address);
  servers.push(server);
  clients[name] = new MicroClient((await server.startListening()).url);
}
const thread = startThread('thread_server.ts', { address: 'inproc://thread', options: {} });
await once(thread, 'message');
clients['inproc, two threads'] = new MicroClient('inproc://thread');

async function rate(client: MicroClient, inFlight: number, ms: number): Promise<number> {
  const began = performance.now();
  let count = 0;
  await Promise.all(Array.from({ length: inFlight }, async () => {
    for (; performance.now() < began + ms; count++) await client.sendMessage(TEXT);
  }));
  return count / (performance.now() - began) * 1_000;
}

const names = Object.keys(clients);
for (const inFlight of [1, 64, 1_000]) {
  const rates: Record<string, number[]> = Object.fromEntries(names.map((name) => [name, []]));
  const ms = SECONDS * 1_000 / 3 / names.length / (ROUNDS + 1);
  for (let round = 0; round <= ROUNDS; round++) {
    for (const name of names) {
      const perSecond = await rate(clients[name] as MicroClient, inFlight, ms);
      if (round > 0) rates[name]?.push(perSecond); // the first is until it is compiled
    }
  }
  const median = (name: string): number => (rates[name] ?? []).sort((a, b) => a - b)[ROUNDS / 2] ?? NaN;
  for (const name of names) {
    console.log(`${String(inFlight).padStart(5)} in flight, ${name.padEnd(20)} ${median(name).toFixed(0).padStart(8)} calls/s, ` +
      `${(median(name) / median('tcp')).toFixed(2)} of tcp`);
  }
}
await Promise.all(Object.values(clients).map((client) => client.close()));
await Promise.all(servers.map((server) => server.stop()));
await thread.terminate();
rmSync(folder, { recursive: true, force: true });
