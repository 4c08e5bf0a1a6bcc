/**
 * Runs a task one at a time, however many ask. Whoever asks while it runs shares the run behind it,
 * since the present one may have seen too little already: one runs, one waits, never more.
 */
export class OneAtATime<T> {
  readonly #task: (askedAt: number) => Promise<T>;
  #running: Promise<T> | undefined;
  #next: Promise<T> | undefined;

  /** @param task Gets when it was first asked for, on the clock of `performance.now()`. */
  constructor(task: (askedAt: number) => Promise<T>) {
    this.#task = task;
  }

  get running(): Promise<T> | undefined {
    return this.#running;
  }

  /** Settles as a run does that begins now or later. */
  run(): Promise<T> {
    const askedAt = performance.now();
    if (this.#next !== undefined) return this.#next;
    if (this.#running === undefined) return this.#begin(askedAt);
    const begin = (): Promise<T> => {
      this.#next = undefined;
      return this.#begin(askedAt);
    };
    return this.#next = this.#running.then(begin, begin);
  }

  /** Settles when neither the present run nor the one that waits is left. */
  async ended(): Promise<void> {
    await Promise.allSettled([this.#running, this.#next]);
  }

  #begin(askedAt: number): Promise<T> {
    const over = (): void => { this.#running = undefined; };
    const run = this.#task(askedAt);
    run.then(over, over); // before whoever waits for it: that one begins the next
    return this.#running = run;
  }
}
