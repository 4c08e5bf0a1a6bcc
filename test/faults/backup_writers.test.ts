/** Group F: sources that others write to while they are copied. */
import { copyFileSync, renameSync, writeFileSync } from 'node:fs';
import { describe, expect } from 'vitest';
import { NONE, Trial } from '../helpers/backups.ts';
import { pause, until } from '../helpers/deadline.ts';
import { FULL, fault, some } from '../helpers/faults.ts';
import { generationIn, writing } from '../helpers/generations.ts';

const MIB = 1024 * 1024;
const LARGE = 32 * MIB;
const ONE = Buffer.alloc(LARGE, 'one ');
const TWO = Buffer.alloc(LARGE, 'two!');
const copying = (trial: Trial) => until(async () => (await trial.status())['progress'], 5_000, 'a copy that goes on');

describe('a source in use', () => {
  fault('F02', 'source rewritten in place during the copy', () =>
    Trial.with({ content: ONE }, async (trial) => {
      const answered = trial.ask('backup', 10_000);
      await copying(trial);
      writeFileSync(trial.source, TWO);
      expect(await answered).toBe('Backup completed');
      expect((await trial.revert())?.equals(TWO), 'the torn copy is thrown away, the next is good').toBe(true);
      expect(trial.files()).toHaveLength(1);
    }));

  for (const way of some(['rewrite', 'truncate', 'replace'] as const, 1)) {
    fault('F02', `source written without a pause (${way}): no backup is ever a mixture`, () =>
      Trial.with({ everyMs: 50, patienceMs: 1_500, keep: 100 }, async (trial) => {
        const bytes = 256 * 1024;
        trial.write(Buffer.alloc(bytes, '00000000\n'));
        // It rests now and then between two generations, so that there are backups to judge.
        await writing({ file: trial.source, bytes, way, restsMs: 400 }, () => pause(FULL ? 10_000 : 1_200));
        await trial.ask('backup', 10_000);
        const list = JSON.parse(await trial.ask('list')) as { path: string }[];
        const generations = list.map(({ path }) => generationIn(trial.good(path), bytes));
        expect(generations.length, 'backups to judge').toBeGreaterThan(1);
        expect(generations, 'the newest first').toEqual([...generations].sort((a, b) => b - a));
      }));
  }

  fault('F03', 'source rewritten slowly, over 3 s, then still', () =>
    Trial.with({ everyMs: 500 }, async (trial) => {
      const text = 'slowly '.repeat(20);
      const steps = FULL ? 60 : 15;
      for (let step = 1; step <= steps; step++) {
        trial.write(text.slice(0, Math.ceil((text.length * step) / steps)));
        await pause(50);
      }
      await trial.backedUp(text, 2 * 500 + 250);
    }));

  fault('F04', 'source always changing', () =>
    Trial.with({ patienceMs: FULL ? 8_000 : 600 }, async (trial) => {
      const bytes = MIB;
      trial.write(Buffer.alloc(bytes, '00000000\n'));
      const round = async (expected: string | number) => {
        const began = performance.now();
        expect(await trial.ask('backup', 10_000)).toBe(
          `Backup failed: Cannot copy ${JSON.stringify(trial.source)}: it does not hold still`);
        expect(performance.now() - began).toBeLessThan(10_000);
        const answer = await trial.ask('revert');
        expect(answer === NONE ? answer : generationIn(trial.good(answer), bytes)).toBe(expected);
        expect(trial.files().filter((name) => name.endsWith('.part'))).toEqual([]);
      };
      const last = await writing({ file: trial.source, bytes, way: 'rewrite' }, () => round(NONE));
      expect(await trial.ask('backup')).toBe('Backup completed');
      await writing({ file: trial.source, bytes, way: 'rewrite' }, () => round(last));
    }));

  fault('F05', 'source replaced by rename every 20 ms', () =>
    Trial.with({}, async (trial) => {
      const bytes = FULL ? 4 * MIB : 256 * 1024;
      trial.write(Buffer.alloc(bytes, '00000000\n'));
      await writing({ file: trial.source, bytes, way: 'replace', everyMs: 20 }, async () => {
        for (let times = 0, last = -1; times < 3; times++) {
          const began = performance.now();
          expect(await trial.ask('backup')).toBe('Backup completed');
          expect(performance.now() - began).toBeLessThan(3_000);
          const generation = generationIn(await trial.revert() as Buffer, bytes);
          expect(generation, 'a newer one each time').toBeGreaterThan(last);
          last = generation;
        }
      });
    }));

  fault('F06', 'source truncated, grown, during the copy', () =>
    Trial.with({ everyMs: 50, patienceMs: 1_000 }, async (trial) => {
      const bytes = 512 * 1024;
      trial.write(Buffer.alloc(bytes, '00000000\n'));
      const last = await writing({ file: trial.source, bytes, way: 'resize', restsMs: 400 },
        () => pause(FULL ? 10_000 : 800));
      expect(await trial.ask('backup', 10_000)).toBe('Backup completed');
      expect(generationIn(await trial.revert() as Buffer, bytes)).toBe(last);
      const list = JSON.parse(await trial.ask('list')) as { path: string }[];
      for (const { path } of list) generationIn(trial.good(path), bytes);
    }));

  fault('F26', 'newest copied back over the source during a backup', () =>
    Trial.with({ content: ONE }, async (trial) => {
      expect(await trial.ask('backup', 10_000)).toBe('Backup completed');
      const newest = await trial.ask('revert');
      writeFileSync(`${trial.source}.two`, TWO);
      renameSync(`${trial.source}.two`, trial.source);
      const answered = trial.ask('backup', 10_000);
      await copying(trial);
      copyFileSync(newest, trial.source);
      expect(await answered).toBe('Backup completed');
      const list = JSON.parse(await trial.ask('list')) as { path: string }[];
      expect(trial.good(list[0]?.path ?? '').equals(ONE), 'what was restored is the latest').toBe(true);
      for (const { path } of list) {
        const bytes = trial.good(path);
        expect(bytes.equals(ONE) || bytes.equals(TWO), 'none is half restored').toBe(true);
      }
    }));
});
