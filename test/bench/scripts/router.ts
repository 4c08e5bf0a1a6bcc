/**
 * `node --import tsx test/bench/scripts/router.ts [SECONDS]`: what a router costs, and what workers and
 * threads gain. A relay of `node:net`, which only copies bytes, shows what any process in between
 * costs. Both sides of a comparison run at the same time and are driven in turn, in short
 * slices; a figure is the median of the rounds' ratios.
 */
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { MicroClient } from '../../../lib/micro_client.ts';
import { build } from '../build.ts';
import { median } from '../shapes.ts';
import type { NodeSetUp } from './router_node.ts';
import { createSpin } from './router_spin.ts';

const textOf = (rounds: number): string => String(rounds).padEnd(32, '-'); // for router_spin.ts
const TEXT = textOf(0);
const WARM_UP_MS = 800, SLICE_MS = 250;
const seconds = Number(process.argv[2] ?? 6);
const folder = mkdtempSync(join(tmpdir(), 'portcall-bench-router-'));
const program = build(folder);
const core = await import(pathToFileURL(join(folder, 'lib', 'micro_client.js')).href) as {
  MicroClient: typeof MicroClient;
};
const children: ChildProcess[] = [];
const clients: MicroClient[] = [];

async function start(setUp: NodeSetUp): Promise<{ port: number; back?: number }> {
  const child = fork(program('scripts/router_node'), [JSON.stringify(setUp)], { execArgv: [] });
  children.push(child);
  const [told] = await once(child, 'message') as [{ port: number; back?: number }];
  return told;
}

function dial(port: number): MicroClient {
  const client = new core.MicroClient(port);
  clients.push(client);
  return client;
}

/** A client of a router with so many workers. */
async function routed(workers: number, waitMs?: number): Promise<MicroClient> {
  const { port, back = 0 } = await start({ kind: 'router', router: { strategy: 'least_busy', maxInFlight: 16 } });
  for (let count = 0; count < workers; count++) {
    await start({ kind: 'worker', back, ...(waitMs !== undefined && { waitMs }) });
  }
  return dial(port);
}

/** How many rounds of router_spin.ts take a millisecond of this processor, undisturbed. */
function roundsOfMs(): number {
  const { callback } = createSpin();
  const [rounds, tries] = [200_000, 100];
  const times = Array.from({ length: tries }, () => {
    const began = performance.now();
    callback(textOf(rounds));
    return performance.now() - began;
  });
  return Math.round(rounds / Math.min(...times));
}

/** Replies a second of `inFlight` calls at any time. */
async function rate(
  client: MicroClient, inFlight: number, ms: number, text = TEXT,
): Promise<number> {
  const began = performance.now();
  let replies = 0;
  const lane = async () => {
    while (performance.now() - began < ms) {
      if (await client.sendMessage(text) !== text) throw new Error('Cannot count a reply: it is another text');
      replies++;
    }
  };
  await Promise.all(Array.from({ length: inFlight }, lane));
  return replies / (performance.now() - began) * 1000;
}

interface Comparison {
  name: string; inFlight: number; atLeast?: number; a: MicroClient; b: MicroClient; text?: string;
}

async function compare({ name, inFlight, atLeast, a, b, text }: Comparison): Promise<void> {
  const [ratios, rates]: [number[], [number, number][]] = [[], []];
  for (const client of [a, b]) await rate(client, inFlight, WARM_UP_MS);
  // Behind ten thousands without work: a thousand with it leave half of the code uncompiled.
  if (text !== undefined) for (const client of [a, b]) await rate(client, inFlight, WARM_UP_MS, text);
  const rounds = Math.max(3, Math.round(seconds * 1000 / SLICE_MS / 2));
  for (let round = 0; round < rounds; round++) {
    const pair: [number, number] =
      [await rate(a, inFlight, SLICE_MS, text), await rate(b, inFlight, SLICE_MS, text)];
    rates.push(pair);
    ratios.push(pair[0] / pair[1]);
  }
  const [ours, theirs] = [0, 1].map((side) => Math.round(median(rates.map((pair) => pair[side as 0 | 1]))));
  const ratio = median(ratios);
  const bar = atLeast === undefined ? '' : `(at least ${atLeast}: ${ratio >= atLeast ? 'held' : 'MISSED'})`;
  process.stdout.write(`${name.padEnd(52)} ${ratio.toFixed(2)} ${bar.padEnd(24)} ${ours} and ${theirs} msg/s\n`);
}

try {
  const server = (await start({ kind: 'server' })).port;
  const [direct, relayed] = [dial(server), dial((await start({ kind: 'relay', back: server })).port)];
  // As many in flight as a client has, so that the worker's limit does not count here.
  const { port, back = 0 } = await start({ kind: 'router' });
  await start({ kind: 'worker', back });
  const one = dial(port);
  await compare({ name: 'routed by direct, 64 in flight', inFlight: 64, atLeast: 0.6, a: one, b: direct });
  await compare({ name: 'routed by direct, one at a time', inFlight: 1, atLeast: 0.75, a: one, b: direct });
  await compare({ name: 'relayed by direct, 64 in flight', inFlight: 64, a: relayed, b: direct });
  await compare({ name: 'relayed by direct, one at a time', inFlight: 1, a: relayed, b: direct });
  await compare({ name: '4 workers by 1, 5 ms a reply, 16 in flight each', inFlight: 64, atLeast: 3.8,
    a: await routed(4, 5), b: await routed(1, 5) });
  const [two, single] = [dial((await start({ kind: 'server', threads: 2 })).port),
    dial((await start({ kind: 'server', threads: 1 })).port)];
  await compare({ name: '2 threads by 1, 1 ms of processor time a reply', inFlight: 8, atLeast: 1.9,
    a: two, b: single, text: textOf(roundsOfMs()) });
} finally {
  await Promise.all(clients.map((client) => client.close()));
  for (const child of children) child.disconnect();
  rmSync(folder, { recursive: true });
}
