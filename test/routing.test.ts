/** What every strategy of lib/routing must do, whatever it prefers; and what each is for. */
import { readdirSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import type { Client } from '../lib/micro_server.ts';
import type { Candidate, Routed, Strategy } from '../lib/pool.ts';
import { strategy as byKey } from '../lib/routing/by_key.ts';
import { strategy as leastBusy } from '../lib/routing/least_busy.ts';
import { strategy as roundRobin } from '../lib/routing/round_robin.ts';
import { range } from './helpers/ended.ts';
import { seeded } from './helpers/random.ts';

const worker = (id: string, inFlight = 0, hasRoom = true): Candidate => ({ id, inFlight, hasRoom });
const workers = (count: number) => range(count).map((index) => worker(`w${index}`));
const from = (id: string, text = 'text'): Routed => ({ text, client: { id } as Client });
const ids = (picks: readonly (Candidate | undefined)[]) => picks.map((pick) => pick?.id);

const FOLDER = new URL('../lib/routing/', import.meta.url);
const files = readdirSync(FOLDER).filter((name) => name.endsWith('.ts'));

it('strategies are found', () => {
  expect(files).toEqual(expect.arrayContaining(['by_key.ts', 'least_busy.ts', 'round_robin.ts']));
});

describe.each(files)('lib/routing/%s', (file) => {
  const make = async (): Promise<Strategy> =>
    ((await import(new URL(file, FOLDER).href)) as { strategy(): Strategy }).strategy();

  it('picks one of those that it is given, however many there are', async () => {
    const choose = await make();
    for (const count of [1, 2, 3, 7, 64, 2, 1]) {
      const all = workers(count);
      for (let index = 0; index < 200; index++) expect(all).toContain(choose(all, from(`c${index}`)));
    }
  });
  it('uses all of them for many clients, none more than twice as often as is its share', async () => {
    const [choose, all] = [await make(), workers(5)];
    const counts = new Map<string | undefined, number>();
    for (let index = 0; index < 5_000; index++) {
      const id = choose(all, from(`${index}`))?.id;
      counts.set(id, (counts.get(id) ?? 0) + 1);
    }
    expect([...counts.keys()].sort()).toEqual(ids(all));
    for (const count of counts.values()) expect(count).toBeLessThan(2_000);
  });
  it('takes who has room, or makes a request wait; it never sends to who has none without need', async () => {
    const choose = await make();
    const all = [worker('full', 9, false), worker('free')];
    const picks = range(50).map((index) => choose(all, from(`${index}`)));
    // What is bound to a worker waits for it, and is bound to the same one each time.
    if (picks.some((pick) => pick?.id === 'full')) {
      expect(ids(range(50).map((index) => choose(all, from(`${index}`))))).toEqual(ids(picks));
    }
    expect(ids(picks)).toContain('free');
    const none = choose([worker('a', 9, false), worker('b', 9, false)], from('c'));
    expect(none === undefined || !none.hasRoom).toBe(true);
  });
  it('goes on where workers come and go', async () => {
    const [choose, random] = [await make(), seeded()];
    let all = workers(4);
    for (let index = 0; index < 1_000; index++) {
      all = random.sample(workers(8), random.between(1, 8));
      expect(all).toContain(choose(all, from(`${index}`)));
    }
  });
});

describe('round_robin', () => {
  it('takes turns, and passes over who has no room', () => {
    const choose = roundRobin();
    const all = [worker('a'), worker('b', 9, false), worker('c')];
    expect(ids(range(4).map(() => choose(all, from('x'))))).toEqual(['a', 'c', 'a', 'c']);
    expect(choose([worker('b', 9, false)], from('x'))).toBeUndefined();
  });
});

describe('least_busy', () => {
  it('takes who has least in flight, in turn where several have as little', () => {
    const choose = leastBusy();
    expect(choose([worker('a', 3), worker('b', 1), worker('c', 2)], from('x'))?.id).toBe('b');
    expect(choose([worker('a', 3), worker('b', 1, false), worker('c', 2)], from('x'))?.id).toBe('c');
    const all = [worker('a', 1), worker('b', 1), worker('c', 5)];
    expect(new Set(ids(range(9).map(() => choose(all, from('x')))))).toEqual(new Set(['a', 'b']));
  });
});

describe('by_key', () => {
  it('sends what has the same key to the same worker, with room or without', () => {
    const choose = byKey();
    for (const id of ['1', '2', 'x/17']) {
      const first = choose(workers(7), from(id, 'one'))?.id;
      const full = workers(7).map((one) => ({ ...one, hasRoom: false }));
      expect(choose(full.reverse(), from(id, 'two'))?.id).toBe(first);
    }
  });
  it('moves a key only to a worker that came, and only from one that left', () => {
    const choose = byKey();
    const keys = range(4_000).map((index) => `key ${index}`);
    const before = keys.map((key) => choose(workers(10), from(key))?.id);
    const more = keys.map((key) => choose(workers(11), from(key))?.id);
    const moved = more.filter((id, index) => id !== before[index]);
    expect(new Set(moved)).toEqual(new Set(['w10']));
    expect(moved.length).toBeGreaterThan(4_000 / 11 / 1.5);
    expect(moved.length).toBeLessThan(4_000 / 11 * 1.5);
    const fewer = keys.map((key) => choose(workers(10).filter(({ id }) => id !== 'w3'), from(key))?.id);
    fewer.forEach((id, index) => { if (before[index] !== 'w3') expect(id).toBe(before[index]); });
  });
  it('takes the key from where it is told', () => {
    const choose = byKey({ key: ({ text }) => text.split(' ')[0] ?? '' });
    const picks = range(20).map((index) => choose(workers(9), from(`${index}`, `music ${index}`)));
    expect(new Set(ids(picks)).size).toBe(1);
  });
});
