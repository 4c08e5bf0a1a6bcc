/**
 * Chance that can be had again: `FUZZ_SEED=… npx vitest run …` replays a failure, whose message names
 * the seed. `FUZZ_RUNS` lengthens the loops that take it.
 */

export const FUZZ_SEED = number('FUZZ_SEED') ?? Math.floor(Math.random() * 2 ** 32);

/** How often to run a loop: `usual`, or what `FUZZ_RUNS` says. */
export function fuzzRuns(usual: number): number {
  return number('FUZZ_RUNS') ?? usual;
}

export interface Random {
  /** From 0 up to, but not including, 1. */
  (): number;
  /** A whole number from 0 up to, but not including, `below`. */
  int(below: number): number;
  /** A whole number from `low` to `high`, both included. */
  between(low: number, high: number): number;
  pick<T>(list: readonly T[]): T;
  /** `count` different entries in their old order; all, if there are no more. */
  sample<T>(list: readonly T[], count: number): T[];
  bytes(count: number): Buffer;
}

/** Mulberry32: the same numbers for the same seed, on every machine. */
export function seeded(seed: number = FUZZ_SEED): Random {
  let state = seed >>> 0;
  const random = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  const int = (below: number): number => Math.floor(random() * below);
  return Object.assign(random, {
    int,
    between: (low: number, high: number) => low + int(high - low + 1),
    pick: <T>(list: readonly T[]): T => list[int(list.length)] as T,
    sample<T>(list: readonly T[], count: number): T[] {
      let wanted = Math.min(count, list.length);
      return list.filter((_, at) => random() * (list.length - at) < wanted && wanted-- > 0);
    },
    bytes: (count: number) => Buffer.from(Array.from({ length: count }, () => int(256))),
  });
}

function number(name: string): number | undefined {
  const value = process.env[name];
  if (value === undefined || value === '') return undefined;
  if (Number.isSafeInteger(Number(value))) return Number(value);
  throw new RangeError(`Cannot use ${name}="${value}": expected a whole number`);
}
