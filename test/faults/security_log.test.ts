/** Group D: control bytes in whatever a stranger can name, and what is logged and printed of it. */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { once } from 'node:events';
import { join } from 'node:path';
import { describe, expect } from 'vitest';
import { LogFiles, MicroClient, MicroServer } from '../../lib/index.ts';
import type { Log } from '../../lib/micro_client.ts';
import { Command, run, serving } from '../helpers/command.ts';
import { until } from '../helpers/deadline.ts';
import { ended } from '../helpers/ended.ts';
import { fault, FULL, some } from '../helpers/faults.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { scratch } from '../helpers/scratch.ts';

const newFolder = scratch('log');
/** Ends lines, forges some, and steers terminals of every kind: by C0, DEL, C1, and Unicode's own line ends. */
const LOUD = 'a\r\nportcall: forged\r\x1b[2J\x1b]0;x\x07\x08\x7f\x9b31m\x85forged\u2028forged\u2029forged\nCannot forged';
/** The same without LF, which ends a line of the wire. */
const LOUD_LINE = LOUD.replaceAll('\n', '');
const STEERING = /[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]/;

/** @param lines How many there must be; each must begin as `begin` says. */
function expectCalm(text: string, lines: number, begin = /^/): void {
  expect(text, 'no byte that steers a terminal').not.toMatch(STEERING);
  expect(text.split('\n').slice(0, -1), text).toHaveLength(lines);
  for (const line of text.split('\n').slice(0, -1)) expect(line).toMatch(begin);
  expect(text.endsWith('\n') || text === '', 'ends in LF').toBe(true);
}

/** Says it over lines, frames, and as what can't be read. */
async function shout(url: string, texts: readonly string[]): Promise<void> {
  const port = Number(/\d+$/.exec(url)?.[0]);
  const client = new MicroClient(url, { log() {} });
  for (const text of texts) await ended(client.sendMessage(text));
  await client.close();
  await RawClient.with(port, (raw) => raw.ask(texts.map((text) => `${text.replaceAll('\n', ' ')}\n`).join('')));
  await RawClient.with(port, (raw) => raw.ask(`\x01portcall/1 node=${encodeURIComponent(LOUD)} role=${encodeURIComponent(LOUD)}\n` +
    `${LOUD_LINE}\n0#${LOUD_LINE} x\n1~${LOUD_LINE} x\n`));
  await RawClient.with(port, (raw) => raw.ask(`\x01portcall/9${LOUD_LINE}\n`));
  await RawClient.with(port, (raw) => raw.ask(`$${LOUD_LINE}\n$token ${LOUD_LINE}\n\xff\n`));
}

describe.concurrent('logs and stdout of a service', () => {
  const csv = join(newFolder(), `${LOUD_LINE}.csv`);
  writeFileSync(csv, `category,line\nloud,"${LOUD}"\n`);
  const source = join(newFolder(), `${LOUD}.txt`);
  writeFileSync(source, 'x');
  const stamp = (more: object) => JSON.stringify({ action: 'timestamp', clientID: 'TaskTracker', eventName: LOUD, ...more });
  const rows: Record<string, { args: readonly string[]; says: readonly string[] }> = {
    echo: { args: ['echo'], says: [LOUD] },
    life_gen: { args: ['life_gen', '--file', csv], says: [LOUD, 'loud', `loud ${LOUD}`] },
    timer: { args: ['timer'], says: [LOUD, `stream ${LOUD}`, `cancel ${LOUD}`, `0 0 ${LOUD}`] },
    backup: { args: ['backup', '--source', source, '--folder', join(newFolder(), LOUD)],
      says: [LOUD, 'backup', 'revert', 'list', 'status', 'verify'] },
    calendar: { args: ['calendar', '--folder', join(newFolder(), LOUD)], says: [LOUD, stamp({}), stamp({ id: LOUD }), stamp({ clientID: LOUD }),
      JSON.stringify({ action: LOUD }), JSON.stringify({ [LOUD]: 1 })] },
  };
  for (const [name, { args, says }] of Object.entries(rows)) {
    fault('D11', `of ${name}: CR, LF, ESC, U+2028 in messages and file names`, () =>
      serving([...args, '--port', '0'], {}, async (url, command) => {
        await shout(url, says);
        const { code, stdout, stderr } = await command.kill('SIGTERM');
        expect(code).toBe(0);
        expectCalm(stdout, 1, /^listening on tcp:/);
        expectCalm(stderr, 0);
      }));
  }

  fault('D11', 'the calendar\'s journal and event_log.json: an event a line, whatever its name', () => {
    const folder = newFolder();
    return serving(['calendar', '--folder', folder, '--allow-quit', '--whitelist', `TaskTracker,${LOUD}`, '--port', '0'], {}, async (url, { ended }) => {
      const client = new MicroClient(url);
      const raw = `{"action":"timestamp","clientID":"TaskTracker","eventName":"${LOUD_LINE.replace(/[\0-\x1f]/g, '')}"}`;
      const requests = [stamp({}), stamp({ id: LOUD }), stamp({ clientID: LOUD }), raw, raw.replace('}', `,"id":"\x7f\x9b\u2028"}`)];
      for (const text of [...requests, stamp({ id: LOUD })]) expect(await client.sendMessage(text)).toMatch(/^\{"status":200,/);
      const { events } = JSON.parse(await client.sendMessage('{"action":"events"}')) as { events: { eventName: string }[] };
      expect(events.map(({ eventName }) => eventName).slice(0, 3)).toEqual([LOUD, LOUD, LOUD]);
      expect(events).toHaveLength(requests.length);
      expect(await client.sendMessage('Q')).toMatch(/^\{"status":200,"message":"bye","count":5,/);
      await client.close();
      expect(await ended).toMatchObject({ code: 0, stderr: '' });
      const files = readdirSync(folder).filter((name) => name.startsWith('calendar') || name.endsWith('.json'));
      expect(files).toContain('event_log.json');
      for (const name of files) expect(readFileSync(join(folder, name), 'utf8'), name).not.toMatch(STEERING);
      expectCalm(readFileSync(join(folder, 'event_log.json'), 'utf8'), 1, /^\{"TaskTracker":/);
    });
  });

  fault('D11', 'of a router, and of workers that forge their names', async () => {
    const router = new Command(['router', '--front', '0', '--back', '0', '--heartbeat', '0']);
    try {
      const [, front = '', back, heartbeat] = await router.said(/^routing (\S+) to workers at \S+:(\d+), heartbeats at \S+:(\d+)\n/);
      const ports = [back, heartbeat].map(Number) as [number, number];
      await RawClient.with(ports[0], async (worker) => {
        await worker.write(`\x01portcall/1 role=worker node=${encodeURIComponent(LOUD)}\n${LOUD_LINE}\n0! ${LOUD_LINE}\n!x\n`);
        await until(() => router.stderr.includes('be used'), 5_000, 'a warning of the worker');
        const client = new MicroClient(front, { timeoutMs: 300, log() {} });
        expect((await ended(client.sendMessage(LOUD))).error?.code, 'nobody answers').toBe('TIMEOUT');
        await client.close();
      });
      await until(() => router.stderr.includes('connection ended'), 5_000, 'a warning that it left');
      const line = `${JSON.stringify({ event: LOUD })}${LOUD_LINE}\n`;
      await RawClient.with(ports[1], (peer) => peer.ask(`${line}\x01portcall/1\n0 ${line}`));
      const { code, stdout, stderr } = await router.kill('SIGTERM');
      expect(code).toBe(0);
      expectCalm(stdout, 1, /^routing /);
      expectCalm(stderr, stderr.split('\n').length - 1, /^portcall: /);
      expect(stderr).toMatch(/Worker "[^"\n]*"/);
    } finally {
      await router.kill();
    }
  });

  fault('D11', 'names on the command line: one calm line each', async () => {
    const folder = newFolder();
    const file = join(folder, `${LOUD_LINE}.ts`);
    writeFileSync(file, 'export default 5;');
    const ports = join(folder, `${LOUD}.json`);
    writeFileSync(ports, JSON.stringify({ [LOUD]: LOUD, A: 1 }));
    mkdirSync(join(folder, LOUD));
    const rows: string[][] = [['serve', LOUD], ['serve', file, '--port', '0'], ['serve', 'echo', '--key', LOUD], ['serve', 'echo', '--port', LOUD],
      ['serve', 'echo', '--host', LOUD], ['serve', 'echo', '--dialects', LOUD], ['serve', 'echo', '--max-message', LOUD], ['serve', 'echo', `--${LOUD}`],
      ['serve', 'life_gen', '--file', LOUD], ['serve', 'backup', '--source', join(folder, LOUD)], ['serve', 'calendar', '--folder', `${file}/${LOUD}`],
      ['serve', 'calendar', '--whitelist-file', LOUD], ['send', LOUD, 'x'], ['send', `tcp://${LOUD}:1`, 'x'], ['send', 'A', 'x', '--timeout', LOUD],
      ['router', '--front', '0', '--back', '0', '--strategy', LOUD], ['worker', 'echo', '--back', LOUD], [LOUD]];
    const commands = [...some(rows, 5), ...some(rows, 2).map((args) => [...args, '--json'])];
    for (let at = 0; at < commands.length; at += 4) { // some at a time: each is a process
      await Promise.all(commands.slice(at, at + 4).map(async (args) => {
        const { code, stdout, stderr } = await run(args, { env: { PORTCALL_PORTS: ports } });
        expect([code, stdout], args.join(' ')).toEqual([2, '']);
        expectCalm(stderr, 1, args.includes('--json') ? /^\{"error":"Cannot / : /^Cannot /);
      }));
    }
    const key = `KEY\nlistening on forged\x1b\x9b\u2028`;
    await serving(['echo', '--key', key, '--port', '0'], {}, async (_, { stdout }) => expectCalm(stdout, 1, /^listening on tcp:/));
  });

  fault('D11', 'a log of the user\'s own gets calm lines too, and so do log files', async () => {
    const folder = newFolder();
    const files = new LogFiles(join(folder, 'server.log'));
    const lines: string[] = [];
    const log: Log = (level, text) => { files.log(level, text); lines.push(text); };
    const loud = () => { throw new Error(LOUD); };
    const server = new MicroServer({ callback: loud, connected: loud, disconnected: loud }, 0, { log });
    const { port = 0 } = await server.startListening();
    await RawClient.with(port, (client) => client.ask(`${LOUD_LINE}\n`));
    await server.stop();
    const sockets = createServer((socket) => {
      socket.on('error', () => {}).on('data', () => socket.write(`\x01portcall/1\n! ${LOUD_LINE}\n${LOUD_LINE}\n7 ${LOUD_LINE}\n0 x\n`));
    }).listen(0, '127.0.0.1');
    await once(sockets, 'listening');
    const client = new MicroClient((sockets.address() as AddressInfo).port, { log });
    expect(await client.sendMessage('m')).toBe('x');
    await client.close();
    sockets.close();
    files.close();
    expect(lines.length).toBeGreaterThanOrEqual(4);
    for (const line of lines) expect(line).not.toMatch(/[\0-\x1f\x7f-\x9f\u2028\u2029]/);
    expectCalm(readFileSync(join(folder, 'server.log'), 'utf8'), lines.length, /^\d{4}-\S+ (warn|error) /);
  });
});

describe.concurrent('portcall send', () => {
  /** A server that answers the first request with these bytes. */
  async function answering<T>(bytes: string, task: (port: string) => Promise<T>): Promise<T> {
    const server = createServer((socket) => {
      socket.on('error', () => {}).on('end', () => socket.end()).once('data', () => socket.write(`\x01portcall/1\n${bytes}`));
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    try {
      return await task(String((server.address() as AddressInfo).port));
    } finally {
      server.close();
    }
  }

  fault('D11', 'prints a reply as one calm line, and as exact JSON on demand', () => serving(['echo', '--port', '0'], {}, async (url) => {
    const plain = await run(['send', url, LOUD]);
    expect([plain.code, plain.stderr]).toEqual([0, '']);
    expectCalm(plain.stdout, 1, /^a\\r\\nportcall: forged\\r\\u001b\[2J/);
    const json = await run(['send', url, LOUD, '--json']);
    expectCalm(json.stdout, 1, /^\{"reply":"/);
    expect(JSON.parse(json.stdout)).toEqual({ reply: LOUD });
    const many = await run(['send', url, '-'], { input: `${LOUD_LINE}\n\tone\n` });
    expectCalm(many.stdout, 2);
    expect(many.stdout.split('\n')[1], 'a tab stays').toBe('\tone');
  }));

  const failures: Record<string, string> = {
    'an error': `0! CALLBACK_FAILED f: ${LOUD_LINE}\n`, 'another error': `0!\\ UNAUTHORIZED r: ${LOUD.replaceAll('\n', '\\n')}\n`,
    'a goodbye': `goodbye PROTOCOL_ERROR r: ${LOUD_LINE}\n`, 'a notice': `! ${LOUD_LINE}\n0! TIMEOUT m: ${LOUD_LINE}\n`,
    'an unknown code': `0! ${LOUD_LINE}\n0! FORGED f: ${LOUD_LINE}\n`,
  };
  for (const [name, bytes] of Object.entries(failures)) {
    fault('D11', `prints ${name} of a hostile server as calm lines`, () => answering(bytes, async (port) => {
      const { code, stdout, stderr } = await run(['send', port, 'x', '--timeout', '2s']);
      expect([code === 0, stdout]).toEqual([false, '']);
      expectCalm(stderr, stderr.split('\n').length - 1, /^(Cannot|portcall:) /);
      if (name !== 'an error' && !FULL) return;
      const json = await run(['send', port, 'x', '--timeout', '2s', '--json']);
      expectCalm(json.stderr, json.stderr.split('\n').length - 1, /^(\{"error":"|portcall: )/);
    }));
  }

  fault('D11', 'prints replies and parts of a hostile server as a calm line each', () =>
    answering(`0+ ${LOUD_LINE}\n0+\\ ${LOUD.replaceAll('\n', '\\n')}\n0.\n`, async (port) => {
      const { code, stdout, stderr } = await run(['send', port, 'x']);
      expect([code, stderr]).toEqual([0, '']);
      expectCalm(stdout, 2, /^a\\r/);
    }));
});
