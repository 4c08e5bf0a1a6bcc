/** Time that is the program's own: a busy machine must not be taken for a slow program. */
import { readFileSync } from 'node:fs';

export class Stopwatch {
  readonly #began = performance.now();
  readonly #waitsBefore: readonly [pid: number | 'self', ms: number][];

  /** @param others Processes that take part, beside this one. */
  constructor(...others: number[]) {
    this.#waitsBefore = (['self', ...others] as const).map((pid) => [pid, waitedMs(pid) ?? 0]);
  }

  /** Milliseconds since it was made. */
  get ms(): number {
    return performance.now() - this.#began;
  }

  /** Those of them in which one of the processes was ready to run but had no core. */
  get waitedMs(): number {
    return this.#waitsBefore.reduce((sum, [pid, before]) => sum + (waitedMs(pid) ?? before) - before, 0);
  }

  /** What is held against an upper limit. */
  get ownMs(): number {
    return Math.max(0, this.ms - this.waitedMs);
  }
}

/** Nothing where there is no Linux, or the process has ended: then nothing is excused. */
function waitedMs(pid: number | 'self'): number | undefined {
  try {
    return Number(readFileSync(`/proc/${pid}/schedstat`, 'latin1').split(' ')[1]) / 1e6;
  } catch {
    return undefined;
  }
}
