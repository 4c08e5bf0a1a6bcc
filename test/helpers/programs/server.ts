/** A MicroServer as a process of its own: see `../server_process.ts`, which starts and asks it. */
import { appendFileSync } from 'node:fs';
import { extname } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { MicroRouter } from '../../../lib/router.ts';
import { MicroServer, stopOnSignals, type Callback, type Service } from '../../../lib/micro_server.ts';
import { MicroWorker } from '../../../lib/worker.ts';
import { createTimer } from '../../../services/timer.ts';
import { FURTHER } from '../dialects.ts';
import { answer, given, ready } from '../child.ts';
import { misbehave } from '../misbehave.ts';
import type { Order, ServerSetUp, Vitals } from '../server_process.ts';

const setUp = given<ServerSetUp>();
const troubles: string[] = [];
process.on('uncaughtException', (error) => troubles.push(`uncaught exception: ${String(error?.stack ?? error)}`));
process.on('unhandledRejection', (error) =>
  troubles.push(`unhandled rejection: ${error instanceof Error ? error.stack : String(error)}`));

// Timers that keep nothing alive are not told by Node: all are counted from here on.
const timers = new Set<NodeJS.Timeout & { _destroyed?: boolean }>();
const { setTimeout: plainTimeout, setInterval: plainInterval } = globalThis;
let prunedAt = 1_000;
function counted(timer: NodeJS.Timeout): NodeJS.Timeout {
  timers.add(timer);
  if (timers.size > prunedAt) prunedAt = 1_000 + 2 * liveTimers();
  return timer;
}
function liveTimers(): number {
  for (const timer of timers) if (timer._destroyed === true) timers.delete(timer);
  return timers.size;
}
const patched = (plain: unknown) => Object.assign((...args: unknown[]) =>
  counted((plain as (...args: unknown[]) => NodeJS.Timeout)(...args)), plain);
globalThis.setTimeout = patched(plainTimeout) as unknown as typeof setTimeout;
globalThis.setInterval = patched(plainInterval) as unknown as typeof setInterval;

const plainNow = Date.now;
let runs = 0;
let running = 0;
let mostRunning = 0;
const aborts: Vitals['aborts'] = [];
const wait = (ms: number) => new Promise<void>((resolve) => { plainTimeout(resolve, ms); });

type StreamOrder = NonNullable<Order['stream']>;
let streamedBytes = 0;
const streamsOver: number[] = [];
async function* stream({ parts = 1, bytes = 1, everyMs = 0 }: StreamOrder): AsyncGenerator<string> {
  try {
    for (let at = 0; at < parts; at++) {
      if (everyMs > 0) await wait(everyMs);
      streamedBytes += bytes;
      yield `${at} `.padEnd(bytes, 'x');
    }
  } finally {
    streamsOver.push(Date.now());
  }
}

/** Does what the message tells; what is no order is echoed. */
const obey: Callback = (message) => {
  let order: Order = {};
  if (message.startsWith('{')) order = JSON.parse(message) as Order;
  else return message;
  const end = () => {
    if (order.throw !== undefined) throw new Error(order.throw);
    if (order.stream !== undefined) return stream(order.stream);
    const reply = order.reply === undefined ? message : order.reply;
    return order.times === undefined ? reply : String(reply).repeat(order.times);
  };
  return order.waitMs === undefined ? end() : wait(order.waitMs).then(end);
};

let isOpen = false;
const gated: (() => void)[] = [];
/** Lets go those that wait, some at a turn: the callback must not be what holds up the others. */
async function open(): Promise<void> {
  isOpen = true;
  for (let next; (next = gated.splice(0, 256)).length > 0; await turn()) for (const go of next) go();
}

function callbackOf(kind: string): Callback {
  const [name, ms] = kind.split(':');
  if (name === 'echo') return (message) => message;
  if (name === 'slow') return (message) => wait(Number(ms)).then(() => message);
  if (name === 'gated') return (message) => (isOpen ? message
    : new Promise((resolve) => { gated.push(() => resolve(message)); }));
  if (name === 'never') return () => new Promise<string>(() => {});
  if (name === 'obey') return obey;
  if (name === 'misbehave') return misbehave;
  if (name === 'timer') return createTimer().callback;
  throw new Error(`Cannot be a server of kind "${kind}"`);
}

const plain = callbackOf(setUp.callback);
const callback: Callback = setUp.bare ? plain : (message, context) => {
  runs++;
  if (setUp.record !== undefined) appendFileSync(setUp.record, `${JSON.stringify(message)}\n`);
  if (setUp.watchAborts) {
    const began = performance.now();
    context.signal.addEventListener('abort', () =>
      aborts.push({ message: message.slice(0, 100), afterMs: performance.now() - began, at: Date.now() }));
  }
  const value = plain(message, context);
  if (value instanceof Promise) {
    mostRunning = Math.max(mostRunning, ++running);
    const done = () => { running--; };
    value.then(done, done);
  }
  return value;
};

/**
 * Touches all of the young generation: V8 lets it grow by 32 MiB when much is allocated, and takes it
 * back as it likes; neither is a leak. Goes with the flag `--min-semi-space-size`. Takes some 20 ms.
 */
function warmUp(): void {
  const kept: unknown[] = [];
  for (let count = 0; count < 400_000; count++) kept[count % 50_000] = { count, text: [count, count] };
}

/** Its `ready` rejects where it can't serve. */
async function serviceOf({ file, create, options }: NonNullable<ServerSetUp['service']>): Promise<Service> {
  const own = file.replace(/\.ts$/, extname(import.meta.url));
  const module = await import(`../../../services/${own}`) as Record<string, (options: object) => Service>;
  const service = module[create]?.(options) as Service & { ready?: Promise<void> };
  await service.ready;
  return service;
}

const service = setUp.service === undefined ? callback
  : await serviceOf(setUp.service).catch((error: Error) => {
    process.stderr.write(`${error.message}\n`);
    process.exit(2);
  });

/** What is to be tested: a server, a router or a worker. */
interface Tested { startListening(): Promise<object>; stop(how?: { graceMs?: number }): Promise<void>; stats(): unknown }
function tested({ key = 'TESTED', address = 0, dialects: names, options, router, worker }: ServerSetUp): Tested {
  if (router !== undefined) {
    const both = new MicroRouter({ front: 0, back: 0, ...router, ...options });
    const startListening = async () => {
      const { front, back } = await both.startListening();
      return { ...front, back: back.port };
    };
    return { startListening, stop: (how) => both.stop(how), stats: () => both.stats() };
  }
  if (worker === undefined) {
    const dialects = names?.map((name) => FURTHER[name]());
    return new MicroServer(service, key, { ports: { [key]: address }, ...(dialects && { dialects }), ...options });
  }
  const member = new MicroWorker(callback, worker.back, { ...worker, ...options });
  return { startListening: () => member.start(), stop: (how) => member.stop(how), stats: () => member.stats() };
}
const server = tested(setUp);
if (setUp.signals) stopOnSignals(server);

answer({
  start: () => server.startListening(),
  stop: (options: { graceMs?: number } | undefined) => server.stop(options),
  stats: () => server.stats(),
  turn: () => {},
  open,
  clock: (aheadMs: number) => { Date.now = () => plainNow() + aheadMs; }, // the wall clock is set
  block: (ms: number) => { // the event loop stands still
    const end = performance.now() + ms;
    while (performance.now() < end);
  },
  collect: async () => {
    warmUp();
    for (let times = 0; times < 3; times++) {
      globalThis.gc?.();
      await turn();
    }
  },
  vitals: (): Vitals => {
    const resources: Record<string, number> = {};
    for (const name of process.getActiveResourcesInfo()) resources[name] = (resources[name] ?? 0) + 1;
    const { rss, heapUsed, external } = process.memoryUsage();
    return { rssBytes: rss, heapBytes: heapUsed, externalBytes: external, timers: liveTimers(),
      resources, troubles, runs, running, mostRunning, aborts, streamedBytes, streamsOver,
      prototypeNames: Reflect.ownKeys(Object.prototype).map(String) };
  },
});
ready(setUp.listen === false ? {} : await server.startListening());
