import { expect, it } from 'vitest';
import { OneAtATime } from '../lib/one_at_a_time.ts';

/** A task whose runs the test ends. */
function held() {
  const runs: { askedAt: number; end(value: string): void; fail(error: Error): void }[] = [];
  let [running, most] = [0, 0];
  const task = new OneAtATime<string>((askedAt) => {
    most = Math.max(most, ++running);
    return new Promise<string>((end, fail) => { runs.push({ askedAt, end, fail }); }).finally(() => { running--; });
  });
  return { runs, task, most: () => most };
}

it('OneAtATime shares the next run among all who ask during one', async () => {
  const { runs, task, most } = held();
  const first = task.run();
  const asked = performance.now();
  const later = [task.run(), task.run(), task.run()];
  expect(runs).toHaveLength(1);
  expect(task.running).toBe(first);
  runs[0]?.end('first');
  expect(await first).toBe('first');
  const inBetween = task.run(); // asked in the very turn in which the next begins
  while (runs.length < 2) await Promise.resolve();
  expect(Math.abs((runs[1]?.askedAt ?? 0) - asked), 'it knows how long it was waited for').toBeLessThan(50);
  runs[1]?.end('second');
  expect(await Promise.all(later)).toEqual(['second', 'second', 'second']);
  if (runs.length === 3) runs[2]?.end('third');
  expect(['second', 'third']).toContain(await inBetween);
  expect(most()).toBe(1);
  await task.ended();
  expect(task.running).toBeUndefined();
});

it('OneAtATime goes on after a run that fails', async () => {
  const { runs, task } = held();
  const [first, second] = [task.run(), task.run()];
  runs[0]?.fail(new Error('it failed'));
  await expect(first).rejects.toThrow('it failed');
  while (runs.length < 2) await Promise.resolve();
  let isOver = false;
  const ended = task.ended().then(() => { isOver = true; });
  await Promise.resolve();
  expect(isOver).toBe(false);
  runs[1]?.end('second');
  expect(await second).toBe('second');
  await ended;
});
