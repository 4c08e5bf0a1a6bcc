import { describe, expect, it } from 'vitest';
import { MicroError } from '../lib/micro_client.ts';
import { check, faultsOf, History } from './helpers/checker.ts';

/** Three events that were acknowledged, one that failed, one that nobody knows of. */
function history(): History {
  const events = new History();
  for (const [name, end] of [['a', 'ok'], ['b', 'ok'], ['c', 'ok'], ['d', 'fail'], ['e', 'unknown']] as const) {
    events.invoke(name);
    events.end(name, end);
  }
  return events;
}

describe('the chaos checker', () => {
  it.each([
    { name: 'what is unknown and not done', journal: ['a', 'b', 'c'] },
    { name: 'what is unknown and done', journal: ['e', 'c', 'b', 'a'] },
  ])('passes $name', ({ journal }) => {
    expect(faultsOf(history(), journal)).toEqual([]);
    check(history(), journal);
  });

  it.each([
    { name: 'a lost event', journal: ['a', 'c', 'e'], fault: '"b" was acknowledged, yet lost' },
    { name: 'a doubled event', journal: ['a', 'b', 'c', 'b'], fault: '"b" was doubled' },
    { name: 'an unknown event doubled', journal: ['a', 'b', 'c', 'e', 'e'], fault: '"e" was doubled' },
    { name: 'an invented event', journal: ['a', 'b', 'c', 'x'], fault: '"x" was invented' },
    { name: 'a failed event done', journal: ['a', 'b', 'c', 'd'],
      fault: '"d" was done, yet its caller was told that it was not' },
  ])('catches $name', ({ journal, fault }) => {
    expect(faultsOf(history(), journal)).toEqual([fault]);
    expect(() => check(history(), journal)).toThrow(fault);
  });

  it('catches a call that never ended', () => {
    const events = history();
    events.invoke('f');
    expect(faultsOf(events, ['a', 'b', 'c', 'f'])).toEqual(['"f" never ended']);
  });

  it('notes the end of a call by its outcome', async () => {
    const events = new History();
    const failing = (outcome: 'not sent' | 'refused' | 'maybe done' | 'failed') => () =>
      Promise.reject(new MicroError('CONNECTION_LOST', 'gone', { outcome }));
    expect(await events.call('1', () => Promise.resolve('fine'))).toBe('ok');
    expect(await events.call('2', failing('not sent'))).toBe('fail');
    expect(await events.call('3', failing('refused'))).toBe('fail');
    expect(await events.call('4', failing('maybe done'))).toBe('unknown');
    expect(await events.call('5', failing('failed'))).toBe('unknown');
    await expect(events.call('6', () => Promise.reject(new TypeError('a bug')))).rejects.toThrow('a bug');
  });

  it('refuses an event invoked or ended twice', async () => {
    const events = history();
    expect(() => events.invoke('a')).toThrow('twice');
    expect(() => events.end('a', 'unknown')).toThrow('it is ok');
    expect(() => events.end('z', 'ok')).toThrow('not invoked');
  });
});
