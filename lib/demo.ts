/** What `up --demo` shows: each service of the kit, asked for real. One row of DEMOS a service. */
import { mkdtempSync, rmSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { MicroClient, MicroError, MicroServer, stopOnSignals } from './index.ts';
import type { Address, Service } from './index.ts';

export interface Demo {
  key: string;
  /** @param folder Of this run alone: gets all files that the service keeps. */
  create(folder: string): Promise<Service>;
  exchanges: readonly Exchange[];
  /** What to ask it from elsewhere, and how. */
  tries: readonly Try[];
}

export interface Exchange {
  message: string;
  /** What a right reply is, in words. */
  expected: string;
  /** @param reply The parts of a stream stand in it on a line each. */
  right(reply: string, seen: Seen): boolean | Promise<boolean>;
  /** What `right` has found beside the reply, if it looks at more: shown with a right one. */
  found?: string;
}

/** What is known beside the reply: the demo's folder, how long the reply took to its end. */
export interface Seen { folder: string; tookMs: number }

export interface Try { way: keyof typeof WAYS; message: string }

const EVENT = { action: 'timestamp', clientID: 'TaskTracker', eventName: 'add.task' };
const SOURCE = 'notes.txt'; // in the demo's folder

export const DEMOS: readonly Demo[] = [
  {
    key: 'LIFE_GEN',
    create: async () => (await import('../services/life_gen.ts')).createLifeGen(),
    exchanges: [
      { message: 'music', expected: 'a line', right: (reply) => !reply.startsWith('Cannot') },
      {
        message: 'space 2',
        expected: 'a JSON array of two different lines',
        right: (reply) => new Set(JSON.parse(reply) as string[]).size === 2,
      },
      {
        message: 'categories',
        expected: 'a JSON array with "music" and "space"',
        right: (reply) => ['music', 'space'].every((name) => JSON.parse(reply).includes(name)),
      },
      {
        message: 'weather',
        expected: 'what there is instead',
        right: (reply) => reply.startsWith('Cannot find category "weather". Known: '),
      },
    ],
    tries: [{ way: 'nc', message: 'music' }, { way: 'portcall', message: 'music 3' }],
  },
  {
    key: 'CALENDAR',
    create: async (folder) => (await import('../services/calendar.ts'))
      .createCalendar({ folder: join(folder, 'calendar') }),
    exchanges: [
      {
        message: '{"action":"ping"}',
        expected: 'a pong',
        right: (reply) => reply === '{"status":200,"message":"pong"}',
      },
      {
        message: JSON.stringify(EVENT),
        expected: 'the time of now',
        right: (reply) => Math.abs(Date.now() - Date.parse(JSON.parse(reply).timestamp)) < 60_000,
      },
      {
        message: '{"action":"events","clientID":"TaskTracker"}',
        expected: 'that event and no other',
        right(reply) {
          const { events: [event, ...more] } = JSON.parse(reply);
          return event.eventName === EVENT.eventName && more.length === 0;
        },
      },
      {
        message: JSON.stringify({ ...EVENT, clientID: 'Stranger' }),
        expected: 'a refusal',
        right: (reply) => JSON.parse(reply).error === 'clientID is not a whitelisted APP',
      },
    ],
    tries: [
      { way: 'nc', message: JSON.stringify(EVENT) },
      { way: 'python', message: '{"action":"events"}' },
    ],
  },
  {
    key: 'TIMER',
    create: async () => (await import('../services/timer.ts')).createTimer(),
    exchanges: [
      { message: '0 10 0', expected: 'the same', right: (reply) => reply === '0 10 0' },
      { message: 'cancel', expected: 'its number', right: (reply) => reply === 'cancelled 1' },
      {
        message: 'stream 0 0 2',
        expected: 'the seconds that are left, and "done" after two',
        // A machine that was busy for a second may have missed a tick.
        right: (reply, { tookMs }) =>
          /^00:00:02\n(?:00:00:01\n)?done$/.test(reply) && tookMs >= 2_000,
      },
    ],
    tries: [{ way: 'nc', message: 'stream 0 0 3' }],
  },
  {
    key: 'BACKUP',
    async create(folder) {
      const source = join(folder, SOURCE);
      await writeFile(source, `What this demo backs up, written at ${new Date().toISOString()}\n`);
      const { createBackup } = await import('../services/backup.ts');
      const service = createBackup({ source, folder: join(folder, 'backups') });
      await service.ready;
      return service;
    },
    exchanges: [
      { message: 'revert', expected: 'none yet', right: (reply) => reply === 'No backup found.' },
      { message: 'backup', expected: 'one now', right: (reply) => reply === 'Backup completed' },
      {
        message: 'revert',
        expected: 'the path of a file with the bytes of its source',
        right: async (reply, { folder }) =>
          (await readFile(join(folder, SOURCE))).equals(await readFile(reply)),
        found: `the file there has the bytes of ${SOURCE}`,
      },
    ],
    tries: [{ way: 'python without a line end', message: 'revert' }],
  },
];

export type Step =
  | { key: string; listening: string }
  | { key: string; message: string }
  /** One a part of a stream. */
  | { key: string; reply: string }
  | { key: string; right: boolean; expected: string; found?: string }
  | { serving: readonly string[]; folder: string }
  | { key: string; tryIt: readonly string[] };

export interface DemoOptions {
  demos?: readonly Demo[];
  /** On free ports, and stopped at the end. Else on those of ports.json, until SIGINT or SIGTERM. */
  once: boolean;
  /** Told of each thing as it happens. */
  show(step: Step): void;
  /** The shell's words for the command line of this kit. */
  self: string;
}

const SIGNALS = ['SIGINT', 'SIGTERM'] as const;

/**
 * Starts each service and asks it what its row says, over a real connection. What they keep is in a
 * temporary folder, which is removed at the end.
 *
 * @returns Whether each reply was right.
 * @throws {MicroError} A service can't listen (`PORT_IN_USE`) or doesn't answer, or a signal came in
 *   the midst of `once` (`ABORTED`); then none is left running.
 */
export async function runDemos({ demos = DEMOS, once, show, self }: DemoOptions): Promise<boolean> {
  const folder = mkdtempSync(join(tmpdir(), 'portcall-demo-'));
  const remove = (): void => rmSync(folder, { recursive: true, force: true });
  process.once('exit', remove); // where a signal ends the process, nothing else is left to do it
  const ended = new AbortController();
  const interrupt = (): void =>
    ended.abort(new MicroError('ABORTED', 'Cannot finish the demo: it was interrupted'));
  for (const name of SIGNALS) process.once(name, interrupt);

  const servers: MicroServer[] = [];
  const tries: Step[] = [];
  let allRight = true;
  const end = async (): Promise<void> => {
    await Promise.all(servers.map((server) => server.stop()));
    for (const name of SIGNALS) process.off(name, interrupt);
    process.off('exit', remove);
    remove();
  };
  try {
    for (const demo of demos) {
      const { key } = demo;
      const options = once ? { ports: { [key]: 0 } } : {};
      const server = new MicroServer(await demo.create(folder), key, options);
      servers.push(server);
      if (!once) stopOnSignals(server);
      ended.signal.throwIfAborted();
      const address = await server.startListening();
      show({ key, listening: address.url });
      const asking = { demo, url: address.url, folder, signal: ended.signal, show };
      if (!await askAll(asking)) allRight = false;
      tries.push({ key, tryIt: waysToTry(demo, address, self) });
    }
    ended.signal.throwIfAborted();
  } catch (error) {
    await end();
    if (!once && ended.signal.aborted) return allRight; // stopped half-way, as asked: no failure
    throw error;
  }
  if (once) await end();
  else [{ serving: demos.map(({ key }) => key), folder }, ...tries].forEach(show);
  return allRight;
}

interface Asking {
  demo: Demo;
  url: string;
  folder: string;
  signal: AbortSignal;
  show(step: Step): void;
}

async function askAll({ demo: { key, exchanges }, url, folder, signal, show }: Asking):
  Promise<boolean> {
  const client = new MicroClient(url);
  let allRight = true;
  try {
    for (const { message, expected, right: check, found } of exchanges) {
      show({ key, message });
      const began = performance.now();
      const parts: string[] = [];
      for await (const reply of client.streamMessage(message, { signal })) {
        show({ key, reply });
        parts.push(reply);
      }
      const seen = { folder, tookMs: performance.now() - began };
      const right = await holds(() => check(parts.join('\n'), seen));
      if (!right) allRight = false;
      show({ key, right, expected, ...(found !== undefined && { found }) });
    }
    return allRight;
  } finally {
    await client.close();
  }
}

async function holds(check: () => boolean | Promise<boolean>): Promise<boolean> {
  try {
    return await check();
  } catch {
    return false; // such as JSON.parse of what is no JSON, or a path where no file is
  }
}

/** A step in words; undefined: there is nothing to say. */
export function tellStep(step: Step): string | undefined {
  if ('listening' in step) return `${step.key} listens on ${step.listening}`;
  if ('message' in step) return `client → ${step.message}`;
  if ('reply' in step) return `server → ${step.reply}`;
  if ('right' in step) {
    return !step.right ? `wrong, expected ${step.expected}` : step.found && `right: ${step.found}`;
  }
  if ('tryIt' in step) return ['', `${step.key}:`, ...step.tryIt.map((one) => `  ${one}`)].join('\n');
  return `\n${step.serving.join(', ')} serve until Ctrl+C, and keep their files in ${step.folder}\n` +
    'until then. Ask them from another terminal (ncat, and nc of macOS: without -N):';
}

/** Commands for a shell, each on one line, so that pasting them can't break their blanks. */
function waysToTry({ key, tries }: Demo, { host, port }: Address, self: string): string[] {
  return tries.map(({ way, message }) =>
    WAYS[port === undefined ? 'portcall' : way](message, { key, self, host, port }));
}

interface Where { key: string; self: string; host: string | undefined; port: number | undefined }

const WAYS = {
  nc: (message: string, { host, port }: Where) =>
    `echo ${inShell(message)} | nc -N ${host} ${port}`,
  python: (message: string, { host, port }: Where) => `python3 -c ${inShell(
    `import socket; s = socket.create_connection(("${host}", ${port})); ` +
    `s.sendall(${JSON.stringify(`${message}\n`)}.encode()); ` +
    'print(s.makefile(encoding="utf-8").readline(), end="")')}`,
  'python without a line end': (message: string, { host, port }: Where) => `python3 -c ${inShell(
    `import socket; s = socket.create_connection(("${host}", ${port})); ` +
    `s.send(${JSON.stringify(message)}.encode()); print(s.recv(1024).decode())`)}`,
  portcall: (message: string, { key, self }: Where) => `${self} send ${key} ${inShell(message)}`,
} as const;

/** One word for a shell. */
function inShell(text: string): string {
  return /^[\w.-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
