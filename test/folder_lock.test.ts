/** One owner a folder; a dead one is succeeded, by one. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { lockFolder } from '../lib/folder_lock.ts';
import { Child } from './helpers/child.ts';
import { pause, until } from './helpers/deadline.ts';
import { range } from './helpers/ended.ts';
import { FULL } from './helpers/faults.ts';
import { FUZZ_SEED, seeded } from './helpers/random.ts';
import { scratch } from './helpers/scratch.ts';
import { noStrace, traced } from './helpers/strace.ts';

const newFolder = scratch('lock');
const children: Child[] = [];
afterAll(async () => { await Promise.all(children.map((child) => child.kill())); });

async function locker(folder: string, options = {}): Promise<Child> {
  const child = new Child('locker.ts', { folder }, options);
  children.push(child);
  await child.ready();
  return child;
}

function ownerIn(folder: string): { pid: number; started: string; id: string } {
  return JSON.parse(readFileSync(join(folder, '.lock'), 'utf8')) as ReturnType<typeof ownerIn>;
}

describe('lockFolder', () => {
  it('names its owner in a file, which is gone after release', async () => {
    const folder = newFolder();
    const lock = await lockFolder(folder);
    expect(ownerIn(folder).pid).toBe(process.pid);
    expect(await lock.isInPlace()).toBe(true);
    await lock.release();
    await lock.release();
    expect(readdirSync(folder)).toEqual([]);
    expect(await lock.isInPlace()).toBe(false);
    await (await lockFolder(folder)).release();
  });

  it('refuses a second holder in the same process, not one under another name', async () => {
    const folder = newFolder();
    const lock = await lockFolder(folder);
    const other = await lockFolder(folder, { name: '.other' });
    await expect(lockFolder(folder)).rejects.toThrow(
      `Cannot lock "${folder}": this process (pid ${process.pid}) holds it`);
    expect(readdirSync(folder).sort()).toEqual(['.lock', '.other']);
    await Promise.all([lock.release(), other.release()]);
  });

  it('leaves the lock of whoever took it after its own was removed by hand', async () => {
    const folder = newFolder();
    const lock = await lockFolder(folder);
    rmSync(join(folder, '.lock'));
    const other = await lockFolder(folder);
    expect(await lock.isInPlace()).toBe(false);
    await lock.release();
    expect(await other.isInPlace()).toBe(true);
    await other.release();
  });

  it('refuses while another process lives, in one line with its pid, and takes it once that is killed',
    async () => {
      const folder = newFolder();
      const owner = await locker(folder);
      expect(await owner.ask('take')).toBe('taken');
      const refused = await lockFolder(folder).catch((error: Error) => error.message);
      expect(refused).toBe(`Cannot lock "${folder}": pid ${owner.pid} holds it. Stop it, or take another folder`);
      await owner.kill();
      await (await lockFolder(folder)).release();
      expect(readdirSync(folder)).toEqual([]);
    });

  it('takes the lock of a process that ended, but was not reaped', async (ctx) => {
    if (process.platform !== 'linux') ctx.skip('needs /proc');
    // The shell becomes a sleeper that reaps nothing; its child is a zombie from then on.
    const parent = spawn('sh', ['-c', 'sh -c "echo \\$\\$" & exec sleep 60'], { stdio: ['ignore', 'pipe', 'ignore'] });
    try {
      const [printed] = await once(parent.stdout, 'data') as [Buffer];
      const pid = Number(printed.toString());
      const stat = (): string => readFileSync(`/proc/${pid}/stat`, 'latin1');
      for (let tries = 0; !/\) Z /.test(stat()) && tries < 200; tries++) await pause(10);
      expect(stat()).toMatch(/\) Z /);
      const folder = newFolder();
      const started = ownerIdentity(stat());
      writeFileSync(join(folder, '.lock'), JSON.stringify({ pid, started, id: 'a'.repeat(24) }));
      await (await lockFolder(folder)).release();
    } finally {
      parent.kill('SIGKILL');
    }
  });

  it('takes the lock of a process whose pid another has by now', async (ctx) => {
    if (process.platform !== 'linux') ctx.skip('needs /proc');
    const folder = newFolder();
    const other = await locker(newFolder());
    const lock = (started: string): void =>
      writeFileSync(join(folder, '.lock'), JSON.stringify({ pid: other.pid, started, id: 'a'.repeat(24) }));
    const started = ownerIdentity(readFileSync(`/proc/${other.pid}/stat`, 'latin1'));
    lock(started);
    await expect(lockFolder(folder)).rejects.toThrow(`pid ${other.pid} holds it`);
    lock(`${started}1`);
    await (await lockFolder(folder)).release();
    lock(started.replace(/^./, (digit) => (digit === '0' ? '1' : '0'))); // the same, in an earlier boot
    await (await lockFolder(folder)).release();
  });

  it.each<[string, string]>([['empty', ''], ['cut', '{'], ['zeros', '\0'.repeat(102)], ['half', '{"pid":1}'],
    ['wrong', '{"pid":-1,"started":"","id":"a"}'], ['null', 'null'], ['long', 'x'.repeat(99_999)]])(
    'takes a lock that a loss of power tore: %s', async (_name, text) => {
      const folder = newFolder();
      writeFileSync(join(folder, '.lock'), text);
      const outcomes = await Promise.allSettled(range(4).map(() => lockFolder(folder)));
      expect(outcomes.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
      expect(ownerIn(folder).pid).toBe(process.pid);
      expect(readdirSync(folder)).toEqual(['.lock']);
    });

  it('takes one behind a torn claim on a torn lock', async () => {
    const folder = newFolder();
    const dead = { pid: 2 ** 22 + 1, started: '', id: 'a'.repeat(24) }; // above what Linux gives
    writeFileSync(join(folder, '.lock'), JSON.stringify(dead));
    writeFileSync(join(folder, `.lock.after.${dead.id}`), '');
    writeFileSync(join(folder, '.lock.0.tmp'), 'left by a killed taker');
    const lock = await lockFolder(folder);
    expect(readdirSync(folder)).toEqual(['.lock']);
    await lock.release();
  });

  it('follows no link that was planted at its name, and takes no folder for a lock', async () => {
    const folder = newFolder();
    const target = join(folder, 'target');
    symlinkSync(target, join(folder, '.lock'));
    await expect(lockFolder(folder)).rejects.toThrow(/Cannot open ".*\.lock": it is a link/);
    writeFileSync(target, 'untouched');
    await expect(lockFolder(folder)).rejects.toThrow(/expected a plain file/);
    expect(readFileSync(target, 'utf8')).toBe('untouched');
    mkdirSync(join(folder, '.lock2'));
    await expect(lockFolder(folder, { name: '.lock2' })).rejects.toThrow(/expected a plain file/);
    await expect(lockFolder(join(folder, 'none'))).rejects.toThrow('ENOENT');
    expect(readdirSync(folder).sort()).toEqual(['.lock', '.lock2', 'target']);
  });

  it('never admits two of many that contend, while some are killed', { timeout: 120_000 }, async () => {
    const random = seeded();
    const folder = newFolder();
    let left = FULL ? 60 : 6;
    const start = async (): Promise<Child> => locker(folder);
    const contending = await Promise.all(range(4).map(start));
    const ms = FULL ? 30_000 : 2_500;
    const reports = contending.map((child) => child.ask<{ wins: number; clashes: string[] }>('contend', { ms }, ms + 9_000)
      .catch(() => undefined));
    const doomed: Promise<unknown>[] = [];
    while (left-- > 0) { // beside those that stay, some that end wherever they are
      const child = await start();
      doomed.push(child.ask('contend', { ms: 9_000 }).catch(() => {}));
      await pause(random.between(1, 60));
      await child.kill();
    }
    const seen = await Promise.all(reports);
    await Promise.all(doomed);
    expect(seen.flatMap((one) => one?.clashes ?? ['no report']), `FUZZ_SEED=${FUZZ_SEED}`).toEqual([]);
    expect(seen.reduce((sum, one) => sum + (one?.wins ?? 0), 0)).toBeGreaterThan(50);
    await (await lockFolder(folder)).release();
  });

  it('is not taken by one that looked, and claimed only when another had succeeded the dead owner', async (ctx) => {
    if (noStrace !== undefined) ctx.skip(noStrace);
    const folder = newFolder();
    writeFileSync(join(folder, '.lock'), JSON.stringify({ pid: 2 ** 22 + 1, started: '', id: 'a'.repeat(24) }));
    const output = join(newFolder(), 'trace');
    const child = await locker(folder, traced({ inject: 'link:delay_enter=700000:when=2', calls: 'link', output }));
    const taken = child.ask('take');
    await until(() => readFileSync(output, 'utf8').includes('EEXIST'), 5_000, 'that it found the dead lock');
    await pause(100); // it is before its claim now, for 700 ms
    const successor = { ...ownerIn(folder), pid: process.pid, id: 'b'.repeat(24) };
    writeFileSync(join(folder, 'new'), JSON.stringify(successor)); // as another that gets so far, but not to tidy up
    renameSync(join(folder, 'new'), join(folder, '.lock'));
    expect(await taken).toBe(`Cannot lock "${folder}": pid ${process.pid} holds it. Stop it, or take another folder`);
    expect(readFileSync(output, 'utf8')).toMatch(/link\(.*\.lock\.after\.a+"\) = 0/);
    expect(ownerIn(folder)).toEqual(successor);
    expect(readdirSync(folder)).toEqual(['.lock']);
  });

  it('is taken after kill -9 at each step of succeeding a dead owner', { timeout: 120_000 }, async (ctx) => {
    if (noStrace !== undefined) ctx.skip(noStrace);
    const steps = ['link:signal=KILL:when=1', 'link:signal=KILL:when=2', 'rename:signal=KILL:when=1',
      'unlink:signal=KILL:when=1'];
    for (const inject of steps) {
      const folder = newFolder();
      writeFileSync(join(folder, '.lock'), JSON.stringify({ pid: 2 ** 22 + 1, started: '', id: 'a'.repeat(24) }));
      const child = await locker(folder, traced({ inject }));
      await expect(child.ask('take'), inject).rejects.toThrow('SIGKILL');
      const outcomes = await Promise.allSettled(range(3).map(() => lockFolder(folder)));
      expect(outcomes.filter(({ status }) => status === 'fulfilled'), inject).toHaveLength(1);
      expect(readdirSync(folder), inject).toEqual(['.lock']);
    }
  });
});

/** As the lock's file has it: the boot, and field 22 of proc_pid_stat(5). */
function ownerIdentity(stat: string): string {
  const ticks = stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
  return `${readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim()}/${ticks}`;
}
