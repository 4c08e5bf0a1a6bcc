/**
 * The router: clients call its front, workers dial its back, and it hands each request to a worker.
 * Its front is a MicroServer whose callback forwards, so that every dialect, limit and error of a
 * server holds; its back is one too, and its only dialect turns the roles round.
 */
import { loadBeside, logToStderr, quoted } from './micro_client.ts';
import type { Address } from './micro_client.ts';
import { MicroServer } from './micro_server.ts';
import type { Context, Request, ServerOptions, Stats } from './micro_server.ts';
import { Pool, type PoolOptions, type Strategy, type WorkerStats } from './pool.ts';
import { workerFrames } from './worker_link.ts';
import { zmtpWorkers } from './zmtp_workers.ts';

export interface RouterOptions extends Omit<ServerOptions, 'maxInFlight'>, PoolOptions {
  front: string | number; back: string | number; // keys, ports or addresses; `host` is the front's
  strategy?: string | Strategy; // a file of `routing/`, or a function; default `round_robin`
}

export interface RouterStats { front: Stats; queued: number; workers: WorkerStats[] }

export class MicroRouter {
  readonly #front: MicroServer; readonly #back: MicroServer; readonly #pool: Pool;
  readonly #strategy: string | Strategy;

  /** @throws {TypeError | RangeError} Wrong options. A wrong address is told by `startListening`. */
  constructor(options: RouterOptions) {
    const { front, back, host, maxInFlight: _, strategy = 'round_robin', ...shared } = options;
    const isName = typeof strategy === 'string' && /^[a-z]+(?:_[a-z]+)*$/.test(strategy);
    if (!isName && typeof strategy !== 'function') {
      throw new TypeError(`Cannot route by ${quoted(strategy)}: ` +
        'expected a function, or the name of a file of routing/');
    }
    const pool = new Pool(() => undefined, options.log ?? logToStderr, options);
    // Declared so that it takes no context: a dialect with parts must not think that they are read.
    const forward = (...[, context]: [string, Context]) => pool.forward(context as Request);
    const join = (_text: string, context: Context) => pool.join(context as Request);
    this.#front = new MicroServer(forward, front, { ...shared, ...(host !== undefined && { host }) });
    // A ZeroMQ framework's workers can't say a token: where one is wanted, they are not let in.
    const foreign = options.token === undefined ? [zmtpWorkers(pool)] : [];
    const dialects = [workerFrames(pool), ...foreign];
    this.#back = new MicroServer(join, back, { ...shared, dedupe: 0, dialects });
    this.#pool = pool;
    this.#strategy = strategy;
  }

  /**
   * Binds both ports and serves; resolves with where.
   * @throws {MicroError} `PORT_IN_USE`, `BAD_ADDRESS`, `UNKNOWN_SERVICE`, `BAD_PORTS_FILE`.
   */
  async startListening(): Promise<{ front: Address; back: Address }> {
    this.#pool.choose = await loadStrategy(this.#strategy);
    const back = await this.#back.startListening();
    try {
      const front = await this.#front.startListening();
      this.#pool.start();
      return { front, back };
    } catch (error) {
      await this.#back.stop();
      throw error;
    }
  }

  /** Stops accepting, waits for what workers do (for `graceMs`, by default `drainMs`), lets them go. */
  async stop(options: { graceMs?: number } = {}): Promise<void> {
    await this.#front.stop(options);
    await this.#back.stop(options);
    this.#pool.stop();
  }

  stats(): RouterStats {
    const { queued, workers } = this.#pool;
    return { front: this.#front.stats(), queued, workers };
  }
}

/** @throws {TypeError} There is no such file. */
async function loadStrategy(strategy: string | Strategy): Promise<Strategy> {
  if (typeof strategy === 'function') return strategy;
  try {
    return (await loadBeside(`routing/${strategy}`) as { strategy(): Strategy }).strategy();
  } catch (cause) {
    const why = `expected lib/routing/${strategy}.ts`;
    throw new TypeError(`Cannot route by ${quoted(strategy)}: ${why}`, { cause });
  }
}
