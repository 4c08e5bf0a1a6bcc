import { describe, expect, it } from 'vitest';
import { checkKeep, retained, type Keep } from '../lib/retention.ts';

const DAY_MS = 86_400_000;
const at = (...times: string[]) => times.map((time) => ({ atMs: Date.parse(time), time }));
const times = (kept: Set<{ time: string }>) => [...kept].map(({ time }) => time).sort().reverse();

describe('retained', () => {
  it('keeps so many, the newest', () => {
    const list = at('2026-03-03T00:00Z', '2026-03-02T00:00Z', '2026-03-01T00:00Z');
    expect(times(retained(list, 2))).toEqual(['2026-03-03T00:00Z', '2026-03-02T00:00Z']);
    expect(times(retained(list, 9))).toHaveLength(3);
    expect(retained([], 'gfs').size).toBe(0);
  });

  it.each<[name: string, keep: Keep, list: string[], kept: string[]]>([
    ['the newest of each hour', { hours: 2 },
      ['2026-03-03T10:59Z', '2026-03-03T10:01Z', '2026-03-03T09:59Z', '2026-03-03T09:00Z', '2026-03-03T08:59Z'],
      ['2026-03-03T10:59Z', '2026-03-03T09:59Z']],
    ['the latest days that have one, not those on the calendar', { days: 2 },
      ['2026-03-03T10:00Z', '2025-01-05T23:00Z', '2025-01-05T01:00Z', '2024-02-29T00:00Z'],
      ['2026-03-03T10:00Z', '2025-01-05T23:00Z']],
    ['weeks from Monday on', { weeks: 2 }, // 2 March 2026 is a Monday
      ['2026-03-02T00:00Z', '2026-03-01T23:59Z', '2026-02-23T00:00Z', '2026-02-22T23:59Z'],
      ['2026-03-02T00:00Z', '2026-03-01T23:59Z']],
    ['months over the turn of a year', { months: 2 },
      ['2026-01-01T00:00Z', '2025-12-31T23:59Z', '2025-12-01T00:00Z', '2025-11-30T00:00Z'],
      ['2026-01-01T00:00Z', '2025-12-31T23:59Z']],
    ['what counts for several once', { hours: 1, days: 2, months: 2 },
      ['2026-03-03T10:00Z', '2026-03-03T09:00Z', '2026-03-02T09:00Z', '2026-03-01T09:00Z', '2026-02-01T09:00Z'],
      ['2026-03-03T10:00Z', '2026-03-02T09:00Z', '2026-02-01T09:00Z']],
    ['the newest in the list, though a clock was set back', { days: 1 },
      ['2026-03-02T10:00Z', '2026-03-03T10:00Z', '2026-03-02T09:00Z'],
      ['2026-03-02T10:00Z']],
    ['the newest always', { days: 0 }, ['2026-03-02T10:00Z', '2026-03-01T10:00Z'], ['2026-03-02T10:00Z']],
  ])('keeps %s', (_, keep, list, kept) => {
    expect(times(retained(at(...list), keep))).toEqual(kept);
  });

  it('keeps of 3 years, backed up every 3 hours, what grandfather–father–son says', () => {
    let kept: { atMs: number }[] = [];
    const end = Date.UTC(2029, 0, 1);
    for (let atMs = Date.UTC(2026, 0, 1); atMs <= end; atMs += DAY_MS / 8) {
      const all = [{ atMs }, ...kept];
      const stay = retained(all, 'gfs');
      kept = all.filter((one) => stay.has(one));
    }
    const days = kept.map(({ atMs }) => new Date(atMs).toISOString().slice(0, 10));
    const hours = kept.filter(({ atMs }) => end - atMs < 3 * DAY_MS).map(({ atMs }) => (end - atMs) / 3_600_000);
    expect(hours, '24 that were made, 3 hours apart').toEqual(Array.from({ length: 24 }, (_, index) => 3 * index));
    expect(new Set(days).size, 'a day each, beyond').toBeGreaterThanOrEqual(7 + 2 + 10);
    for (let month = 1; month <= 11; month++) {
      const last = new Date(Date.UTC(2028, month + 1, 0)).toISOString().slice(0, 10);
      expect(days, 'the last day of each of the last months').toContain(last);
    }
    expect(days.some((day) => day < '2028-01-31'), 'and none before').toBe(false);
    expect(kept.length).toBeLessThanOrEqual(24 + 7 + 4 + 12);
  });
});

describe('checkKeep', () => {
  it.each<[unknown]>([[1], [10_000], ['gfs'], [{ days: 7 }], [{ hours: 0, months: 3 }]])('takes %j', (keep) => {
    expect(() => checkKeep(keep)).not.toThrow();
  });
  it.each<[unknown]>([[0], [-1], [1.5], [NaN], [Infinity], [10_001], ['10'], ['GFS'], [null], [undefined], [{}],
    [{ years: 1 }], [{ days: -1 }], [{ days: '7' }], [{ toString: 1 }], [[7]]])('refuses %j', (keep) => {
    expect(() => checkKeep(keep)).toThrow(RangeError);
    expect(() => checkKeep(keep)).toThrow(/^Cannot keep [^\n]+ backups: expected a whole number from 1 to 10000/);
  });
});
