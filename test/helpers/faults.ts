/** One test a fault, its id first in the test's name. */
import { it } from 'vitest';
import { FUZZ_SEED, seeded } from './random.ts';

/** Takes all cases; else loops may sample, and a failure prints the seed. */
export const FULL = process.env['FAULTS'] === 'full';
const QUICK_MS = 30_000;
const FULL_MS = 15 * 60_000;

interface FaultOptions {
  timeoutMs?: number;
  /** Tries more, where chance and a busy machine may spoil one: say why where it is used. */
  retry?: number;
}

/** @param text What is done, as the table of faults words it. */
export function fault(id: string, text: string, test: () => Promise<unknown>,
  { timeoutMs, retry = 0 }: FaultOptions = {}): void {
  it(`${id} ${text}`, { retry, timeout: timeoutMs ?? (FULL ? FULL_MS : QUICK_MS) }, async () => {
    try {
      await test();
    } catch (error) {
      if (error instanceof Error) error.message += `\n(FUZZ_SEED=${FUZZ_SEED}${FULL ? ' FAULTS=full' : ''})`;
      throw error;
    }
  });
}

/** Reported as skipped, with the reason in its name. Never counted as passed. */
fault.skip = (id: string, reason: string, text: string): void => {
  it.skip(`${id} ${text} (skipped: ${reason})`);
};

/** Skips where there is a `reason` to, else tests: `fault.unless(isRoot ? undefined : 'needs root', 'B13', …)`. */
fault.unless = (reason: string | undefined, ...[id, text, ...rest]: Parameters<typeof fault>): void => {
  if (reason === undefined) fault(id, text, ...rest);
  else fault.skip(id, reason, text);
};

/** All of a list in the full run, else `count` of it by chance. */
export function some<T>(list: readonly T[], count: number, seed = FUZZ_SEED): T[] {
  return FULL ? [...list] : seeded(seed).sample(list, count);
}
