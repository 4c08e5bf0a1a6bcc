import { spawn, type ChildProcessWithoutNullStreams } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { MicroClient, MicroError, MicroServer } from '../lib/index.ts';
import { runDemos, type Step } from '../lib/demo.ts';
import { parseDuration, parseSize } from '../lib/units.ts';
import { createEcho } from '../services/echo.ts';
import { freePort } from './helpers/free_port.ts';
import { built } from './helpers/programs_built.ts';
import { RawClient } from './helpers/raw_client.ts';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const DEADLINE_MS = 20_000; // of one child; vitest's own must not come first
vi.setConfig({ testTimeout: DEADLINE_MS + 5_000 });
const folder = mkdtempSync(join(tmpdir(), 'portcall-cli-'));
const children = new Set<ChildProcessWithoutNullStreams>();
let answering: MicroServer; // what the commands below talk to: one service for all of them
let port = 0;
let closedPort = 0; // where nobody listens
const asked = new EventEmitter();

beforeAll(async () => {
  answering = new MicroServer((message) => {
    if (message === 'fail') throw new Error('it went\nwrong');
    asked.emit(message);
    return message.startsWith('wait') ? new Promise<string>(() => {}) : message;
  }, 'ANSWERING', { ports: { ANSWERING: 0 } });
  port = (await answering.startListening()).port as number;
  const closed = createServer().listen(0, '127.0.0.1');
  await once(closed, 'listening');
  closedPort = (closed.address() as AddressInfo).port;
  closed.close();
  await once(closed, 'close');
});
afterAll(async () => {
  for (const child of children) child.kill('SIGKILL');
  await answering.stop({ graceMs: 0 });
  rmSync(folder, { recursive: true, force: true });
});

interface Ended { code: number | null; stdout: string; stderr: string }

/** A command that runs. What it says is kept; `ended` has a deadline, as `said` has. */
class Running {
  readonly child: ChildProcessWithoutNullStreams;
  readonly ended: Promise<Ended>;
  #stdout = '';
  #stderr = '';

  constructor(args: readonly string[], env: NodeJS.ProcessEnv = {}) {
    const isTypeScript = args.some((arg) => arg.endsWith('.ts')); // a service of the user's, which wants tsx
    const program = isTypeScript ? ['--import', 'tsx', 'lib/cli.ts'] : [built('lib/cli.ts')];
    this.child = spawn(process.execPath, [...program, ...args],
      { cwd: ROOT, env: { ...process.env, ...env } });
    children.add(this.child);
    this.child.on('close', () => children.delete(this.child));
    this.child.stdout.setEncoding('utf8').on('data', (piece: string) => { this.#stdout += piece; });
    this.child.stderr.setEncoding('utf8').on('data', (piece: string) => { this.#stderr += piece; });
    this.ended = this.#within('end', (done) => this.child.on('close', (code) =>
      done({ code, stdout: this.#stdout, stderr: this.#stderr })));
    this.ended.catch(() => {}); // not every test waits for the end
  }

  /** Resolves once stdout matches, with the match. */
  said(pattern: RegExp): Promise<RegExpExecArray> {
    return this.#within(`print ${pattern}`, (done) => {
      const look = (): void => {
        const match = pattern.exec(this.#stdout);
        if (match !== null) done(match);
      };
      look();
      this.child.stdout.on('data', look);
    });
  }

  #within<T>(what: string, start: (done: (value: T) => void) => void): Promise<T> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(
        `it did not ${what} in time; stdout: ${this.#stdout} stderr: ${this.#stderr}`)), DEADLINE_MS);
      start((value) => { clearTimeout(timer); resolve(value); });
    });
  }
}

function run(...args: string[]): Promise<Ended> {
  return new Running(args).ended;
}

/** One line, in the style of the kit, and no stack. */
function expectOneLine(stderr: string): void {
  expect(stderr).toMatch(/^Cannot [^\n]+\n$/);
  expect(stderr).not.toMatch(/ {4}at |node:/);
}

function fileOf(name: string, content: string): string {
  const file = join(folder, name);
  writeFileSync(file, content);
  return file;
}

describe('serve', () => {
  it('serves a built-in on its own key and a free port, and drains on SIGTERM', async () => {
    const echo = new Running(['serve', 'echo']);
    const [, url = ''] = await echo.said(/^listening on (tcp:\/\/127\.0\.0\.1:[1-9]\d*) \(ECHO\)\n/);
    expect(await new MicroClient(url).sendMessage('hello')).toBe('hello');
    echo.child.kill('SIGTERM');
    expect(await echo.ended).toMatchObject({ code: 0, stderr: '' });
  });

  it.each([
    ['raw,sized', [], ['frames', 'lines', 'raw', 'sized']], ['all', ['life_gen'], ['frames', 'lines', 'raw', 'sized']],
    [undefined, ['life_gen'], ['frames', 'lines', 'sized']],
  ])('--dialects %s are on besides those of %j', async (named, [service = 'echo'], expected) => {
    const server = new Running(['serve', service, '--port', '0', ...(named === undefined ? [] : ['--dialects', named])]);
    const [, port = ''] = await server.said(/^listening on tcp:.*:(\d+) /);
    const info = await RawClient.with(Number(port), (client) => client.ask('$info\n'));
    const { dialects } = JSON.parse(info) as { dialects: string[] };
    expect(dialects.filter((name) => expected.includes(name)).sort()).toEqual(expected);
    expect(new Set(dialects).size, 'each once').toBe(dialects.length);
    server.child.kill('SIGTERM');
    await server.ended;
  });
  it('a timer takes how many there may be', async () => {
    const server = new Running(['serve', 'timer', '--port', '0', '--max-timers', '1']);
    const [, url = ''] = await server.said(/^listening on (tcp:\S+) \(TIMER\)/);
    const client = new MicroClient(url);
    expect(await client.sendMessage('0 1 0')).toBe('0 1 0');
    expect(await client.sendMessage('0 1 0')).toMatch(/^Cannot start a timer: 1 run already/);
    await client.close();
    server.child.kill('SIGTERM');
    expect(await server.ended).toMatchObject({ code: 0, stderr: '' });
  });

  it('hands a service its options, and finds its key in PORTCALL_PORTS', async () => {
    const csv = fileOf('own.csv', 'category,line\nweather,"rain, mostly"\n');
    const ports = fileOf('ports.json', '{ "LIFE_GEN": "tcp://127.0.0.1:0" }');
    const args = ['serve', 'life_gen', '--file', csv, '--json'];
    const serving = new Running(args, { PORTCALL_PORTS: ports });
    const [line] = await serving.said(/^.*\n/);
    const { listening, key } = JSON.parse(line) as { listening: string; key: string };
    expect(key).toBe('LIFE_GEN');
    expect(await new MicroClient(listening).sendMessage('Weather')).toBe('rain, mostly');
  });

  it('takes its token from PORTCALL_TOKEN, unless --token says another, and no empty one', async () => {
    const env = { PORTCALL_TOKEN: 'secret' };
    const send = (url: string, given: NodeJS.ProcessEnv, ...args: string[]) =>
      new Running(['send', url, 'hello', ...args], given).ended;
    const empty = { code: 2, stdout: '', stderr: expect.stringMatching(/^Cannot use token "":/) };
    for (const [args, token] of [[[], 'secret'], [['--token', 'other'], 'other']] as const) {
      const server = new Running(['serve', 'echo', ...args], env);
      const [, url = ''] = await server.said(/^listening on (\S+) /);
      expect(await RawClient.with(Number(new URL(url).port), (client) => client.ask(`$token ${token}\nhello\n`)))
        .toBe('ok\nhello\n');
      expect(await send(url, { PORTCALL_TOKEN: token })).toEqual({ code: 0, stdout: 'hello\n', stderr: '' });
      expect(await send(url, { PORTCALL_TOKEN: 'wrong' }, '--token', token)).toMatchObject({ code: 0 });
      expect(await send(url, { PORTCALL_TOKEN: undefined }))
        .toMatchObject({ code: 1, stdout: '', stderr: expect.stringContaining('UNAUTHORIZED') });
      expect(await send(url, { PORTCALL_TOKEN: '' })).toEqual(empty);
      server.child.kill('SIGTERM');
      expect(await server.ended).toMatchObject({ code: 0 });
    }
    expect(await new Running(['serve', 'echo'], { PORTCALL_TOKEN: '' }).ended).toEqual(empty);
    expect(await new Running(['serve', 'echo', '--token', ''], env).ended).toEqual(empty);
  });

  it('serves a file, and at a second SIGINT ends without waiting for what is in flight', async () => {
    const file = fileOf('slow_one.ts', 'export default (message: string, { signal }: any) =>\n' +
      '  message === "hello" ? "hi" : new Promise(() => console.log("asked"));\n');
    const serving = new Running(['serve', file, '--port', '0', '--token', 'secret']);
    const [, url = ''] = await serving.said(/^listening on (\S+) \(SLOW_ONE\)\n/);
    const client = new MicroClient(url, { token: 'secret' });
    expect(await client.sendMessage('hello')).toBe('hi');
    const lost = client.sendMessage('never').catch((error: { code: string }) => error.code);
    await serving.said(/asked/);
    serving.child.kill('SIGINT');
    const untilRefused = async () => { for (;;) await client.sendMessage('hello'); };
    await expect(untilRefused()).rejects.toBeInstanceOf(MicroError);
    serving.child.kill('SIGINT');
    expect(await serving.ended).toMatchObject({ code: 130, stderr: '' });
    expect(await lost).toBe('CONNECTION_LOST');
  });
});

describe('send', () => {
  it('prints the reply', async () => {
    expect(await run('send', String(port), 'hello  there'))
      .toEqual({ code: 0, stdout: 'hello  there\n', stderr: '' });
  });

  it('sends each line of stdin, past what the service could not do', async () => {
    const sending = new Running(['send', `tcp://127.0.0.1:${port}`, '-']);
    sending.child.stdin.end('one\r\nfail\n☃ \u2028two');
    const { code, stdout, stderr } = await sending.ended;
    expect({ code, stdout }).toEqual({ code: 1, stdout: 'one\n☃ \\u2028two\n' });
    expect(stderr).toBe('Cannot get a reply: it went wrong (CALLBACK_FAILED)\n');
  });

  it('prints JSON on demand', async () => {
    const sending = new Running(['send', String(port), '-', '--json']);
    sending.child.stdin.end('one\nfail\n');
    const { stdout, stderr } = await sending.ended;
    expect(JSON.parse(stdout)).toEqual({ reply: 'one' });
    expect(JSON.parse(stderr)).toMatchObject({ code: 'CALLBACK_FAILED', outcome: 'failed' });
  });

  it('ends with 130 at SIGINT', async () => {
    const waits = once(asked, 'wait here', { signal: AbortSignal.timeout(DEADLINE_MS) });
    const sending = new Running(['send', String(port), 'wait here', '--timeout', '1m']);
    await waits;
    sending.child.kill('SIGINT');
    expect(await sending.ended).toMatchObject({ code: 130, stderr: '' });
  });
});

describe('up --demo', () => {
  const KEYS = ['LIFE_GEN', 'CALENDAR', 'TIMER', 'BACKUP'];
  /** A place for the demo's folder, what of it is there, and a ports file of free ports. */
  async function setUp(name: string) {
    const temporary = join(folder, name);
    mkdirSync(temporary);
    const left = () => readdirSync(temporary).filter((one) => one.startsWith('portcall-')); // tsx has a folder too
    const ports = Object.fromEntries(await Promise.all(KEYS.map(async (key) => [key, await freePort()])));
    return { left, env: { TMPDIR: temporary, PORTCALL_PORTS: fileOf(`${name}.json`, JSON.stringify(ports)) } };
  }

  it.concurrent('shows both sides of each exchange, leaves no file and ends with 0 under --once', async () => {
    const { left, env } = await setUp('once');
    const { code, stdout, stderr } = await new Running(['up', '--demo', '--once'], env).ended;
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(/^LIFE_GEN listens on tcp:.*\nclient → music\nserver → .+\nclient → /);
    expect([...stdout.matchAll(/^(\w+) listens/gm)].map(([, key]) => key)).toEqual(KEYS);
    expect(stdout).toMatch(/→ \{"status":200,"message":"pong"\}\n[^]*client → stream 0 0 2\nserver → 00:00:02\n/);
    expect(stdout).toMatch(/server → done\n[^]*server → \/.*\nright: the file there has the bytes of notes\.txt\n$/);
    expect(left()).toEqual([]);
  });

  it.concurrent('tells how to ask from elsewhere, in words that work, and serves until SIGINT', async () => {
    const { left, env } = await setUp('hints');
    const demo = new Running(['up', '--demo'], env);
    const [hints] = await demo.said(/^LIFE_GEN, CALENDAR, TIMER, BACKUP serve until[^]*BACKUP:\n.*\n/m);
    const lines = hints.split('\n').filter((line) => line.startsWith('  '));
    expect(lines.length).toBeGreaterThan(KEYS.length);
    const replies = await Promise.all(lines.map(async (line) => {
      const shell = spawn('sh', ['-c', line], { cwd: ROOT, env: { ...process.env, ...env } });
      let reply = '';
      shell.stdout.on('data', (piece) => { reply += piece; });
      const [code] = await once(shell, 'close', { signal: AbortSignal.timeout(DEADLINE_MS) }) as [number];
      return { line, code, reply };
    }));
    for (const { line, code, reply } of replies) {
      if (code === 127) continue; // no nc or no python3 on this machine
      expect({ line, code, reply }).toEqual({ line, code: 0, reply: expect.stringMatching(/^[^]+\n$/) });
      expect(reply, line).not.toMatch(/Cannot|ERR/);
    }
    expect(left(), 'while it serves').toHaveLength(1);
    demo.child.kill('SIGINT');
    expect(await demo.ended).toMatchObject({ code: 0, stderr: '' });
    expect(left(), 'at its end').toEqual([]);
  });

  it.concurrent.each([[[], 0, /^$/], [['--once'], 3, /^Cannot [^\n]+ \(ABORTED\)\n$/]])(
    'drains all and leaves no file at SIGTERM amid an exchange: %j', async (more, code, says) => {
      const { left, env } = await setUp(`amid${more.join()}`);
      const demo = new Running(['up', '--demo', ...more], env);
      await demo.said(/client → stream 0 0 2\nserver → 00:00:02\n/);
      demo.child.kill('SIGTERM');
      expect(await demo.ended).toMatchObject({ code, stderr: expect.stringMatching(says) });
      expect(left()).toEqual([]);
    });

  it.concurrent('ends quietly when nobody reads on', async () => {
    const demo = new Running(['up', '--demo', '--once']);
    demo.child.stdout.destroy();
    expect(await demo.ended).toMatchObject({ stderr: '' });
  });

  it('tells a wrong reply from a right one', async () => {
    const steps: Step[] = [];
    const exchange = { expected: 'JSON', right: (reply: string) => JSON.parse(reply) === 5 };
    const demo = {
      key: 'ECHO', create: async () => createEcho(),
      exchanges: [{ message: '5', ...exchange }, { message: 'five', ...exchange }],
      tries: [],
    };
    const show = (step: Step) => steps.push(step);
    const options = { demos: [demo], once: true, show, self: 'portcall' };
    expect(await runDemos(options)).toBe(false);
    expect(steps.flatMap((step) => ('right' in step ? [step.right] : []))).toEqual([true, false]);
    demo.exchanges.pop();
    expect(await runDemos(options)).toBe(true);
  });
});

describe('errors', () => {
  const withoutService = () => fileOf('without.ts', 'export const x = 1;');
  const broken = () => fileOf('broken.ts', 'export default (;');

  it.concurrent.each([
    { args: () => ['sned'], code: 2, says: 'expected serve, send, up' },
    { args: () => ['serve', 'echo', '--prot', '5'], code: 2, says: "'--prot'" },
    { args: () => ['serve', 'echo', '--file', 'x'], code: 2, says: '--file' },
    { args: () => ['serve', 'echo', '--dialects', 'raw,morse'], code: 2, says: 'the dialect "morse"' },
    { args: () => ['serve', 'timer', '--max-timers', '0'], code: 2, says: '"0" as a count' },
    { args: () => ['serve', withoutService(), '--port', '0'], code: 2, says: 'default export' },
    { args: () => ['serve', broken(), '--port', '0'], code: 2, says: 'broken.ts' },
    { args: () => ['serve', 'echo', '--host', '0.0.0.0'], code: 2, says: '(BAD_ADDRESS)' },
    { args: () => ['serve', 'echo', '--port', String(port)], code: 2, says: '(PORT_IN_USE)' },
    { args: () => ['send', 'X', 'y', '--timeout', '5x'], code: 2, says: '"5x" as a duration' },
    { args: () => ['send', 'LIFE_GN', 'music'], code: 2, says: 'did you mean "LIFE_GEN"' },
    { args: () => ['send', String(port), 'fail'], code: 1, says: 'it went wrong (CALLBACK_FAILED)' },
    { args: () => ['send', String(closedPort), 'x'], code: 3, says: '(CONNECTION_REFUSED)' },
    { args: () => ['send', String(port), 'wait', '--timeout', '50ms'], code: 3, says: '(TIMEOUT)' },
  ])('$code, in one line, for what says $says', async ({ args, code, says }) => {
    const { stderr, ...ended } = await run(...args());
    expect({ ...ended, stderr }).toEqual({ code, stdout: '', stderr });
    expect(stderr).toContain(says);
    expectOneLine(stderr);
  });
});

describe('help', () => {
  it.concurrent.each([
    { args: ['--help'], says: /serve SERVICE[^]*send SERVICE TEXT[^]*Exit codes/ },
    { args: ['serve', 'echo', '--help'], says: /--port PORT[^]*--max-message 128MiB[^]*--file CSV/ },
  ])('$args', async ({ args, says }) => {
    const { code, stdout, stderr } = await run(...args);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(says);
    expect(stdout.split('\n').filter((line) => line.length > 100)).toEqual([]);
  });
});

describe('units', () => {
  it.each([
    ['500ms', 500], ['1s', 1_000], ['5m', 300_000], ['2h', 7_200_000], ['30d', 2_592_000_000],
    ['2', 2_000], ['0.5', 500], ['1.5 M', 90_000], ['0', 0],
  ])('parseDuration reads %s as %d ms', (text, ms) => {
    expect(parseDuration(text)).toBe(ms);
  });

  it.each([
    ['512', 512], ['512B', 512], ['64KiB', 65_536], ['128MiB', 134_217_728],
    ['1gib', 1_073_741_824], ['1.5 KiB', 1_536],
  ])('parseSize reads %s as %d bytes', (text, bytes) => {
    expect(parseSize(text)).toBe(bytes);
  });

  it.each([
    '', 's', '5x', '-1s', '1e3', 'NaN', 'constructor', '5constructor', '1s 2s', '99999999999999999',
  ])('refuse "%s"', (text) => {
    const says = `Cannot read "${text}" as a`;
    expect(() => parseDuration(text)).toThrow(`${says} duration: expected a number with ms, s,`);
    expect(() => parseSize(text)).toThrow(`${says} size: expected a number with B, KiB,`);
  });
});
