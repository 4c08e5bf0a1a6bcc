/** Waiting that always ends, with a message that says what never came. */

/** Settles as `promise` does, or rejects after `ms` with a message that names `what` was awaited. */
export async function within<T>(ms: number, promise: PromiseLike<T>, what: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Error(`Cannot go on: ${what} did not come within ${ms} ms`); // made here, for its stack
  const deadline = new Promise<never>((_, reject) => { timer = setTimeout(() => reject(late), ms); });
  try {
    return await Promise.race([promise, deadline]);
  } finally {
    clearTimeout(timer);
  }
}

const POLL_MS = 10;

/**
 * Resolves with the first truthy value of `check`. For what sends no event: a file, another process'
 * descriptors. Where there is an event, await that, inside {@link within}.
 */
export async function until<T>(check: () => T | PromiseLike<T>, ms: number,
  what: string): Promise<NonNullable<T>> {
  const late = new Error();
  const end = performance.now() + ms;
  for (;;) {
    const value = await check();
    if (value) return value as NonNullable<T>;
    if (performance.now() >= end) {
      late.message = `Cannot go on: ${what} was not so within ${ms} ms`;
      throw late;
    }
    await pause(POLL_MS);
  }
}

/** Time that passes because time is the subject: "20 ms apart". Never a substitute for an event. */
export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => { setTimeout(resolve, ms); });
}
