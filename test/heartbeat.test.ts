import { describe, expect, it } from 'vitest';
import { Heartbeat } from '../lib/heartbeat.ts';

const OPTIONS = { intervalMs: 100, timeoutMs: 300, maxMissed: 2 }; // out after 500

/** Ticks each interval; tells after how many milliseconds who was out. */
function run(heartbeat: Heartbeat<string>, ms: number, at = 0, during = (_at: number): void => {}): [string, number][] {
  const out: [string, number][] = [];
  for (let now = at; now <= at + ms; now += 100) {
    for (const peer of heartbeat.tick(now)) out.push([peer, now - at]);
    during(now);
  }
  return out;
}

describe('Heartbeat', () => {
  it('finds a silent peer out after intervalMs × maxMissed + timeoutMs, once', () => {
    const heartbeat = new Heartbeat<string>(OPTIONS);
    expect(heartbeat.outAfterMs).toBe(500);
    expect(heartbeat.heard('a')).toBe(true);
    expect(run(heartbeat, 2_000)).toEqual([['a', 500]]);
    expect(heartbeat.isOut('a')).toBe(true);
  });
  it('takes any word for a sign of life, and one that is out back', () => {
    const heartbeat = new Heartbeat<string>(OPTIONS);
    heartbeat.heard('a');
    expect(run(heartbeat, 3_000, 0, (now) => { if (now % 400 === 0) heartbeat.heard('a'); })).toEqual([]);
    expect(run(heartbeat, 1_000, 3_100)).toEqual([['a', expect.any(Number)]]);
    expect(heartbeat.heard('a')).toBe(true);
    expect(heartbeat.heard('a')).toBe(false);
    expect(heartbeat.isOut('a')).toBe(false);
    expect(run(heartbeat, 1_000, 4_200)).toHaveLength(1);
  });
  it('does not hold its own pause against its peers', () => {
    const heartbeat = new Heartbeat<string>(OPTIONS);
    heartbeat.heard('a');
    heartbeat.tick(0);
    heartbeat.tick(100);
    expect(heartbeat.tick(60_000)).toEqual([]); // what came meanwhile is read behind this
    heartbeat.heard('a');
    expect(heartbeat.tick(60_100)).toEqual([]);
  });
  it('judges each by itself, and nobody who left', () => {
    const heartbeat = new Heartbeat<string>(OPTIONS);
    for (const peer of ['a', 'b', 'c']) heartbeat.heard(peer);
    heartbeat.leave('b');
    expect(run(heartbeat, 1_000, 0, () => heartbeat.heard('c'))).toEqual([['a', 500]]);
  });
  it.each([{ intervalMs: 0 }, { timeoutMs: -1 }, { maxMissed: NaN }])('refuses %o', (options) => {
    expect(() => new Heartbeat(options)).toThrow(RangeError);
  });
  it('has the defaults 1 s, 5 s and 1', () => {
    expect(new Heartbeat().intervalMs).toBe(1_000);
    expect(new Heartbeat().outAfterMs).toBe(6_000);
  });
});
