/** Many calls at once on one client and one server, and what each option of a call does to it. */
import { getEventListeners } from 'node:events';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { MicroClient, MicroError, type ClientOptions } from '../lib/micro_client.ts';
import { MicroServer, type Callback, type ServerOptions } from '../lib/micro_server.ts';
import { pause, until, within } from './helpers/deadline.ts';
import { Proxy } from './helpers/proxy.ts';
import { FUZZ_SEED, fuzzRuns, seeded, type Random } from './helpers/random.ts';
import { RawClient } from './helpers/raw_client.ts';

vi.setConfig({ testTimeout: 30_000 }); // what is awaited has a shorter deadline of its own
const quiet = () => {};
const cleanUps: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await within(5_000, cleanUp(), 'the clean-up');
});

/** A server on a free port, stopped after the test. */
async function serve(callback: Callback, options: ServerOptions = {}) {
  const server = new MicroServer(callback, 0, { log: quiet, ...options });
  const { port } = await server.startListening();
  cleanUps.push(() => server.stop({ graceMs: 0 }));
  return { server, port: port as number };
}

function dial(port: number, options: ClientOptions = {}): MicroClient {
  const client = new MicroClient(port, { log: quiet, ...options });
  cleanUps.push(() => client.close());
  return client;
}

/** What a call failed with; an answer is a failure of the test. */
async function failure(call: Promise<unknown>): Promise<MicroError> {
  const error = await call.then((value) => {
    throw new Error(`Expected a failure, got the answer ${JSON.stringify(value)}`);
  }, (reason: unknown) => reason);
  expect(error).toBeInstanceOf(MicroError);
  return error as MicroError;
}

/** A promise and what settles it. */
function gate<T = void>() {
  let open!: (value: T) => void;
  const opened = new Promise<T>((resolve) => { open = resolve; });
  return { open, opened };
}

const range = (count: number) => Array.from({ length: count }, (_, index) => index);

describe('MicroClient at 10,000 calls at once', () => {
  it('gives each call its own reply, whether they come in order or not', async () => {
    const random = seeded(FUZZ_SEED);
    const runs = new Map<string, number>();
    const { port } = await serve((message) => {
      runs.set(message, (runs.get(message) ?? 0) + 1);
      const chance = random();
      const reply = `re ${message}`;
      if (chance < 0.4) return reply;
      if (chance < 0.7) return Promise.resolve(reply);
      return pause(chance * 20).then(() => reply);
    });
    const client = dial(port, { timeoutMs: 20_000 });
    const calls = range(10_000).map((index) => client.sendMessage(`m${index}`));
    const replies = await within(20_000, Promise.all(calls), '10,000 replies');
    expect(replies.filter((reply, index) => reply !== `re m${index}`), `FUZZ_SEED=${FUZZ_SEED}`).toEqual([]);
    expect(runs.size).toBe(10_000);
    expect([...runs.values()].filter((times) => times !== 1)).toEqual([]);
  });

  it('gives each its own reply over 20 clients with failures between', async () => {
    const { port } = await serve((message) => {
      if (message.endsWith('7')) throw new Error(`no ${message}`);
      return message.endsWith('3') ? new Promise((resolve) => { setImmediate(resolve, `late ${message}`); })
        : `re ${message}`;
    });
    const clients = range(20).map(() => dial(port, { timeoutMs: 20_000 }));
    const calls = range(10_000).map((index) =>
      (clients[index % 20] as MicroClient).sendMessage(`m${index}`).catch((error: MicroError) => error));
    const replies = await within(20_000, Promise.all(calls), '10,000 replies');
    const wrong = replies.filter((reply, index) => {
      if (index % 10 !== 7) return reply !== `${index % 10 === 3 ? 'late' : 're'} m${index}`;
      return !(reply instanceof MicroError) || reply.code !== 'CALLBACK_FAILED' || reply.message !== `no m${index}`;
    });
    expect(wrong).toEqual([]);
  });
});

describe('a text over frames', () => {
  const SPECIAL = ['\n', '\r', '\r\n', '\0', '\\', '\\n', '\u2028', '\u2029', '\u0085', '\uFEFF', '\x01', '\x7F',
    '😀', '𝒳', '\u{10FFFF}', '\uFFFF', '\uD7FF', '\uE000', '$', ' ', '\t', '"', 'é', '字', '+', '!', '.', '@9', '#1'];

  /** 0 to 1,000 code points: any that UTF-8 can carry, every other one from the list above. */
  function randomText(random: Random): string {
    let text = '';
    for (let left = random.int(1001); left > 0; left--) {
      if (random() < 0.5) text += random.pick(SPECIAL);
      else {
        const point = random.int(0x110000 - 0x800);
        text += String.fromCodePoint(point < 0xD800 ? point : point + 0x800);
      }
    }
    return text;
  }

  const EDGES = ['', ' ', '\n', '\r', '\r\n', '\\', '\\n', '\\\n', '\n\n\n', '\0', '0 x', '0! ABORTED m: x', '$ping',
    'ERR TIMEOUT x', 'goodbye', 'ping 1', '\x01portcall/1', '\uFEFF', '\u2028', 'a\\',
    '\\'.repeat(1000), '\n'.repeat(1000)];

  it('comes back identical, whatever code points it has', async () => {
    const { port } = await serve((message) => message);
    const client = dial(port, { timeoutMs: 20_000 });
    const random = seeded(FUZZ_SEED);
    const texts = [...EDGES, ...range(fuzzRuns(600)).map(() => randomText(random))];
    const replies = await within(20_000, Promise.all(texts.map((text) => client.sendMessage(text))), 'all replies');
    for (const [index, text] of texts.entries()) {
      expect(JSON.stringify(replies[index]), `FUZZ_SEED=${FUZZ_SEED}, text ${index}`).toBe(JSON.stringify(text));
    }
  });

  it('comes back identical as a part of a stream', async () => {
    const { port } = await serve(async function* (message) { yield message; });
    const client = dial(port);
    const random = seeded(FUZZ_SEED + 1);
    for (const text of [...EDGES, ...range(50).map(() => randomText(random))]) {
      expect(await within(5_000, collect(client.streamMessage(text)), 'the stream')).toEqual([text]);
    }
  });

  it.each([
    { what: 'a high half alone', text: 'a\uD83D' },
    { what: 'a low half alone', text: '\uDE00' },
    { what: 'two halves the wrong way round', text: 'x\uDE00\uD83Dy' },
    { what: 'a high half in the middle', text: 'x\uD800y' },
  ])('is BAD_MESSAGE and not sent with $what', async ({ text }) => {
    const seen: string[] = [];
    const { port } = await serve((message) => { seen.push(message); return message; });
    const client = dial(port);
    expect(await failure(client.sendMessage(text))).toMatchObject({ code: 'BAD_MESSAGE', outcome: 'not sent' });
    expect(await failure(collect(client.streamMessage(text))))
      .toMatchObject({ code: 'BAD_MESSAGE', outcome: 'not sent' });
    expect(await client.sendMessage('good')).toBe('good');
    expect(seen).toEqual(['good']);
  });

  it.each([5, null, undefined, {}, Symbol('x'), new Uint8Array(3)])('is BAD_MESSAGE where it is no string: %s',
    async (value) => {
      const { port, server } = await serve((message) => message);
      const error = await failure(dial(port).sendMessage(value as string));
      expect(error).toMatchObject({ code: 'BAD_MESSAGE', outcome: 'not sent' });
      expect(server.stats().requests).toBe(0);
    });

  it('is CALLBACK_FAILED where a reply has half a surrogate pair', async () => {
    const { port } = await serve((message) => (message === 'half' ? 'a\uD83D' : message));
    const client = dial(port);
    expect(await failure(client.sendMessage('half'))).toMatchObject({ code: 'CALLBACK_FAILED', outcome: 'failed' });
    expect(await client.sendMessage('whole')).toBe('whole');
  });
});

async function collect(parts: AsyncIterable<string>): Promise<string[]> {
  const all: string[] = [];
  for await (const part of parts) all.push(part);
  return all;
}

/** A service that streams, and counts what it made. */
function source(part: (index: number) => string, count = Infinity) {
  const state = { made: 0, returned: gate(), reached: gate(), reachAt: Infinity };
  const callback: Callback = (message) => {
    if (message !== 'stream') return message;
    let index = 0;
    const iterator: AsyncIterableIterator<string> = {
      [Symbol.asyncIterator]: () => iterator,
      next: async () => {
        if (index === count) return { done: true, value: undefined };
        if (++state.made >= state.reachAt) state.reached.open();
        return { done: false, value: part(index++) };
      },
      return: async () => { state.returned.open(); return { done: true, value: undefined }; },
    };
    return iterator;
  };
  return { state, callback };
}

describe('a streamed reply', () => {
  it('brings every part in order, and once', async () => {
    const { port } = await serve(source((index) => `part ${index}`, 20_000).callback);
    const parts = await within(20_000, collect(dial(port).streamMessage('stream')), '20,000 parts');
    expect(parts).toEqual(range(20_000).map((index) => `part ${index}`));
  });

  it('comes joined by line breaks from sendMessage', async () => {
    const { port } = await serve(source((index) => `part ${index}`, 1_000).callback);
    expect(await within(5_000, dial(port).sendMessage('stream'), 'the reply'))
      .toBe(range(1_000).map((index) => `part ${index}`).join('\n'));
  });

  it('yields an empty part, no part at all, and a reply that is no stream', async () => {
    const { port } = await serve((message) => {
      if (message === 'plain') return 'one';
      return (async function* () { if (message === 'empty') yield ''; })();
    });
    const client = dial(port);
    expect(await within(5_000, collect(client.streamMessage('empty')), 'the end')).toEqual(['']);
    expect(await within(5_000, collect(client.streamMessage('none')), 'the end')).toEqual([]);
    expect(await within(5_000, collect(client.streamMessage('plain')), 'the end')).toEqual(['one']);
  });

  it('is at most 256 parts ahead of its reader', async () => {
    const { state, callback } = source((index) => `${index}`);
    state.reachAt = 256;
    const { port } = await serve(callback);
    const client = dial(port);
    const parts = client.streamMessage('stream')[Symbol.asyncIterator]();
    let taken = 0;
    for (const step of [1, 1, 40, 300, 7, 1_000]) {
      for (let i = 0; i < step; i++) {
        const { value } = await within(5_000, parts.next(), `part ${taken}`);
        expect(value).toBe(`${taken++}`);
        expect(state.made).toBeLessThanOrEqual(taken + 256);
      }
      for (let i = 0; i < 20; i++) await client.ping(); // what was under way has come
      expect(state.made).toBeLessThanOrEqual(taken + 256);
    }
    await within(5_000, state.reached.opened, 'the 256th part');
    expect(state.made, 'credit came back').toBeGreaterThan(taken);
    await parts.return?.();
  });

  it('is at most 1 MiB ahead of its reader', async () => {
    const { state, callback } = source(() => 'x'.repeat(64 * 1024));
    state.reachAt = 16;
    const { port } = await serve(callback);
    const client = dial(port);
    const parts = client.streamMessage('stream')[Symbol.asyncIterator]();
    await within(5_000, parts.next(), 'the first part');
    await within(5_000, state.reached.opened, 'the 16th part');
    for (let i = 0; i < 20; i++) await client.ping();
    expect(state.made).toBeLessThanOrEqual(1 + 16 + 1);
    await parts.return?.();
  });

  it('does not hold up the other calls of its connection while its reader is slow', async () => {
    const { state, callback } = source(() => 'x'.repeat(32 * 1024));
    state.reachAt = 32;
    const { port, server } = await serve(callback);
    const client = dial(port);
    const streams = range(8).map(() => client.streamMessage('stream')[Symbol.asyncIterator]());
    for (const stream of streams) await within(5_000, stream.next(), 'a first part');
    await within(5_000, state.reached.opened, 'a full window');
    const replies = await within(1_000, Promise.all(range(1_000).map((i) => client.sendMessage(`m${i}`))),
      'the replies beside the slow readers');
    expect(replies).toEqual(range(1_000).map((i) => `m${i}`));
    expect(server.stats().connections).toBe(1);
    await Promise.all(streams.map((stream) => stream.return?.()));
  });

  it.each(['break', 'throw', 'return'])('is returned on the server within 1 s: %s', async (how) => {
    const { state, callback } = source((index) => `${index}`);
    const { port, server } = await serve(callback);
    const client = dial(port);
    const leave = async () => {
      for await (const part of client.streamMessage('stream')) {
        if (part === '10' && how === 'break') break;
        if (part === '10') throw new Error('the reader failed');
      }
    };
    if (how === 'break') await leave();
    else if (how === 'throw') await expect(leave()).rejects.toThrow('the reader failed');
    else {
      const parts = client.streamMessage('stream')[Symbol.asyncIterator]();
      await within(2_000, parts.next(), 'a part');
      await parts.return?.();
    }
    await within(1_000, state.returned.opened, 'the call of return()');
    expect(await client.sendMessage('still')).toBe('still');
    expect(server.stats().inFlight).toBe(0);
  });

  it('is returned on the server when its signal aborts, and ends with ABORTED', async () => {
    const { state, callback } = source((index) => `${index}`);
    const { port } = await serve(callback);
    const abort = new AbortController();
    const error = await failure((async () => {
      for await (const part of dial(port).streamMessage('stream', { signal: abort.signal })) {
        if (part === '10') abort.abort();
      }
    })());
    expect(error).toMatchObject({ code: 'ABORTED', outcome: 'maybe done' });
    await within(1_000, state.returned.opened, 'the call of return()');
  });

  it('that fails midway gives its parts, then CALLBACK_FAILED', async () => {
    const { port } = await serve(async function* () {
      yield 'one';
      yield 'two';
      throw new Error('the well ran dry');
    });
    const client = dial(port);
    const parts: string[] = [];
    const error = await failure((async () => {
      for await (const part of client.streamMessage('go')) parts.push(part);
    })());
    expect(error).toMatchObject({ code: 'CALLBACK_FAILED', message: expect.stringContaining('the well ran dry') });
    expect(parts).toEqual(['one', 'two']);
    expect(await failure(client.sendMessage('go'))).toMatchObject({ code: 'CALLBACK_FAILED' });
  });

  it('past maxMessageBytes fails sendMessage and is cancelled; streamMessage takes it', async () => {
    const { state, callback } = source(() => 'x'.repeat(1_000));
    const { port } = await serve(callback);
    const client = dial(port, { maxMessageBytes: 10_000 });
    expect(await failure(client.sendMessage('stream'))).toMatchObject({ code: 'MESSAGE_TOO_LARGE' });
    await within(1_000, state.returned.opened, 'the call of return()');
    let count = 0;
    for await (const part of client.streamMessage('stream')) if (part.length === 1_000 && ++count === 100) break;
    expect(count).toBe(100);
  });

  it('has its deadline from part to part, not over all', async () => {
    const next = gate();
    const { port } = await serve(async function* () {
      for (let i = 0; i < 6; i++) {
        yield `${i}`;
        await pause(60);
      }
      await next.opened;
    });
    const parts: string[] = [];
    const error = await failure((async () => {
      for await (const part of dial(port).streamMessage('go', { timeoutMs: 250 })) parts.push(part);
    })());
    next.open();
    expect(error).toMatchObject({ code: 'TIMEOUT', outcome: 'maybe done' });
    expect(parts, 'over 360 ms').toHaveLength(6);
  });

  it('never times out for the time its reader takes', async () => {
    const { port } = await serve(source((index) => `${index}`, 600).callback, { callbackTimeoutMs: 150 });
    let count = 0;
    for await (const part of dial(port).streamMessage('stream', { timeoutMs: 150 })) {
      expect(part).toBe(`${count++}`);
      if (count % 250 === 0) await pause(350);
    }
    expect(count).toBe(600);
  });
});

describe('a message with an id', () => {
  it('runs once and gets the same reply, in flight and after', async () => {
    let runs = 0;
    const { port } = await serve(async (message) => {
      const run = ++runs;
      await pause(30);
      return `${message} ${run}`;
    }, { dedupe: 100 });
    const [one, other] = [dial(port), dial(port)];
    const replies = await Promise.all([one.sendMessage('m', { id: 'a' }), one.sendMessage('m', { id: 'a' }),
      other.sendMessage('m', { id: 'a' })]);
    expect([...replies, await other.sendMessage('m', { id: 'a' })]).toEqual(Array(4).fill('m 1'));
    expect(await one.sendMessage('m', { id: 'b' })).toBe('m 2');
    expect(await one.sendMessage('m')).toBe('m 3');
  });

  it.each(['a', '1', 'id with blanks', '~', '\\', '#@~!+.', 'ü😀', '%7E', '\n', 'x'.repeat(128)])(
    'may be named %j', async (id) => {
      let runs = 0;
      const { port } = await serve(() => `run ${++runs}`, { dedupe: 10 });
      const client = dial(port);
      expect(await client.sendMessage('m', { id })).toBe('run 1');
      expect(await client.sendMessage('m', { id })).toBe('run 1');
      expect(await client.sendMessage('m', { id: 'another' })).toBe('run 2');
    });

  it('gets the same failure again', async () => {
    let runs = 0;
    const { port } = await serve(async () => { throw new Error(`failure ${++runs}`); }, { dedupe: 10 });
    const client = dial(port);
    for (let i = 0; i < 2; i++) {
      expect(await failure(client.sendMessage('m', { id: 'a' })))
        .toMatchObject({ code: 'CALLBACK_FAILED', message: expect.stringContaining('failure 1') });
    }
    expect(runs).toBe(1);
  });

  it('runs once where the callback throws at once', async () => {
    let runs = 0;
    const { port } = await serve(() => { throw new Error(`failure ${++runs}`); }, { dedupe: 10 });
    const client = dial(port);
    for (let i = 0; i < 2; i++) {
      expect(await failure(client.sendMessage('m', { id: 'a' }))).toMatchObject({ code: 'CALLBACK_FAILED' });
    }
    expect(runs).toBe(1);
  });

  it('never gets an empty reply for a stream that was read before', async () => {
    let runs = 0;
    const { port } = await serve(async function* () { yield `run ${++runs}`; yield 'end'; }, { dedupe: 10 });
    const client = dial(port);
    expect(await client.sendMessage('m', { id: 'a' })).toBe('run 1\nend');
    const second = await client.sendMessage('m', { id: 'a' }).catch((error: MicroError) => error.code);
    expect(['run 1\nend', 'CALLBACK_FAILED']).toContain(second);
    expect(runs).toBe(1);
  });

  it('is kept for the newest as many as dedupe says', async () => {
    let runs = 0;
    const { port } = await serve(() => `run ${++runs}`, { dedupe: 3 });
    const client = dial(port);
    for (const id of ['a', 'b', 'c', 'd']) await client.sendMessage('m', { id });
    expect(await client.sendMessage('m', { id: 'd' })).toBe('run 4');
    expect(await client.sendMessage('m', { id: 'b' })).toBe('run 2');
    expect(await client.sendMessage('m', { id: 'a' })).toBe('run 5');
  });

  it('is never forgotten while it runs', async () => {
    let runs = 0;
    const release = gate();
    const { port } = await serve(async () => {
      const run = ++runs;
      await release.opened;
      return `run ${run}`;
    }, { dedupe: 2 });
    const client = dial(port);
    const replies = ['a', 'b', 'c', 'a'].map((id) => client.sendMessage('m', { id }));
    await client.ping(); // all are at the server
    release.open();
    expect(await within(2_000, Promise.all(replies), 'the replies')).toEqual(['run 1', 'run 2', 'run 3', 'run 1']);
  });

  it('gets its reply though the first try was lost with its connection and the callback heeds its signal', async () => {
    let runs = 0;
    const [begun, release] = [gate(), gate()];
    const { port } = await serve((_message, { signal }) => new Promise((resolve, reject) => {
      const run = ++runs;
      signal.addEventListener('abort', () => reject(new Error('stopped halfway')));
      void release.opened.then(() => resolve(`run ${run}`));
      begun.open();
    }), { dedupe: 10 });
    const proxy = await Proxy.start(port);
    cleanUps.push(() => proxy.close());
    const client = dial(proxy.port, { retry: true });
    await client.ping(); // the server's hello has come: it says whether replies are kept
    const call = client.sendMessage('m', { id: 'a' });
    await within(2_000, begun.opened, 'the first try');
    proxy.reset();
    await until(() => proxy.connections === 2, 2_000, 'a new connection');
    release.open();
    expect(await within(5_000, call, 'the reply')).toBe('run 1');
  });

  it('is sent again after a lost connection where the server keeps replies, and runs once', async () => {
    const { client, runs } = await losing({ dedupe: 10 });
    expect(await within(5_000, client.sendMessage('m', { id: 'a' }), 'the second try')).toBe('run 1');
    expect(runs()).toBe(1);
  });

  it.each([{ id: 'a', dedupe: undefined }, { id: undefined, dedupe: 10 }])(
    'is not sent again with id $id and dedupe $dedupe', async ({ id, dedupe }) => {
      const { client, runs } = await losing(dedupe === undefined ? {} : { dedupe });
      expect(await failure(within(5_000, client.sendMessage('m', id === undefined ? {} : { id }), 'the failure')))
        .toMatchObject({ code: 'CONNECTION_LOST', outcome: 'maybe done' });
      expect(runs()).toBe(1);
    });

  /** A client with `retry` whose first reply is lost: the connection is reset while it is made. */
  async function losing(options: ServerOptions) {
    let runs = 0;
    const { port } = await serve(() => {
      if (++runs === 1) proxy.reset();
      return `run ${runs}`;
    }, options);
    const proxy = await Proxy.start(port);
    cleanUps.push(() => proxy.close());
    const client = dial(proxy.port, { retry: true });
    await client.ping(); // the server's hello has come: it says whether replies are kept
    return { client, runs: () => runs };
  }
});

describe('an AbortSignal', () => {
  it('that is aborted already fails the call before anything is dialled', async () => {
    const { port, server } = await serve((message) => message);
    const reason = new Error('changed my mind');
    const error = await failure(dial(port).sendMessage('m', { signal: AbortSignal.abort(reason) }));
    expect(error).toMatchObject({ code: 'ABORTED', outcome: 'not sent', cause: reason });
    expect(server.stats()).toMatchObject({ requests: 0, connections: 0 });
  });

  it('ends a call in flight, aborts it on the server, and leaves the connection usable', async () => {
    const [started, aborted] = [gate(), gate<unknown>()];
    const { port, server } = await serve((message, { signal }) => {
      if (message !== 'wait') return message;
      signal.addEventListener('abort', () => aborted.open(signal.reason));
      started.open();
      return new Promise(() => {});
    });
    const client = dial(port);
    const abort = new AbortController();
    const call = failure(client.sendMessage('wait', { signal: abort.signal }));
    await within(2_000, started.opened, 'the call at the service');
    const reason = new Error('changed my mind');
    abort.abort(reason);
    expect(await within(100, call, 'ABORTED')).toMatchObject({ code: 'ABORTED', outcome: 'maybe done', cause: reason });
    expect(await within(100, aborted.opened, 'the signal of the service')).toMatchObject({ code: 'ABORTED' });
    expect(getEventListeners(abort.signal, 'abort')).toEqual([]);
    expect(await client.sendMessage('next')).toBe('next');
    expect(server.stats()).toMatchObject({ connections: 1, inFlight: 0 });
  });

  it('changes nothing after the reply, and keeps no listener', async () => {
    const { port } = await serve((message) => message);
    const client = dial(port);
    const abort = new AbortController();
    expect(await client.sendMessage('m', { signal: abort.signal })).toBe('m');
    expect(getEventListeners(abort.signal, 'abort')).toEqual([]);
    abort.abort();
    expect(await client.sendMessage('n')).toBe('n');
  });

  it('must be one: anything else is a TypeError', () => {
    const client = dial(1);
    expect(() => client.sendMessage('m', { signal: {} as AbortSignal })).toThrow(TypeError);
    expect(() => client.streamMessage('m', { signal: 5 as unknown as AbortSignal })).toThrow(TypeError);
  });
});

describe('a call with retry', () => {
  it('waits as long as a busy service says, and is answered', async () => {
    const times: number[] = [];
    const { port } = await serve((message) => {
      times.push(performance.now());
      if (times.length < 4) throw new MicroError('SERVER_BUSY', 'not yet', { retryAfterMs: 50 });
      return message;
    });
    expect(await within(5_000, dial(port).sendMessage('m', { retry: true }), 'the reply')).toBe('m');
    expect(times).toHaveLength(4);
    for (let i = 1; i < 4; i++) expect(times[i]! - times[i - 1]!, `try ${i}`).toBeGreaterThanOrEqual(49);
  });

  it('ends at its deadline with the last reason where the service stays busy', async () => {
    const { port } = await serve(() => { throw new MicroError('SERVER_BUSY', 'not today', { retryAfterMs: 1_000 }); });
    const began = performance.now();
    const error = await failure(dial(port).sendMessage('m', { retry: true, timeoutMs: 300 }));
    expect(performance.now() - began).toBeGreaterThanOrEqual(200);
    expect(performance.now() - began).toBeLessThan(550);
    expect(error.outcome, 'it never ran').toMatch(/^(not sent|refused)$/);
  });

  it('takes turns with others: 200 busy calls are all answered', async () => {
    let inside = 0;
    let most = 0;
    const { port } = await serve(async (message) => {
      if (inside >= 10) throw new MicroError('SERVER_BUSY', 'ten at a time', { retryAfterMs: 5 });
      most = Math.max(most, ++inside);
      await pause(3);
      inside--;
      return message;
    });
    const client = dial(port, { retry: true, timeoutMs: 20_000 });
    const replies = await within(20_000, Promise.all(range(200).map((i) => client.sendMessage(`m${i}`))), 'all');
    expect(replies).toEqual(range(200).map((i) => `m${i}`));
    expect(most).toBe(10);
  });

  it.each(['abort', 'close'] as const)('ends at once by %s while it waits to try again', async (how) => {
    const asked = gate();
    const { port } = await serve(() => {
      asked.open();
      throw new MicroError('SERVER_BUSY', 'much later', { retryAfterMs: 3_000 });
    });
    const client = dial(port);
    const abort = new AbortController();
    const call = failure(client.sendMessage('m', { retry: true, signal: abort.signal }));
    await within(2_000, asked.opened, 'the first try');
    await client.ping(); // its refusal has come
    if (how === 'abort') abort.abort();
    else await within(500, client.close(), 'the end of close()');
    expect(await within(100, call, 'the failure'))
      .toMatchObject({ code: how === 'abort' ? 'ABORTED' : 'CLOSED', outcome: 'not sent' });
    expect(getEventListeners(abort.signal, 'abort')).toEqual([]);
  });

  it('counts for maxQueued while it waits to try again', async () => {
    let tries = 0;
    const all = gate();
    const { port } = await serve(() => {
      if (++tries === 10) all.open();
      throw new MicroError('SERVER_BUSY', 'much later', { retryAfterMs: 3_000 });
    });
    const client = dial(port, { maxQueued: 10 });
    const abort = new AbortController();
    const calls = range(10).map((i) => failure(client.sendMessage(`m${i}`, { retry: true, signal: abort.signal })));
    await within(2_000, all.opened, 'ten tries');
    await pause(50); // no event tells that the refusals have come
    const error = await failure(client.sendMessage('one more'));
    expect(error).toMatchObject({ code: 'SERVER_BUSY', outcome: 'not sent' });
    abort.abort();
    await within(100, Promise.all(calls), 'the ten');
  });

  it.each([
    { code: 'CALLBACK_FAILED', outcome: 'failed' },
    { code: 'TIMEOUT', outcome: 'maybe done' },
    { code: 'SERVER_BUSY', outcome: 'maybe done' },
    { code: 'BAD_MESSAGE', outcome: 'refused' },
  ] as const)('is not sent again after $code, $outcome', async ({ code, outcome }) => {
    let runs = 0;
    const { port } = await serve(() => { runs++; throw new MicroError(code, 'no', { outcome }); });
    expect(await failure(dial(port).sendMessage('m', { retry: true }))).toMatchObject({ code, outcome });
    expect(runs).toBe(1);
  });

  it('without it, fails at once with what the service said', async () => {
    const { port } = await serve(() => { throw new MicroError('SERVER_BUSY', 'not yet', { retryAfterMs: 70 }); });
    const call = failure(dial(port).sendMessage('m'));
    expect(await within(1_000, call, 'the failure')).toMatchObject({
      code: 'SERVER_BUSY', outcome: 'refused', retryAfterMs: 70, message: expect.stringContaining('not yet') });
  });
});

describe('a server with a token', () => {
  it.each([
    { what: 'the right token', options: { token: 'opensesame' }, isServed: true },
    { what: 'a wrong one', options: { token: 'opensesam' }, isServed: false },
    { what: 'a longer one', options: { token: 'opensesamee' }, isServed: false },
    { what: 'none', options: {}, isServed: false },
  ])('is asked with $what', async ({ options, isServed }) => {
    const seen: string[] = [];
    const { port } = await serve((message) => { seen.push(message); return message; }, { token: 'opensesame' });
    const client = dial(port, options);
    const calls = await Promise.allSettled(range(10).map((i) => client.sendMessage(`m${i}`)));
    expect(seen).toHaveLength(isServed ? 10 : 0);
    for (const [i, call] of calls.entries()) {
      if (isServed) expect(call).toEqual({ status: 'fulfilled', value: `m${i}` });
      else expect(call).toMatchObject({ status: 'rejected', reason: { code: 'UNAUTHORIZED', outcome: 'refused' } });
    }
  });

  it('takes a token with blanks and every sign', async () => {
    const token = 'ö =%20;\u2028 "$token"';
    const { port } = await serve((message) => message, { token });
    expect(await dial(port, { token }).sendMessage('m')).toBe('m');
  });

  it.each(['', undefined, 5])('refuses %j as a token on either side', (token) => {
    const options = { token: token as string };
    expect(() => new MicroClient(1, options)).toThrow(TypeError);
    expect(() => new MicroServer((message) => message, 1, options)).toThrow(TypeError);
  });
});

describe('the limits of a server are options:', () => {
  it('maxMessageBytes of a message, at the limit and past it', async () => {
    const seen: number[] = [];
    const { port, server } = await serve((message) => { seen.push(message.length); return 'ok'; },
      { maxMessageBytes: 1_000 });
    const client = dial(port);
    expect(await client.sendMessage('x'.repeat(1_000))).toBe('ok');
    expect(await client.sendMessage('é'.repeat(500))).toBe('ok');
    for (const text of ['x'.repeat(1_001), 'é'.repeat(501), '\n'.repeat(1_001), 'x'.repeat(100_000)]) {
      expect(await failure(client.sendMessage(text))).toMatchObject({ code: 'MESSAGE_TOO_LARGE', outcome: 'refused' });
    }
    expect(await client.sendMessage('\n'.repeat(1_000)), 'escaped it is twice as long').toBe('ok');
    expect(seen).toEqual([1_000, 500, 1_000]);
    expect(server.stats()).toMatchObject({ connections: 1, limits: { maxMessageBytes: 4 } });
  });

  it('maxMessageBytes of a reply, at the limit and past it', async () => {
    const { port } = await serve((message) => 'x'.repeat(Number(message)), { maxMessageBytes: 1_000 });
    const client = dial(port);
    expect(await client.sendMessage('1000')).toHaveLength(1_000);
    expect(await failure(client.sendMessage('1001'))).toMatchObject({ code: 'MESSAGE_TOO_LARGE', outcome: 'failed' });
    expect(await client.sendMessage('1')).toBe('x');
  });

  it('maxMessageBytes of the client: a message is not sent, a reply fails', async () => {
    const { port, server } = await serve((message) => 'x'.repeat(Number(message)));
    const client = dial(port, { maxMessageBytes: 1_000 });
    expect(await failure(client.sendMessage('1'.repeat(1_001))))
      .toMatchObject({ code: 'MESSAGE_TOO_LARGE', outcome: 'not sent' });
    expect(server.stats().requests).toBe(0);
    expect(await client.sendMessage('1000')).toHaveLength(1_000);
    for (const size of ['1001', '100000']) {
      expect(await failure(client.sendMessage(size)), size)
        .toMatchObject({ code: 'MESSAGE_TOO_LARGE', outcome: 'maybe done' });
    }
    expect(await client.sendMessage('5')).toBe('xxxxx');
  });

  it('maxInFlight: never more in the callback, and all are answered', async () => {
    let inside = 0;
    let most = 0;
    const { port } = await serve(async (message) => {
      most = Math.max(most, ++inside);
      await pause(2);
      inside--;
      return message;
    }, { maxInFlight: 7 });
    const client = dial(port, { timeoutMs: 20_000 });
    const replies = await within(20_000, Promise.all(range(500).map((i) => client.sendMessage(`m${i}`))), 'all');
    expect(replies).toEqual(range(500).map((i) => `m${i}`));
    expect(most).toBe(7);
  });

  it('maxInFlight: a held call can be cancelled, and is never run', async () => {
    const seen: string[] = [];
    const [started, release] = [gate(), gate()];
    const { port } = await serve(async (message) => {
      seen.push(message);
      if (message === 'first') started.open();
      await release.opened;
      return message;
    }, { maxInFlight: 1 });
    const client = dial(port);
    const first = client.sendMessage('first');
    await within(2_000, started.opened, 'the first call');
    const abort = new AbortController();
    const second = failure(client.sendMessage('second', { signal: abort.signal }));
    const third = client.sendMessage('third');
    await client.ping(); // both are at the server
    abort.abort();
    expect(await second).toMatchObject({ code: 'ABORTED' });
    await client.ping(); // and so is the cancel
    release.open();
    expect(await within(2_000, Promise.all([first, third]), 'the others')).toEqual(['first', 'third']);
    expect(seen).toEqual(['first', 'third']);
  });

  it('maxQueued: one call more is SERVER_BUSY, not sent', async () => {
    const release = gate();
    const { port } = await serve(async (message) => { await release.opened; return message; });
    const client = dial(port, { maxQueued: 10 });
    const calls = range(10).map((i) => client.sendMessage(`m${i}`));
    expect(await failure(client.sendMessage('one more')))
      .toMatchObject({ code: 'SERVER_BUSY', outcome: 'not sent', message: expect.stringContaining('maxQueued') });
    release.open();
    expect(await within(2_000, Promise.all(calls), 'the ten')).toEqual(range(10).map((i) => `m${i}`));
    expect(await client.sendMessage('again')).toBe('again');
  });

  it('maxConnections: one client more is SERVER_BUSY, and a freed place is given', async () => {
    const { port, server } = await serve((message) => message, { maxConnections: 3 });
    const clients = range(3).map(() => dial(port));
    for (const client of clients) expect(await client.sendMessage('m')).toBe('m');
    const late = dial(port);
    const error = await failure(within(2_000, late.sendMessage('late'), 'the refusal'));
    expect(error).toMatchObject({ code: 'SERVER_BUSY', outcome: 'refused' });
    expect(error.retryAfterMs).toBeGreaterThan(0);
    expect(server.stats().limits.maxConnections).toBe(1);
    const patient = dial(port).sendMessage('patient', { retry: true });
    await clients[0]?.close();
    expect(await within(2_000, patient, 'the freed place')).toBe('patient');
  });

  it('callbackTimeoutMs: the caller gets TIMEOUT, the signal is aborted, the place is free', async () => {
    const aborted = gate<unknown>();
    const { port, server } = await serve((message, { signal }) => {
      if (message !== 'never') return message;
      signal.addEventListener('abort', () => aborted.open(signal.reason));
      return new Promise(() => {});
    }, { callbackTimeoutMs: 100 });
    const client = dial(port);
    const began = performance.now();
    expect(await failure(client.sendMessage('never'))).toMatchObject({ code: 'TIMEOUT', outcome: 'maybe done' });
    expect(performance.now() - began).toBeGreaterThan(90);
    expect(performance.now() - began).toBeLessThan(350);
    expect(await within(100, aborted.opened, 'the signal')).toMatchObject({ code: 'TIMEOUT' });
    expect(await client.sendMessage('next')).toBe('next');
    expect(server.stats()).toMatchObject({ inFlight: 0, connections: 1, limits: { callbackTimeoutMs: 1 } });
  });

  it('maxProtocolErrors: as many are answered, one more closes', async () => {
    const { port, server } = await serve((message) => message, { maxProtocolErrors: 3 });
    const said = await RawClient.with(port, async (client) => {
      await client.write(`${'$nonsense\n'.repeat(4)}never run\n`);
      return (await client.readToFin()).toString();
    });
    const replies = said.split('\n').slice(0, -1);
    expect(replies.map((reply) => reply.split(' ', 2).join(' ')))
      .toEqual([...Array(3).fill('ERR BAD_MESSAGE'), 'ERR PROTOCOL_ERROR']);
    expect(server.stats().requests).toBe(0);
  });

  it('partialTimeoutMs: an unfinished message is closed with a reason', async () => {
    const { port } = await serve((message) => message, { partialTimeoutMs: 100 });
    const began = performance.now();
    const said = await RawClient.with(port, async (client) => {
      await client.write('whole\nunfinis');
      return (await client.readToFin(1_000)).toString();
    });
    expect(performance.now() - began).toBeGreaterThan(90);
    expect(said).toMatch(/^whole\nERR TIMEOUT [^\n]+\n$/);
  });

  it('partialTimeoutMs: counts from the beginning of each message', async () => {
    const { port } = await serve((message) => message, { partialTimeoutMs: 400 });
    await RawClient.with(port, async (client) => {
      for (const bytes of ['a', '\nbb', '\nccc']) {
        await client.write(bytes);
        await pause(250);
      }
      expect(await client.ask('\n')).toBe('a\nbb\nccc\n');
    });
  });

  it.each([
    ['partialTimeoutMs', { partialTimeoutMs: 100 }, '1 unfinis', 'TIMEOUT'],
    ['maxProtocolErrors', { maxProtocolErrors: 1 }, 'what\nwhat\n', 'PROTOCOL_ERROR'],
  ])('%s: tells nobody that what runs already was refused', async (_, limits, bytes, code) => {
    const { port } = await serve(() => new Promise(() => {}), limits);
    const goodbye = async (first: string) => RawClient.with(port, async (client) => {
      await client.write(`\x01portcall/1\n${first}${bytes}`);
      return (await client.readToFin(1_000)).toString().split('\n').at(-2);
    });
    expect(await goodbye('')).toMatch(new RegExp(`^goodbye ${code} r: `));
    expect(await goodbye('0 runs\n')).toMatch(new RegExp(`^goodbye ${code} m: `));
  });

  it('drainMs: what is in flight when a drain is over ends with TIMEOUT', async () => {
    const started = gate();
    const { port, server } = await serve((message) => {
      if (message !== 'never') return message;
      started.open();
      return new Promise(() => {});
    }, { drainMs: 150 });
    const call = failure(dial(port).sendMessage('never'));
    await within(2_000, started.opened, 'the call');
    const began = performance.now();
    await within(1_000, server.stop(), 'the end of the drain');
    expect(performance.now() - began).toBeGreaterThan(140);
    expect(await within(100, call, 'the failure')).toMatchObject({ code: 'TIMEOUT', outcome: 'maybe done' });
  });

  const NAMES = ['maxMessageBytes', 'maxUnauthorizedBytes', 'partialTimeoutMs', 'maxInFlight', 'maxOutputBytes',
    'outputTimeoutMs', 'maxConnections', 'maxProtocolErrors', 'maxLinesPerTick', 'callbackTimeoutMs', 'drainMs'];

  it.each(NAMES)('%s must be a number above 0', (name) => {
    const make = (value: unknown) => () => new MicroServer((message) => message, 0, { [name]: value });
    for (const value of [0, -1, NaN]) expect(make(value), String(value)).toThrow(RangeError);
    for (const value of ['5', {}, true]) expect(make(value), String(value)).toThrow(TypeError);
    expect(make(1)).not.toThrow();
    expect(make(undefined)).not.toThrow();
  });

  it.each(['timeoutMs', 'maxQueued', 'maxMessageBytes'])('%s of a client must be a number above 0', (name) => {
    const make = (value: unknown) => () => new MicroClient(1, { [name]: value });
    for (const value of [0, -1, NaN]) expect(make(value), String(value)).toThrow(RangeError);
    for (const value of ['5', {}, true]) expect(make(value), String(value)).toThrow(TypeError);
    expect(make(1)).not.toThrow();
  });
});
