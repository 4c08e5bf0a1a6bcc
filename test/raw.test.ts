/** Raw over real connections: the silence that counts is the peer's. */
import { Duplex } from 'node:stream';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { MicroClient, type Codec, type Dialect } from '../lib/micro_client.ts';
import { raw, type RawOptions } from '../lib/dialects/raw.ts';
import { MicroServer, lines, type Callback, type ServerOptions } from '../lib/micro_server.ts';
import { pause, until } from './helpers/deadline.ts';
import { RawClient } from './helpers/raw_client.ts';
import { stillServes } from './helpers/still_serves.ts';

vi.setConfig({ testTimeout: 20_000 });
const servers = new Set<MicroServer>();
afterEach(async () => {
  await Promise.all([...servers].map((server) => server.stop({ graceMs: 0 })));
  servers.clear();
});

async function serve(callback: Callback, raws: RawOptions = {}, options: ServerOptions = {}):
  Promise<[port: number, server: MicroServer]> {
  const server = new MicroServer(callback, 0, { dialects: [raw({ words: ['revert'], ...raws })], log() {}, ...options });
  servers.add(server);
  return [(await server.startListening()).port as number, server];
}
const echo: Callback = (message) => message;

/** All that comes up to FIN, where the server closes; else `ms` long. */
async function heard(port: number, task: (client: RawClient) => Promise<unknown>, ms: number): Promise<string> {
  return RawClient.with(port, async (client) => {
    let text = '';
    client.socket.on('data', (bytes: Buffer) => { text += bytes.toString(); });
    await task(client);
    await pause(ms);
    return text;
  });
}

describe('replies', () => {
  it('have no line end, and their own line breaks', async () => {
    const [port] = await serve((message) => message.replaceAll('|', '\n'));
    expect(await heard(port, (client) => client.write('a|b\\n'), 300)).toBe('a\nb\\n');
    expect(await heard(port, (client) => client.write('a|b\n'), 300)).toBe('a\\nb\n');
  });
  it('of a stream are its parts with line breaks between', async () => {
    const [port] = await serve(async function* (message) { yield* message.split('|'); } as Callback);
    expect(await heard(port, (client) => client.write('a||b'), 300)).toBe('a\n\nb');
    expect(await heard(port, (client) => client.write('a||b\n'), 300)).toBe('a\n\\e\nb\n\n');
  });
  it('where there is nothing to say are nothing', async () => {
    const [port] = await serve(() => null);
    expect(await heard(port, (client) => client.write('a'), 300)).toBe('');
  });
  it('where the callback fails are the error as lines have it', async () => {
    const [port] = await serve(() => { throw new Error('it\nbroke'); });
    expect(await heard(port, (client) => client.write('revert'), 100)).toBe('ERR CALLBACK_FAILED it broke');
  });
  it('come in the order of the requests, raw and lines mixed', async () => {
    const [port] = await serve((message) => pause(message === 'slow' ? 400 : 1).then(() => message));
    const told = await heard(port, async (client) => {
      await client.write('slow');
      await pause(250);
      await client.write('quick\n');
      await client.write('revert');
    }, 500);
    expect(told).toBe('slowquick\nrevert');
  });
});

describe('the silence', () => {
  it('is of each chunk: a text that goes on dripping is one, and takes one timer', async () => {
    const [port] = await serve(echo, { silenceMs: 61 });
    const timeouts = vi.spyOn(globalThis, 'setTimeout');
    let most = 0;
    const told = await heard(port, async (client) => {
      for (const letter of 'dripping') {
        await client.write(letter);
        await pause(20);
        const silences = timeouts.mock.results.filter((_, at) => timeouts.mock.calls[at]?.[1] === 61);
        most = Math.max(most, silences.filter(({ value }) => !(value as { _destroyed: boolean })._destroyed).length);
      }
    }, 150);
    timeouts.mockRestore();
    expect(told).toBe('dripping');
    expect(most, 'timers at a time').toBe(1);
  });

  it('is not the server\'s own: what came while it was busy belongs to the text', async () => {
    const ran: string[] = [];
    const [port] = await serve((message) => { ran.push(message); return message; }, { silenceMs: 50 });
    await RawClient.with(port, async (client) => {
      await client.write('two ');
      await until(() => client.socket.bytesWritten === 4, 1_000, 'the first half');
      await pause(10); // it is read now, and its 50 ms run
      client.socket.write('halves'); // to the system, at once
      const end = performance.now() + 200;
      while (performance.now() < end); // the server stands still, in this process
      expect(String(await client.readBytes(10))).toBe('two halves');
      expect(ran).toEqual(['two halves']);
    });
  });

  it('does not count while the server does not read: a paused connection', async () => {
    let release = (): void => {};
    const gate = new Promise<void>((resolve) => { release = resolve; });
    const ran: string[] = [];
    const [port, server] = await serve((message) => { ran.push(message); return gate.then(() => ''); },
      { silenceMs: 50 }, { maxInFlight: 1 });
    await RawClient.with(port, async (client) => {
      client.socket.resume();
      const many = Array.from({ length: 5_000 }, (_, at) => `${at}\n`).join('');
      await client.write(`${many}half `);
      await until(() => server.stats().limits.maxInFlight, 2_000, 'the pause');
      await pause(200);
      void client.write('a text');
      await pause(200);
      release();
      await until(() => ran.includes('half a text'), 5_000, `the text as one (last: ${ran.at(-1)})`);
      expect(ran.length).toBe(5_001);
    });
  });

  it('ends a text while the connection\'s other requests wait', async () => {
    const ran: string[] = [];
    const [port] = await serve((message) => { ran.push(message); return pause(50).then(() => message); },
      { silenceMs: 30 }, { maxInFlight: 1 });
    expect(await heard(port, (client) => client.write('a\nb\nc\nraw'), 500)).toBe('a\nb\nc\nraw');
    expect(ran).toEqual(['a', 'b', 'c', 'raw']);
  });

  it('inside a letter waits for the rest, and no longer than a message may take', async () => {
    const [port, server] = await serve(echo, { silenceMs: 20 }, { partialTimeoutMs: 300 });
    await RawClient.with(port, async (client) => {
      const began = performance.now();
      await client.write(Buffer.from('e298', 'hex'));
      expect(String(await client.readToFin())).toMatch(/^ERR TIMEOUT /);
      expect(performance.now() - began).toBeGreaterThan(290);
    });
    expect(server.stats().limits).toEqual({ partialTimeoutMs: 1 });
    await stillServes({ port }, { ask: 'fine' });
  });

  it('after the peer is gone, or the server stops, ends nothing', async () => {
    const ran: string[] = [];
    const [port, server] = await serve((message) => { ran.push(message); return message; }, { silenceMs: 100 });
    await RawClient.with(port, async (client) => {
      await client.write('lost');
      await until(() => server.stats().bytes.in === 4, 1_000, 'what it says');
      client.socket.resetAndDestroy();
    });
    await until(() => server.stats().connections === 0, 1_000, 'its end');
    await RawClient.with(port, async (client) => {
      await client.write('half');
      await pause(20);
      await server.stop();
      expect(String(await client.readToFin())).toBe('');
    });
    await pause(150);
    expect(ran).toEqual([]);
  });

  it('is not awaited by codecs that ask for none: no timer, for lines, frames or a bare dialect', async () => {
    const timeouts = vi.spyOn(globalThis, 'setTimeout');
    const bare: Dialect = { ...lines(), name: 'bare', matches: ([first]) => (first === 33 ? 'yes' : 'no') };
    const server = new MicroServer(echo, 0, { dialects: [bare] });
    for (const [begin, bytes] of [['!a\n', 'b\n'], ['a\n', 'b\n'], ['\x01portcall/1\n', '0 b\n']] as const) {
      const duplex = new Duplex({ read() {}, write(_chunk, _encoding, done) { done(); } });
      server.serve(duplex);
      duplex.push(begin);
      await new Promise(setImmediate);
      timeouts.mockClear();
      for (let count = 0; count < 100; count++) duplex.push(bytes);
      await new Promise(setImmediate);
      expect(timeouts, begin).not.toHaveBeenCalled();
      duplex.destroy();
    }
    timeouts.mockRestore();
  });
});

describe('a token', () => {
  it('comes first, as a line; without it nothing runs', async () => {
    const ran: string[] = [];
    const [port] = await serve((message) => { ran.push(message); return message; }, {}, { token: 'secret' });
    expect(await heard(port, (client) => client.write('revert'), 300)).toMatch(/^ERR UNAUTHORIZED /);
    expect(ran).toEqual([]);
    const told = await heard(port, async (client) => {
      await client.write('$token secret\n');
      await pause(20);
      await client.write('revert');
    }, 200);
    expect(told).toBe('ok\nrevert');
  });
});

describe('set-up', () => {
  it.each([[['']], [['a\nb']], [[5]]])('words can\'t be %j', (words) => {
    expect(() => raw({ words: words as string[] })).toThrow(TypeError);
  });
  it.each([0, -1, NaN, Infinity])('a silence can\'t be %d ms', (ms) => {
    expect(() => raw({ silenceMs: ms })).toThrow(RangeError);
    expect(() => raw({ wordSilenceMs: ms })).toThrow(RangeError);
  });
  it('a client can\'t speak it, and says so', async () => {
    const [port] = await serve(echo);
    const client = new MicroClient(port, { dialect: raw() });
    await expect(client.sendMessage('a')).rejects.toMatchObject(
      { code: 'PROTOCOL_ERROR', outcome: 'not sent', message: expect.stringContaining('raw') });
    await client.close();
  });
  it('each connection has a codec of its own', () => {
    const { open } = raw();
    const options = { side: 'accepted', role: 'server', maxMessageBytes: 100 } as const;
    const codecs = [1, 2].map(() => open({ ...options, lines: () => lines().open(options) as never })) as Codec[];
    codecs[0]?.receive(Buffer.from('a'), { message() {}, response() {}, error() {}, write() {}, close() {} });
    expect(codecs.map((codec) => [codec.heldBytes, codec.idleMs?.()])).toEqual([[1, 200], [0, undefined]]);
  });
});
