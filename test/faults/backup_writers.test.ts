/** Group F: sources that others write to while they are copied. */
import { copyFileSync, renameSync, writeFileSync } from 'node:fs';
import { describe, expect } from 'vitest';
import { NONE, Trial } from '../helpers/backups.ts';
import { pause, until } from '../helpers/deadline.ts';
import { FULL, fault, some } from '../helpers/faults.ts';
import { generationIn, writing } from '../helpers/generations.ts';

const MIB = 1024 * 1024;
const generationZero = (bytes: number) => Buffer.alloc(bytes, '00000000\n');
const LARGE = 32 * MIB;
const ONE = Buffer.alloc(LARGE, 'one ');
const TWO = Buffer.alloc(LARGE, 'two!');
/** A writer that is kept from a core for less is not taken for one at rest. */
const SETTLE_MS = 250;

/** Asks for a backup and does `change` while it is made; again, where it was over too soon to be hit. */
async function changedDuringCopy(trial: Trial, start: () => void, change: () => void): Promise<void> {
  for (let tries = 0; tries < 10; tries++) {
    start();
    let answer: string | undefined;
    const answered = trial.ask('backup', 10_000).then((text) => { answer = text; });
    const isHit = await until(async () => (await trial.status())['progress'] !== null || answer, 5_000, 'a copy');
    if (isHit === true) change();
    await answered;
    expect(answer).toBe('Backup completed');
    if (isHit === true) return;
  }
  throw new Error('Cannot go on: each copy was over too soon');
}

describe('a source in use', () => {
  fault('F02', 'source rewritten in place during the copy', () =>
    Trial.with({ content: ONE }, async (trial) => {
      let tries = 0;
      await changedDuringCopy(trial, () => { writeFileSync(trial.source, ONE.subarray(tries++)); },
        () => writeFileSync(trial.source, TWO));
      expect((await trial.revert())?.equals(TWO), 'the torn copy is thrown away, the next is good').toBe(true);
      expect(trial.files()).toHaveLength(tries);
    }));

  for (const way of some(['rewrite', 'truncate', 'replace'] as const, 1)) {
    const bytes = 256 * 1024;
    const content = generationZero(bytes);
    fault('F02', `source written without a pause (${way}): no backup is ever a mixture`, () =>
      Trial.with({ content, everyMs: 50, settleMs: SETTLE_MS, keep: 100 }, async (trial) => {
        // It rests now and then between two generations, so that there are backups to judge.
        await writing({ file: trial.source, bytes, way, restsMs: 800 }, async () => {
          if (FULL) await pause(10_000);
          await until(() => trial.files().length >= 3, 20_000, 'backups to judge');
        });
        expect(await trial.ask('backup', 10_000)).toBe('Backup completed');
        const list = JSON.parse(await trial.ask('list')) as { path: string }[];
        const generations = list.map(({ path }) => generationIn(trial.good(path), bytes));
        expect(generations, 'the newest first').toEqual([...generations].sort((a, b) => b - a));
      }));
  }

  fault('F03', 'source rewritten slowly, over 3 s, then still', () =>
    Trial.with({ everyMs: 500, content: '' }, async (trial) => {
      const text = 'slowly '.repeat(20);
      const steps = FULL ? 60 : 10;
      for (let step = 1; step <= steps; step++) {
        trial.write(text.slice(0, Math.ceil((text.length * step) / steps)));
        await pause(50);
      }
      await trial.backedUp(text, 2 * 500 + 250);
    }));

  fault('F04', 'source always changing', () => {
    const bytes = MIB;
    const patienceMs = FULL ? 8_000 : 600;
    return Trial.with({ content: generationZero(bytes), patienceMs, settleMs: SETTLE_MS }, async (trial) => {
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
    });
  });

  fault('F05', 'source replaced by rename every 20 ms', () => {
    const bytes = FULL ? 4 * MIB : 256 * 1024;
    return Trial.with({ content: generationZero(bytes) }, async (trial) => {
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
    });
  });

  fault('F06', 'source truncated, grown, during the copy', () => {
    const bytes = 512 * 1024;
    return Trial.with({ content: generationZero(bytes), everyMs: 50, settleMs: SETTLE_MS }, async (trial) => {
      const last = await writing({ file: trial.source, bytes, way: 'resize', restsMs: 800 },
        () => pause(FULL ? 10_000 : 400));
      expect(await trial.ask('backup', 10_000)).toBe('Backup completed');
      expect(generationIn(await trial.revert() as Buffer, bytes)).toBe(last);
      const list = JSON.parse(await trial.ask('list')) as { path: string }[];
      for (const { path } of list) generationIn(trial.good(path), bytes);
    });
  });

  fault('F26', 'newest copied back over the source during a backup', () =>
    Trial.with({ content: ONE }, async (trial) => {
      expect(await trial.ask('backup', 10_000)).toBe('Backup completed');
      const newest = await trial.ask('revert');
      let tries = 0;
      await changedDuringCopy(trial, () => {
        writeFileSync(`${trial.source}.two`, TWO.subarray(tries++));
        renameSync(`${trial.source}.two`, trial.source);
      }, () => copyFileSync(newest, trial.source));
      const list = JSON.parse(await trial.ask('list')) as { path: string }[];
      expect(trial.good(list[0]?.path ?? '').equals(ONE), 'what was restored is the latest').toBe(true);
      for (const { path } of list) {
        const bytes = trial.good(path);
        const whole = bytes[0] === ONE[0] ? ONE : TWO.subarray(LARGE - bytes.length);
        expect(bytes.equals(whole), 'none is half restored').toBe(true);
      }
    }));
});
