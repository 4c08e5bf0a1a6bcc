/** Whatever a callback throws or answers harms nobody but its own caller. */
import { expect, it } from 'vitest';
import { MicroClient, MicroError } from '../lib/micro_client.ts';
import { MicroServer } from '../lib/micro_server.ts';

const hostile = () => new Proxy({}, {
  get() { throw new Error('get'); }, has() { throw new Error('has'); }, getPrototypeOf() { throw new Error('prototype'); },
});

const CASES: [name: string, callback: () => unknown][] = [
  ['throws a text', () => { throw 'no'; }],
  ['throws null', () => { throw null; }],
  ['throws what throws when it is turned into text', () => { throw { toString() { throw new Error('no'); } }; }],
  ['throws an error whose message throws', () => {
    throw Object.defineProperty(new Error('no'), 'message', { get() { throw new Error('no'); } });
  }],
  ['throws a proxy that answers nothing', () => { throw hostile(); }],
  ['rejects with a proxy that answers nothing', () => Promise.reject(hostile())],
  ['answers with a proxy that answers nothing', hostile],
  ['answers with what throws as it is awaited', () => ({ get then() { throw new Error('no'); } })],
  ['answers with nothing', () => undefined],
  ['answers with a number', () => 42],
  ['answers with an object', () => ({})],
  ['answers with a symbol', () => Symbol('no')],
  ['answers in parts over a dialect that has none', () => ({ parts: ['a', 'b'] })],
];

it.each(CASES)('a callback that %s fails its own call alone', async (_, callback) => {
  const server = new MicroServer((message) => (message === 'bad' ? callback() as string : message), 0);
  const { url } = await server.startListening();
  const client = new MicroClient(url);
  try {
    const [bad, good] = await Promise.allSettled([client.sendMessage('bad'), client.sendMessage('good')]);
    expect(bad).toMatchObject({ status: 'rejected', reason: { code: 'CALLBACK_FAILED', outcome: 'failed' } });
    expect((bad as PromiseRejectedResult).reason).toBeInstanceOf(MicroError);
    expect(good).toEqual({ status: 'fulfilled', value: 'good' });
    expect(await client.sendMessage('after')).toBe('after');
  } finally {
    await client.close();
    await server.stop();
  }
});
