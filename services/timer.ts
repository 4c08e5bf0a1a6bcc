/** TIMER: counts hours, minutes and seconds down. A timer outlives the connection that set it. */
import { zmtp } from '../lib/dialects/zmtp.ts';
import type { Client, Context, Service, Value } from '../lib/index.ts';

export interface TimerOptions {
  /** How many may run at a time. Past it: `Cannot start a timer: …`. Default 1,000. */
  maxTimers?: number;
  /** What it counts by. Default: the system's monotonic clock. A test gives one that it can turn. */
  clock?: Clock;
}

/** A clock in milliseconds that never goes back, whatever is done to the time of day. */
export interface Clock {
  now(): number;
  /** Calls `task` once, after so many milliseconds or a little later; returns what calls it off. */
  after(ms: number, task: () => void): () => void;
}

const SYSTEM_CLOCK: Clock = {
  now: () => performance.now(),
  after(ms, task) {
    const timeout = setTimeout(task, ms).unref(); // a timer alone keeps no process alive
    return () => clearTimeout(timeout);
  },
};

interface Timer {
  readonly id: number;
  readonly totalMs: number;
  readonly dueAt: number;
  isCancelled: boolean;
  /** Streams of it that wait for their next tick. */
  readonly sleepers: Set<() => void>;
}

/** What the service remembers of a client. */
interface Memory {
  /** Numbers that came one by one: hours, then minutes. */
  parts: string[];
  newest: Timer | undefined;
}

/** From the left: name, largest value, milliseconds of one. */
const UNITS = [['hours', 99, 3_600_000], ['minutes', 59, 60_000], ['seconds', 59, 1_000]] as const;
const EXAMPLE = 'Send hours, minutes and seconds, such as 0 0 5';

/**
 * `0 0 5` or `00:00:05`, a message of three parts, or three messages: each comes back as it came,
 * and with the last the timer runs. `stream` tells the seconds of this client's newest one,
 * `stream 0 0 3` of a new one, up to `done`. `status` → a JSON array of `{ id, totalMs,
 * remainingMs }`; `cancel` (this client's newest) or `cancel 7` → `cancelled 7`. What can't be done
 * is one line that begins with `Cannot`.
 *
 * @throws {RangeError} `maxTimers` is no whole number from 1 up.
 */
export function createTimer(options: TimerOptions = {}): Service {
  const { maxTimers = 1_000, clock = SYSTEM_CLOCK } = options;
  if (!Number.isInteger(maxTimers) || maxTimers < 1) {
    throw new RangeError(`Cannot use maxTimers ${maxTimers}: expected a whole number from 1 up`);
  }
  const timers = new Map<number, Timer>();
  const memory = Symbol('timer');
  let lastId = 0;

  function remembered({ state }: Client): Memory {
    const known = state.get(memory) as Memory | undefined ?? { parts: [], newest: undefined };
    state.set(memory, known);
    return known;
  }

  /** Those that run; what is done is forgotten. */
  function running(): Timer[] {
    const now = clock.now();
    for (const { id, dueAt } of timers.values()) if (dueAt <= now) timers.delete(id);
    return [...timers.values()];
  }

  function start(fields: readonly string[], client: Client): Timer {
    const totalMs = readTime(fields);
    if (running().length >= maxTimers) {
      throw new Refusal(`${maxTimers} run already. Cancel one, or raise maxTimers`);
    }
    const dueAt = clock.now() + totalMs;
    const timer: Timer = { id: ++lastId, totalMs, dueAt, isCancelled: false, sleepers: new Set() };
    timers.set(timer.id, timer);
    remembered(client).newest = timer;
    return timer;
  }

  /** One number of three; with the third the timer runs. A wrong one begins anew. */
  function collect(text: string, client: Client): void {
    const known = remembered(client);
    const fields = [...known.parts, text];
    known.parts = [];
    if (fields.length === UNITS.length) return void start(fields, client);
    fields.forEach(readField);
    known.parts = fields;
  }

  function stream(fields: readonly string[], client: Client): Value {
    const timer = fields.length > 0 ? start(fields, client) : remembered(client).newest;
    return timer === undefined ? `Cannot stream: this connection has no timer. ${EXAMPLE}`
      : ticks(timer, clock);
  }

  /** Its streams tell that it was cancelled. */
  function end(timer: Timer): void {
    timers.delete(timer.id);
    timer.isCancelled = true;
    for (const wake of timer.sleepers) wake();
  }

  function cancel([given, ...more]: readonly string[], client: Client): string {
    const id = given === undefined ? String(remembered(client).newest?.id) : given;
    const timer = running().find((one) => String(one.id) === id && more.length === 0);
    if (timer === undefined) {
      const which = given === undefined ? 'one: this connection has none that runs'
        : `${shown([given, ...more].join(' '))}: no timer of that id runs`;
      return `Cannot cancel ${which}. Send "status" for those that do`;
    }
    end(timer);
    return `cancelled ${timer.id}`;
  }

  function status(): string {
    const now = clock.now();
    return JSON.stringify(running().map(({ id, totalMs, dueAt }) =>
      ({ id, totalMs, remainingMs: Math.ceil(dueAt - now) })));
  }

  function answer(message: string, { client, parts }: Context): Value {
    if (parts !== undefined && parts.length !== 1) {
      start(parts.map((part) => Buffer.from(part).toString()), client);
      return { parts };
    }
    const [word = '', ...rest] = message.trim().split(/\s+/);
    if (word === 'stream') return stream(rest.flatMap((one) => one.split(':')), client);
    if (word === 'cancel') return cancel(rest, client);
    if (word === 'status' && rest.length === 0) return status();
    const fields = message.includes(':') ? message.trim().split(':') : [word, ...rest];
    if (fields.length === 1) collect(word, client);
    else start(fields, client);
    return message;
  }

  return {
    dialects: [zmtp()], // for the REQ sockets of pyzmq programs
    contract: {
      summary: 'Counts hours, minutes and seconds down.',
      messages: {
        start: { example: '00:00:05', reply: '00:00:05' },
        status: { example: 'status', reply: '[{"id":1,"totalMs":5000,"remainingMs":4998}]' },
        cancel: { example: 'cancel', reply: 'cancelled 1' },
        stream: { example: 'stream 0 0 1', reply: '00:00:01\ndone' },
      },
    },
    callback(message, context) {
      try {
        return answer(message, context);
      } catch (error) {
        if (error instanceof Refusal) return `Cannot start a timer: ${error.message}`;
        throw error;
      }
    },
    async stop() {
      timers.forEach(end);
    },
  };
}

/** Why a timer can't start: what is, and what was expected. */
class Refusal extends Error {}

function readTime(fields: readonly string[]): number {
  if (fields.length === UNITS.length) {
    return fields.reduce((ms, field, at) => ms + readField(field, at) * (UNITS[at]?.[2] ?? 0), 0);
  }
  throw new Refusal(`got ${shown(fields.join(' '))}, expected three numbers. ${EXAMPLE}`);
}

/** Digits alone: no sign, no fraction, no exponent. */
function readField(field: string, at: number): number {
  const [name, most] = UNITS[at] ?? UNITS[0];
  const value = /^\d+$/.test(field) ? Number(field) : NaN;
  if (value <= most) return value;
  throw new Refusal(`${name} is ${shown(field)}, expected a whole number from 0 to ${most}. ` +
    EXAMPLE);
}

/** On one line and not too long, whatever was sent. */
function shown(text: string): string {
  return JSON.stringify(text.length > 60 ? `${text.slice(0, 60)}…` : text);
}

/**
 * The seconds that are left, each told as it begins, then `done`. Reckoned from when the timer is
 * due, so that no delay adds to the next, and none is told early. A slow reader misses some.
 */
async function* ticks(timer: Timer, clock: Clock): AsyncGenerator<string, void, undefined> {
  for (let last = Infinity; ;) {
    if (timer.isCancelled) return yield `cancelled ${timer.id}`;
    const leftMs = timer.dueAt - clock.now();
    if (leftMs <= 0) return yield 'done';
    const seconds = Math.ceil(leftMs / 1000);
    if (seconds < last) {
      last = seconds;
      yield clockFace(seconds);
    } else {
      await sleep(timer, clock, Math.max(1, Math.ceil(leftMs - (last - 1) * 1000)));
    }
  }
}

/** Resolves after so many milliseconds, or when the timer is cancelled. */
function sleep({ sleepers }: Timer, clock: Clock, ms: number): Promise<void> {
  return new Promise((resolve) => {
    const wake = () => {
      sleepers.delete(wake);
      callOff();
      resolve();
    };
    const callOff = clock.after(ms, wake);
    sleepers.add(wake);
  });
}

function clockFace(seconds: number): string {
  return [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60]
    .map((value) => String(value).padStart(2, '0')).join(':');
}
