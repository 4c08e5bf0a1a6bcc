/** Does a task every so often, for months: through a machine's sleep, and a clock that is set. */

/** Where the time comes from: the seam by which a test moves it. */
export interface Clock {
  /** The time of day, in milliseconds since 1970: goes on in the machine's sleep, can be set. */
  wallMs(): number;
  /** Milliseconds that never go back; they may stand still while the machine sleeps. */
  steadyMs(): number;
  /** Calls `ring` once, after so many milliseconds awake. Returns what calls it off. */
  wake(ms: number, ring: () => void): () => void;
}

export const SYSTEM_CLOCK: Clock = {
  wallMs: () => Date.now(),
  steadyMs: () => performance.now(),
  wake(ms, ring) {
    const timer = setTimeout(ring, ms).unref();
    return () => clearTimeout(timer);
  },
};

/** No longer, so that a sleep or a set clock is noticed. Node's own timers end at 2^31 ms. */
const LONGEST_WAIT_MS = 60_000;

export interface ScheduleOptions {
  /** Milliseconds from the start of one run to the start of the next, at least 1. */
  everyMs: number;
  /** Never rejects. The next run waits for its end; what came due meanwhile is left out. */
  task(): Promise<unknown>;
  clock?: Clock;
}

/**
 * An interval is over when either clock says so. A sleep of 8 hours is followed by one run, not by
 * one for each interval missed; a clock set forward makes one run early, one set back none late.
 */
export class Schedule {
  readonly #everyMs: number;
  readonly #task: () => Promise<unknown>;
  readonly #clock: Clock;
  #state: 'new' | 'waiting' | 'running' | 'stopped' = 'new';
  #since = { wallMs: 0, steadyMs: 0 }; // when the present interval began
  #callOff = (): void => {};

  constructor({ everyMs, task, clock = SYSTEM_CLOCK }: ScheduleOptions) {
    this.#everyMs = everyMs;
    this.#task = task;
    this.#clock = clock;
  }

  /** The first run comes one interval from now, or at once. Once started, it does nothing. */
  start({ atOnce = false }: { atOnce?: boolean } = {}): void {
    if (this.#state !== 'new') return;
    this.#begin(atOnce ? this.#everyMs : 0);
    if (atOnce) void this.#ring();
    else this.#wait();
  }

  /** No run begins any more; one that goes on is its owner's to end. */
  stop(): void {
    this.#state = 'stopped';
    this.#callOff();
  }

  /** When the next run is due, in milliseconds since 1970. Undefined: not started, or stopped. */
  get nextAtMs(): number | undefined {
    if (this.#state === 'new' || this.#state === 'stopped') return undefined;
    return this.#clock.wallMs() + Math.max(0, this.#everyMs - this.#elapsedMs());
  }

  async #ring(): Promise<void> {
    if (this.#elapsedMs() >= this.#everyMs) {
      this.#skipMissed();
      this.#state = 'running';
      await this.#task();
      this.#skipMissed();
    }
    if (this.#isStopped()) return;
    this.#wait();
  }

  #wait(): void {
    this.#state = 'waiting';
    const leftMs = Math.max(1, Math.ceil(this.#everyMs - this.#elapsedMs()));
    this.#callOff = this.#clock.wake(Math.min(leftMs, LONGEST_WAIT_MS), () => void this.#ring());
  }

  #skipMissed(): void {
    const elapsedMs = this.#elapsedMs();
    if (elapsedMs >= this.#everyMs) this.#begin(elapsedMs % this.#everyMs);
  }

  /** The present interval began so long ago. */
  #begin(agoMs: number): void {
    const { wallMs, steadyMs } = this.#now();
    this.#since = { wallMs: wallMs - agoMs, steadyMs: steadyMs - agoMs };
  }

  #elapsedMs(): number {
    const { wallMs, steadyMs } = this.#now();
    return Math.max(wallMs - this.#since.wallMs, steadyMs - this.#since.steadyMs);
  }

  #now() {
    return { wallMs: this.#clock.wallMs(), steadyMs: this.#clock.steadyMs() };
  }

  #isStopped(): boolean {
    return this.#state === 'stopped';
  }
}
