/** services/README.md holds what it says: its examples run, its replies come, and no error of a service is missing. */
import { execFile, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, expect, it, vi } from 'vitest';
import { zmtp } from '../lib/dialects/zmtp.ts';
import { MicroClient, MicroServer, type Service } from '../lib/index.ts';
import { createBackup } from '../services/backup.ts';
import { createCalendar } from '../services/calendar.ts';
import { createEcho } from '../services/echo.ts';
import { createLifeGen } from '../services/life_gen.ts';
import { createTimer } from '../services/timer.ts';
import { within } from './helpers/deadline.ts';
import { freePort } from './helpers/free_port.ts';
import { NO_PYZMQ, PYTHON } from './helpers/pyzmq.ts';
import { scratch } from './helpers/scratch.ts';

vi.setConfig({ testTimeout: 30_000 });
const ROOT = fileURLToPath(new URL('..', import.meta.url));
const PAGE = readFileSync(join(ROOT, 'services/README.md'), 'utf8');
const TSX = import.meta.resolve('tsx');
const run = promisify(execFile);
const newFolder = scratch('services-readme');

interface Known { port: number; create(folder: string): Service | Promise<Service> }
const SERVICES: Readonly<Record<string, Known>> = {
  LIFE_GEN: { port: 5467, create: () => createLifeGen({ random: () => 0 }) },
  ECHO: { port: 5500, create: () => ({ ...createEcho(), dialects: [zmtp()] }) },
  CALENDAR: { port: 5555, create: (folder) => createCalendar({ folder: join(folder, 'calendar') }) },
  TIMER: { port: 8888, create: () => createTimer() },
  BACKUP: {
    port: 12345,
    create(folder) {
      writeFileSync(join(folder, 'notes.txt'), 'first\n');
      return createBackup({ source: join(folder, 'notes.txt'), folder: join(folder, 'backups') });
    },
  },
};
const KEYS = Object.keys(SERVICES);

/** What stands below a service's heading. */
function sectionOf(key: string): string {
  return PAGE.split(`\n## ${key}\n`)[1]?.split('\n## ')[0] ?? '';
}

function blocksOf(key: string): { language: string; code: string }[] {
  return [...sectionOf(key).matchAll(/^```(\w+)\n([^]*?)^```$/gm)]
    .map(([, language = '', code = '']) => ({ language, code }));
}

/** Rows of the tables whose header is `first`: their first cell, and the texts of their second. */
function rowsOf(key: string, first: string): { cell: string; texts: string[] }[] {
  const tables = sectionOf(key).split('\n\n').filter((part) => part.startsWith(`| ${first} |`));
  return tables.flatMap((table) => table.split('\n').slice(2).map((line) => {
    const [cell = '', second = ''] = line.slice(2, -2).split(' | ');
    return { cell: textsIn(cell)[0] ?? '', texts: textsIn(second) };
  }));
}

const textsIn = (cell: string): string[] => [...cell.matchAll(/`([^`]*)`/g)].map(([, text = '']) => text);

/** What differs from one run to the next, made the same. */
const withoutTimes = (text: string): string => text.replaceAll(/"remainingMs":\d+/g, '"remainingMs":0')
  .replaceAll(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{3})?Z/g, 'TIME');

/** So are paths, but for number and hash, and blank lines, which end a stream. */
const normalised = (text: string): string => withoutTimes(text).replaceAll(/\n{2,}/g, '\n')
  .replaceAll(/\/\S*\/notes\.[\da-f]{8}\.(\d{10})\.\d{8}T\d{9}Z\.([\da-f]{64})\.txt/g, 'PATH $1 $2');

/** Starts a service anew on a free port, with a folder for its clients; does `task`; stops it. */
async function serving<T>(key: string, task: (port: number, folder: string) => Promise<T>): Promise<T> {
  const { create } = SERVICES[key] as Known;
  const folder = newFolder();
  const server = new MicroServer(await create(folder), key, { ports: { [key]: 0 } });
  const { port = 0 } = await server.startListening();
  try {
    return await task(port, folder);
  } finally {
    await server.stop({ graceMs: 0 });
  }
}

/** What a service says of itself. */
async function factsOf(key: string): Promise<{ examples: string[]; dialects: string[] }> {
  const { contract, dialects = [], stop } = await (SERVICES[key] as Known).create(newFolder());
  await stop?.();
  const examples = Object.values(contract?.messages ?? {}).map(({ example }) => example);
  return { examples, dialects: dialects.map(({ name }) => name) };
}

const withPort = (key: string, code: string, port: number): string =>
  code.replaceAll(new RegExp(`\\b${SERVICES[key]?.port}\\b`, 'g'), String(port));

/** Why a block can't be run here, if so. */
function missing(language: string, code: string): string | undefined {
  const isThere = (command: string): boolean => spawnSync(command, ['--version'], { timeout: 10_000 }).error === undefined;
  if (/\bzmq\b/.test(code)) return NO_PYZMQ;
  if (language === 'python') return isThere('python3') ? undefined : 'no python3 on this machine';
  if (language !== 'sh') return undefined;
  const { stderr } = spawnSync('nc', ['-h'], { encoding: 'utf8', timeout: 10_000 });
  return /\[-\w*N/.test(stderr ?? '') ? undefined : 'no nc of OpenBSD on this machine';
}

async function runBlock(language: string, code: string, folder: string): Promise<string> {
  const options = { cwd: folder, timeout: 15_000 };
  if (language === 'sh') return (await run('sh', ['-c', code], options)).stdout;
  const python = /\bzmq\b/.test(code) ? PYTHON as string : 'python3';
  if (language === 'python') return (await run(python, ['-c', code], options)).stdout;
  cpSync(join(ROOT, 'lib/micro_client.ts'), join(folder, 'micro_client.ts'));
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }');
  writeFileSync(join(folder, 'client.ts'), code);
  return (await run(process.execPath, ['--import', TSX, 'client.ts'], options)).stdout;
}

describe.each(KEYS)('%s', (key) => {
  const blocks = blocksOf(key);
  const [start] = blocks;
  const expected = blocks.find(({ language }) => language === 'text')?.code ?? '';
  const examples = blocks.filter((block) => ['ts', 'python', 'sh'].includes(block.language) && block !== start);

  it.concurrent('starts as it says, and answers there', async () => {
    const { examples: [message = ''] } = await factsOf(key);
    const folder = newFolder();
    writeFileSync(join(folder, 'notes.txt'), 'first\n');
    const port = await freePort();
    writeFileSync(join(folder, 'ports.json'), JSON.stringify({ [key]: port }));
    const [, words = ''] = /^npx tsx lib\/cli\.ts (serve .*)\n$/.exec(withPort(key, start?.code ?? '', port)) ?? [];
    const server = spawn(process.execPath, ['--import', TSX, join(ROOT, 'lib/cli.ts'), ...words.split(' ')],
      { cwd: folder, stdio: ['ignore', 'pipe', 'inherit'] });
    const ended = once(server, 'close');
    try {
      const [line] = await within(15_000, once(server.stdout.setEncoding('utf8'), 'data'), 'that it listens');
      expect(line).toBe(`listening on tcp://127.0.0.1:${port} (${key})\n`);
      expect(await new MicroClient(port).sendMessage(message)).not.toMatch(/^Cannot|^Invalid/);
      server.kill('SIGTERM');
      expect(await within(10_000, ended, 'its end')).toEqual([0, null]);
    } finally {
      server.kill('SIGKILL');
    }
  });

  it('has the port of ports.json', () => {
    const ports = JSON.parse(readFileSync(join(ROOT, 'ports.json'), 'utf8')) as Record<string, number>;
    if (key !== 'ECHO') expect(SERVICES[key]?.port).toBe(ports[key]);
    expect(sectionOf(key)).toContain(String(SERVICES[key]?.port));
  });

  it.concurrent.for(examples.map(({ language, code }) => [language, code.split('\n')[0], code] as const))(
    'shows an example that prints what it says: %s, %s', async ([language, , code], { skip }) => {
      const why = missing(language, code);
      if (why !== undefined) return skip(why);
      const printed = await serving(key, async (port, folder) => {
        writeFileSync(join(folder, 'ports.json'), JSON.stringify({ [key]: port }));
        return runBlock(language, withPort(key, code, port), folder);
      });
      expect(expected).not.toBe('');
      expect(normalised(printed)).toBe(normalised(expected));
    });

  it('shows the exchange in each language, and as a diagram', async () => {
    const { dialects } = await factsOf(key);
    expect(examples.map(({ language }) => language)).toEqual(expect.arrayContaining(['ts', 'python', 'sh']));
    expect(examples.some(({ code }) => /\bzmq\b/.test(code))).toBe(dialects.includes('zmtp'));
    expect(blocks.filter(({ language, code }) => language === 'mermaid' && code.startsWith('sequenceDiagram\n')))
      .toHaveLength(1);
  });

  it.concurrent('gives the replies of its tables', async () => {
    const rows = rowsOf(key, 'send');
    expect(rows.length).toBeGreaterThan(0);
    await serving(key, async (port) => {
      const client = new MicroClient(port);
      for (const { cell, texts } of rows) {
        const parts: string[] = [];
        for await (const part of client.streamMessage(cell)) parts.push(part);
        const pattern = withoutTimes(texts.join('\n')).split('…')
          .map((piece) => piece.replaceAll(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('[^]+');
        expect(withoutTimes(parts.join('\n')), cell).toMatch(new RegExp(`^${pattern}$`));
      }
      await client.close();
    });
  });
});

describe('errors', () => {
  /** A text in the code, and what is put together with `+`; values in it may hold a text themselves. */
  const TEXT = /(?:'(?:[^'\\\n]|\\.)*'|`(?:[^`\\$]|\\.|\$\{(?:[^{}`]|`[^`]*`)*\})*`)/;
  const JOINED = new RegExp(`${TEXT.source}(?:\\s*\\+\\s*${TEXT.source})*`);
  /** What is thrown, refused or answered as an error: by its first word, or by what it is handed to. */
  const ERROR = new RegExp(String.raw`(?<!\w)(?:(?:Error|Refusal|refusal|refuse|missing)\(\s*)?${JOINED.source}`, 'g');

  /** The texts of a file's errors, as the pieces between their values. */
  function errorsOf(source: string): string[][] {
    const code = source.replaceAll(/\/\*[^]*?\*\//g, '').replaceAll(/(?<=\s)\/\/ .*$/gm, '');
    return [...code.matchAll(ERROR)].map(([found]) => found)
      .filter((found) => /^\w+\(/.test(found) || /^.(?:Cannot|Invalid|No |Backup failed)/.test(found) ||
        found.includes('"error":"'))
      .map((found) => found.replace(/^\w+\(\s*/, '').replaceAll(/\$\{(?:[^{}`]|`[^`]*`)*\}/g, '\0')
        .replaceAll(/['`]\s*\+\s*['`]/g, '').slice(1, -1).replaceAll("\\'", "'"))
      .map((text) => text.split('\0').map((piece) => piece.trim()).filter((piece) => /[a-z]{2}/i.test(piece)));
  }

  const words = PAGE.replaceAll(/\s+/g, ' ');
  it.each(readdirSync(join(ROOT, 'services')).filter((file) => file.endsWith('.ts')))(
    'of %s all stand in the page', (file) => {
      const errors = errorsOf(readFileSync(join(ROOT, 'services', file), 'utf8'));
      expect(errors.length).toBeGreaterThanOrEqual(file === 'echo.ts' ? 0 : 5);
      expect(errors.flat().filter((piece) => !words.includes(piece))).toEqual([]);
    });

  it('are found where there are some', () => {
    expect(errorsOf("x = 'a';\nthrow new Error(`Cannot do ${quoted(\"b\")}: ` +\n  'it is ' + `${c}. Don\\'t`); // 'd'"))
      .toEqual([['Cannot do', ': it is', ". Don't"]]);
    expect(errorsOf("f('Cannot');\nrefusal('it is so');\n/* 'Cannot not' */")).toEqual([['Cannot'], ['it is so']]);
  });
});
