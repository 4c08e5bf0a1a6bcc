/** A clock that a test turns: for a service that takes one. */
import { setImmediate as turn } from 'node:timers/promises';

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
