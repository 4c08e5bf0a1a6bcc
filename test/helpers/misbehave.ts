/** A callback that fails in every way there is, as its message tells: `throw null`, `resolve 42`. */
import { MicroError } from '../../lib/micro_client.ts';
import type { Callback } from '../../lib/micro_server.ts';

const LONG = 2 * 1024 * 1024;
const fail = (what: unknown): never => { throw what; };
/** Whatever is asked of it throws: even `instanceof`. */
const touchy = (): object => new Proxy({}, new Proxy({}, { get: () => () => fail(new Error('it was touched')) }));

/** What it throws, or rejects with. */
export const THROWN: Readonly<Record<string, () => unknown>> = {
  error: () => new Error('it broke'),
  'error of lines': () => new Error('one\ntwo\r\nthree\u2028four\u0085five'),
  'error without text': () => new Error(),
  'error that is its own cause': () => {
    const error = new Error('it broke');
    return Object.assign(error, { cause: error });
  },
  'system error': () => Object.assign(new Error('EACCES: permission denied'), { code: 'EACCES', errno: -13 }),
  'long error': () => new Error('x'.repeat(LONG)),
  'long error of snowmen': () => new Error('☃'.repeat(LONG)),
  'long text': () => 'x'.repeat(LONG),
  'long MicroError': () => new MicroError('CALLBACK_FAILED', 'x'.repeat(LONG)),
  null: () => null,
  undefined: () => undefined,
  'throwing getter': () => Object.defineProperty(new Error(), 'message', { get: () => fail(new Error('gotten')) }),
  'error of a symbol': () => Object.assign(new Error(), { message: Symbol('it broke') }),
  'object without prototype': () => Object.create(null) as object,
  'throwing toString': () => ({ toString: () => fail(new Error('told')) }),
  symbol: () => Symbol('it broke'),
  touchy,
};

async function* midway(...last: unknown[]): AsyncGenerator<unknown> {
  yield 'one';
  yield 'two';
  for (const part of last) yield part;
  throw new Error('it broke midway');
}

/** What it returns, or resolves with, and is no `Value`. */
export const RETURNED: Readonly<Record<string, () => unknown>> = {
  undefined: () => undefined,
  42: () => 42,
  NaN: () => NaN,
  true: () => true,
  '{}': () => ({}),
  '[]': () => [],
  Symbol: () => Symbol('it'),
  '1n': () => 1n,
  function: () => fail,
  Date: () => new Date(0),
  Error: () => new Error('returned'),
  bytes: () => new Uint8Array(3),
  'half a letter': () => 'a\uD800',
  'parts where there are none': () => ({ parts: ['a', 'b'] }),
  'parts that are none': () => ({ parts: 'ab' }),
  'thenable that throws': () => ({ then: () => fail(new Error('thrown')) }),
  'thenable whose then throws': () => Object.defineProperty({}, 'then', { get: () => fail(new Error('gotten')) }),
  'thenable that gives 42': () => ({ then: (give: (value: unknown) => void) => give(42) }),
  'thenable that gives nothing twice': () => ({
    then: (give: (value?: unknown) => void, deny: (why: unknown) => void) => { give(); give(); deny(null); } }),
  'iterator that is none': () => ({ [Symbol.asyncIterator]: 5 }),
  'iterator of nothing': () => ({ [Symbol.asyncIterator]: () => undefined }),
  'iterator without next': () => ({ [Symbol.asyncIterator]: () => ({}) }),
  'iterator that throws at once': () => ({
    [Symbol.asyncIterator]: () => ({ next: () => fail(new Error('at once')) }) }),
  'iterator that gives no result': () => ({ [Symbol.asyncIterator]: () => ({ next: () => undefined }) }),
  'iterator failing midway': () => midway(),
  'iterator with a 42 midway': () => midway(42),
  'iterator with half a letter midway': () => midway('\uDC00'),
  touchy,
};

export const misbehave: Callback = (message) => {
  const [, how, name = ''] = /^(throw|reject|return|resolve) (.*)$/.exec(message) ?? [];
  if (how === 'throw') throw THROWN[name]?.();
  if (how === 'reject') return Promise.reject(THROWN[name]?.());
  if (how === 'return') return RETURNED[name]?.() as string;
  if (how === 'resolve') return Promise.resolve().then(() => RETURNED[name]?.() as string);
  return message === 'null' ? null : message;
};
