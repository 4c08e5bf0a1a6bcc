/** PROTOCOL.md keeps what it promises: its tables equal the code, its program runs, its sentences hold. */
import { execFile, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, it, vi } from 'vitest';
import { ERRORS, MicroClient, MicroError, type ErrorCode } from '../lib/micro_client.ts';
import { DEFAULT_LIMITS, MicroServer, type Callback, type Limits, type ServerOptions } from '../lib/micro_server.ts';
import { createEcho } from '../services/echo.ts';
import { within } from './helpers/deadline.ts';
import { RawClient } from './helpers/raw_client.ts';

vi.setConfig({ testTimeout: 20_000 }); // each wait has a deadline of its own, which tells more
const page = readFileSync(new URL('../lib/PROTOCOL.md', import.meta.url), 'utf8');
const HELLO = '\x01portcall/1';
const servers = new Set<MicroServer>();
afterEach(async () => {
  await Promise.all([...servers].map((server) => server.stop({ graceMs: 0 })));
  servers.clear();
});

function section(title: string): string {
  const [, text] = page.split(`\n## ${title}\n`);
  if (text === undefined) throw new Error(`Cannot find "## ${title}" in PROTOCOL.md`);
  return text.split('\n## ')[0] as string;
}

/** The cells of a section's table, without its head. */
function rows(title: string): string[][] {
  const lines = section(title).split('\n').filter((line) => line.startsWith('|'));
  return lines.slice(2).map((line) => line.slice(1, -1).split('|').map((cell) => cell.trim()));
}

const names = (cell = ''): string[] => [...cell.matchAll(/`(\w+)`/g)].map(([, name]) => name as string);
const code = (cell: string | undefined): string => /^`(.*)`$/.exec(cell ?? '')?.[1] ?? `${cell} is not in backticks`;

async function serve(callback: Callback, options: ServerOptions = {}): Promise<[MicroServer, number]> {
  const server = new MicroServer(callback, 0, { log() {}, ...options });
  servers.add(server);
  return [server, (await server.startListening()).port as number];
}

/** Says hello over frames, reads the server's, and does `task`. */
function talk<T>(port: number, task: (client: RawClient) => Promise<T>, fields = ''): Promise<T> {
  return RawClient.with(port, async (client) => {
    await client.write(`${HELLO}${fields}\n`);
    expect(await client.readLine(undefined, 'the hello')).toMatch(/^\x01portcall\/1( |$)/);
    return task(client);
  });
}

describe('the page', () => {
  it('its contents lead to its sections, all of them', () => {
    const links = [...(page.split('\n## ')[0] ?? '').matchAll(/\[([^\]]+)\]\(#([^)]+)\)/g)];
    const sections = [...page.matchAll(/^## (.*)$/gm)].map(([, title]) => title);
    expect(links.map(([, title]) => title)).toEqual(sections);
    for (const [, title = '', anchor] of links) expect(anchor).toBe(title.toLowerCase().replaceAll(' ', '-'));
  });
  it('files that it names exist', () => {
    const named = [...page.matchAll(/`((?:lib|test|services)\/[\w./]*)[^`]*`/g)].map(([, path]) => path as string);
    expect(named.length).toBeGreaterThan(2);
    for (const path of named) expect(existsSync(new URL(`../${path}`, import.meta.url)), path).toBe(true);
  });
  it('fields of the vectors are those that it tells', () => {
    const told = new Set(rows('Vectors').flatMap(([cell]) => names(cell)));
    const folder = new URL('./vectors/', import.meta.url);
    const used = new Set<string>();
    for (const file of readdirSync(folder)) {
      const { vectors, about: _, ...head } = JSON.parse(readFileSync(new URL(file, folder), 'utf8')) as
        { about: string; vectors: object[] };
      for (const one of [head, ...vectors]) for (const name of Object.keys(one)) used.add(name);
    }
    expect([...told].sort()).toEqual([...used].sort());
  });
});

describe('Errors', () => {
  const MAY_HAVE_RUN = { 'not sent': 'no', refused: 'no', 'maybe done': 'maybe', failed: 'yes' } as const;
  it('the table is the code, row by row and both ways', () => {
    const table = rows('Errors').map(([name, , outcome, ran]) => [code(name), outcome, ran]);
    expect(table).toEqual(Object.entries(ERRORS).map(([name, outcome]) => [name, outcome, MAY_HAVE_RUN[outcome]]));
  });
  it('each row tells where it arises', () => {
    for (const [name, , , , where = ''] of rows('Errors')) expect(where.length, name).toBeGreaterThan(10);
  });
  it.each(Object.keys(ERRORS) as ErrorCode[])('%s crosses with outcome, text and time, over frames and lines', async (name) => {
    for (const outcome of ['not sent', 'refused', 'maybe done', 'failed'] as const) {
      const retryAfterMs = outcome === 'refused' ? 200 : undefined;
      const [, port] = await serve(() => { throw new MicroError(name, 'so it\nis', { outcome, retryAfterMs }); });
      const error = await new MicroClient(port).sendMessage('a').catch((reason: unknown) => reason);
      expect(error).toMatchObject({ name: 'MicroError', code: name, outcome });
      expect((error as MicroError).message).toContain('so it is');
      expect((error as MicroError).retryAfterMs).toBe(retryAfterMs);
      expect(await RawClient.with(port, (client) => client.ask('a\n'))).toBe(
        retryAfterMs === undefined ? `ERR ${name} so it is\n` : `ERR ${name} retry after 200 ms\n`);
    }
  });
  it('a client takes a code that it does not know for PROTOCOL_ERROR, and keeps outcome and text', async () => {
    const peer = createServer((socket) => socket.on('error', () => {})
      .once('data', () => socket.write(`${HELLO}\n0! NEW_CODE f: why\n`)));
    await once(peer.listen(0, '127.0.0.1'), 'listening');
    const client = new MicroClient((peer.address() as AddressInfo).port);
    const error = await client.sendMessage('a').catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: 'PROTOCOL_ERROR', outcome: 'failed' });
    expect((error as MicroError).message).toContain('why');
    await client.close();
    peer.close();
  });
});

describe('Limits', () => {
  const UNITS: Readonly<Record<string, number>> = { KiB: 1024, MiB: 1024 ** 2, s: 1000, ms: 1 };
  const told = rows('Limits').map(([option, of, standard = '', past]) => {
    const [number = '', unit] = standard.split(' ');
    const factor = unit === undefined ? 1 : UNITS[unit] ?? NaN;
    return { option: code(option), of, past, value: Number(number.replaceAll(',', '')) * factor };
  });
  it('the server\'s are the code\'s, both ways', () => {
    const server = told.filter(({ of }) => of !== 'client').map(({ option, value }) => [option, value]);
    expect(Object.fromEntries(server)).toEqual(DEFAULT_LIMITS);
    expect(server.length).toBe(Object.keys(DEFAULT_LIMITS).length);
    for (const { option, past } of told) expect(past?.length, option).toBeGreaterThan(10);
  });
  it.each(Object.keys(DEFAULT_LIMITS) as (keyof Limits)[])('%s is an option', (name) => {
    expect(() => new MicroServer(createEcho(), 0, { [name]: 0 })).toThrow(RangeError);
    expect(() => new MicroServer(createEcho(), 0, { [name]: 'many' as unknown as number })).toThrow(TypeError);
  });
  it.each(['timeoutMs', 'maxQueued', 'maxMessageBytes'])('%s is an option of the client', (name) => {
    expect(told.find(({ option }) => option === name)?.of).toMatch(/^(both|client)$/);
    expect(() => new MicroClient(0, { [name]: -1 })).toThrow(RangeError);
    expect(() => new MicroClient(0, { [name]: 'many' as unknown as number })).toThrow(TypeError);
  });
  it('the client\'s are what it does', async () => {
    const limit = (name: string): number =>
      told.find(({ option, of }) => option === name && of !== 'server')?.value ?? NaN;
    const [, port] = await serve(() => new Promise<string>(() => {}));
    const client = new MicroClient(port, { log() {} });
    const text = 'x'.repeat(limit('maxMessageBytes'));
    await expect(client.sendMessage(`${text}x`)).rejects
      .toMatchObject({ code: 'MESSAGE_TOO_LARGE', outcome: 'not sent' });
    const calls = Array.from({ length: limit('maxQueued') }, () =>
      client.sendMessage('a').catch((error: unknown) => error));
    await expect(client.sendMessage('a')).rejects.toMatchObject({ code: 'SERVER_BUSY', outcome: 'not sent' });
    await client.close();
    expect(new Set((await Promise.all(calls)).map((error) => (error as MicroError).code))).toEqual(new Set(['CLOSED']));

    const peer = createServer().listen(0, '127.0.0.1');
    await once(peer, 'listening');
    const other = new MicroClient((peer.address() as AddressInfo).port);
    const pending = other.sendMessage('a').catch((error: unknown) => error);
    const [socket] = (await within(5_000, once(peer, 'connection'), 'a connection')) as [NodeJS.ReadableStream];
    const [first] = (await within(5_000, once(socket, 'data'), 'a hello')) as [Buffer];
    expect(String(first)).toBe(`${HELLO} timeout=${limit('timeoutMs')}\n0 a\n`);
    await other.close();
    await pending;
    peer.close();
  });
});

describe('Lines', () => {
  it('each `$` line is answered as the table says', async () => {
    const [, port] = await serve((text) => `message ${text}`);
    const table = rows('Lines');
    const lines = table.map(([line = '']) => line.replaceAll('`', ''));
    expect(lines).toEqual(['$ping', '$help', '$info', '$stats', '$token SECRET', '$$text', 'any other']);
    const answers = (await RawClient.with(port, (client) =>
      client.ask(`${lines.slice(0, -1).join('\n')}\n$other\n`))).split('\n');
    expect(answers[0]).toBe('pong');
    expect(answers[1]).toMatch(/\$ping \$help \$info \$stats/);
    const keys = (at: number): string[] => names(table[at]?.[1]);
    const info = JSON.parse(answers[2] ?? '') as Record<string, unknown>;
    expect(info).toMatchObject({ name: 'portcall', dialects: ['frames', 'lines'], limits: DEFAULT_LIMITS });
    expect(keys(2).filter((key) => !['portcall', 'summary'].includes(key)).sort()).toEqual(Object.keys(info).sort());
    expect(keys(3).sort()).toEqual(Object.keys(JSON.parse(answers[3] ?? '') as object).sort());
    expect(answers.slice(4)).toEqual(['ok', 'message $text', expect.stringMatching(/^ERR BAD_MESSAGE /), '']);
  });
  it('a token comes first', async () => {
    const [, port] = await serve((text) => text, { token: 'a b' });
    const ask = (text: string): Promise<string> => RawClient.with(port, (client) => client.ask(text));
    expect(await ask('$token a b\nhi\n')).toBe('ok\nhi\n');
    for (const text of ['$token ab\nhi\n', 'hi\n', '$ping\n', '$token\nhi\n', '$$token a b\nhi\n']) {
      expect(await ask(text), text).toMatch(/^ERR UNAUTHORIZED [^\n]*\n$/);
    }
  });
  it('a stream is a line a part, an empty part is \\e, an empty line ends it', async () => {
    const [, port] = await serve(async function* (text) { yield* text.split('|'); } as Callback);
    expect(await RawClient.with(port, (client) => client.ask('a||b\nc\n'))).toBe('a\n\\e\nb\n\nc\n\n');
  });
  it('an error is one line of at most 4,096 letters', async () => {
    const [, port] = await serve(() => { throw new Error(`a\r\n\t\x1b[2J\u2028b${'x'.repeat(9_000)}`); });
    const answer = await RawClient.with(port, (client) => client.ask('a\n'));
    expect(answer).toMatch(/^ERR CALLBACK_FAILED a \[2J bx+\n$/);
    expect(answer.length).toBeLessThanOrEqual('ERR CALLBACK_FAILED \n'.length + 4_096);
  });
});

describe('Frames', () => {
  /** Answers `now`, holds `hold` until it is aborted or `release` is called. */
  function holding(): { callback: Callback; begun: Promise<void>; release: () => void; reasons: unknown[] } {
    let [begin, release] = [(): void => {}, (): void => {}];
    const begun = new Promise<void>((resolve) => { begin = resolve; });
    const released = new Promise<void>((resolve) => { release = resolve; });
    const reasons: unknown[] = [];
    return { begun, release, reasons, callback: async (text, { signal }) => {
      if (text !== 'hold') return text;
      signal.addEventListener('abort', () => reasons.push((signal.reason as MicroError).code));
      begin();
      await released;
      return 'released';
    } };
  }

  it('the server\'s hello tells what it takes', async () => {
    const [, port] = await serve((text) => text, { maxMessageBytes: 1000, dedupe: 7 });
    const answer = await RawClient.with(port, (client) => client.ask(`${HELLO}\n`));
    expect(answer).toBe(`${HELLO} max=1000 dedupe=7\n`);
  });
  it('a hello of at most 8 KiB with its LF', async () => {
    const [, port] = await serve((text) => text);
    const hello = (bytes: number): string => `${HELLO} node=`.padEnd(bytes - 1, 'x') + '\n0 a\n';
    const ask = (text: string): Promise<string> => RawClient.with(port, (client) => client.ask(text));
    expect(await ask(hello(8 * 1024))).toMatch(/\n0 a\n$/);
    expect(await ask(hello(8 * 1024 + 1))).toMatch(/^goodbye PROTOCOL_ERROR r: .*\n$/);
  });
  it('a wrong token is answered with the hello, then goodbye', async () => {
    const [, port] = await serve((text) => text, { token: 'a b' });
    const ask = (fields: string): Promise<string> =>
      RawClient.with(port, (client) => client.ask(`${HELLO}${fields}\n0 a\n`));
    expect(await ask(' token=a%20b')).toMatch(/^\x01portcall\/1[^\n]*\n0 a\n$/);
    for (const fields of ['', ' token=ab', ' token=']) {
      expect(await ask(fields)).toMatch(/^\x01portcall\/1[^\n]*\ngoodbye UNAUTHORIZED r: [^\n]*\n$/);
    }
  });
  it('a server that is full says so in the dialect it hears, or as a line after a second', async () => {
    const [, port] = await serve((text) => text, { maxConnections: 1 });
    await RawClient.with(port, async (first) => {
      await first.write('$ping\n');
      await first.readLine();
      const [frames, lines, silent] = await Promise.all([
        RawClient.with(port, (client) => client.ask(`${HELLO}\n0 a\n`)),
        RawClient.with(port, (client) => client.ask('a\n')),
        RawClient.with(port, (client) => client.readToFin(5_000, 'the line for who says nothing')),
      ]);
      expect(frames).toMatch(/^\x01portcall\/1[^\n]*\ngoodbye SERVER_BUSY r 200: [^\n]*\n$/);
      expect(lines).toBe('ERR SERVER_BUSY retry after 200 ms\n');
      expect(String(silent)).toBe('ERR SERVER_BUSY retry after 200 ms\n');
    });
  });
  it('a cancelled request is answered, and its work aborted', async () => {
    const { callback, begun, reasons } = holding();
    const [, port] = await serve(callback);
    await talk(port, async (client) => {
      await client.write('5 hold\n');
      await begun;
      await client.write('cancel 5\n5 now\n');
      expect(await client.readLine()).toMatch(/^5! ABORTED m: /);
      expect(await client.readLine()).toBe('5 now');
      expect(reasons).toEqual(['ABORTED']);
      await client.write('cancel 5\ncancel 6\n7 now\n');
      expect(await client.readLine(), 'what is answered or was never asked is not cancelled').toBe('7 now');
    });
  });
  it('a request that is cancelled before its work begins is refused', async () => {
    const { callback, begun } = holding();
    const [, port] = await serve(callback, { maxInFlight: 1 });
    await talk(port, async (client) => {
      await client.write('1 hold\n');
      await begun;
      await client.write('2 now\ncancel 2\ncancel 1\n');
      const [first, second] = (await client.readLines(2)).sort();
      expect(first).toMatch(/^1! ABORTED m: /);
      expect(second).toMatch(/^2! ABORTED r: /);
    });
  });
  it('a slot in use is a notice, and the request that holds it goes on', async () => {
    const { callback, begun, release } = holding();
    const [, port] = await serve(callback);
    await talk(port, async (client) => {
      await client.write('5 hold\n');
      await begun;
      await client.write('5 now\n5@x now\n6 now\n');
      expect(await client.readLine()).toMatch(/^! PROTOCOL_ERROR r: /);
      expect(await client.readLine()).toMatch(/^! PROTOCOL_ERROR r: /);
      expect(await client.readLine()).toBe('6 now');
      release();
      expect(await client.readLine()).toBe('5 released');
    });
  });
  it('a deadline is the hello\'s, or that of the request', async () => {
    const { callback } = holding();
    const [, port] = await serve(callback);
    await talk(port, async (client) => {
      const began = performance.now();
      await client.write('1@20 hold\n2 hold\n');
      expect(await client.readLine()).toMatch(/^1! TIMEOUT m: /);
      expect(await client.readLine()).toMatch(/^2! TIMEOUT m: /);
      expect(performance.now() - began).toBeGreaterThan(290);
    }, ' timeout=300');
  });
  it('the same id has the same reply and runs once, from any connection', async () => {
    let runs = 0;
    const [, port] = await serve(async (text) => { await null; return `${text} ${++runs}`; }, { dedupe: 2 });
    const asked = await talk(port, async (client) => {
      await client.write('1#x a\n2#x a\n3#y a\n');
      return (await client.readLines(3)).sort();
    });
    expect(asked).toEqual(['1 a 1', '2 a 1', '3 a 2']);
    await talk(port, async (client) => {
      await client.write('9#x a\n');
      expect(await client.readLine()).toBe('9 a 1');
    });
  });
  it('without dedupe an id changes nothing', async () => {
    let runs = 0;
    const [, port] = await serve(() => String(++runs));
    expect(await RawClient.with(port, (client) => client.ask(`${HELLO}\n1#x a\n2#x a\n`))).toMatch(/\n1 1\n2 2\n$/);
  });
  it('a forwarded client is a client of its own, until it is gone', async () => {
    const seen: [string, boolean, AbortSignal][] = [];
    const [, port] = await serve((text, { client }) => {
      seen.push([client.id, client.loopback, client.signal]);
      return text;
    });
    await talk(port, async (client) => {
      await client.write('1~a%20b x\n2~c x\n3~a%20b x\n4 x\ngone a%20b\n5 x\n');
      await client.readLines(5);
      const [first, other, again, own] = seen as [typeof seen[0], typeof seen[0], typeof seen[0], typeof seen[0]];
      expect(first[0]).toBe(again[0]);
      expect(new Set([first[0], other[0], own[0]]).size).toBe(3);
      expect([first[1], other[1], own[1]]).toEqual([false, false, true]);
      expect([first[2].aborted, other[2].aborted, own[2].aborted]).toEqual([true, false, false]);
    });
  });
  it('a stream is 256 parts ahead of the credit that is given back', async () => {
    let made = 0;
    const [, port] = await serve((async function* () { for (; made < 1_000; made++) yield `p${made}`; }) as Callback);
    await talk(port, async (client) => {
      await client.write('1 a\n');
      expect((await client.readLines(256)).at(-1)).toBe('1+ p255');
      await client.write('ping 3\n');
      expect(await client.readLine(), 'no part without credit').toBe('pong 3');
      await client.write('credit 1 10\n');
      expect((await client.readLines(10)).at(-1)).toBe('1+ p265');
      await client.write('cancel 1\n');
      expect(await client.readLine()).toMatch(/^1! ABORTED m: /);
    });
  });
  it('parts of 1 MiB in all wait for credit too', async () => {
    const part = 'x'.repeat(256 * 1024);
    const [, port] = await serve((async function* () { for (;;) yield part; }) as Callback);
    await talk(port, async (client) => {
      await client.write('1 a\n');
      await client.readLines(4);
      await client.write('ping 3\n');
      expect(await client.readLine()).toBe('pong 3');
      await client.write('credit 1 1\n');
      expect(await client.readLine()).toBe(`1+ ${part}`);
      await client.write('cancel 1\n');
      expect(await client.readLine()).toMatch(/^1! ABORTED m: /);
    });
  });
  it('a half-closed client is pinged where something is in flight, and answered', async () => {
    const { callback, begun, release } = holding();
    const [, port] = await serve(callback);
    await talk(port, async (client) => {
      await client.write('1 hold\n');
      await begun;
      client.fin('2 now\n3 cut');
      expect((await client.readLines(2)).sort()).toEqual(['2 now', expect.stringMatching(/^ping \d+$/)]);
      release();
      expect(String(await client.readToFin())).toBe('1 released\n');
    });
    await talk(port, async (client) => {
      client.fin('2 now\n');
      expect(String(await client.readToFin()), 'no ping where nothing is').toBe('2 now\n');
    });
  });
  it('goodbye wants no more answers', async () => {
    const { callback, begun, reasons } = holding();
    const [, port] = await serve(callback);
    await talk(port, async (client) => {
      await client.write('1 hold\n');
      await begun;
      client.fin('goodbye\n');
      expect(String(await client.readToFin())).toBe('');
      expect(reasons).toEqual(['CONNECTION_LOST']);
    });
  });
  it('a server that stops says draining, answers what it has, and refuses what comes', async () => {
    const { callback, begun, release } = holding();
    const [server, port] = await serve(callback);
    await talk(port, async (client) => {
      await client.write('1 hold\n');
      await begun;
      const stopped = server.stop();
      expect(await client.readLine()).toBe('draining');
      await client.write('2 now\nping 4\n');
      expect(await client.readLine()).toMatch(/^2! SERVER_BUSY r: /);
      expect(await client.readLine()).toBe('pong 4');
      release();
      expect(String(await client.readToFin())).toMatch(/^1 released\ngoodbye SERVER_BUSY r: [^\n]*\n$/);
      client.fin();
      await within(5_000, stopped, 'the end of stop()');
    });
  });
  it('what is cut off at the end of a drain is told', async () => {
    const { callback, begun, reasons } = holding();
    const [server, port] = await serve(callback);
    await talk(port, async (client) => {
      await client.write('1 hold\n');
      await begun;
      const stopped = server.stop({ graceMs: 20 });
      expect(await client.readLines(2)).toEqual(['draining', expect.stringMatching(/^1! TIMEOUT m: /)]);
      expect(reasons).toEqual(['TIMEOUT']);
      expect(String(await client.readToFin())).toMatch(/^goodbye SERVER_BUSY r: [^\n]*\n$/);
      client.fin();
      await within(5_000, stopped, 'the end of stop()');
    });
  });
  it.each([['frames', `${HELLO}\n`, /^goodbye PROTOCOL_ERROR r: /], ['lines', '', /^ERR PROTOCOL_ERROR /]] as const)(
    'past maxProtocolErrors the connection ends: %s', async (_, hello, last) => {
      const [, port] = await serve((text) => text, { maxProtocolErrors: 3 });
      const bad = Buffer.from([0x61, 0x80, 10]);
      const bytes = Buffer.concat([Buffer.from(hello), bad, bad, bad, Buffer.from('1 ok\n'), bad, Buffer.from('2 never\n')]);
      const answer = await RawClient.with(port, (client) => client.ask(bytes));
      const lines = answer.trimEnd().split('\n').slice(hello === '' ? 0 : 1);
      expect(lines.slice(0, 3).every((line) => line.includes('BAD_MESSAGE'))).toBe(true);
      expect(lines.slice(3)).toEqual(['1 ok', expect.stringMatching(last)]);
    });
  it('a reply past maxMessageBytes failed; a request past it is refused', async () => {
    const [, port] = await serve((text) => text.repeat(3), { maxMessageBytes: 12 });
    const answer = await RawClient.with(port, (client) => client.ask(`${HELLO}\n1 aaaa\n2 aaaaa\n3 aaaaaaaaaaaaa\n`));
    expect(answer.split('\n').slice(1)).toEqual(['1 aaaaaaaaaaaa', expect.stringMatching(/^2! MESSAGE_TOO_LARGE f: /),
      expect.stringMatching(/^3! MESSAGE_TOO_LARGE r: /), '']);
  });
});

describe('A client in Python', () => {
  const program = /```python\n([^]*?)```/.exec(section('A client in Python'))?.[1] ?? '';
  const folder = mkdtempSync(join(tmpdir(), 'portcall-python-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  const why = spawnSync('python3', ['--version']).status === 0 ? '' : ' (skipped: there is no python3 here)';
  const run = (file: string, ...args: string[]): Promise<string> => new Promise((resolve, reject) => {
    const env = { ...process.env, PYTHONUTF8: '1' };
    execFile('python3', [file, ...args], { cwd: folder, timeout: 10_000, env }, (error, stdout, stderr) => {
      if (error === null) resolve(stdout);
      else reject(new Error(`python3 ended with ${error.signal ?? error.code} (at most 10 s): ${stderr}${stdout}`));
    });
  });
  it('is as short as it says, and needs nothing but the standard library', () => {
    expect(program.trim().split('\n').filter((line) => line.trim() !== '').length).toBeLessThanOrEqual(45);
    expect([...program.matchAll(/^(?:import|from) (.*)$/gm)].map(([, names]) => names)).toEqual(['re, socket']);
  });
  it.skipIf(why !== '')(`talks with a server${why}`, async () => {
    const texts = ['hi', '', ' a ', 'naïve ☃ 😀', 'a\nb', '\n', '\\', '\\n', 'a\nb\\nc\\', '\r\n', '\u2028\u0085\u000c\u0000',
      '0! CLOSED m: x', 'x'.repeat(300_000)];
    let release = (): void => {};
    const released = new Promise<string>((resolve) => { release = () => resolve('late'); });
    const [, port] = await serve((text) => {
      if (text === 'fail') throw new Error('it\nbroke');
      if (text === 'busy') throw new MicroError('SERVER_BUSY', 'full', { retryAfterMs: 200 });
      if (text === 'hold') return released;
      if (text === 'release') release();
      return text === 'stream' ? count() : text;
    });
    async function* count(): AsyncGenerator<string> {
      for (let i = 0; i < 600; i++) yield i === 1 ? 'b\nc' : String(i);
    }
    writeFileSync(join(folder, 'talk.py'), `${program}
import json, sys
client = Portcall(int(sys.argv[1]))
texts = json.loads(${JSON.stringify(JSON.stringify(texts))})
def ask(text):
    try:
        return client.receive(client.send(text))
    except PortcallError as error:
        return [error.code, error.outcome, str(error)]
said = {'one by one': [ask(text) for text in texts]}
slots = [client.send(text) for text in texts]
said['at once, read backwards'] = [client.receive(slot) for slot in reversed(slots)][::-1]
held = client.send('hold')
said['release'] = ask('release')
said['held'] = client.receive(held)
said['stream'] = ask('stream').split('\\n')
said['errors'] = [ask('fail'), ask('busy'), ask('after')]
said['slots'] = len(slots), int(next(client.slots))
print(json.dumps(said))
`);
    const said = JSON.parse(await run('talk.py', String(port))) as Record<string, unknown[]>;
    expect(said['one by one']).toEqual(texts);
    expect(said['at once, read backwards']).toEqual(texts);
    expect([said['release'], said['held']]).toEqual(['release', 'late']);
    expect(said['stream']).toEqual(Array.from({ length: 600 }, (_, i) => (i === 1 ? ['b', 'c'] : [String(i)])).flat());
    expect(said['errors']).toEqual([['CALLBACK_FAILED', 'f', 'CALLBACK_FAILED f: it broke'],
      ['SERVER_BUSY', 'r', 'SERVER_BUSY r 200: full'], 'after']);
    expect(said['slots'], 'as many slots as were in flight at once').toEqual([texts.length, texts.length]);
  });
  it.skipIf(why !== '')(`tells why it is not served${why}`, async () => {
    writeFileSync(join(folder, 'why.py'), `${program}
import sys
for round in range(2):
    try:
        client = Portcall(int(sys.argv[1]))
        client.receive(client.send('a'))
    except PortcallError as error:
        print(error.code, error.outcome)
`);
    const [, wantsToken] = await serve((text) => text, { token: 'secret' });
    expect(await run('why.py', String(wantsToken))).toBe('UNAUTHORIZED r\nUNAUTHORIZED r\n');
    const [, full] = await serve((text) => text, { maxConnections: 1 });
    await RawClient.with(full, async (first) => {
      await first.write('$ping\n');
      await first.readLine();
      expect(await run('why.py', String(full))).toBe('SERVER_BUSY r\nSERVER_BUSY r\n');
    });
    const peer = createServer((socket) => socket.on('error', () => {}).end(`${HELLO}\n`)).listen(0, '127.0.0.1');
    await once(peer, 'listening');
    expect(await run('why.py', String((peer.address() as AddressInfo).port)))
      .toBe('CONNECTION_LOST m\nCONNECTION_LOST m\n');
    peer.close();
  });
});
