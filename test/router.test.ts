/** A router between clients and workers: what crosses, who gets it, and what becomes of it. */
import { describe, expect, it } from 'vitest';
import { MicroClient, MicroError } from '../lib/micro_client.ts';
import type { Callback } from '../lib/micro_server.ts';
import type { Candidate } from '../lib/pool.ts';
import { MicroRouter } from '../lib/router.ts';
import { pause, until, within } from './helpers/deadline.ts';
import { range, tally, ended } from './helpers/ended.ts';
import { RawClient } from './helpers/raw_client.ts';
import { failure, rawWorker, routed } from './helpers/routed.ts';

const echo: Callback = (message) => message;

describe('MicroRouter forwards', () => {
  it.each(['', 'plain', 'naïve ☃ 𝄞', 'a\nb\\n\r\n', '$ping', '!', ' 0 ', 'x'.repeat(1024 * 1024)])('the text %j', async (text) => {
    const { join, dial, front } = await routed();
    await join(echo);
    expect(await dial().sendMessage(text)).toBe(text);
    if (!/^$|[\n$]/.test(text)) expect(await RawClient.with(front, (raw) => raw.ask(`${text}\n`))).toBe(`${text}\n`);
  });

  it('each of 10,000 texts at once to its own caller, over several workers', async () => {
    const { join, dial } = await routed({ strategy: 'least_busy' });
    for (const wait of [0, 1, 3]) await join(async (message) => { if (wait > 0) await pause(wait); return message; });
    const client = dial();
    const replies = await Promise.all(range(10_000).map((index) => client.sendMessage(`text ${index}`)));
    expect(replies).toEqual(range(10_000).map((index) => `text ${index}`));
  });

  it('who asks: one id a client, never loopback; and that it has gone', async () => {
    const { join, dial } = await routed();
    const gone: string[] = [];
    await join((_message, { client }) => {
      client.signal.addEventListener('abort', () => gone.push(client.id), { once: true });
      client.state.set('asked', Number(client.state.get('asked') ?? 0) + 1);
      return `${client.id} ${client.loopback} ${String(client.state.get('asked'))}`;
    });
    const [one, two] = [dial(), dial()];
    const [id] = (await one.sendMessage('')).split(' ');
    expect(await one.sendMessage('')).toBe(`${id} false 2`);
    expect(await two.sendMessage('')).toMatch(/ false 1$/);
    expect(await two.sendMessage('')).not.toContain(`${id} `);
    expect(gone).toEqual([]);
    await one.close();
    await until(() => gone.length > 0, 2_000, 'the news that a client has gone');
    expect(gone).toEqual([id, id]);
  });

  it('the time that is left, less what it waited for a worker', async () => {
    const { join, dial } = await routed();
    const left: Callback = (_message, { deadline }) => String(deadline - Date.now());
    const client = dial();
    const waited = client.sendMessage('', { timeoutMs: 3_000 });
    await pause(500);
    await join(left);
    expect(Number(await waited)).toBeGreaterThan(1_500);
    expect(Number(await waited)).toBeLessThan(2_600);
    expect(Number(await client.sendMessage('', { timeoutMs: 700 }))).toBeLessThanOrEqual(701);
    expect(Number(await client.sendMessage(''))).toBeGreaterThan(4_000);
  });

  it('the id of a message, by which a worker runs it once', async () => {
    const { join, dial } = await routed();
    let runs = 0;
    await join(() => String(++runs), { dedupe: 10 });
    const client = dial();
    expect(await client.sendMessage('a', { id: 'x ~#1' })).toBe('1');
    expect(await client.sendMessage('a', { id: 'x ~#1' })).toBe('1');
    expect(await client.sendMessage('a', { id: 'y' })).toBe('2');
  });

  it('errors with their code, outcome and time to wait', async () => {
    const { join, dial } = await routed();
    await join((message) => {
      if (message === 'plain') throw new Error('oh');
      throw new MicroError('SERVER_BUSY', 'not now', { outcome: 'refused', retryAfterMs: 70 });
    });
    const client = dial();
    expect(await failure(client.sendMessage('plain'))).toMatchObject({ code: 'CALLBACK_FAILED', outcome: 'failed',
      message: expect.stringContaining('oh') });
    expect(await failure(client.sendMessage('busy'))).toMatchObject({ code: 'SERVER_BUSY', outcome: 'refused',
      retryAfterMs: 70 });
  });

  it('a cancel, a deadline and a lost caller to the worker, in less than 100 ms', async () => {
    const { join, dial } = await routed();
    const aborted = new Map<string, number>();
    await join((message, { signal }) => new Promise<string>(() => {
      signal.addEventListener('abort', () => aborted.set(message, performance.now()));
    }));
    const [client, other] = [dial(), dial()];
    const cancel = new AbortController();
    const calls = [client.sendMessage('cancelled', { signal: cancel.signal }),
      client.sendMessage('late', { timeoutMs: 300 }), other.sendMessage('lost')].map(ended);
    await pause(150);
    const began = performance.now();
    cancel.abort();
    await other.close();
    await until(() => aborted.size === 3, 2_000, 'the end of all three in the worker');
    expect((aborted.get('cancelled') ?? NaN) - began).toBeLessThan(100);
    expect((aborted.get('lost') ?? NaN) - began).toBeLessThan(100);
    expect((aborted.get('late') ?? NaN) - began).toBeLessThan(250);
    expect(tally(await Promise.all(calls))).toEqual({ 'ABORTED, maybe done': 1, 'TIMEOUT, maybe done': 1,
      'CLOSED, maybe done': 1 });
  });
});

describe('MicroRouter and streams', () => {
  async function* count(to: number, each = (_part: number): void => {}): AsyncGenerator<string> {
    for (let part = 0; part < to; part++) { each(part); yield String(part); }
  }
  it('hands on each part, in order, however many and none', async () => {
    const { join, dial } = await routed();
    await join((message) => count(Number(message)));
    for (const parts of [0, 1, 31, 32, 33, 2_000]) {
      const got: string[] = [];
      for await (const part of dial().streamMessage(String(parts))) got.push(part);
      expect(got).toEqual(range(parts).map(String));
    }
  });
  it('asks a worker for no more than its reader takes, and holds up no other call', async () => {
    const { join, dial } = await routed();
    let made = 0;
    let left = false;
    await join((message) => {
      if (message !== 'stream') return message;
      return (async function* () {
        try {
          yield* count(1e9, (part) => { made = part; });
        } finally { left = true; }
      })();
    });
    const client = dial();
    for await (const part of client.streamMessage('stream')) {
      if (part !== '10') continue;
      await until(async () => { const before = made; await pause(50); return made === before; }, 5_000, 'a stop');
      expect(made).toBeLessThan(4 * 256); // worker, router and client hold a window each
      expect(await client.sendMessage('other')).toBe('other');
      break;
    }
    await until(() => left, 2_000, 'the return of the iterator in the worker');
  });
  it('hands on an error in the middle, and the loss of the worker', async () => {
    const { join, dial } = await routed();
    const worker = await join((message) => (async function* () {
      yield 'one';
      if (message === 'throw') throw new Error('oh');
      await new Promise(() => {});
    })());
    const client = dial();
    const read = async (text: string, onPart = (): void => {}) => {
      for await (const part of client.streamMessage(text)) { expect(part).toBe('one'); onPart(); }
    };
    expect(await failure(read('throw'))).toMatchObject({ code: 'CALLBACK_FAILED' });
    expect(await failure(read('wait', () => void worker.stop({ graceMs: 0 })))).toMatchObject({ outcome: 'maybe done' });
  });
  it('asks no other worker for a stream that one which drains broke off', async () => {
    const { join, dial, joined, router } = await routed();
    let runs = 0, breakOff = (): void => {};
    const service: Callback = () => {
      runs++;
      return (async function* () {
        yield 'one';
        await new Promise<void>((resolve) => { breakOff = resolve; });
        throw new MicroError('SERVER_BUSY', 'what is behind it is busy');
      })();
    };
    const first = await join(service);
    const parts: string[] = [];
    const read = async () => { for await (const part of dial().streamMessage('any')) parts.push(part); };
    const failed = failure(read());
    await until(() => parts.length === 1, 2_000, 'the first part');
    await join(service);
    const stopped = first.stop();
    await joined(1);
    expect(router.stats().workers.map(({ state }) => state).sort()).toEqual(['draining', 'joined']);
    breakOff();
    expect(await within(2_000, failed, 'the end of the stream')).toMatchObject({ code: 'SERVER_BUSY' });
    await stopped;
    expect(parts).toEqual(['one']);
    expect(runs).toBe(1);
  });
});

describe('MicroRouter and its workers', () => {
  it('takes who joins, and lets who drains finish: under load nothing is lost', async () => {
    const { join, dial, joined } = await routed({ strategy: 'least_busy' });
    const slow: Callback = async (message) => { await pause(5); return message; };
    let [first, second] = [await join(slow), await join(slow)];
    const client = dial();
    let isOver = false;
    let answered = 0;
    const lanes = range(16).map(async () => {
      while (!isOver) { expect(await client.sendMessage(`m${answered}`)).toMatch(/^m/); answered++; }
    });
    for (let round = 0; round < 5; round++) {
      await first.stop();
      await joined(1);
      [first, second] = [second, await join(slow)];
      await joined(2);
    }
    isOver = true;
    await Promise.all(lanes);
    expect(answered).toBeGreaterThan(100);
  });
  it('sends no worker more than maxInFlight at a time', async () => {
    const { join, dial, router } = await routed({ maxInFlight: 3 });
    let [running, most] = [0, 0];
    await join(async () => { most = Math.max(most, ++running); await pause(5); running--; return ''; });
    const client = dial();
    const calls = range(30).map(() => client.sendMessage(''));
    await until(() => router.stats().queued > 0, 2_000, 'a queue');
    await Promise.all(calls);
    expect(most).toBe(3);
    expect(router.stats()).toMatchObject({ queued: 0, workers: [{ inFlight: 0, sent: 30, state: 'joined' }] });
  });
  it.each(['is lost', 'drains', 'stops'])('gives others what waits for a worker that %s', async (how) => {
    const { join, dial, joined, back } = await routed({ maxInFlight: 2,
      strategy: (workers) => workers.find(({ id }) => id === 'first') ?? workers[0] });
    const first = await rawWorker(back, 'first');
    await joined(1);
    await join((message) => `second ${message}`);
    const client = dial();
    const calls = ['a', 'b', 'c', 'd'].map((text) => ended(client.sendMessage(text)));
    expect(await first.readLine()).toMatch(/ a$/);
    expect(await first.readLine()).toMatch(/ b$/);
    if (how === 'is lost') first.socket.destroy();
    else await first.write(`draining\n0 first a\n${how === 'drains' ? '1!' : 'goodbye'} SERVER_BUSY r: it stops\n`);
    const ends = (await Promise.all(calls)).map(({ reply, error }) => reply ?? error?.code);
    expect(ends).toEqual(how === 'is lost' ? ['CONNECTION_LOST', 'CONNECTION_LOST', 'second c', 'second d']
      : ['first a', 'second b', 'second c', 'second d']);
  });
  it('answers SERVER_BUSY, refused, where all are busy up to the deadline', async () => {
    const { join, dial } = await routed({ maxInFlight: 1 });
    await join(async (message) => { await pause(600); return message; });
    const client = dial();
    const first = client.sendMessage('first');
    const { error, ms } = await ended(client.sendMessage('second', { timeoutMs: 400 }));
    expect(error).toMatchObject({ code: 'SERVER_BUSY', outcome: 'refused', retryAfterMs: 200 });
    expect(ms).toBeGreaterThan(340);
    expect(ms).toBeLessThan(400);
    expect(await first).toBe('first');
  });
  it('holds no more than maxQueuedBytes for workers', async () => {
    const { dial } = await routed({ maxQueuedBytes: 1_000 });
    const client = dial({ timeoutMs: 500 });
    const calls = await Promise.all(range(3).map(() => ended(client.sendMessage('x'.repeat(400)))));
    expect(tally(calls)).toEqual({ 'NO_WORKER, refused': 2, 'SERVER_BUSY, refused': 1 });
  });
  it('sends nothing to a worker that a strategy remembers, but that has left', async () => {
    const seen: Candidate[] = [];
    const { join, dial, joined } = await routed({ strategy: (workers) => {
      seen.push(...workers);
      return seen[0];
    } });
    const first = await join(echo);
    const client = dial();
    expect(await client.sendMessage('one')).toBe('one');
    await join(echo);
    await first.stop();
    await joined(1);
    expect(await client.sendMessage('two')).toBe('two');
  });
  it('tells no caller of another what a worker tells after it was lost', async () => {
    const { dial, joined, back } = await routed();
    const raw = await rawWorker(back, 'raw');
    await joined(1);
    const client = dial();
    const cancelled = await ended(client.sendMessage('a', { timeoutMs: 100 }));
    expect(cancelled.error).toMatchObject({ code: 'TIMEOUT' });
    expect(await raw.readLine()).toMatch(/^0@100~\S+ a$/);
    expect(await raw.readLine()).toBe('cancel 0');
    const next = client.sendMessage('b');
    expect(await raw.readLine()).toMatch(/^1~\S+ b$/); // the slot stays taken until it is answered
    await raw.write('0 late\n1 re b\n');
    expect(await next).toBe('re b');
    const third = client.sendMessage('c');
    expect(await raw.readLine()).toMatch(/^[01]~\S+ c$/);
    await raw.write('0 re c\n1 re c\n');
    expect(await third).toBe('re c');
  });
  it('routes by a function, and lives on where that throws', async () => {
    const { join, dial } = await routed({ strategy: (workers, { text }) => {
      if (text === 'throw') throw new Error('no idea');
      return workers.find(({ id }) => id === text);
    } });
    for (const id of ['a', 'b']) await join(() => id, { id });
    const client = dial();
    expect(await Promise.all(['a', 'b', 'a'].map((text) => client.sendMessage(text)))).toEqual(['a', 'b', 'a']);
    expect(await failure(client.sendMessage('throw'))).toMatchObject({ code: 'CALLBACK_FAILED' });
    expect(await client.sendMessage('b')).toBe('b');
  });
  it.each(['round_robin', 'least_busy', 'by_key'])('routes by %s', async (strategy) => {
    const { join, dial } = await routed({ strategy });
    for (const id of ['a', 'b', 'c']) await join(() => id, { id });
    const clients = range(24).map(() => dial());
    const picks = await Promise.all(clients.map(async (client) => {
      const all = new Set([await client.sendMessage(''), await client.sendMessage('x'), await client.sendMessage('y')]);
      if (strategy === 'by_key') expect(all.size).toBe(1);
      return [...all];
    }));
    expect(new Set(picks.flat())).toEqual(new Set(['a', 'b', 'c']));
  });
  it.each([true, false])('sends again what carries an id, if told that it may: %s', async (resend) => {
    const { join, dial, joined, back } = await routed({ resend, strategy: (workers) => workers[0] });
    const first = await rawWorker(back, 'first');
    await joined(1);
    await join(echo);
    const client = dial();
    const calls = [client.sendMessage('with', { id: 'i' }), client.sendMessage('without')].map(ended);
    expect(await first.readLine()).toMatch(/^0#i~\S+ with$/);
    expect(await first.readLine()).toMatch(/^1~\S+ without$/);
    first.socket.destroy();
    const lost = { code: 'CONNECTION_LOST', outcome: 'maybe done' };
    const [withId, without] = await Promise.all(calls);
    expect(without?.error).toMatchObject(lost);
    if (resend) expect(withId?.reply).toBe('with');
    else expect(withId?.error).toMatchObject(lost);
  });
  it('lets nobody but workers in at its back', async () => {
    const { back } = await routed();
    const client = new MicroClient(back, { log: () => {} });
    expect(await failure(client.sendMessage('hello'))).toMatchObject({ code: 'PROTOCOL_ERROR', outcome: 'refused',
      message: expect.stringContaining("Dial the router's front") });
    await client.close();
    expect(await RawClient.with(back, (raw) => raw.ask('hello\n'))).toMatch(/^ERR BAD_MESSAGE .*for workers/);
  });
  it('wants its token of workers too', async () => {
    const { join, dial, back, router } = await routed({ token: 'secret' });
    await RawClient.with(back, async (raw) => {
      await raw.write('\x01portcall/1 role=worker node=w\n');
      await within(2_000, raw.ended, 'the end');
    });
    expect(router.stats().workers).toEqual([]);
    await expect(join(echo)).rejects.toMatchObject({ code: 'UNAUTHORIZED' });
    await expect(join(echo, { token: 'wrong' })).rejects.toMatchObject({ code: 'UNAUTHORIZED' });
    await join(echo, { token: 'secret' });
    expect(await dial({ token: 'secret' }).sendMessage('in')).toBe('in');
  });
});

describe('MicroRouter, started and stopped', () => {
  it('answers what is in flight before it stops; and serves again', async () => {
    const { router, join, dial, joined } = await routed();
    await join(async (message) => { await pause(200); return message; });
    const call = dial().sendMessage('kept');
    await until(() => router.stats().workers[0]?.inFlight === 1, 2_000, 'that it runs');
    await router.stop();
    expect(await call).toBe('kept');
    const { front } = await router.startListening();
    expect(front.port).toBeGreaterThan(0);
    await router.stop();
    await joined(0);
  });
  it('frees its back where its front is taken', async () => {
    const { front } = await routed();
    const other = new MicroRouter({ front, back: 0, log: () => {} });
    await expect(other.startListening()).rejects.toMatchObject({ code: 'PORT_IN_USE' });
    await other.stop();
  });
  it.each([[{ strategy: '../x' }, TypeError], [{ strategy: 5 }, TypeError], [{ maxInFlight: 0 }, RangeError],
    [{ maxQueued: -1 }, RangeError], [{ heartbeat: { intervalMs: 0 } }, RangeError], [{ token: '' }, TypeError]])(
    'refuses %o', (options, kind) => {
      expect(() => new MicroRouter({ front: 0, back: 0, ...options } as never)).toThrow(kind);
    });
  it('tells that there is no such strategy', async () => {
    const router = new MicroRouter({ front: 0, back: 0, strategy: 'nearest' });
    await expect(router.startListening()).rejects.toThrow('expected lib/routing/nearest.ts');
  });
});
