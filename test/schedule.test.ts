import { describe, expect, it } from 'vitest';
import { Schedule } from '../lib/schedule.ts';
import { WallClock } from './helpers/fake_clock.ts';

const SECOND_MS = 1_000;
const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;

function scheduled(everyMs: number, task: () => Promise<unknown> = async () => 0) {
  const clock = new WallClock();
  const runs: number[] = []; // when each began, on the steady clock
  const schedule = new Schedule({ everyMs, clock, task: () => {
    runs.push(clock.steadyMs());
    return task();
  } });
  return { clock, runs, schedule };
}

describe('Schedule', () => {
  it('runs one interval after its start, and each interval from then on', async () => {
    const { clock, runs, schedule } = scheduled(10 * SECOND_MS);
    await clock.advance(HOUR_MS);
    expect(runs, 'not before it is started').toEqual([]);
    schedule.start();
    schedule.start();
    await clock.advance(35 * SECOND_MS);
    expect(runs.map((at) => at - HOUR_MS)).toEqual([10_000, 20_000, 30_000]);
    expect(schedule.nextAtMs).toBe(clock.wallMs() + 5_000);
    expect(clock.waiting, 'one alarm, however often it was started').toBe(1);
  });

  it('runs at once where asked to', async () => {
    const { clock, runs, schedule } = scheduled(10 * SECOND_MS);
    schedule.start({ atOnce: true });
    await clock.advance(25 * SECOND_MS);
    expect(runs).toEqual([0, 10_000, 20_000]);
  });

  it('runs once after a sleep of 8 hours, soon, and then keeps its interval', async () => {
    const { clock, runs, schedule } = scheduled(HOUR_MS);
    schedule.start();
    await clock.advance(HOUR_MS + 30 * 60_000);
    clock.sleep(8 * HOUR_MS);
    const awake = clock.steadyMs();
    await clock.advance(60_000);
    expect(runs.slice(1), 'one, for all that were missed').toHaveLength(1);
    await clock.advance(HOUR_MS);
    expect(runs.slice(1).map((at) => at > awake)).toEqual([true, true]);
  });

  it.each([['ahead', DAY_MS, 2], ['back', -DAY_MS, 1]])(
    'survives a clock set a day %s: one run at most, and none late', async (_, byMs, most) => {
      const { clock, runs, schedule } = scheduled(HOUR_MS);
      schedule.start();
      await clock.advance(30 * 60_000);
      clock.set(byMs);
      await clock.advance(30 * 60_000);
      expect(runs.length).toBeGreaterThanOrEqual(1);
      expect(runs.length).toBeLessThanOrEqual(most);
      const before = runs.length;
      await clock.advance(10 * HOUR_MS);
      expect(runs.length - before).toBeGreaterThanOrEqual(9);
      expect(runs.length - before).toBeLessThanOrEqual(10);
    });

  it('waits for a slow run, and leaves out what came due meanwhile', async () => {
    let finish = (): void => {};
    const { clock, runs, schedule } = scheduled(10 * SECOND_MS,
      () => new Promise<void>((resolve) => { finish = resolve; }));
    schedule.start();
    await clock.advance(47 * SECOND_MS); // the run began at 10 s
    expect(runs).toEqual([10_000]);
    expect(clock.waiting).toBe(0);
    finish();
    await Promise.resolve();
    await clock.advance(5 * SECOND_MS);
    expect(runs, 'the next at its place').toEqual([10_000, 50_000]);
  });

  it('waits for 60 days, although no timer does', async () => {
    const { clock, runs, schedule } = scheduled(60 * DAY_MS);
    schedule.start();
    await clock.advance(60 * DAY_MS - 1);
    expect(runs).toEqual([]);
    await clock.advance(1);
    expect(runs).toHaveLength(1);
  });

  it('runs no more once stopped, not even when a run ends behind that', async () => {
    let finish = (): void => {};
    const { clock, runs, schedule } = scheduled(SECOND_MS,
      () => new Promise<void>((resolve) => { finish = resolve; }));
    schedule.start();
    await clock.advance(SECOND_MS);
    schedule.stop();
    finish();
    await clock.advance(HOUR_MS);
    expect(runs).toHaveLength(1);
    expect(clock.waiting).toBe(0);
    expect(schedule.nextAtMs).toBeUndefined();
    schedule.start();
    expect(clock.waiting, 'nor started anew').toBe(0);
  });
});
