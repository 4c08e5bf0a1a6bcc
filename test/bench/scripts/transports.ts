/**
 * `node --import tsx test/bench/scripts/transports.ts [seconds]`: calls a second over each transport, client and server
 * in one thread, then in two, in turns, so that a busy machine slows them all.
 */
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Worker } from 'node:worker_threads';
import { MicroClient, type Address } from '../../../lib/micro_client.ts';
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
const threads: Worker[] = [];
for (const [name, address] of Object.entries({ tcp: 'tcp://127.0.0.1:0', inproc: 'inproc://thread' })) {
  const thread = startThread('thread_server.ts', { address, options: {} });
  threads.push(thread);
  const [{ value: { url } }] = await once(thread, 'message') as [{ value: Address }];
  clients[`${name}, two threads`] = new MicroClient(url);
}

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
    const ratio = median(name) / median(name.replace(/^\w+/, 'tcp'));
    console.log(`${String(inFlight).padStart(5)} in flight, ${name.padEnd(20)} ${median(name).toFixed(0).padStart(8)} ` +
      `calls/s, ${ratio.toFixed(2)} of tcp`);
  }
}
await Promise.all(Object.values(clients).map((client) => client.close()));
await Promise.all(servers.map((server) => server.stop()));
await Promise.all(threads.map((thread) => thread.terminate()));
rmSync(folder, { recursive: true, force: true });
