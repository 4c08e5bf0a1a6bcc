/** What is measured, a row a shape, and how. */
import { Child, timeToEnd, type StartOptions } from './child.ts';
import type { ClientCommands } from './client.ts';
import { numbered, type LoadOptions } from './load.ts';
import type { ServerCommands } from './server.ts';

/** What people pick from npm: each is a line here, a file in `peers/` and in package.json. */
export const PACKAGES = [
  'ws',
  'axon',
  'node-ipc',
  'jayson',
  'zeromq',
] as const;

/** Who takes part: `portcall` and its rivals. `1 MiB` is portcall again, with a smaller text. */
export type Side = 'portcall' | 'bare' | '1 MiB' | (typeof PACKAGES)[number];
export type Unit = 'msg/s' | 'µs CPU/msg' | 'ms' | 'bytes/conn';
export interface Bar { atLeast?: number; atMost?: number }

/** What a run of the whole suite shares. */
export interface Bench {
  program: (name: string) => string; // the path of a transpiled file of this folder
  pins: Record<Cores, Pins>;
  packages: ReadonlyMap<string, string>; // paths of those that are installed
  warmUpMs: number; // in each process, before anything counts
  slices: number; // what counts, for each side in a round
  sliceMs: number;
  scriptRuns: number; // processes of each kind in a round
}
export interface Pins { server?: number; client?: number }

/** On two cores, one for each process; both on one; or wherever the system puts them. */
export type Cores = 'two' | 'one' | 'any';

export interface Shape {
  name: string;
  about: string;
  unit: Unit;
  cores?: Cores;
  /** The rivals, each with the bar for portcall's figure divided by theirs; `{}` only tells. */
  against: Partial<Record<Side, Bar>>;
  /** One figure for each side, all taken within a few seconds of each other. */
  round: (bench: Bench, sides: Side[]) => Promise<Map<Side, number>>;
}

const MIB = 1024 * 1024;
const ONE: LoadOptions = { connections: 1, inFlight: 1, textBytes: 32, maxMessageBytes: MIB };
const FLIGHT_64 = { ...ONE, inFlight: 64 };
const FLIGHT_1000 = { ...ONE, inFlight: 1000 };
const CONNECTIONS_100 = { ...ONE, connections: 100 };
const TEXT_1M = { ...ONE, inFlight: 4, textBytes: MIB };
const BIG_TEXT = { ...ONE, textBytes: MIB, maxMessageBytes: 64 * MIB };
const SMALL_TIMES = 20; // 1 MiB texts in a round, of which the median counts
const IDLE_SOCKETS = 2000;

export const SHAPES: readonly Shape[] = [
  { name: 'one', about: 'one message at a time',
    unit: 'msg/s', round: rate(ONE), against: { bare: { atLeast: 1.0 } } },
  { name: 'flight64', about: '64 messages in flight on one connection',
    unit: 'msg/s', round: rate(FLIGHT_64), against: { bare: { atLeast: 5.5 }, ws: { atLeast: 7 } } },
  { name: 'flight1000', about: '1,000 messages in flight on one connection',
    unit: 'msg/s', round: rate(FLIGHT_1000), against: { bare: { atLeast: 11 }, ws: { atLeast: 15 } } },
  { name: 'connections100', about: '100 connections with one message in flight each',
    unit: 'msg/s', round: rate(CONNECTIONS_100), against: { bare: { atLeast: 1.0 } } },
  { name: 'text1m', about: 'texts of 1 MiB, 4 in flight',
    unit: 'msg/s', round: rate(TEXT_1M), against: { bare: { atLeast: 0.9 } } },
  { name: 'text64m', about: 'one text of 64 MiB, next to one of 1 MiB, each the first in new processes',
    unit: 'ms', round: bigText, against: { '1 MiB': { atMost: 80 }, bare: {} } },
  { name: 'text64m-warm', about: 'as text64m, after a second of texts of 1 MiB',
    unit: 'ms', round: warmBigText, against: { '1 MiB': {}, bare: {} } },
  { name: 'cpu64', about: 'CPU of both processes for a message, 64 in flight',
    unit: 'µs CPU/msg', round: cpu(FLIGHT_64), against: { bare: { atMost: 0.2 } } },
  { name: 'cpu1', about: 'CPU of both processes for a message, one at a time',
    unit: 'µs CPU/msg', round: cpu(ONE), against: { bare: {} } },
  { name: 'idle-silent', about: 'resident memory of a connection that never sent a byte',
    unit: 'bytes/conn', round: idle(false, 'resident'), against: { bare: { atMost: 1.1 } } },
  { name: 'idle-spoken', about: 'resident memory of a connection after one line and its reply',
    unit: 'bytes/conn', round: idle(true, 'resident'), against: { bare: { atMost: 1.1 } } },
  { name: 'heap-silent', about: 'as idle-silent, V8 heap in use',
    unit: 'bytes/conn', round: idle(false, 'heap'), against: { bare: {} } },
  { name: 'heap-spoken', about: 'as idle-spoken, V8 heap in use',
    unit: 'bytes/conn', round: idle(true, 'heap'), against: { bare: {} } },
  { name: 'script', about: 'a process that sends one message and ends, beyond an empty one',
    unit: 'ms', round: scripts, against: { bare: { atMost: 1.3 } } },
  { name: 'one-1core', about: 'as one, both processes on one core',
    unit: 'msg/s', cores: 'one', round: rate(ONE, 'one'), against: { bare: {} } },
  { name: 'flight64-1core', about: 'as flight64, both processes on one core',
    unit: 'msg/s', cores: 'one', round: rate(FLIGHT_64, 'one'), against: { bare: {} } },
  { name: 'flight1000-1core', about: 'as flight1000, both processes on one core',
    unit: 'msg/s', cores: 'one', round: rate(FLIGHT_1000, 'one'), against: { bare: {} } },
  { name: 'one-free', about: 'as one, not pinned',
    unit: 'msg/s', cores: 'any', round: rate(ONE, 'any'), against: { bare: {} } },
  { name: 'flight64-free', about: 'as flight64, not pinned',
    unit: 'msg/s', cores: 'any', round: rate(FLIGHT_64, 'any'), against: { bare: {} } },
  { name: 'flight1000-free', about: 'as flight1000, not pinned',
    unit: 'msg/s', cores: 'any', round: rate(FLIGHT_1000, 'any'), against: { bare: {} } },
];

/** The plainest of them, beside every package: these only tell. */
export const PEER_SHAPES: readonly Shape[] = SHAPES
  .filter(({ name }) => ['one', 'flight64', 'flight1000', 'connections100', 'text1m'].includes(name))
  .map((shape) => ({
    ...shape, against: Object.fromEntries(['bare', ...PACKAGES].map((side) => [side, {}])),
  }));

interface Total { replies: number; elapsedMs: number; cpuMicros: number }

function rate(load: LoadOptions, cores: Cores = 'two'): Shape['round'] {
  return driven(load, cores, ({ replies, elapsedMs }) => replies / (elapsedMs / 1000));
}

function cpu(load: LoadOptions): Shape['round'] {
  return driven(load, 'two', ({ replies, cpuMicros }) => cpuMicros / replies);
}

/**
 * All sides are up at the same time and are driven in short slices in turn: of two equal sides, one
 * measured after the other differed by up to 30 %, in slices by 5 %. The processes are new in each
 * round, because how V8 happens to compile a program differs from start to start.
 */
function driven(load: LoadOptions, cores: Cores, figure: (total: Total) => number): Shape['round'] {
  const { inFlight } = load;
  return (bench, sides) => withPairs(bench, sides, { cores }, async (pairs) => {
    const totals = new Map<Side, Total>();
    for (const { side, server, client } of pairs) {
      const port = await server.ask('listen', limits(load));
      await client.ask('connect', { port, load });
      await client.ask('run', { ms: bench.warmUpMs, inFlight });
      totals.set(side, { replies: 0, elapsedMs: 0, cpuMicros: 0 });
    }
    const slices = cores === 'two' ? bench.slices : bench.slices / 2; // without a bar, half will do
    for (let slice = 0; slice < slices; slice++) {
      for (const { side, server, client } of slice % 2 === 0 ? pairs : pairs.toReversed()) {
        const before = await server.ask('cpu', undefined);
        const ran = await client.ask('run', { ms: bench.sliceMs, inFlight });
        const after = await server.ask('cpu', undefined);
        const total = totals.get(side) ?? ran;
        total.replies += ran.replies;
        total.elapsedMs += ran.elapsedMs;
        total.cpuMicros += ran.cpuMicros + after - before;
      }
    }
    return new Map([...totals].map(([side, total]) => [side, figure(total)]));
  });
}

/** Both sizes under the same conditions: nothing is compiled yet, and no memory of that size was ever used. */
async function bigText(bench: Bench): Promise<Map<Side, number>> {
  const first = (textBytes: number) => withPairs(bench, ['bare', 'portcall'], {}, async (pairs) => {
    const figures = new Map<Side, number>();
    for (const { side, server, client } of pairs) {
      const port = await server.ask('listen', limits(BIG_TEXT));
      await client.ask('connect', { port, load: BIG_TEXT });
      figures.set(side, median(await client.ask('time', { textBytes, times: 1 })));
    }
    return figures;
  });
  const small = await first(MIB);
  return new Map([...await first(64 * MIB), ['1 MiB', small.get('portcall') ?? NaN]]);
}

function warmBigText(bench: Bench): Promise<Map<Side, number>> {
  return withPairs(bench, ['bare', 'portcall'], {}, async (pairs) => {
    const figures = new Map<Side, number>();
    for (const { side, server, client } of pairs) {
      const port = await server.ask('listen', limits(BIG_TEXT));
      await client.ask('connect', { port, load: BIG_TEXT });
      await client.ask('run', { ms: bench.warmUpMs, inFlight: 1 });
      const small = await client.ask('time', { textBytes: MIB, times: SMALL_TIMES });
      const big = await client.ask('time', { textBytes: 64 * MIB, times: 1 });
      if (side === 'portcall') figures.set('1 MiB', median(small));
      figures.set(side, median(big));
    }
    return figures;
  });
}

/**
 * What a new server grows by. Its resident memory holds the young generation too, which grows once,
 * by megabytes, whatever the first connections are; the heap in use shows what each more one costs.
 */
function idle(speak: boolean, memory: 'resident' | 'heap'): Shape['round'] {
  return (bench, sides) => withPairs(bench, sides, { serverFlags: ['--expose-gc'] }, async (pairs) => {
    const figures = new Map<Side, number>();
    for (const { side, server, client } of pairs) {
      const port = await server.ask('listen', limits(ONE, IDLE_SOCKETS + 1));
      const before = await server.ask('memory', { accepts: 0 });
      await client.ask('hold', { port, sockets: IDLE_SOCKETS, speak });
      const after = await server.ask('memory', { accepts: IDLE_SOCKETS });
      await client.ask('release', undefined);
      figures.set(side, (after[memory] - before[memory]) / IDLE_SOCKETS);
    }
    return figures;
  });
}

async function scripts(bench: Bench, sides: Side[]): Promise<Map<Side, number>> {
  const { server: serverCore, client: core } = bench.pins.two;
  const servers: Child<ServerCommands>[] = [];
  const contestants: { side: Side; words: string[]; took: number[] }[] = [];
  const empty: number[] = [];
  try {
    for (const side of sides) {
      const server = start<ServerCommands>(bench, 'server', side, { core: serverCore });
      servers.push(server);
      const port = await server.ask('listen', limits(ONE));
      const words = [bench.program(`scripts/${side}`), String(port)];
      contestants.push({ side, words, took: [] });
    }
    for (let run = 0; run <= bench.scriptRuns; run++) {
      const counts = run > 0; // the first fills the system's caches
      const emptyMs = timeToEnd(['-e', '0'], core);
      if (counts) empty.push(emptyMs);
      for (const { words, took } of contestants) {
        const ms = timeToEnd([...words, numbered(run, ONE.textBytes)], core);
        if (counts) took.push(ms);
      }
    }
  } finally {
    await Promise.all(servers.map((server) => server.stop()));
  }
  return new Map(contestants.map(({ side, took }) => [side, median(took) - median(empty)]));
}

interface Pair { side: Side; server: Child<ServerCommands>; client: Child<ClientCommands> }

/** Starts a server and a client for each side, and ends them whatever happens. */
async function withPairs<T>(
  bench: Bench, sides: readonly Side[],
  { cores = 'two', serverFlags: flags = [] }: { cores?: Cores; serverFlags?: readonly string[] },
  use: (pairs: [Pair, ...Pair[]]) => Promise<T>,
): Promise<T> {
  const pins = bench.pins[cores];
  const pairs = sides.map((side): Pair => ({
    side,
    server: start(bench, 'server', side, { core: pins.server, flags }),
    client: start(bench, 'client', side, { core: pins.client }),
  }));
  try {
    return await use(pairs as [Pair, ...Pair[]]);
  } finally {
    await Promise.all(pairs.flatMap(({ server, client }) => [client.stop(), server.stop()]));
  }
}

function start<C extends ServerCommands | ClientCommands>(
  bench: Bench, program: 'server' | 'client', side: Side, options: StartOptions,
): Child<C> {
  const words = [bench.program(program), side];
  const path = bench.packages.get(side);
  const env = path === undefined ? {} : { BENCH_PACKAGE: path };
  return new Child<C>(words, `${program} of ${side}`, { ...options, env });
}

function limits({ maxMessageBytes }: LoadOptions, maxConnections = 1024) {
  return { maxMessageBytes, maxConnections };
}

export function median(numbers: readonly number[]): number {
  const sorted = numbers.toSorted((a, b) => a - b);
  const middle = sorted.length / 2;
  const low = sorted[Math.ceil(middle) - 1] ?? NaN;
  const high = sorted[Math.floor(middle)] ?? NaN;
  return (low + high) / 2;
}
