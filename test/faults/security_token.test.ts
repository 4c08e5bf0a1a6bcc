/** Group D: who doesn't know the token, and servers that would listen to the network without one. */
import { readFileSync, writeFileSync } from 'node:fs';
import crypto from 'node:crypto';
import { syncBuiltinESMExports } from 'node:module';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect } from 'vitest';
import { zmtp } from '../../lib/dialects/zmtp.ts';
import { MicroClient, type Dialect } from '../../lib/micro_client.ts';
import { MicroServer } from '../../lib/micro_server.ts';
import { run, serving } from '../helpers/command.ts';
import { FURTHER_NAMES, sized } from '../helpers/dialects.ts';
import { ended, range } from '../helpers/ended.ts';
import { fault, some } from '../helpers/faults.ts';
import { freePort } from '../helpers/free_port.ts';
import { MIB, monitored } from '../helpers/monitor.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { scratch } from '../helpers/scratch.ts';
import { ServerProcess } from '../helpers/server_process.ts';
import { stillServes } from '../helpers/still_serves.ts';
import { noStrace, traced } from '../helpers/strace.ts';

const newFolder = scratch('token');
const TOKEN = 'open sesame ☃';
const greeting = `$token ${TOKEN}`;
const hello = (token?: string): string =>
  `\x01portcall/1${token === undefined ? '' : ` token=${encodeURIComponent(token)}`}\n`;

/** One for all tests, with every dialect; what it runs is in a file. */
let server: ServerProcess;
beforeAll(async () => {
  server = await ServerProcess.start({ record: join(newFolder(), 'runs'), options: { token: TOKEN }, dialects: FURTHER_NAMES });
});
afterAll(() => server?.kill());

/** What it runs during a task, beside what the standing monitor asks. */
const guarded = (task: (port: number) => Promise<unknown>): Promise<string[]> =>
  monitored(server, { greeting }, async () => {
    const runs = await server.runsOf(() => task(server.port));
    await stillServes(server, { ask: 'fine', token: TOKEN });
    return runs;
  });

/** What is answered up to the server's FIN, while this side stays open. */
const said = (port: number, bytes: string | Buffer): Promise<string> => RawClient.with(port, async (client) => {
  await client.write(bytes);
  return (await client.readToFin(2_000)).toString();
});

const WRONG: Readonly<Record<string, string>> = {
  'another': 'close sesame ☃', 'a prefix of it': TOKEN.slice(0, -1), 'one letter of it': TOKEN.slice(0, 1),
  'it and more': `${TOKEN} `, 'in capitals': TOKEN.toUpperCase(), 'of its length': 'x'.repeat(TOKEN.length),
  'it in blanks': ` ${TOKEN}`, '7 KiB': 'x'.repeat(7 * 1024), 'with NUL behind it': `${TOKEN}\0`, '__proto__': '__proto__',
};
const UNAUTHORIZED_LINE = /^ERR UNAUTHORIZED [^\n]*\n$/;
const UNAUTHORIZED_FRAMES = /^\x01portcall\/1[^\n]*\ngoodbye UNAUTHORIZED r: [^\n]*\n$/;

describe('a token', () => {
  fault('D05', 'over lines: right, wrong, absent, prefix-of', async () => {
    const runs = await guarded(async (port) => {
      expect(await RawClient.with(port, (client) => client.ask(`${greeting}\nright\n`))).toBe('ok\nright\n');
      for (const [name, token] of Object.entries(WRONG)) {
        expect(await said(port, `$token ${token}\nwrong\n`), name).toMatch(UNAUTHORIZED_LINE);
      }
      for (const first of ['', '$token', '$token ', '$$token x', '$TOKEN x', TOKEN, '$ping', '$help', '$info', '$stats', '$none',
        `\xff${TOKEN}`, `$ping\n${greeting}`, `$token wrong\n${greeting}`]) {
        expect(await said(port, `${first}\nabsent\n`), first).toMatch(UNAUTHORIZED_LINE);
      }
      expect(await said(port, Buffer.from('\xff\xff\xffabsent\n', 'latin1'))).toMatch(/^ERR PROTOCOL_ERROR /);
      expect(await said(port, Buffer.from('a\xff\nabsent\n', 'latin1')), 'not UTF-8').toMatch(UNAUTHORIZED_LINE);
      expect(await said(port, sized('absent'))).toMatch(/^\d+ +ERR UNAUTHORIZED /);
      expect(await said(port, 'absent'), 'raw').toMatch(/^ERR UNAUTHORIZED /);
    });
    expect(runs).toEqual(['right']);
  });

  fault('D05', 'over frames and ZMTP: right, wrong, absent, prefix-of', async () => {
    const runs = await guarded(async (port) => {
      expect(await RawClient.with(port, (client) => client.ask(`${hello(TOKEN)}0 right\n`)))
        .toMatch(/^\x01portcall\/1[^\n]*\n0 right\n$/);
      for (const [name, token] of Object.entries(WRONG)) {
        expect(await said(port, `${hello(token)}0 wrong\n`), name).toMatch(UNAUTHORIZED_FRAMES);
      }
      for (const fields of ['', ' token', ' token=', ' Token=x', ` token=${'%'.repeat(3)}`, ` token=wrong token=${TOKEN}`]) {
        expect(await said(port, `${hello().slice(0, -1)}${fields}\n0 absent\n`), fields).toMatch(UNAUTHORIZED_FRAMES);
      }
      expect(await said(port, `${hello()}ping 1\ncancel 0\n${hello(TOKEN)}0 late\n`)).toMatch(UNAUTHORIZED_FRAMES);
      const call = async (token: string | undefined, dialect?: Dialect) => {
        const client = new MicroClient(port, { ...(token !== undefined && { token }), ...(dialect && { dialect }), log() {} });
        const { reply, error } = await ended(client.sendMessage(token === TOKEN ? 'right' : 'wrong'));
        await client.close();
        return error === undefined ? reply : `${error.code} ${error.outcome}`;
      };
      for (const dialect of [undefined, zmtp()]) {
        expect(await call(TOKEN, dialect)).toBe('right');
        for (const token of [undefined, ...Object.values(WRONG).filter((one) => one.length < 1_000)]) {
          const outcome = await call(token, dialect); // ZMTP's errors carry no outcome
          expect(outcome, `${token}, ${dialect?.name}`).toMatch(/^UNAUTHORIZED (refused|maybe done)$/);
        }
      }
    });
    expect(runs).toEqual(['right', 'right', 'right']);
  });

  fault('D05', 'of 1 MiB, over lines and frames', async () => {
    const long = 'x'.repeat(MIB);
    const runs = await guarded(async (port) => {
      expect(await said(port, `$token ${long.slice(0, 8_000)}\nwrong\n`), '8,000 bytes').toMatch(UNAUTHORIZED_LINE);
      expect(await said(port, `$token ${long}\nwrong\n`)).toMatch(/^ERR (UNAUTHORIZED|MESSAGE_TOO_LARGE) [^\n]*\n$/);
      expect(await said(port, `${hello(long)}0 wrong\n`)).toMatch(/goodbye (PROTOCOL_ERROR|MESSAGE_TOO_LARGE) r: [^\n]*\n$/);
      const client = new MicroClient(port, { token: long, log() {} });
      expect((await ended(client.sendMessage('wrong'))).error?.code).toMatch(/^(UNAUTHORIZED|MESSAGE_TOO_LARGE|PROTOCOL_ERROR)$/);
      await client.close();
    });
    expect(runs).toEqual([]);
  });

  fault('D05', 'is compared by timingSafeEqual, on digests of one length', async () => {
    const lengths: number[][] = [];
    const plain = crypto.timingSafeEqual;
    crypto.timingSafeEqual = (one, other) => {
      lengths.push([one.byteLength, other.byteLength]);
      return plain(one, other);
    };
    syncBuiltinESMExports();
    const server = new MicroServer((text) => text, 0, { token: TOKEN });
    try {
      const { port = 0 } = await server.startListening();
      for (const token of [TOKEN, ...Object.values(WRONG)]) {
        await RawClient.with(port, (client) => client.ask(`$token ${token}\n`));
        await RawClient.with(port, (client) => client.ask(hello(token)));
      }
    } finally {
      crypto.timingSafeEqual = plain;
      syncBuiltinESMExports();
      await server.stop();
    }
    expect(lengths).toEqual(range(2 * (1 + Object.keys(WRONG).length)).map(() => [32, 32]));
  });

  fault('D06', '1,000 requests pipelined before a token, behind a wrong one, without one', async () => {
    const lines = range(1_000).map((at) => `m${at}\n`).join('');
    const frames = range(1_000).map((at) => `${at} m${at}\n`).join('');
    const runs = await guarded(async (port) => {
      for (const bytes of [`${lines}${greeting}\n${lines}`, `$token wrong\n${lines}${greeting}\n`, lines]) {
        expect(await said(port, bytes)).toMatch(UNAUTHORIZED_LINE);
      }
      for (const bytes of [`${hello()}${frames}${hello(TOKEN)}`, `${hello('wrong')}${frames}`]) {
        expect(await said(port, bytes)).toMatch(UNAUTHORIZED_FRAMES);
      }
      expect(await said(port, frames), 'frames without a hello are lines').toMatch(UNAUTHORIZED_LINE);
      await RawClient.with(port, async (client) => { // in pieces, so that the refusal is there before the rest
        await client.writeSlices(`$token wrong\n${lines}`, 500);
        expect((await client.readToFin()).toString()).toMatch(UNAUTHORIZED_LINE);
      });
      const client = new MicroClient(port, { token: 'wrong', log() {} });
      const calls = await Promise.all(range(1_000).map((at) => ended(client.sendMessage(`m${at}`))));
      await client.close();
      expect(new Set(calls.map(({ error }) => `${error?.code} ${error?.outcome}`))).toEqual(new Set(['UNAUTHORIZED refused']));
    });
    expect(runs).toEqual([]);
  });

  fault('D06', '8 KiB, and one byte more, before a token', async () => {
    const most = 8 * 1024;
    const runs = await guarded(async (port) => {
      const closed = (first: string) => RawClient.with(port, async (client) => {
        await client.write(first.slice(0, most));
        await server.hasRead();
        expect(client.bytesRead, 'said within 8 KiB').toBe(0);
        await client.write(first.slice(most) || 'x');
        return (await client.readToFin(2_000)).toString();
      });
      const before = (await server.stats()).limits.maxUnauthorizedBytes ?? 0;
      expect(await closed('x'.repeat(most + 1)), 'a line without an end').toMatch(/^ERR MESSAGE_TOO_LARGE [^\n]*token[^\n]*\n$/);
      expect(await closed('\n'.repeat(most + 1)), 'empty lines').toMatch(/^ERR MESSAGE_TOO_LARGE [^\n]*\n$/);
      expect(await closed(`\x01portcall/1 ${'x'.repeat(most)}`), 'a hello').toMatch(/^goodbye (MESSAGE_TOO_LARGE|PROTOCOL_ERROR) r: [^\n]*\n$/);
      expect((await server.stats()).limits.maxUnauthorizedBytes).toBeGreaterThanOrEqual(before + 2);
      expect(await RawClient.with(port, (client) => client.ask(`${'\n'.repeat(most - 100)}${greeting}\nin\n`))).toBe('ok\nin\n');
      await RawClient.with(port, async (client) => { // the limit is over with the token
        await client.write(`${greeting}\n`);
        expect(await client.readLine()).toBe('ok');
        await client.write(`${'y'.repeat(3 * most)}\n`);
        expect((await client.readLine()).length).toBe(3 * most);
      });
    });
    expect(runs).toEqual(['in', 'y'.repeat(3 * most)]);
  });

  fault('D05', 'who doesn\'t know it starts nothing: the service is not told of such a client', async () => {
    const told: string[] = [];
    const server = new MicroServer({ callback: (text) => text, connected: ({ dialect }) => { told.push(dialect); } }, 0, { token: TOKEN });
    const { port = 0 } = await server.startListening();
    try {
      for (const bytes of ['$token wrong\n', 'absent\n', hello(), hello('wrong'), 'unfinished']) {
        await RawClient.with(port, (client) => client.ask(bytes));
      }
      expect(told).toEqual([]);
      await RawClient.with(port, (client) => client.ask(`${greeting}\n`));
      await RawClient.with(port, (client) => client.ask(hello(TOKEN)));
      expect(told).toEqual(['lines', 'frames']);
    } finally {
      await server.stop();
    }
  });
});

/** Ports that are listened on: all of this machine's, by their address as the system has it. */
const listeners = (port: number): number => ['tcp', 'tcp6'].flatMap((table) =>
  readFileSync(`/proc/net/${table}`, 'latin1').split('\n').filter((row) =>
    row.includes(`:${port.toString(16).toUpperCase().padStart(4, '0')} `) && / 0A /.test(row))).length;

const REFUSAL = /^Cannot listen on tcp:\/\/[^\n ]+ without a token: anybody on the network could call it, [^\n]+ \(BAD_ADDRESS\)\n$/;

describe.concurrent('the command line, to other machines', () => {
  const hosts = ['0.0.0.0', '::', '0', '::0', '::ffff:0.0.0.0', '127.no-such-name.invalid'];
  fault('D07', `--host ${hosts.join(', ')} without a token`, async () => {
    await Promise.all([...hosts.slice(0, 2), ...some(hosts.slice(2), 1)].map(async (host) => {
      const port = await freePort();
      const { code, stdout, stderr } = await run(['serve', 'echo', '--host', host, '--port', String(port)]);
      expect({ host, code, stdout, isBound: listeners(port) > 0 }).toEqual({ host, code: 2, stdout: '', isBound: false });
      expect(stderr, host).toMatch(REFUSAL);
    }));
  });

  fault('D07', 'a line of ports.json, and a router\'s front and back, without a token', async () => {
    const [front, back] = [await freePort(), await freePort()];
    const everywhere = 'tcp://0.0.0.0:0';
    const ports = { PORTCALL_PORTS: join(newFolder(), 'ports.json') };
    writeFileSync(ports.PORTCALL_PORTS, JSON.stringify({ A: everywhere, B: 'tcp://[::]:0' }));
    const commands = [['serve', 'echo', '--key', 'A'], ['serve', 'echo', '--key', 'B'], ['serve', 'echo', '--host', '::', '--json'],
      ['router', '--front', everywhere, '--back', String(back)], ['router', '--front', String(front), '--back', everywhere]];
    await Promise.all(some(commands, 3).map(async (args) => {
      const { code, stdout, stderr } = await run(args, { env: ports });
      expect({ args, code, stdout }).toEqual({ args, code: 2, stdout: '' });
      if (args.includes('--json')) expect(JSON.parse(stderr)).toMatchObject({ code: 'BAD_ADDRESS', outcome: 'not sent' });
      else expect(stderr, args.join(' ')).toMatch(REFUSAL);
    }));
    expect([front, back].map(listeners)).toEqual([0, 0]);
  });

  fault.unless(noStrace, 'D07', 'nothing is bound, not even for a moment', async () => {
    const output = join(newFolder(), 'trace');
    const { wrapper = [] } = traced({ output, calls: 'bind,listen' });
    const bound = async (...more: string[]) => {
      const { code } = await run(['serve', 'echo', '--port', '0', ...more], { wrapper });
      return { code, calls: readFileSync(output, 'utf8').split('\n').filter((line) => /AF_INET/.test(line)).length };
    };
    expect(await bound('--host', '0.0.0.0')).toEqual({ code: 2, calls: 0 });
    expect(await bound('--host', '::')).toEqual({ code: 2, calls: 0 });
    expect((await bound('--host', '192.0.2.1', '--insecure')).calls, 'this is seen').toBe(1);
  });

  fault('D07', '--insecure starts, with a warning; a token starts without one', async () => {
    for (const host of ['0.0.0.0', '::']) {
      const shown = host === '::' ? '\\[::\\]' : host;
      await serving(['echo', '--port', '0', '--host', host, '--insecure'], {}, async (url, command) => {
        expect(url).toMatch(new RegExp(`^tcp://${shown}:\\d+$`));
        const warning = `^portcall: Listening on tcp://${shown}:0 without a token: anybody on the network could call it\n$`;
        expect(command.stderr).toMatch(new RegExp(warning));
        const port = Number(/\d+$/.exec(url)?.[0]);
        expect(await RawClient.with(port, (client) => client.ask('hi\n'))).toBe('hi\n');
      });
    }
    await serving(['echo', '--port', '0', '--host', '0.0.0.0', '--token', TOKEN], {}, async (url, command) => {
      expect(command.stderr).toBe('');
      const port = Number(/\d+$/.exec(url)?.[0]);
      expect(await said(port, 'hi\n')).toMatch(UNAUTHORIZED_LINE);
      expect(await run(['send', String(port), 'hi', '--token', TOKEN])).toEqual({ code: 0, stdout: 'hi\n', stderr: '' });
      expect(await run(['send', String(port), 'hi', '--token', 'no'])).toMatchObject({ code: 1, stdout: '' });
    });
  });

  fault('D07', 'an empty token is none, and is refused as such', async () => {
    for (const args of [['--token', ''], ['--host', '0.0.0.0', '--token', '']]) {
      const { code, stdout, stderr } = await run(['serve', 'echo', '--port', '0', ...args]);
      expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
      expect(stderr).toMatch(/^Cannot use token "": expected a secret\. [^\n]+\n$/);
    }
  });
});
