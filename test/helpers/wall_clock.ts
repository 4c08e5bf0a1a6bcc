/** A clock that a test moves: the seam of `lib/schedule.ts`. */
import type { Clock } from '../../lib/schedule.ts';

export class WallClock implements Clock {
  #wallMs: number;
  #steadyMs = 0;
  readonly #alarms = new Map<() => void, number>();

  constructor(wallMs = Date.UTC(2026, 0, 1)) {
    this.#wallMs = wallMs;
  }

  wallMs(): number {
    return this.#wallMs;
  }

  steadyMs(): number {
    return this.#steadyMs;
  }

  wake(ms: number, ring: () => void): () => void {
    this.#alarms.set(ring, this.#steadyMs + ms);
    return () => { this.#alarms.delete(ring); };
  }

  /** How many alarms are set. */
  get alarms(): number {
    return this.#alarms.size;
  }

  /** Time goes by while the machine is awake: each alarm rings at its time, and what it starts goes on. */
  async pass(ms: number): Promise<void> {
    const end = this.#steadyMs + ms;
    for (;;) {
      for (let turns = 0; turns < 5; turns++) await Promise.resolve(); // what rang sets the next alarm
      const [next] = [...this.#alarms].sort((a, b) => a[1] - b[1]);
      if (next === undefined || next[1] > end) break;
      this.#go(next[1] - this.#steadyMs);
      this.#alarms.delete(next[0]);
      next[0]();
    }
    this.#go(end - this.#steadyMs);
  }

  /** The machine sleeps: the time of day goes on, all else stands still. */
  sleep(ms: number): void {
    this.#wallMs += ms;
  }

  /** Somebody sets the time of day. */
  set(byMs: number): void {
    this.#wallMs += byMs;
  }

  #go(ms: number): void {
    this.#steadyMs += ms;
    this.#wallMs += ms;
  }
}
