/** Clocks that a test turns: the seams of `services/timer.ts` and of `lib/schedule.ts`. */
import { setImmediate as turn } from 'node:timers/promises';
import type { Clock } from '../../lib/schedule.ts';

export class FakeClock {
  #now = 0;
  readonly #tasks = new Set<{ at: number; task: () => void }>();
  readonly #lateMs: number;

  /** @param lateMs So many milliseconds each task comes late, as on a busy machine; early, if below 0. */
  constructor(lateMs = 0) {
    this.#lateMs = lateMs;
  }

  readonly now = (): number => this.#now;

  readonly after = (ms: number, task: () => void): (() => void) => {
    const entry = { at: this.#now + Math.max(ms / 2, ms + this.#lateMs), task };
    this.#tasks.add(entry);
    return () => this.#tasks.delete(entry);
  };

  /** How many tasks wait. */
  get waiting(): number {
    return this.#tasks.size;
  }

  /** Goes on by so many milliseconds, and does what falls into them, each at its time. */
  async advance(ms: number): Promise<void> {
    const end = this.#now + ms;
    await turn();
    for (;;) {
      const [next] = [...this.#tasks].filter(({ at }) => at <= end).sort((a, b) => a.at - b.at);
      if (next === undefined) break;
      this.#now = next.at;
      this.#tasks.delete(next);
      next.task();
      await turn(); // what waited for it goes on, and may wait for the next
    }
    this.#now = end;
  }
}

/** With a time of day beside the time that goes by. */
export class WallClock extends FakeClock implements Clock {
  #aheadMs: number;

  constructor(wallMs = Date.UTC(2026, 0, 1)) {
    super();
    this.#aheadMs = wallMs;
  }

  readonly steadyMs = this.now;
  readonly wake = this.after;

  wallMs(): number {
    return this.now() + this.#aheadMs;
  }

  /** The machine sleeps: the time of day goes on, all else stands still. */
  sleep(ms: number): void {
    this.#aheadMs += ms;
  }

  /** Somebody sets the time of day. */
  set(byMs: number): void {
    this.#aheadMs += byMs;
  }
}
