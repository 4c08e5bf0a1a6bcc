/** Group F: what a source can be, and be called. */
import { execFileSync } from 'node:child_process';
import {
  chmodSync, closeSync, lstatSync, mkdirSync, openSync, readSync, rmSync, statSync, symlinkSync, writeSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { describe, expect } from 'vitest';
import { NONE, Trial } from '../helpers/backups.ts';
import { pause, until } from '../helpers/deadline.ts';
import { FULL, fault, some } from '../helpers/faults.ts';
import { monitored } from '../helpers/monitor.ts';
import { RawClient } from '../helpers/raw_client.ts';

const MIB = 1024 * 1024;
const GIB = 1024 * MIB;

describe('a source that comes and goes', () => {
  fault('F07', 'source missing at start', () =>
    Trial.with({ content: undefined, everyMs: 300 }, async (trial) => {
      expect(await trial.ask('revert')).toBe(NONE);
      const trouble = `Cannot open ${JSON.stringify(trial.source)}: no such file or directory`;
      expect(await trial.status()).toMatchObject({ trouble, latest: null });
      expect(await trial.ask('backup')).toBe(`Backup failed: ${trouble}`);
      await until(async () => (await trial.status())['runs'] as number > 2, 5_000, 'two intervals');
      expect(await trial.ask('revert')).toBe(NONE);
      trial.write('there');
      await trial.backedUp('there', 2 * 300 + 250);
      expect(await trial.status()).toMatchObject({ trouble: null });
    }));

  fault('F08', 'source goes missing, comes back changed', () =>
    Trial.with({ everyMs: 300 }, async (trial) => {
      await trial.backedUp('first', 2_000);
      rmSync(trial.source);
      await until(async () => JSON.stringify((await trial.status())['last']).includes('no such file'), 2_000,
        'that it is missed');
      expect((await trial.revert())?.toString(), 'the last good stays').toBe('first');
      trial.write('second');
      await trial.backedUp('second', 2 * 300 + 250);
      expect(trial.files()).toHaveLength(2);
    }));
});

const KINDS: Readonly<Record<string, (path: string) => void | Promise<() => void>>> = {
  'a folder': (path) => { mkdirSync(path); },
  'a pipe': (path) => { execFileSync('mkfifo', [path]); },
  'a device': (path) => symlinkSync('/dev/zero', path),
  'a socket': (path) => new Promise((resolve) => {
    const server = createServer().listen(path, () => resolve(() => server.close()));
  }),
};

describe('a source that is no plain file', () => {
  fault('F09', 'source is a folder, fifo, socket, device', () =>
    Trial.alone({ content: undefined }, async (trial) => {
      for (const [kind, make] of some(Object.entries(KINDS), 1)) {
        const path = join(trial.root, kind.replace(' ', '_'));
        const close = await make(path);
        await expect(trial.start({ source: path }), kind).rejects.toThrow(
          `Cannot back up ${JSON.stringify(path)}: it is ${kind}, expected a plain file`);
        rmSync(path, { recursive: true, force: true });
        close?.();
      }
    }).then(() => Trial.with({ content: undefined }, async (trial) => {
      for (const [kind, make] of Object.entries(KINDS)) {
        const close = await make(trial.source); // while it serves
        const began = performance.now();
        const answer = await trial.ask('backup');
        expect(performance.now() - began, 'it never waits').toBeLessThan(1_000);
        expect(answer).toBe(
          `Backup failed: Cannot open ${JSON.stringify(trial.source)}: it is ${kind}, expected a plain file`);
        expect(await trial.status()).toMatchObject({ trouble: expect.stringContaining(`it is ${kind}`) });
        rmSync(trial.source, { recursive: true, force: true });
        close?.();
      }
      trial.write('plain at last');
      expect(await trial.ask('backup')).toBe('Backup completed');
    })));

  fault('F09', 'source is a symlink: its target\'s bytes in a plain file', () =>
    Trial.with({ content: undefined }, async (trial) => {
      trial.write('of the target', join(trial.root, 'target'));
      symlinkSync('target', trial.source);
      expect(await trial.ask('backup')).toBe('Backup completed');
      const path = await trial.ask('revert');
      expect(trial.good(path).toString()).toBe('of the target');
      expect(lstatSync(trial.source).isSymbolicLink(), 'the source is left as it is').toBe(true);
      rmSync(join(trial.root, 'target'));
      expect(await trial.ask('backup')).toMatch(/^Backup failed: Cannot open .*: no such file or directory$/);
      expect(await trial.ask('revert')).toBe(path);
    }));
});

describe('what a copy has of its source', () => {
  fault('F22', '10 GiB sparse file with 1 MiB of data', () =>
    Trial.with({ content: '' }, async (trial) => {
      const bytes = FULL ? 10 * GIB : GIB / 4;
      const fd = openSync(trial.source, 'r+');
      const marks = Array.from({ length: 256 }, (_, index) => Math.floor((bytes / 256) * index + 4_096 * (index % 7)));
      for (const at of marks) writeSync(fd, Buffer.alloc(4_096, `page at ${at} `), 0, 4_096, at);
      writeSync(fd, 'end', bytes - 3);
      closeSync(fd);
      const answer = await trial.ask('backup', 60_000);
      if (answer.startsWith('ERR TIMEOUT')) { // reading 10 GiB of holes takes longer than a callback may
        const isMade = async () => JSON.stringify((await trial.status())['last'])?.includes('made');
        await until(isMade, 120_000, 'the backup');
      } else {
        expect(answer).toBe('Backup completed');
      }
      const copy = await trial.ask('revert', 60_000);
      expect(statSync(copy).size).toBe(bytes);
      expect(statSync(copy).blocks * 512, 'disk used').toBeLessThan(64 * MIB);
      expectEqual(trial.source, copy);
    }));

  fault('F23', 'source mode 0600, umask 0', () =>
    Trial.with({ content: Buffer.alloc(16 * MIB, 'secret '),
      child: { wrapper: ['sh', '-c', 'umask 0; exec "$@"', 'sh'] } }, async (trial) => {
      for (const mode of some([0o600, 0o400, 0o640], 2)) {
        trial.write(Buffer.alloc(16 * MIB, `secret ${mode} `), `${trial.source}.new`);
        chmodSync(`${trial.source}.new`, mode);
        execFileSync('mv', [`${trial.source}.new`, trial.source]);
        const seen = new Set<number>();
        let isOver = false;
        const answered = trial.ask('backup').finally(() => { isOver = true; });
        while (!isOver) {
          for (const name of trial.files()) {
            const stat = lstatSync(join(trial.folder, name), { throwIfNoEntry: false });
            if (stat !== undefined && name.endsWith('.part')) seen.add(stat.mode & 0o777);
          }
          await pause(1);
        }
        expect(await answered).toBe('Backup completed');
        expect(seen.size, 'it was seen while it was made').toBeGreaterThan(0);
        for (const one of seen) expect(one & ~mode, `temp 0${one.toString(8)}`).toBe(0);
        expect(statSync(await trial.ask('revert')).mode & 0o777).toBe(mode);
      }
      expect(statSync(trial.folder).mode & 0o077, 'the folder is for its owner alone').toBe(0);
    }));

  const NAMES = ['two words.txt', 'line\nbreak.txt', '"quotes\'.txt', 'naïve ☃ 文.txt', '-rf', '.hidden', 'no_extension',
    `${'n'.repeat(251)}.txt`, `${'☃'.repeat(85)}`, `a.${'e'.repeat(253)}`, 'back\\slash.txt', 'ends in dot.', '$ping.txt'];
  fault('F24', 'names with space, LF, quote, unicode, leading dash, 255 bytes', async () => {
    for (const name of some(NAMES, 2)) {
      await Trial.alone({ name, content: `I am ${name}` }, async (trial) => {
        await trial.start();
        const path = await monitored(trial.server, {}, async () => {
          expect(await trial.ask('backup')).toBe('Backup completed');
          const exact = await asRaw(trial.server.port, 'revert');
          expect(trial.good(exact).toString()).toBe(`I am ${name}`);
          const line = await trial.ask('revert');
          expect(line.replaceAll('\\n', '\n'), 'one line').toBe(exact);
          expect(JSON.parse(await trial.ask('list'))).toMatchObject([{ path: exact }]);
          return exact;
        });
        await trial.server.kill();
        await trial.start();
        expect(await asRaw(trial.server.port, 'revert'), 'known again after a restart').toBe(path);
        expect(await trial.ask('backup')).toBe('Backup completed');
        expect(trial.files()).toHaveLength(1);
      });
    }
  });
});

/** What a program without lines reads: one `recv`, as large as a path may be. */
async function asRaw(port: number, message: string): Promise<string> {
  return RawClient.with(port, async (client) => {
    await client.write(message);
    return new Promise<string>((resolve) => {
      client.socket.once('data', (piece) => resolve(piece.toString()));
    });
  });
}

/** Streams both: 10 GiB fit in no buffer. */
function expectEqual(one: string, other: string): void {
  const [a, b] = [openSync(one, 'r'), openSync(other, 'r')];
  const [left, right] = [Buffer.alloc(8 * MIB), Buffer.alloc(8 * MIB)];
  for (let bytes = 1; bytes > 0;) {
    bytes = readSync(a, left);
    expect(readSync(b, right)).toBe(bytes);
    if (!left.subarray(0, bytes).equals(right.subarray(0, bytes))) throw new Error('Cannot go on: the copy differs');
  }
  closeSync(a);
  closeSync(b);
}
