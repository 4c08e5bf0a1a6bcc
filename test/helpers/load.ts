/** Calls without end: so many in flight at any time, each noted in a history for the checker. */
import { MicroError, type CallOptions, type MicroClient } from '../../lib/micro_client.ts';
import { until } from './deadline.ts';
import type { History } from './checker.ts';
import { Stopwatch } from './stopwatch.ts';

export interface LoadOptions {
  clients: readonly MicroClient[];
  history: History;
  /** What each call's name begins with: names are used once. */
  name: string;
  inFlight: number;
  /** Of the call with that number. */
  options?: (number: number) => CallOptions;
  /** Default of `timeoutMs`, and what the calls' ends are held against. */
  timeoutMs: number;
}

const LATE_MS = 250;

export class Load {
  /** Calls that were answered. */
  answered = 0;
  /** What ended later than its deadline allows, or in a way that no call may. */
  readonly faults: string[] = [];
  readonly #options: LoadOptions;
  readonly #workers: Promise<void>[];
  #isOver = false;
  #last = 0;

  constructor(options: LoadOptions) {
    this.#options = options;
    this.#workers = Array.from({ length: options.inFlight }, () => this.#work());
  }

  /** Resolves when so many more have been answered. */
  async progress(count: number, ms = 10_000): Promise<void> {
    const goal = this.answered + count;
    await until(() => this.answered >= goal, ms, `the answer of ${count} calls under load`);
  }

  /** Begins no more; resolves when those in flight have ended. */
  async stop(): Promise<void> {
    this.#isOver = true;
    await Promise.all(this.#workers);
  }

  async #work(): Promise<void> {
    const { clients, history, name, options, timeoutMs } = this.#options;
    while (!this.#isOver) {
      const number = this.#last++;
      const text = `${name} ${number}`;
      const watch = new Stopwatch();
      let reply: string | undefined;
      let failure: unknown;
      const end = await history.call(text, async () => {
        const client = clients[number % clients.length] as MicroClient;
        try {
          reply = await client.sendMessage(text, { timeoutMs, ...options?.(number) });
        } catch (error) {
          failure = error;
          throw error;
        }
      });
      if (watch.ownMs > timeoutMs + LATE_MS) this.faults.push(`"${text}" ended after ${Math.round(watch.ms)} ms`);
      if (end !== 'ok') {
        const { code, outcome } = failure as MicroError;
        if (!MAY_END_WITH.has(`${code}, ${outcome}`)) this.faults.push(`"${text}" ended with ${code}, ${outcome}`);
        await new Promise((resolve) => { setImmediate(resolve); }); // a refused dial must not spin
        continue;
      }
      if (reply !== text) this.faults.push(`"${text}" was answered with "${reply}"`);
      this.answered++;
    }
  }
}

/** How a call may end whose server goes away and comes back. */
const MAY_END_WITH = new Set(['CONNECTION_LOST, maybe done', 'CONNECTION_LOST, not sent',
  'CONNECTION_REFUSED, not sent', 'SERVER_BUSY, refused']);
