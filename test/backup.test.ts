/** BACKUP's contract. What may go wrong on the way: `faults/backup_*.test.ts`. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync, utimesSync, writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { isAbsolute, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, describe, expect, it } from 'vitest';
import { MicroClient, MicroServer } from '../lib/index.ts';
import { createBackup, type BackupOptions } from '../services/backup.ts';
import { NONE, hashOf } from './helpers/backups.ts';
import { pause, until, within } from './helpers/deadline.ts';
import { range } from './helpers/ended.ts';
import { built } from './helpers/programs_built.ts';
import { RawClient } from './helpers/raw_client.ts';

const MIB = 1024 * 1024;
const HOUR_MS = 3_600_000;
const root = mkdtempSync(join(tmpdir(), 'portcall-backup-contract-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));

interface Set { port: number; source: string; folder: string; ask(message: string): Promise<string>; stop(): Promise<void> }

/** Serves a backup of a file that says `first`, does `task`, and stops the server. */
async function serving<T>(options: Partial<BackupOptions>, task: (set: Set) => Promise<T>): Promise<T> {
  const place = mkdtempSync(join(root, 'case-'));
  const source = options.source ?? join(place, 'notes.txt');
  const folder = options.folder ?? join(place, 'backups');
  if (options.source === undefined) writeFileSync(source, 'first');
  const service = createBackup({ everyMs: HOUR_MS, settleMs: 15, ...options, source, folder });
  const server = new MicroServer(service, 'HERE', { ports: { HERE: 0 } });
  try {
    await service.ready;
    const port = (await server.startListening()).port as number;
    const ask = (message: string) => RawClient.with(port, async (client) => {
      await client.write(`${message}\n`);
      return client.readLine();
    });
    return await task({ port, source, folder, ask, stop: () => server.stop() });
  } finally {
    await server.stop();
  }
}

/** A command that serves until the test ends it. */
async function commanded<T>(args: readonly string[], task: (port: number) => Promise<T>): Promise<T> {
  const words = [built('lib/cli.ts'), 'serve', 'backup', '--port', '0', ...args];
  const child = spawn(process.execPath, words, { cwd: fileURLToPath(new URL('..', import.meta.url)) });
  const ended = once(child, 'exit');
  let said = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => { said += text; });
  try {
    const [first] = await within(15_000, once(child.stdout, 'data'), 'that it listens');
    const result = await task(Number(/127\.0\.0\.1:(\d+) \(BACKUP\)/.exec(String(first))?.[1]));
    child.kill('SIGTERM');
    expect([await within(10_000, ended, 'its end'), said]).toEqual([[0, null], '']);
    return result;
  } finally {
    child.kill('SIGKILL');
  }
}

/** The client that the seed's README tells, port and all, and nothing else. */
const SEED_CLIENT = (port: number, request: string) => `
import socket
s = socket.socket()
port = ${port}
s.connect(('127.0.0.1', port))
request = "${request}"
s.send(request.encode())
print(s.recv(1024).decode(), end='')
`;

describe('the seed\'s client', () => {
  it('gets the path of the latest backup, and the bytes there are the source\'s', async ({ skip }) => {
    const run = promisify(execFile);
    if (await run('python3', ['--version']).catch(() => undefined) === undefined) {
      return skip('no python3 on this machine');
    }
    await serving({ everyMs: 100 }, async ({ port, source, folder }) => {
      const revert = async (word: string) =>
        (await run('python3', ['-c', SEED_CLIENT(port, word)], { timeout: 10_000 })).stdout;
      expect(await revert('revert'), 'before there is any').toBe(NONE);
      const first = await until(async () => {
        const reply = await revert('Revert');
        return reply === NONE ? undefined : reply;
      }, 5_000, 'the first backup');
      expect(isAbsolute(first)).toBe(true);
      expect(first.startsWith(`${folder}/`)).toBe(true);
      expect(readFileSync(first, 'utf8')).toBe('first');
      writeFileSync(source, 'second');
      await until(async () => await revert('revert') !== first, 5_000, 'the second backup');
      expect(readFileSync(await revert('revert'), 'utf8'), 'not the first, which is there as well').toBe('second');
      expect(existsSync(first)).toBe(true);
      return undefined;
    });
  });

  it('is one of many: at a time, one after another, and beside those of other dialects', () =>
    serving({}, async ({ port, ask }) => {
      expect(await ask('backup')).toBe('Backup completed');
      const path = await ask('revert');
      const clients = await Promise.all(range(20).map(() => RawClient.connect(port)));
      await Promise.all(clients.map((client) => client.write('revert')));
      for (const client of clients) {
        expect((await client.readBytes(path.length)).toString()).toBe(path);
      }
      const framed = new MicroClient(port);
      expect(await framed.sendMessage('revert')).toBe(path);
      await framed.close();
      for (const client of clients) client.socket.destroy();
      expect(await ask('revert'), 'after they are gone').toBe(path);
    }));
});

describe('BACKUP', () => {
  it('answers commands in small letters or with a capital, and names what is none', () =>
    serving({}, async ({ source, folder, ask }) => {
      expect(await ask('Revert')).toBe(NONE);
      expect(await ask('Backup')).toBe('Backup completed');
      const path = await ask('revert');
      const sha256 = hashOf('first');
      const list = JSON.parse(await ask('List')) as { at: string }[];
      expect(list).toEqual([{ path, bytes: 5, sha256, at: expect.any(String) }]);
      expect(Math.abs(Date.parse(list[0]?.at ?? '') - Date.now())).toBeLessThan(10_000);
      expect(JSON.parse(await ask('Verify'))).toEqual({ checked: 1, good: 1, bad: [] });
      expect(JSON.parse(await ask('Status'))).toEqual({
        source, folder, everyMs: HOUR_MS, keep: 10, trouble: null, doing: 'waiting', progress: null,
        nextAt: expect.any(String), runs: 1, last: { at: list[0]?.at, outcome: 'made' }, latest: list[0],
        backups: 1, bad: [],
      });
      for (const wrong of ['undo', 'REVERT', 'revert now', ' revert', 'constructor', '__proto__', 'Invalid']) {
        expect(await ask(wrong)).toBe(`Invalid request command '${wrong}' sent.`);
      }
      const long = await ask('☃😀'.repeat(5_000));
      expect(long).toMatch(/^Invalid request command '[☃😀]+…' sent\.$/u);
      expect(long.length).toBeLessThan(300);
    }));

  it.each(['exit', 'Exit'])('closes the connection at "%s", and no other', (word) =>
    serving({}, async ({ port, ask }) => {
      await RawClient.with(port, async (stays) => {
        await stays.write('revert\n');
        expect(await stays.readLine()).toBe(NONE);
        await RawClient.with(port, async (client) => {
          await client.write(word);
          expect((await client.readToFin()).toString(), 'without a word').toBe('');
        });
        await stays.write('revert\n');
        expect(await stays.readLine()).toBe(NONE);
      });
      expect(await ask('revert')).toBe(NONE);
    }));

  it('keeps its contract', () => serving({}, async ({ ask }) => {
    const service = createBackup({ source: 'unused', folder: join(root, 'contract') });
    await service.stop?.();
    const { contract } = service;
    for (const { example, reply } of Object.values(contract?.messages ?? {})) {
      if (example !== 'backup') expect(await ask(example), example).toBe(reply);
    }
    expect(await ask('backup')).toBe(contract?.messages['backup']?.reply);
  }));

  it('begins one interval after its first client came, not before', () =>
    serving({ everyMs: 300 }, async ({ folder, ask }) => {
      await pause(700);
      expect(readdirSync(folder).filter((name) => name.endsWith('.txt')), 'nobody came').toEqual([]);
      const came = performance.now();
      expect(await ask('revert')).toBe(NONE);
      await until(async () => await ask('revert') !== NONE, 5_000, 'the first');
      expect(performance.now() - came).toBeGreaterThan(290);
    }));

  it('begins at once where asked to', () => serving({ startAtOnce: true }, async ({ folder }) => {
    await until(() => readdirSync(folder).some((name) => name.endsWith('.txt')), 5_000, 'the first');
  }));

  it('makes no new file of what is unchanged, not even after a restart, and one of each change', async () => {
    const folder = join(root, 'restarted');
    const source = join(root, 'restarted.md');
    writeFileSync(source, 'one');
    const files = () => readdirSync(folder).filter((name) => name.endsWith('.md'));
    const options = { source, folder };
    const path = await serving(options, async ({ ask }) => {
      for (const _ of range(3)) expect(await ask('backup')).toBe('Backup completed');
      expect(files()).toHaveLength(1);
      expect(JSON.parse(await ask('status')).last).toMatchObject({ outcome: 'unchanged' });
      return ask('revert');
    });
    await serving(options, async ({ ask }) => {
      expect(await ask('revert')).toBe(path);
      expect(await ask('backup')).toBe('Backup completed');
      expect(files()).toHaveLength(1);
      for (const content of ['two', 'one', '']) {
        writeFileSync(source, content);
        expect(await ask('backup')).toBe('Backup completed');
        expect(readFileSync(await ask('revert'), 'utf8')).toBe(content);
      }
      expect(files()).toHaveLength(4);
    });
  });

  it('sees a change that hides: same length, old times', () => serving({}, async ({ source, ask }) => {
    const age = () => utimesSync(source, 1_000_000, 1_000_000);
    age();
    for (const _ of range(2)) expect(await ask('backup')).toBe('Backup completed');
    expect(JSON.parse(await ask('status')).last).toMatchObject({ outcome: 'unchanged' });
    writeFileSync(source, 'FIRST');
    age();
    expect(await ask('backup')).toBe('Backup completed');
    expect(readFileSync(await ask('revert'), 'utf8')).toBe('FIRST');
  }));

  it('never answers with what another source left in the folder, be it of the same name', async () => {
    const folder = join(root, 'shared');
    for (const name of ['a', 'b']) {
      const place = mkdtempSync(join(root, name));
      writeFileSync(join(place, 'notes.txt'), `of ${name}`);
      await serving({ source: join(place, 'notes.txt'), folder }, async ({ ask }) => {
        expect(await ask('revert')).toBe(NONE);
        await ask('backup');
        expect(readFileSync(await ask('revert'), 'utf8')).toBe(`of ${name}`);
      });
    }
  });

  it('stops in the middle of a copy, leaving nothing of it, and lets the folder go', async () => {
    const folder = join(root, 'stopped');
    const source = join(root, 'stopped.txt');
    writeFileSync(source, Buffer.alloc(256 * MIB, 'long '));
    const files = await serving({ source, folder, startAtOnce: true }, async ({ ask, stop }) => {
      await until(async () => JSON.parse(await ask('status')).progress?.bytes > 0, 5_000, 'a copy that goes on');
      const began = performance.now();
      await within(2_000, stop(), 'its end');
      expect(performance.now() - began).toBeLessThan(1_500);
      return readdirSync(folder);
    });
    expect(files).toEqual([]);
  });

  it('says so when its folder was taken away, and writes into no other', () =>
    serving({}, async ({ folder, ask }) => {
      expect(await ask('backup')).toBe('Backup completed');
      rmSync(folder, { recursive: true });
      expect(await ask('revert')).toBe(NONE);
      for (const name of ['list', 'status', 'verify']) JSON.parse(await ask(name));
      mkdirSync(folder);
      expect(await ask('backup')).toBe(`Backup failed: Cannot write into ${JSON.stringify(folder)}: its lock ` +
        'is gone, as after the folder was moved. Start again');
      expect(readdirSync(folder)).toEqual([]);
    }));

  it('is served by one command, durations and all, and drains', async () => {
    const [source, folder] = [join(root, 'served.txt'), join(root, 'served')];
    writeFileSync(source, 'served');
    const args = ['--source', source, '--folder', folder, '--every', '1.5m', '--keep', 'gfs', '--start-at-once'];
    const path = await commanded(args, (port) => RawClient.with(port, async (client) => {
      await client.write('status\n');
      expect(JSON.parse(await client.readLine())).toMatchObject({ source, folder, everyMs: 90_000, keep: 'gfs' });
      return until(async () => {
        await client.write('revert\n');
        const reply = await client.readLine();
        return reply === NONE ? undefined : reply;
      }, 5_000, 'the first');
    }));
    expect(readFileSync(path, 'utf8')).toBe('served');
    expect(readdirSync(folder).map((name) => join(folder, name)), 'nothing else stays').toEqual([path]);
  });

  it('has a folder for its owner alone', () => serving({}, async ({ folder }) => {
    expect(statSync(folder).mode & 0o777).toBe(0o700);
  }));

  it.each<[string, Record<string, unknown>, RegExp]>([
    ['no source', { source: undefined }, /^Cannot back up: expected the option source/],
    ['an empty source', { source: '' }, /^Cannot back up: expected the option source/],
    ['an interval of 0', { everyMs: 0 }, /^Cannot back up every 0 ms: expected/],
    ['nothing to keep', { keep: 0 }, /^Cannot keep "0" backups: expected/],
    ['a rest of 0', { settleMs: 0 }, /^Cannot back up with settleMs 0: expected/],
    ['endless patience', { patienceMs: Infinity }, /^Cannot back up with patienceMs Infinity: expected/],
    ['a folder as source', { source: root }, /^Cannot back up ".*": it is a folder, expected a plain file$/],
  ])('refuses %s', (_, options, message) => {
    expect(() => createBackup({ source: 'notes.txt', ...options } as BackupOptions)).toThrow(message);
  });

  it('tells what is wrong with its folder, before it serves and to whoever asks all the same', async () => {
    const file = join(root, 'a_file');
    writeFileSync(file, '');
    const service = createBackup({ source: 'notes.txt', folder: file });
    const message = `Cannot keep backups in ${JSON.stringify(file)}: file already exists`;
    await expect(service.ready).rejects.toThrow(message);
    for (const command of ['revert', 'list', 'status', 'verify']) {
      await expect(Promise.resolve(service.callback(command, {} as never))).rejects.toThrow(message);
    }
    expect(await service.callback('backup', {} as never)).toBe(`Backup failed: ${message}`);
    await service.stop?.();
  });
});
