/** The README holds what it says: its code runs, its tables are the code's. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync,
} from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ERRORS } from '../lib/micro_client.ts';
import { DEFAULT_LIMITS, MicroServer } from '../lib/micro_server.ts';
import { within } from './helpers/deadline.ts';
import { freePort } from './helpers/free_port.ts';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const README = readFileSync(join(ROOT, 'README.md'), 'utf8');
const run = promisify(execFile);

/** The code block whose first line holds the words. */
function block(language: string, words: string): string {
  const found = [...README.matchAll(/^```(\w+)\n([^]*?)^```$/gm)]
    .find(([, name, code = '']) => name === language && code.includes(words));
  if (found?.[2] === undefined) throw new Error(`Cannot find the ${language} block with "${words}" in the README`);
  return found[2];
}

/** The rows of the table below a heading, cells trimmed, code marks taken off. */
function rows(heading: string): string[][] {
  const section = README.split(`\n## ${heading}\n`)[1]?.split('\n## ')[0] ?? '';
  return section.split('\n').filter((line) => line.startsWith('| `'))
    .map((line) => line.split('|').slice(1, -1).map((cell) => cell.trim().replaceAll('`', '')));
}

describe('README', () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'portcall-readme-'));
    for (const file of ['micro_client.ts', 'micro_server.ts']) cpSync(join(ROOT, 'lib', file), join(folder, file));
    writeFileSync(join(folder, 'package.json'), '{ "type": "module" }');
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  /** tsx, which lies in the repository and not in the folder. */
  const node = ['--import', import.meta.resolve('tsx')];

  it('shows a server and a client that print what it says', async () => {
    const port = await freePort();
    writeFileSync(join(folder, 'ports.json'), JSON.stringify({ LIFE_GEN: port }));
    writeFileSync(join(folder, 'server.ts'), `${block('ts', '// server.ts')}\nconsole.log('bound');\n`);
    writeFileSync(join(folder, 'client.ts'), block('ts', '// client.ts'));
    const server = spawn(process.execPath, [...node, 'server.ts'], { cwd: folder, stdio: ['ignore', 'pipe', 'inherit'] });
    try {
      await within(10_000, once(server.stdout, 'data'), 'the server said that it is bound');
      const { stdout } = await run(process.execPath, [...node, 'client.ts'], { cwd: folder, timeout: 10_000 });
      expect(stdout).toBe('you said: Give me some data back!!\n');
      expect(README).toContain(stdout);
      const socket = connect(port, '127.0.0.1').setEncoding('utf8').end('hello\n');
      const [reply] = await within(5_000, once(socket, 'data'), 'a reply to a line');
      expect(reply).toBe('you said: hello\n');
    } finally {
      server.kill('SIGKILL');
      await within(5_000, once(server, 'exit'), 'the server ended');
    }
  });

  it('shows streams, deadlines and errors as they are', async () => {
    writeFileSync(join(folder, 'more.ts'), block('ts', '// more.ts'));
    const { stdout } = await run(process.execPath, [...node, 'more.ts'], { cwd: folder, timeout: 15_000 });
    expect(stdout.split('\n')).toEqual(['1', '2', '3', 'TIMEOUT maybe done', 'hello, in time', '']);
  });

  it('shows a dialect that both sides speak', async () => {
    mkdirSync(join(folder, 'dialects'));
    cpSync(join(ROOT, 'lib/dialects/zmtp.ts'), join(folder, 'dialects/zmtp.ts'));
    writeFileSync(join(folder, 'dialects.ts'), block('ts', '// dialects.ts'));
    const { stdout } = await run(process.execPath, [...node, 'dialects.ts'], { cwd: folder, timeout: 15_000 });
    expect(stdout).toBe('you said: hello over ZMTP\n');
  });

  it('lists the services with their ports, and the dialects with where they are on', () => {
    const ports = JSON.parse(readFileSync(join(ROOT, 'ports.json'), 'utf8')) as Record<string, number>;
    const services = rows('Services');
    for (const [key = '', port, start = ''] of services) {
      expect([key, port]).toEqual([key, String(ports[key] ?? '')]);
      expect(existsSync(join(ROOT, 'services', `${start.split(' ')[0]}.ts`)), start).toBe(true);
    }
    expect(services).toHaveLength(readdirSync(join(ROOT, 'services')).filter((file) => file.endsWith('.ts')).length);
    for (const [name, , where = ''] of rows('Dialects')) {
      const users = services.filter(([, , start = '']) =>
        readFileSync(join(ROOT, 'services', `${start.split(' ')[0]}.ts`), 'utf8').match(new RegExp(`dialects: \\[${name}`)));
      expect([name, where]).toEqual([name, users.map(([key]) => key).join(', ')]);
    }
  });

  it('shows a client in Python that works', async ({ skip }) => {
    const python = await run('python3', ['--version']).catch(() => undefined);
    if (python === undefined) return skip('no python3 on this machine');
    const server = new MicroServer((message) => `you said: ${message}`, 0);
    const { port } = await server.startListening();
    const code = block('python', 'socket.create_connection').replace('5467', String(port));
    const { stdout } = await run('python3', ['-c', code], { timeout: 10_000 });
    expect(stdout.trim()).toBe('you said: hello from Python');
    await server.stop();
  });

  it('shows a router, a worker and events', async () => {
    const lib = join(folder, 'lib');
    cpSync(join(ROOT, 'lib'), lib, { recursive: true });
    writeFileSync(join(lib, 'routed.ts'), block('ts', '// routed.ts'));
    const { stdout } = await run(process.execPath, [...node, 'lib/routed.ts'], { cwd: folder, timeout: 15_000 });
    expect(stdout).toBe('adder joined\n6\n');
  });

  it('lists every error with who is at fault and its outcome', () => {
    const table = rows('Errors');
    expect(table.map(([code, , outcome]) => [code, outcome])).toEqual(Object.entries(ERRORS));
    for (const [code, who = ''] of table) expect(who.length, code).toBeGreaterThan(5);
  });

  it('lists every limit with its default', () => {
    const units: Record<string, number> = { '': 1, s: 1000, KiB: 1024, MiB: 1024 ** 2 };
    const told = rows('Limits').map(([name, text = '']) => {
      const [number = '', unit = ''] = text.replaceAll(',', '').split(' ');
      return [name, Number(number) * (units[unit] ?? NaN)];
    });
    expect(told).toEqual([...Object.entries(DEFAULT_LIMITS), ['timeoutMs', 5_000], ['maxQueued', 16_384]]);
  });
});
