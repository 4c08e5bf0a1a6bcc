import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo, type Socket } from 'node:net';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeEach, describe, expect, it } from 'vitest';
import { MicroClient, MicroError, readPorts, resolveAddress, type Address } from '../lib/micro_client.ts';
import { MicroServer } from '../lib/micro_server.ts';
import { freePort } from './helpers/free_port.ts';

const home = process.cwd();
const given = process.env['PORTCALL_PORTS'];
const root = mkdtempSync(join(tmpdir(), 'portcall-ports-'));
beforeEach(() => { delete process.env['PORTCALL_PORTS']; });
afterEach(() => {
  process.chdir(home);
  delete process.env['PORTCALL_PORTS'];
});
afterAll(() => {
  rmSync(root, { recursive: true, force: true });
  if (given !== undefined) process.env['PORTCALL_PORTS'] = given;
});

/** Goes to a new folder, with this text as its `ports.json`, if any. */
function inFolder(text?: string): string {
  const folder = mkdtempSync(join(root, 'f-'));
  if (text !== undefined) writeFileSync(join(folder, 'ports.json'), text);
  process.chdir(folder);
  return folder;
}

/** `CODE: message` of what was thrown, once it is sure that it is one line that a terminal can show. */
function failure(look: () => unknown): string {
  try {
    look();
  } catch (error) {
    return checked(error);
  }
  return 'did not fail';
}

const STEERING = /[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}]/u;

function checked(error: unknown): string {
  expect(error).toBeInstanceOf(MicroError);
  const { code, message, outcome } = error as MicroError;
  expect(message, 'what could not be done').toMatch(/^Cannot /);
  expect(message, 'on one line, with nothing that steers a terminal').not.toMatch(STEERING);
  expect(message, 'no full stop at its end').not.toMatch(/\.$/);
  expect(message.length, 'short enough to read').toBeLessThan(700);
  expect(outcome).toBe('not sent');
  return `${code}: ${message}`;
}

function tcp(host: string, port: number, shown = host): Address {
  return { url: `tcp://${shown}:${port}`, scheme: 'tcp', host, port };
}

describe('an address in place of a key', () => {
  it.each<[string | number, Address]>([
    [5467, tcp('127.0.0.1', 5467)],
    ['5467', tcp('127.0.0.1', 5467)],
    [0, tcp('127.0.0.1', 0)],
    [65535, tcp('127.0.0.1', 65535)],
    ['tcp://127.0.1.1:5467', tcp('127.0.1.1', 5467)],
    ['TCP://Host:1/', { ...tcp('host', 1), host: 'Host' }],
    ['tcp://[::1]:5467', tcp('::1', 5467, '[::1]')],
    ['tcp://my_host.x-y:08', tcp('my_host.x-y', 8)],
    ['ipc:///run/me/a b?#.sock', { url: 'ipc:///run/me/a b?#.sock', scheme: 'ipc', path: '/run/me/a b?#.sock' }],
    [`ipc:///${'x'.repeat(106)}`, { url: `ipc:///${'x'.repeat(106)}`, scheme: 'ipc', path: `/${'x'.repeat(106)}` }],
    ['inproc://here', { url: 'inproc://here', scheme: 'inproc', host: 'here', path: '' }],
    ['tls://[::1]:5443', { url: 'tls://[::1]:5443', scheme: 'tls', host: '::1', port: 5443, path: '' }],
    ['zmtp+tcp://127.0.0.1:5555', { ...tcp('127.0.0.1', 5555), dialect: 'zmtp' }],
    ['ZMTP+TCP://[::1]:1', { ...tcp('::1', 1, '[::1]'), dialect: 'zmtp' }],
    ['sized_header+ipc:///a.sock', { url: 'ipc:///a.sock', scheme: 'ipc', path: '/a.sock', dialect: 'sized_header' }],
    ['zmtp+tls://h:1', { url: 'tls://h:1', scheme: 'tls', host: 'h', port: 1, path: '', dialect: 'zmtp' }],
    ['nats://u:p@host:4222/life.gen',
      { url: 'nats://u:p@host:4222/life.gen', scheme: 'nats', host: 'host', port: 4222, path: '/life.gen' }],
  ])('%s needs no file', (key, expected) => {
    inFolder();
    expect(resolveAddress(key, '/nowhere')).toEqual(expected);
  });

  it.each<[string | number, RegExp]>([
    [70000, /port is 70000, expected a whole number from 0 to 65535/], ['70000', /from 0 to 65535/], [-1, /port is -1, expected/],
    ['-1', /port is \S+, expected/], [1.5, /port is 1.5, expected/], ['1.5', /port is \S+, expected/], [NaN, /it is NaN, expected a port/],
    [Infinity, /Infinity/], [1e21, /1e\+21/], ['tcp://host:99999', /port is 99999, expected a whole number from 0 to 65535/],
    ['tls://host:99999', /from 0 to 65535/], ['tcp://host:-1', /port is \S+, expected/], ['tcp://host:1.5', /port is \S+, expected/],
    ['tcp://host', /expected a port, tcp:\/\/host:port or ipc:\/\/\/path/], ['tcp://:1', /expected/],
    ['tcp://::1:5', /expected/], ['tcp://[zz]:5', /expected/], ['tcp://*:5', /expected/], ['tcp://u@h:5', /expected/],
    ['tcp://h:5/x', /expected/], ['tcp://h:', /expected/], ['tcp://', /expected/], ['x y://z', /expected/],
    ['zmtp+tcp://h:99999', /"zmtp\+tcp:\/\/h:99999": port is 99999/], ['zmtp+tcp://h', /it is "zmtp\+tcp:\/\/h", expected a port/],
    ['+tcp://h:5', /expected/], ['zmtp+://h:5', /expected/], ['a/b+tcp://h:5', /expected/], ['a+b+tcp://h:5', /expected/], ['zmtp+ipc://rel', /expected/],
    ['ipc://rel.sock', /expected/], ['ipc://', /expected/], ['ipc:///a\0b', /control character/],
    ['ipc:///a\nb', /control character/], ['tcp://h\x1b[2J:5', /control character/], ['inproc://a\nb', /control/],
    [`ipc:///${'x'.repeat(107)}`, /path has 108 bytes, expected at most 107/],
    [`ipc:///${'é'.repeat(54)}`, /path has 109 bytes/],
  ])('%j is refused', (key, expected) => {
    const text = failure(() => resolveAddress(key));
    expect(text).toMatch(/^BAD_ADDRESS: Cannot read address /);
    expect(text).toMatch(expected);
  });
});

describe('ports.json that can not be read', () => {
  it.each<[string, string | undefined, string]>([
    ['null', 'null', 'line 1, column 1 is "null", expected an object'],
    ['a trailing comma', '{\n  "A": 1,\n}\n', 'line 3, column 1 is "}", expected a key in double quotes'],
    ['a comma left out', '{\n  "A": 1\n  "B": 2\n}\n', 'line 3, column 3 is "\\"B\\"", expected "," or "}"'],
    ['a file cut off', '{\n  "A": 1', 'line 2, column 9 is the end, expected "," or "}"'],
    ['a colon left out', '{"A" 1}', 'line 1, column 6 is "1", expected ":"'],
    ['single quotes', "{'A': 1}", 'line 1, column 2 is "\'A\'", expected a key in double quotes'],
    ['a comment', '{\n"A": 1 // x\n}', 'line 2, column 8 is "//", expected "," or "}"'],
    ['a word', '{"A": tru}', 'line 1, column 7 is "tru", expected a value'],
    ['a leading zero', '{"A": 05467}', 'line 1, column 7 is "05467", expected a value'],
    ['an open string', '{"A: 1,\n "B": 2}', 'line 1, column 2'],
    ['a nested fault', '{"portcall": {"x": [1, {}, [], "a\\u00e9", ]}}', 'line 1, column 43 is "]", expected a value'],
    ['one brace too many', '{"A": 1}}', 'line 1, column 9 is "}", expected the end'],
    ['a blank of another kind', '{\u00a0"A": 1}', 'line 1, column 2 is '],
    ['a fault behind a byte order mark', '\uFEFF{"A": }', 'line 1, column 7 is "}", expected a value'],
    ['a bad escape', '{"A": "\\x"}', 'line 1, column 7'],
    ['a control letter', '{"A": "\x07"}', 'line 1, column 7'],
  ])('%s', (_, text, expected) => {
    inFolder(text);
    const got = failure(() => resolveAddress('LIFE_GEN'));
    expect(got).toMatch(/^BAD_PORTS_FILE: Cannot find service "LIFE_GEN" in "ports.json": /);
    expect(got).toContain(expected);
    expect(failure(() => readPorts())).toMatch(/^BAD_PORTS_FILE: Cannot read "ports.json": /);
  });
  it('tells the place that V8 tells, wherever V8 tells one', () => {
    inFolder();
    const good = JSON.stringify({ A: 1, portcall: { x: [1, -2.5e3, { y: null }, [], {}, 'q"\\\u2028'], t: true },
      B: 'tcp://h:1' }, null, 1);
    let compared = 0;
    for (let at = 0; at < good.length; at++) {
      for (const edit of ['', '}', ',', '"', 'x', ':', ']']) {
        const bad = good.slice(0, at) + edit + good.slice(at + 1);
        let told = '';
        try { JSON.parse(bad); continue; } catch (error) { told = String(error); }
        writeFileSync('x.json', bad);
        const got = failure(() => resolveAddress('A', 'x.json'));
        const position = /position (\d+)/.exec(told)?.[1];
        if (!bad.startsWith('{') || position === undefined) continue;
        const [, line = 0, column = 0] = (/line (\d+), column (\d+)/.exec(got) ?? []).map(Number);
        const before = bad.split('\n').slice(0, line - 1).join('\n').length + (line > 1 ? 1 : 0);
        expect(before + column - 1, `${told} | ${got} | ${bad}`).toBeLessThanOrEqual(Number(position));
        compared++;
      }
    }
    expect(compared).toBeGreaterThan(300);
  });
});

describe('where ports.json is looked for', () => {
  it('the option, then PORTCALL_PORTS, then the folder and those above it', () => {
    const folder = inFolder();
    for (const [name, port] of [['other', 1], ['env', 2]] as const) writeFileSync(`${name}.json`, `{"A": ${port}}`);
    expect(resolveAddress('A', join(folder, 'other.json')).port).toBe(1);
    process.env['PORTCALL_PORTS'] = 'env.json';
    expect(resolveAddress('A').port).toBe(2);
    expect(resolveAddress('A', 'other.json').port).toBe(1);
    expect(resolveAddress('A', { A: 3 }).port).toBe(3);
    process.env['PORTCALL_PORTS'] = 'gone.json';
    expect(failure(() => resolveAddress('A'))).toMatch(/"gone.json": no such file, looked in "[^"]*"\. Make it, set/);
    process.env['PORTCALL_PORTS'] = '';
    const top = inFolder('{"A": 7}');
    mkdirSync(join(top, 'a/b'), { recursive: true });
    process.chdir(join(top, 'a/b'));
    expect(resolveAddress('A').port).toBe(7);
    expect(readPorts()).toEqual({ file: '../../ports.json', table: { A: 7 } });
  });
  it('the nearest one counts', () => {
    const top = inFolder('{"A": 7}');
    mkdirSync(join(top, 'a/b'), { recursive: true });
    writeFileSync(join(top, 'a/ports.json'), '{"A": 8}');
    process.chdir(join(top, 'a/b'));
    expect(resolveAddress('A').port).toBe(8);
  });
});

describe('what a key may hold', () => {
  it.each<[unknown, string]>([
    [[5467], 'it is an object'], [{}, 'it is an object'], [true, 'it is true'],
    ['', 'it is ""'], ['zmtp+5555', 'it is "zmtp+5555"'], ['zmtp+tcp://h', 'it is "zmtp+tcp://h", expected a port'], [{ toString: 5 }, 'it is an object'], ['ipc://x', 'expected'], ['tcp://h:70000', 'port is 70000'],
  ])('not %j', (value, expected) => {
    inFolder(JSON.stringify({ LIFE_GEN: value, B: 1 }));
    const got = failure(() => resolveAddress('LIFE_GEN'));
    expect(got).toMatch(/^BAD_PORTS_FILE: Cannot read "LIFE_GEN" in "ports.json": /);
    expect(got).toContain(expected);
    expect(resolveAddress('B').port, 'another key is not hurt').toBe(1);
  });
  it('not what another key has', () => {
    inFolder('{"A": 5467, "B": "tcp://127.0.0.1:5467", "C": 0, "D": 0}');
    for (const [one, other] of [['A', 'B'], ['B', 'A']] as const) {
      expect(failure(() => resolveAddress(one))).toContain(`BAD_PORTS_FILE: Cannot read "${one}" in "ports.json": ` +
        `"${other}" has tcp://127.0.0.1:5467 too, expected an address for each. Change one`);
    }
    expect(resolveAddress('C').port, 'port 0 may stand twice').toBe(0);
  });
  it('a port that outgoing connections are given too is warned of, once a look-up in a file', () => {
    inFolder('{"E": 40000, "F": 32767, "G": 61000}');
    const warnings: string[] = [];
    const warn = (text: string): void => { warnings.push(text); };
    resolveAddress('E', undefined, warn);
    expect(warnings.splice(0)).toEqual([expect.stringMatching(/^Port 40000 of "E" in "ports.json" .*32768 to 60999/)]);
    for (const key of ['F', 'G', 40000]) resolveAddress(key, undefined, warn);
    resolveAddress('E', { E: 40000 }, warn);
    expect(warnings).toEqual([]);
  });
});

describe('an unknown key', () => {
  const TEXT = '{"A": 5467, "LIFE_GEN": 9, "portcall": {}, "bad\\n\\u001b": 3}';
  it('is told, with the file, the one that was meant, and all that are known', () => {
    inFolder('{"LIFE_GEN": 5467, "CALENDAR": 5555}');
    expect(failure(() => resolveAddress('LIFE_GN'))).toBe('UNKNOWN_SERVICE: Cannot find service "LIFE_GN" in ' +
      '"ports.json": did you mean "LIFE_GEN"? Known: LIFE_GEN, CALENDAR');
    expect(failure(() => resolveAddress('NOTHING'))).toBe('UNKNOWN_SERVICE: Cannot find service "NOTHING" in ' +
      '"ports.json": no such key. Known: LIFE_GEN, CALENDAR');
  });
  it.each(['LIFE_GN', 'life_gen', 'LIFEGEN', 'LIFE_GENN', 'zzz', 'portcall', '__proto__', 'constructor', 'toString', '',
    `x\n\x9b\u202e${'y'.repeat(500)}`])('%j', (key) => {
    inFolder(TEXT);
    const got = failure(() => resolveAddress(key));
    expect(got).toMatch(/^UNKNOWN_SERVICE: Cannot find service "/);
    expect(got.includes('did you mean "LIFE_GEN"? Known: A, LIFE_GEN')).toBe(/^life/i.test(key));
  });
  it('of many keys, twelve are listed; of none, that is told', () => {
    const many = Object.fromEntries(Array.from({ length: 50 }, (_, i) => [`K${i}`, i + 1]));
    expect(failure(() => resolveAddress('nothing', many))).toMatch(/K11, …$/);
    expect(failure(() => resolveAddress('A', {}))).toContain('"A" in "options.ports": no such key. Known: none');
  });
  it('names of Object.prototype are keys like any other', () => {
    inFolder('{"__proto__": 5, "constructor": 6}');
    expect(resolveAddress('__proto__').port).toBe(5);
    expect(resolveAddress('constructor').port).toBe(6);
    expect(Object.prototype).toEqual({});
  });
});

describe('what a client and a server tell of a bad address', () => {
  const rejected = async (promise: Promise<unknown>): Promise<string> =>
    promise.then(() => 'did not fail', (error: unknown) => checked(error));

  it('both tell what the look-up tells', async () => {
    inFolder('{"LIFE_GEN": 5467, "BAD": 99999}');
    for (const key of ['LIFE_GN', 'BAD', 'tcp://x', 'ipc://rel']) {
      const told = failure(() => resolveAddress(key));
      expect(await rejected(new MicroClient(key).sendMessage('hi'))).toBe(told);
      expect(await rejected(new MicroServer((text) => text, key).startListening())).toBe(told);
    }
  });
  it('nobody listens there', async () => {
    const port = await freePort();
    const told = await rejected(new MicroClient('LIFE_GEN', { ports: { LIFE_GEN: port } }).sendMessage('hi'));
    expect(told).toBe(`CONNECTION_REFUSED: Cannot reach "LIFE_GEN" (tcp://127.0.0.1:${port}): ` +
      `connect ECONNREFUSED 127.0.0.1:${port}. Is the service running?`);
  });
  it('the cause is the system\'s error', async () => {
    const error = await new MicroClient(await freePort()).sendMessage('hi').catch((e: unknown) => e);
    expect((error as MicroError).cause).toMatchObject({ code: 'ECONNREFUSED', syscall: 'connect' });
  });
  it('no such host', async () => {
    expect(await rejected(new MicroClient('tcp://no-such-host.invalid:5467').sendMessage('hi')))
      .toMatch(/^CONNECTION_REFUSED: Cannot reach "tcp:\/\/no-such-host.invalid:5467": .*no-such-host\.invalid/);
  });
  it('no such socket file', async () => {
    expect(await rejected(new MicroClient(`ipc://${root}/none.sock`).sendMessage('hi')))
      .toMatch(/^CONNECTION_REFUSED: Cannot reach "ipc:.*ENOENT.*Is the service running\?$/);
  });
  it.each(['tcp://0.0.0.0:5467', 'tcp://[::]:5467'])('%s is where servers bind', async (key) => {
    expect(await rejected(new MicroClient(key).sendMessage('hi')))
      .toMatch(/^BAD_ADDRESS: Cannot dial tcp:.* expected one host\. Dial 127\.0\.0\.1, or its name$/);
  });
  it.each(['bogus://host:1', 'smtp://a', 'x.y://b'])('%s has no transport', async (key) => {
    const scheme = key.split(':')[0] as string;
    const expected = new RegExp(`^BAD_ADDRESS: Cannot use ${scheme}://: expected .*transports/${scheme}\\.ts.* Copy it`);
    expect(await rejected(new MicroClient(key).sendMessage('hi'))).toMatch(expected);
    expect(await rejected(new MicroServer((text) => text, key).startListening())).toMatch(expected);
  });

  it.each(['bogus+tcp://127.0.0.1:0', 'lines+tcp://127.0.0.1:0', 'x+ipc:///a'])('%s has no dialect', async (key) => {
    const name = key.split('+')[0] as string;
    const expected = new RegExp(`^BAD_ADDRESS: Cannot use ${name}\\+: expected lib/dialects/${name}\\.ts\\. Copy it`);
    expect(await rejected(new MicroClient(key).sendMessage('hi'))).toMatch(expected);
    expect(await rejected(new MicroServer((text) => text, key).startListening())).toMatch(expected);
  });

  it.each<[string, string | Buffer]>([
    ['a web server', 'HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n'],
    ['an SSH server', 'SSH-2.0-OpenSSH_9.6\r\n'],
    ['a mail server', '220 mail.example ESMTP\r\n'],
    ['a database', Buffer.from('4a0000000a382e302e3336000a', 'hex')],
    ['a line of control letters', '\x1b[2J\x07\u202e\u2028\n'],
  ])('what answers is no portcall: %s', async (_, says) => {
    const sockets = new Set<Socket>();
    const server = createServer((socket) => { sockets.add(socket.on('error', () => {})); socket.write(says); })
      .listen(0, '127.0.0.1');
    await once(server, 'listening');
    const error = await new MicroClient((server.address() as AddressInfo).port).sendMessage('hi', { timeoutMs: 3_000 })
      .catch((e: unknown) => e);
    for (const socket of sockets) socket.destroy();
    server.close();
    expect(error).toBeInstanceOf(MicroError);
    const { code, outcome, message } = error as MicroError;
    expect([code, outcome]).toEqual(['PROTOCOL_ERROR', 'maybe done']);
    expect(message).toMatch(/^Cannot .*expected a portcall server/);
    expect(message).not.toMatch(STEERING);
  });
});
