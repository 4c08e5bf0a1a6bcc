/** Which of many backups to keep: so many, or ever fewer the older they are. Pure. */

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;

/** Numbers the hour, day, … that a moment lies in. In UTC; weeks begin on Monday. */
const PERIODS = {
  hours: (atMs: number) => Math.floor(atMs / HOUR_MS),
  days: (atMs: number) => Math.floor(atMs / DAY_MS),
  weeks: (atMs: number) => Math.floor((atMs / DAY_MS + 3) / 7), // 1 January 1970 was a Thursday
  months: (atMs: number) => {
    const date = new Date(atMs);
    return 12 * date.getUTCFullYear() + date.getUTCMonth();
  },
};
export type Period = keyof typeof PERIODS;

/**
 * A number: so many, the newest ones. By periods, `{ hours: 24, days: 7 }`: the newest of each of
 * the latest 24 hours that have one, and of each of the latest 7 days that have one; what counts
 * for several is kept once. `'gfs'`, grandfather–father–son: {@link GFS}.
 */
export type Keep = number | 'gfs' | Readonly<Partial<Record<Period, number>>>;

export const GFS = { hours: 24, days: 7, weeks: 4, months: 12 } as const satisfies Keep;
const MOST = 10_000;

/**
 * Those to keep, out of a list that begins with the newest. That one is always kept. What is newer
 * says the list, not the times: a clock may have been set back.
 */
export function retained<T extends { atMs: number }>(
  newestFirst: readonly T[], keep: Keep,
): Set<T> {
  if (typeof keep === 'number') return new Set(newestFirst.slice(0, keep));
  const kept = new Set(newestFirst.slice(0, 1));
  for (const [period, count] of Object.entries(keep === 'gfs' ? GFS : keep)) {
    const numbers = new Set<number>();
    for (const one of newestFirst) {
      const number = PERIODS[period as Period](one.atMs);
      if (numbers.has(number)) continue;
      if (numbers.size === count) break;
      numbers.add(number);
      kept.add(one);
    }
  }
  return kept;
}

/** @throws {RangeError} It is no such number, or has a period that there isn't. */
export function checkKeep(keep: unknown): asserts keep is Keep {
  if (keep === 'gfs') return;
  const isCount = (value: unknown, least: number): boolean =>
    Number.isInteger(value) && Number(value) >= least && Number(value) <= MOST;
  if (isCount(keep, 1)) return;
  const periods = typeof keep === 'object' && keep !== null ? Object.entries(keep) : [];
  if (periods.length > 0 &&
    periods.every(([period, count]) => Object.hasOwn(PERIODS, period) && isCount(count, 0))) return;
  const given = typeof keep === 'object' ? JSON.stringify(keep) : `"${keep}"`;
  throw new RangeError(`Cannot keep ${given} backups: expected a whole number from 1 to ${MOST}, ` +
    `"gfs", or numbers of ${Object.keys(PERIODS).join(', ')}`);
}
