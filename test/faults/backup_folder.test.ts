/** Group F: folders of backups, and what others do in them. */
import {
  mkdirSync, readFileSync, readdirSync, symlinkSync, unlinkSync, utimesSync, writeFileSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import { describe, expect } from 'vitest';
import { retained, GFS } from '../../lib/retention.ts';
import { NONE, Trial, hashOf } from '../helpers/backups.ts';
import { until, within } from '../helpers/deadline.ts';
import { range } from '../helpers/ended.ts';
import { FULL, fault } from '../helpers/faults.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { seeded } from '../helpers/random.ts';

/** Makes a backup of each content in turn; gives their paths. */
async function backUpAll(trial: Trial, contents: readonly string[]): Promise<string[]> {
  const paths: string[] = [];
  for (const content of contents) {
    trial.write(content);
    expect(await trial.ask('backup')).toBe('Backup completed');
    paths.push(await trial.ask('revert'));
  }
  return paths;
}

function flipBit(path: string): void {
  const bytes = readFileSync(path);
  bytes[0] = (bytes[0] as number) ^ 1;
  writeFileSync(path, bytes);
}

describe('strangers in the folder', () => {
  fault('F10', 'symlinks planted in the folder: temp names, newer-looking names', () =>
    Trial.with({ monitor: { mayEnd: true } }, async (trial, monitor) => {
      const victim = join(trial.root, 'victim');
      trial.write('untouched', victim);
      const [path = ''] = await backUpAll(trial, ['first']);
      const newer = basename(path).replace(/0000000001\.\d{8}/, '0000000999.29991231')
        .replace(hashOf('first'), hashOf('untouched'));
      symlinkSync(victim, join(trial.folder, newer));
      mkdirSync(join(trial.folder, newer.replace('999.', '998.')));
      symlinkSync(victim, join(trial.folder, '.portcall-0123456789abcdef.part'));
      mkdirSync(join(trial.folder, '.portcall-0123456789abcde0.part'));
      symlinkSync(victim, join(trial.folder, basename(path).replace('0000000001', '0000000002')));
      expect(await trial.ask('revert')).toBe(path);
      const [second = ''] = await backUpAll(trial, ['second']);
      expect(trial.good(second).toString()).toBe('second');
      await trial.ask('verify');
      expect(JSON.parse(await trial.ask('list'))).toMatchObject([{ path: second }, { path }]);
      expect(readFileSync(victim, 'utf8')).toBe('untouched');
      await monitor.suspended(() => trial.server.kill());
      await trial.start(); // which clears up
      expect(await trial.ask('revert')).toBe(second);
      expect(trial.files()).not.toContain('.portcall-0123456789abcdef.part');
      expect(readFileSync(victim, 'utf8')).toBe('untouched');
    }));

  fault('F13', 'bit flipped in the newest, then in all', () =>
    Trial.with({}, async (trial) => {
      const paths = await backUpAll(trial, ['one', 'two', 'three']);
      const [one = '', two = '', three = ''] = paths;
      flipBit(three);
      expect(await trial.ask('revert'), 'the next good one').toBe(two);
      expect(await trial.status()).toMatchObject({ latest: { path: two }, bad: [three], backups: 3 });
      expect(JSON.parse(await trial.ask('verify'))).toEqual({ checked: 3, good: 2, bad: [three] });
      unlinkSync(two);
      expect(await trial.ask('revert'), 'one that is gone is not answered').toBe(one);
      flipBit(one);
      expect(await trial.ask('revert')).toBe(NONE);
      expect(JSON.parse(await trial.ask('list'))).toEqual([]);
      expect(JSON.parse(await trial.ask('verify'))).toEqual({ checked: 2, good: 0, bad: [three, one] });
      flipBit(one);
      expect(await trial.ask('revert'), 'what is whole again is good').toBe(one);
      expect(await trial.ask('backup'), 'what has rotted does not count as there').toBe('Backup completed');
      expect(trial.good(await trial.ask('revert')).toString()).toBe('three');
    }));

  fault('F14', '`revert`, `Revert` with none yet', () =>
    Trial.with({}, async (trial) => {
      for (const word of ['revert', 'Revert']) {
        expect(await trial.ask(word)).toBe(NONE);
        const client = await RawClient.connect(trial.server.port);
        await client.write(word);
        expect((await client.readBytes(NONE.length)).toString()).toBe(NONE);
        client.fin();
        expect((await client.readToFin()).length, 'not a byte more').toBe(0);
      }
    }));

  fault('F15', '`revert` ×1,000 while versions change', () =>
    Trial.with({ keep: 30, settleMs: 15 }, async (trial) => { // a path lives as long as 29 more take
      trial.write('version 0');
      await trial.ask('backup');
      let version = 0;
      let isOver = false;
      const changes = (async () => {
        while (!isOver) {
          trial.write(`version ${++version}`);
          expect(await trial.ask('backup')).toBe('Backup completed');
        }
      })();
      const seen = new Set<string>();
      await RawClient.with(trial.server.port, async (client) => {
        for (const _ of range(1_000)) {
          await client.write('revert\n');
          const path = await client.readLine();
          expect(trial.good(path).toString()).toMatch(/^version \d+$/);
          seen.add(path);
          if (seen.size < 4) await new Promise((resolve) => { setTimeout(resolve, 5); }); // so that some change
        }
      });
      isOver = true;
      await changes;
      expect(seen.size, 'versions that were answered').toBeGreaterThan(3);
      expect(trial.files().length).toBeLessThanOrEqual(30);
    }));
});

describe('how many files there are', () => {
  fault('F16', '1,000 unchanged intervals; touch without change', () =>
    Trial.with({ everyMs: 1, settleMs: 15 }, async (trial) => {
      const touch = (agoMs: number) => utimesSync(trial.source, new Date(), new Date(Date.now() - agoMs));
      await trial.backedUp('first', 2_000);
      const runsUntil = (runs: number) => until(async () => (await trial.status())['runs'] as number >= runs, 20_000,
        `${runs} intervals`);
      await runsUntil(30);
      touch(0);
      await runsUntil(60);
      touch(600_000); // from here on its times tell that nothing changed
      await runsUntil(FULL ? 2_000 : 1_000);
      expect(trial.files()).toHaveLength(1);
    }));

  fault('F17', 'keep N', () =>
    Trial.with({ keep: 3, settleMs: 15 }, async (trial) => {
      const paths: string[] = [];
      for (const number of range(8)) {
        paths.push(...await backUpAll(trial, [`content ${number}`]));
        expect(trial.files()).toEqual(paths.slice(-3).map((path) => basename(path)));
      }
      flipBit(paths[6] as string);
      flipBit(paths[7] as string);
      expect(await trial.ask('revert')).toBe(paths[5]);
      const [newest = ''] = await backUpAll(trial, ['content 8']);
      expect(trial.files(), 'bad ones do not push out the good').toEqual(
        [...paths.slice(5), newest].map((path) => basename(path)));
    }));

  fault('F17', 'GFS over 3 simulated years', async () => {
    const random = seeded();
    let kept: { atMs: number; number: number }[] = [];
    let atMs = Date.UTC(2026, 0, 1);
    const most = Object.values(GFS).reduce((sum, count) => sum + count, 0);
    const end = Date.UTC(2029, 0, 1);
    for (let number = 0; atMs < end; number++, atMs += 600_000 * random.between(1, 60)) {
      const newest = { atMs, number };
      const all = [newest, ...kept];
      const stay = retained(all, 'gfs');
      kept = all.filter((one) => stay.has(one));
      expect(kept[0], 'the newest stays').toBe(newest);
      expect(kept.length).toBeLessThanOrEqual(most);
      if (number < 5_000) continue;
      for (const [days, atLeast] of [[1, 2], [7, 7], [28, 10], [330, 20]] as const) {
        const recent = kept.filter((one) => atMs - one.atMs <= (days + 1) * 86_400_000).length;
        expect(recent, `of the last ${days} days`).toBeGreaterThanOrEqual(atLeast);
      }
    }
    expect(kept.length).toBeGreaterThan(25);
  });

  fault('F21', 'two servers on one folder', () =>
    Trial.with({}, async (trial) => {
      const [path] = await backUpAll(trial, ['first']);
      const first = trial.server;
      await expect(trial.start()).rejects.toThrow(`pid ${first.pid} holds it`);
      await expect(trial.start({ source: join(trial.root, 'other.txt') })).rejects.toThrow(`pid ${first.pid} holds it`);
      expect(await trial.ask('revert')).toBe(path);
      expect(await trial.ask('backup')).toBe('Backup completed');
    }).then(() => Trial.alone({}, async (trial) => {
      const first = await trial.start();
      await backUpAll(trial, ['first']);
      await within(5_000, first.kill(), 'the end of the first');
      await trial.start();
      expect((await trial.revert())?.toString(), 'a dead owner is succeeded').toBe('first');
      await within(5_000, trial.server.kill('SIGTERM'), 'its end');
      expect(readdirSync(trial.folder), 'who stops takes the lock away').toHaveLength(1);
    })));
});
