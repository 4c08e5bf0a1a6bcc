/** Group F: backup servers that are killed, and disks that refuse. */
import { execFileSync, spawnSync } from 'node:child_process';
import { chmodSync, chownSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect } from 'vitest';
import { callsDuring, killAt, type Step } from '../helpers/attached.ts';
import { Trial, hashOf } from '../helpers/backups.ts';
import { pause, within } from '../helpers/deadline.ts';
import { range } from '../helpers/ended.ts';
import { FULL, fault, some } from '../helpers/faults.ts';
import { monitored } from '../helpers/monitor.ts';
import { fuzzRuns, seeded } from '../helpers/random.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { noStrace } from '../helpers/strace.ts';

const MIB = 1024 * 1024;
const CALLS = ['openat', 'statx', 'pread64', 'pwrite64', 'ftruncate', 'fchmod', 'fsync', 'rename', 'unlink',
  'close', 'getdents64'];
const AS_NOBODY = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups'];
const ONE_THREAD = { env: { UV_THREADPOOL_SIZE: '1' } }; // that makes all calls on files, so that they can be counted

/** What a source held in turn: the n-th content, 2 blocks and a bit. */
const content = (round: number) => Buffer.alloc(2 * MIB + 17, `content ${round} of many, `);
const hashes: string[] = []; // of each content: made once, there are hundreds

/**
 * After a restart: what is answered is good and no older than before, and nothing else lies about.
 *
 * @returns The round that was answered; -1 for none.
 */
async function soundRound(trial: Trial, round: number, before: number): Promise<number> {
  while (hashes.length <= round) hashes.push(hashOf(content(hashes.length)));
  const known = hashes.slice(0, round + 1);
  for (const name of trial.files()) {
    const hash = hashOf(readFileSync(join(trial.folder, name)));
    expect(name, 'no partial file under a final name, no litter').toContain(hash);
    expect(known).toContain(hash);
  }
  expect(JSON.parse(await trial.ask('verify'))).toMatchObject({ bad: [] });
  const answer = await trial.revert();
  const answered = answer === undefined ? -1 : known.indexOf(hashOf(answer));
  expect(answered, `the round that is answered, of ${round}`).toBeGreaterThanOrEqual(before);
  return answered;
}

/** Asks for a backup; whether the server ended in place of an answer. */
async function endsAt(trial: Trial, step: Step): Promise<boolean> {
  const callOff = await killAt(trial.server.pid, step);
  const answered = trial.ask('backup', 20_000).then(() => false, () => true);
  const isEnded = await within(20_000, answered, 'an answer, or the end of the server');
  if (isEnded) await within(10_000, trial.server.exited, 'its end');
  await callOff();
  return isEnded;
}

describe('kill -9', () => {
  fault.unless(noStrace, 'F01', 'kill -9 at each system call of a copy', () =>
    Trial.alone({ content: content(0), keep: 3, child: ONE_THREAD }, async (trial) => {
      let round = 0;
      const backUp = async (): Promise<void> => {
        trial.write(content(++round));
        expect(await trial.ask('backup', 20_000)).toBe('Backup completed');
      };
      await trial.start();
      for (const _ of range(4)) await backUp(); // so that an old one is removed each time
      await soundRound(trial, round, round);
      const steps = await callsDuring(backUp, trial.server.pid, CALLS, join(trial.root, 'trace'));
      const order = steps.map(({ call }) => call).filter((call) => /pwrite64|fsync|rename|unlink/.test(call));
      expect(order, 'synced before it is in place, and its name behind').toEqual(
        ['pwrite64', 'pwrite64', 'pwrite64', 'fsync', 'rename', 'fsync', 'unlink', 'fsync']);
      expect(new Set(steps.map(({ call }) => call))).toEqual(new Set(CALLS));
      const all = FULL ? range(fuzzRuns(20)).flatMap(() => steps) : some(steps, 4);
      let ends = 0;
      for (const step of all) {
        trial.write(content(++round));
        if (await endsAt(trial, step)) {
          ends++;
          await trial.start();
        }
        await soundRound(trial, round, round - 1);
        await backUp();
        expect((await trial.revert())?.equals(content(round)), `after ${step.call} ${step.nth}`).toBe(true);
      }
      // Some calls are one more or less from time to time: how often the source was looked at, for one.
      expect(ends / all.length, 'ended at the step').toBeGreaterThan(FULL ? 0.8 : 0.4);
    }));

  fault('F01', 'kill -9 at random moments of a copy', () =>
    Trial.alone({ content: content(0), keep: 3 }, async (trial) => {
      const random = seeded();
      let answered = -1;
      for (let round = 1; round <= (FULL ? 200 : 3); round++) {
        await trial.start();
        answered = await soundRound(trial, round - 1, answered);
        trial.write(content(round));
        const client = await RawClient.connect(trial.server.port);
        await client.write('backup\n');
        await pause(100 + random.int(40)); // the rest that a source must have had, and the copy
        await trial.server.kill();
        client.socket.destroy();
      }
    }));

  fault('F25', 'temp files left by a crash; foreign files', () =>
    Trial.alone({}, async (trial) => {
      const own = ['.portcall-0123456789abcdef.part', '.portcall-00000000ffffffff.part'];
      const foreign = ['.portcall-notes.part', 'notes.txt', 'notes.txt.bak', '.part', 'x.part',
        `notes.${'0'.repeat(8)}.0000000001.20261121T143517123Z.${hashOf('x')}.txt`];
      mkdirSync(trial.folder);
      for (const name of [...own, ...foreign]) trial.write(`I am ${name}`, join(trial.folder, name));
      await trial.start();
      await monitored(trial.server, {}, async () => {
        for (const round of range(3)) {
          trial.write(`round ${round}`);
          expect(await trial.ask('backup')).toBe('Backup completed');
        }
        const names = trial.files();
        for (const name of own) expect(names).not.toContain(name);
        for (const name of foreign) {
          expect(readFileSync(join(trial.folder, name), 'utf8')).toBe(`I am ${name}`);
        }
        expect(names).toHaveLength(foreign.length + 3);
      });
    }));
});

const isRoot = process.getuid?.() === 0;

describe('what the system refuses', () => {
  fault.unless(mountRefusal(), 'F11', 'disk full during a copy', () =>
    Trial.alone({ content: 'small' }, async (trial) => {
      mkdirSync(trial.folder);
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'none', trial.folder]);
      try {
        await trial.start();
        await monitored(trial.server, {}, async () => {
          expect(await trial.ask('backup')).toBe('Backup completed');
          const filler = join(trial.folder, 'filler');
          writeFileSync(filler, Buffer.alloc(MIB, 'filler'));
          const large = Buffer.alloc(1.5 * MIB, 'large ');
          trial.write(large);
          for (const _ of range(3)) {
            expect(await trial.ask('backup')).toBe(`Backup failed: Cannot write a copy into ` +
              `${JSON.stringify(trial.folder)}: no space left on device`);
            expect(trial.files().filter((name) => name.startsWith('.'))).toEqual([]);
            expect((await trial.revert())?.toString()).toBe('small');
          }
          expect(await trial.status()).toMatchObject({ last: { outcome: 'failed' } });
          rmSync(filler);
          expect(await trial.ask('backup')).toBe('Backup completed');
          expect((await trial.revert())?.equals(large)).toBe(true);
        });
      } finally {
        await trial.server.kill();
        execFileSync('umount', [trial.folder]);
      }
    }));

  fault.unless(isRoot ? nobodyRefusal() : undefined, 'F12',
    'source or folder EACCES (not root)', () => {
      const wrapper = isRoot ? AS_NOBODY : [];
      return Trial.alone({ child: { wrapper, env: { HOME: '/nonexistent' } } }, async (trial) => {
        const nobody = isRoot ? 65_534 : process.getuid?.() as number;
        mkdirSync(trial.folder);
        for (const path of [trial.root, trial.folder, trial.source]) chownSync(path, nobody, nobody);
        await trial.start();
        await monitored(trial.server, {}, async () => {
          expect(await trial.ask('backup')).toBe('Backup completed');
          trial.write('second');
          chmodSync(trial.source, 0);
          expect(await trial.ask('backup')).toBe(
            `Backup failed: Cannot open ${JSON.stringify(trial.source)}: permission denied`);
          expect(await trial.status()).toMatchObject({ trouble: expect.stringContaining('permission denied') });
          expect((await trial.revert())?.toString()).toBe('first');
          chmodSync(trial.source, 0o600);
          chmodSync(trial.folder, 0o500);
          expect(await trial.ask('backup')).toBe('Backup failed: Cannot write a copy into ' +
            `${JSON.stringify(trial.folder)}: permission denied`);
          expect((await trial.revert())?.toString()).toBe('first');
          chmodSync(trial.folder, 0o700);
          expect(await trial.ask('backup')).toBe('Backup completed');
          expect((await trial.revert())?.toString()).toBe('second');
        });
        await trial.server.kill();
        chmodSync(trial.folder, 0);
        await expect(trial.start()).rejects.toThrow(new RegExp(
          `Cannot keep backups in ${JSON.stringify(trial.folder)}: permission denied`));
      });
    });
});

/** Why a server can't run as nobody, if so. */
function nobodyRefusal(): string | undefined {
  const [command = '', ...words] = AS_NOBODY;
  const { error, status } = spawnSync(command, [...words, 'test', '-r', fileURLToPath(import.meta.url)]);
  if (error !== undefined) return 'no setpriv on this machine';
  return status === 0 ? undefined : 'others may not read these files, nobody among them';
}

function mountRefusal(): string | undefined {
  return isRoot && existsSync('/proc/filesystems') ? undefined : 'only root may mount a small disk';
}
