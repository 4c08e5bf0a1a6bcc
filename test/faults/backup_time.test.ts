/** Group F: clocks, intervals, and copies that take long. */
import { execFile } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readdirSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect } from 'vitest';
import type { Context } from '../../lib/micro_server.ts';
import { createBackup } from '../../services/backup.ts';
import { Trial } from '../helpers/backups.ts';
import { pause, until } from '../helpers/deadline.ts';
import { range } from '../helpers/ended.ts';
import { WallClock } from '../helpers/fake_clock.ts';
import { FULL, fault, some } from '../helpers/faults.ts';
import { built } from '../helpers/programs_built.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { Stopwatch } from '../helpers/stopwatch.ts';

const MIB = 1024 * 1024;
const HOUR_MS = 3_600_000;
const ROOT = fileURLToPath(new URL('../..', import.meta.url));

describe('clocks', () => {
  // The clock is a seam of the service, which can't cross to another process: it is served by none.
  fault('F18', 'clock ±1 day, suspend 8 h', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'portcall-clock-'));
    const source = join(folder, 'notes.txt');
    writeFileSync(source, 'first');
    const clock = new WallClock();
    const service = createBackup({ source, folder: join(folder, 'backups'), everyMs: 60_000, settleMs: 15, clock });
    const ask = async (message: string) => JSON.parse(String(await service.callback(message, {} as Context)));
    const runs = async () => (await ask('status')).runs as number;
    const settled = (count: number) => until(async () => await runs() >= count, 5_000, `${count} runs`);
    try {
      await service.ready;
      service.connected?.({} as Context['client']);
      await clock.advance(60_000);
      await settled(1);
      const changes: [change: string, move: () => void][] = [
        ['slept 8 h', () => clock.sleep(8 * HOUR_MS)],
        ['a day ahead', () => clock.set(24 * HOUR_MS)],
        ['a day back', () => clock.set(-24 * HOUR_MS)],
      ];
      for (const [index, [change, move]] of changes.entries()) {
        writeFileSync(source, change);
        const before = await runs();
        move();
        await clock.advance(61_000);
        await settled(before + 1);
        await pause(100); // a storm would show
        expect(await runs(), `${change}: one run, no storm`).toBe(before + 1);
        expect((await ask('list')).length).toBe(index + 2);
        const { latest } = await ask('status');
        expect(latest.bytes, 'the latest is the one made last').toBe(change.length);
      }
      const list = await ask('list') as { path: string; at: string }[];
      const names = list.map(({ path }) => path);
      expect(names, 'in the order of making').toEqual([...names].sort().reverse());
      expect(Date.parse(list[0]?.at ?? ''), 'though a clock went back').toBeLessThan(Date.parse(list[1]?.at ?? ''));
    } finally {
      await service.stop?.();
      rmSync(folder, { recursive: true, force: true });
    }
  });

  fault('F19', 'every 0, −1s, NaN, abc, ∞', async () => {
    for (const every of some(['0', '0ms', '-1s', '−1s', 'NaN', 'abc', '∞', 'Infinity', '1e999', ''], 2)) {
      const args = [built('lib/cli.ts'), 'serve', 'backup', '--port', '0', '--source', 'README.md',
        '--folder', join(tmpdir(), 'portcall-never-made'), `--every=${every}`];
      const { code, stderr } = await new Promise<{ code: unknown; stderr: string }>((resolve) => {
        execFile(process.execPath, args, { cwd: ROOT, timeout: 10_000 }, (error, _stdout, said) =>
          resolve({ code: error?.code, stderr: said }));
      });
      expect(stderr, every).toMatch(/^Cannot [^\n]+\n$/);
      expect(code, every).toBe(2);
    }
    for (const everyMs of [0, -1_000, NaN, Infinity, 0.5, '1s' as unknown as number]) {
      expect(() => createBackup({ source: 'README.md', everyMs }), String(everyMs)).toThrow(RangeError);
    }
  });

  fault('F19', 'every 30 days (> 2^31 ms)', () =>
    Trial.with({ everyMs: 30 * 24 * HOUR_MS }, async (trial) => {
      const before = trial.server.cpuMs();
      const watch = new Stopwatch();
      await pause(FULL ? 10_000 : 500);
      expect((trial.server.cpuMs() - before) / watch.ms, 'no loop').toBeLessThan(0.2);
      const { runs, nextAt } = await trial.status() as { runs: number; nextAt: string };
      expect(runs).toBe(0);
      expect(Date.parse(nextAt) - Date.now()).toBeGreaterThan(29 * 24 * HOUR_MS);
    }));
});

describe('copies that take long', () => {
  fault('F20', 'copies slower than the interval', () =>
    Trial.with({ everyMs: 5, keep: 2, settleMs: 15 }, async (trial) => {
      let mostTemps = 0;
      for (const round of range(FULL ? 20 : 2)) {
        trial.write(Buffer.alloc(16 * MIB, `round ${round} `));
        const before = (await trial.status())['runs'] as number;
        let isOver = false;
        const asked = Promise.all(range(30).map(() => trial.ask('backup', 20_000))).finally(() => { isOver = true; });
        while (!isOver) {
          const temps = readdirSync(trial.folder).filter((name) => name.endsWith('.part')).length;
          mostTemps = Math.max(mostTemps, temps);
          await pause(1);
        }
        expect(new Set(await asked)).toEqual(new Set(['Backup completed']));
        const runs = (await trial.status())['runs'] as number - before;
        expect(runs, '30 who ask share runs').toBeLessThan(30);
      }
      expect(mostTemps).toBe(1);
      expect(trial.files().length).toBeLessThanOrEqual(2);
    }));

  fault('F27', '`revert` at 100 Hz during a 256 MiB backup', () =>
    Trial.with({ content: 'small' }, async (trial) => {
      await trial.ask('backup');
      const earlier = await trial.ask('revert');
      fill(trial.source, 256 * MIB);
      let isOver = false;
      const answered = trial.ask('backup', 60_000).finally(() => { isOver = true; });
      const slow: number[] = [];
      const phases = new Set<unknown>();
      const paths = new Set<string>();
      await RawClient.with(trial.server.port, async (client) => {
        for (let number = 0; !isOver; number++) {
          const watch = new Stopwatch(trial.server.pid);
          const isStatus = number % 5 === 0;
          await client.write(isStatus ? 'status\n' : 'revert\n');
          const reply = await client.readLine();
          if (watch.ownMs >= 250) slow.push(watch.ownMs);
          if (isStatus) phases.add((JSON.parse(reply) as { progress: { phase: string } | null }).progress?.phase);
          else paths.add(reply);
          await pause(Math.max(0, 10 - watch.ms));
        }
      });
      expect(await answered).toBe('Backup completed');
      expect(slow, 'answers after 250 ms').toEqual([]);
      expect([...paths][0], 'the earlier one until the new is verified').toBe(earlier);
      expect(paths.size).toBeLessThanOrEqual(2);
      expect(phases, 'progress is told').toContain('copying');
      expect(await trial.ask('revert')).not.toBe(earlier);
      expect(await trial.status()).toMatchObject({ latest: { bytes: 256 * MIB } });
    }));
});

function fill(file: string, bytes: number): void {
  const fd = openSync(file, 'w');
  for (let at = 0; at < bytes; at += MIB) writeSync(fd, Buffer.alloc(MIB, `MiB ${at} `));
  closeSync(fd);
}
