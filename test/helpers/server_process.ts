/** A server under test in a process of its own: it can be killed, frozen, and looked at from outside. */
import { existsSync, readFileSync } from 'node:fs';
import type { ServerOptions, Stats } from '../../lib/micro_server.ts';
import type { HeartbeatOptions } from '../../lib/heartbeat.ts';
import type { Address } from '../../lib/micro_client.ts';
import type { Further } from './dialects.ts';
import type { PoolOptions } from '../../lib/pool.ts';
import type { RouterStats } from '../../lib/router.ts';
import { Child, withChild, type ChildOptions } from './child.ts';

/**
 * What its callback does. `obey`: what the message says, see {@link Order}; `timer`: the service TIMER;
 * `misbehave`: fails as the message says; `gated`: an echo that waits for the command `open`.
 */
export type Kind = 'echo' | 'gated' | 'never' | 'obey' | 'misbehave' | 'timer' | `slow:${number}`;

/** A message to a server of the kind `obey`, as JSON. Without `reply` it is the message itself. */
export interface Order {
  reply?: string | null;
  /** The reply so many times over. */
  times?: number;
  waitMs?: number;
  throw?: string;
  stream?: { parts?: number; bytes?: number; everyMs?: number };
}

export interface ServerSetUp {
  callback: Kind;
  /** One of `services/` in place of the callback: its file, what makes it, and of what. */
  service?: { file: string; create: string; options: object };
  /** A file that gets each message that is run, as a line of JSON, before it is answered. */
  record?: string;
  /** Notes when the signals of requests were aborted: {@link Vitals.aborts}. */
  watchAborts?: boolean;
  /** The callback alone: nothing is counted. For what is measured. */
  bare?: boolean;
  /** As `portcall serve`: SIGTERM and SIGINT drain. */
  signals?: boolean;
  /** False: only what the command `start` says. */
  listen?: boolean;
  /** Beside lines and frames. */
  dialects?: readonly Further[];
  key?: string;
  /** Default 0: any free port of 127.0.0.1. */
  address?: number | string;
  /** JSON crosses, functions don't. */
  options?: Omit<ServerOptions, 'dialects' | 'log'>;
  /** A router instead, on these ports (default: any); then the callback is its workers'. */
  router?: { front?: number; back?: number; strategy?: string } & PoolOptions;
  /** A worker instead, of the router whose back this is. */
  worker?: { back: number; id?: string; heartbeat?: HeartbeatOptions };
}

/** What the server's process tells of itself. */
export interface Vitals {
  rssBytes: number;
  heapBytes: number;
  externalBytes: number;
  /** All that are armed, those that keep nothing alive included. */
  timers: number;
  /** `process.getActiveResourcesInfo()`, counted by name. */
  resources: Record<string, number>;
  /** Unhandled rejections and uncaught exceptions. */
  troubles: string[];
  /** Calls of the callback; those running, and the most at a time. */
  runs: number;
  running: number;
  mostRunning: number;
  aborts: { message: string; afterMs: number; at: number }[];
  /** Bytes that streams were asked for, and when each of them was over: in milliseconds since 1970. */
  streamedBytes: number;
  streamsOver: number[];
  /** What `Object.prototype` has: a message must never add to it. */
  prototypeNames: string[];
}

export class ServerProcess extends Child {
  readonly setUp: ServerSetUp;
  address: Address = { url: '', scheme: '' };

  private constructor(setUp: ServerSetUp, { flags = [], ...options }: ChildOptions) {
    // Memory that is free goes back to the system at once: else its size tells of the allocator's
    // habits (some 40 MiB after a few messages of 1 MiB), not of what the server holds.
    const env = { MALLOC_MMAP_THRESHOLD_: '131072', MALLOC_TRIM_THRESHOLD_: '131072', ...options.env };
    const known = ['--expose-gc', '--min-semi-space-size=16'];
    super('server.ts', setUp, { flags: [...known, ...flags], ...options, env });
    this.setUp = setUp;
  }

  /** Starts one and resolves when it listens. */
  static async start(setUp: Partial<ServerSetUp> = {}, options: ChildOptions = {}): Promise<ServerProcess> {
    const server = new ServerProcess({ callback: 'echo', ...setUp }, options);
    server.address = await server.ready<Address>();
    return server;
  }

  /** Starts one, does `task`, and ends it. */
  static with<T>(setUp: Partial<ServerSetUp>, task: (server: ServerProcess) => Promise<T>,
    options: ChildOptions = {}): Promise<T> {
    return withChild(ServerProcess.start(setUp, options), task);
  }

  get port(): number {
    return this.address.port as number;
  }

  /** @param collected After garbage was collected, as memory is to be compared. */
  async vitals({ collected = false } = {}): Promise<Vitals> {
    if (collected) await this.ask('collect');
    return this.ask<Vitals>('vitals');
  }

  /** Where workers dial, if it is a router. */
  get back(): number {
    return (this.address as Address & { back: number }).back;
  }

  routerStats(): Promise<RouterStats> {
    return this.ask<RouterStats>('stats');
  }

  stats(): Promise<Stats> {
    return this.ask<Stats>('stats');
  }

  /**
   * Resolves when the server has read all that the system held for it when this was called: its
   * poll takes every readable socket, the one that this question comes by among them.
   */
  async hasRead(): Promise<void> {
    await this.ask('turn');
    await this.ask('turn');
  }

  /** The server's own `stop()`; its process goes on and can `start()` again. */
  stop(options?: { graceMs?: number }, ms = 15_000): Promise<void> {
    return this.ask('stop', options, ms);
  }

  async start(): Promise<Address> {
    return this.address = await this.ask<Address>('start');
  }

  /** Messages that were run, as the file of the option `record` has them; a torn last line is no message. */
  recorded(): string[] {
    const { record } = this.setUp;
    if (record === undefined || !existsSync(record)) return [];
    return readFileSync(record, 'utf8').split('\n').slice(0, -1).map((line) => JSON.parse(line) as string);
  }

  /** Those that were run during a task. */
  async runsOf(task: () => Promise<unknown>): Promise<string[]> {
    const before = this.recorded().length;
    await task();
    return this.recorded().slice(before);
  }
}
