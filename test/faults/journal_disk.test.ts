/** Journals whose system refuses: no room, errors of the disk, short writes, kill -9 at a system call. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, expect } from 'vitest';
import { within } from '../helpers/deadline.ts';
import { range } from '../helpers/ended.ts';
import { fault, FULL, some } from '../helpers/faults.ts';
import { doubled, found, segmentsOf } from '../helpers/journal_files.ts';
import { JournalProcess, readAcks, type Appended } from '../helpers/journal_process.ts';
import { seeded } from '../helpers/random.ts';
import { scratch } from '../helpers/scratch.ts';
import { noStrace, traced } from '../helpers/strace.ts';

const newFolder = scratch('journal-disk');
const FIRST = 'journal-0000000000000000.log';

/** What was acknowledged is what a start finds, and what was rejected isn't there. */
async function check(folder: string, texts: readonly string[], outcomes: readonly Appended[]): Promise<void> {
  const kept = texts.filter((_, at) => outcomes[at]?.error === undefined);
  const start = await found(folder);
  expect([...start.texts.values()]).toEqual(kept);
  expect([...start.texts.keys()]).toEqual(range(kept.length)); // a number of a rejected one is given again
  expect(start.told).toEqual([]);
}

fault('E05', 'a journal that reaches RLIMIT_FSIZE: rejected, nothing torn, works again once it may ' +
  'write more', async () => {
  const folder = newFolder();
  const texts = range(60).map((at) => `text ${at} ${'.'.repeat(40)}`);
  await JournalProcess.with({ options: { folder } }, async (child) => {
    const outcomes = await child.append(texts);
    const failed = outcomes.findIndex(({ error }) => error !== undefined);
    expect(failed).toBeGreaterThan(10);
    expect(outcomes[failed]?.error).toMatch(/^Cannot append to the journal in ".*": EFBIG: file too large, write$/);
    expect(statSync(join(folder, FIRST)).size).toBeLessThanOrEqual(2_048);
    expect(readFileSync(join(folder, FIRST), 'latin1')).toMatch(/\n$/); // taken back up to the last whole line
    expect((await child.ask<{ text: string }[]>('read', { from: 0, most: 99 })).map(({ text }) => text))
      .toEqual(texts.slice(0, failed));
    const many = await child.append(range(3_000).map(() => 'short'), { together: true });
    expect(many.every(({ error }) => error?.includes('EFBIG'))).toBe(true);
    execFileSync('prlimit', [`--pid=${child.pid}`, '--fsize=unlimited:unlimited']);
    const more = texts.map((text) => `more ${text}`);
    const later = await child.append(more, { together: true });
    expect(later.map(({ number }) => number)).toEqual(range(60).map((at) => failed + at));
    expect(await child.ask<string[]>('told')).toEqual([expect.stringContaining('EFBIG'),
      expect.stringContaining('takes records again')]);
    const long = range(3_000).map((at) => `long ${at}`);
    const last = await child.append(long, { together: true });
    expect(await child.ask('read', { from: failed + 60 + 2_500, most: 1 }))
      .toEqual([{ number: failed + 60 + 2_500, text: 'long 2500' }]); // where the short ones were is forgotten
    await child.kill();
    await check(folder, [...texts, ...more, ...long], [...outcomes, ...later, ...last]);
  }, { wrapper: ['prlimit', '--fsize=2048:unlimited'] });
});

fault.unless(noTmpfs(), 'E04', 'a journal on a disk that is full, then has room: acknowledged is stored', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'portcall-full-'));
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', folder]);
  try {
    const filler = join(folder, 'filler');
    writeFileSync(filler, Buffer.alloc(900 * 1024));
    const texts = range(300).map((at) => `text ${at} ${'.'.repeat(600)}`);
    await JournalProcess.with({ options: { folder: join(folder, 'journal'), maxSegmentBytes: 50_000 } }, async (child) => {
      const outcomes = await child.append(texts);
      expect(outcomes.some(({ error }) => error === undefined)).toBe(true);
      expect(outcomes.at(-1)?.error).toMatch(/ENOSPC/);
      rmSync(filler);
      const later = await child.append(['room']);
      expect(later[0]?.error).toBeUndefined();
      await child.kill();
      await check(join(folder, 'journal'), [...texts, 'room'], [...outcomes, ...later]);
    });
  } finally {
    execFileSync('umount', [folder]);
    rmSync(folder, { recursive: true });
  }
});

async function onlyTheThirdFails(
  folder: string, texts: readonly string[], inject: ReturnType<typeof traced>,
): Promise<void> {
  await JournalProcess.with({ options: { folder, fsync: 'always' } }, async (child) => {
    const outcomes = await child.append(texts);
    expect(outcomes.map(({ error }) => error !== undefined)).toEqual([false, false, true, false, false, false]);
    expect(outcomes[2]?.error).toMatch(/EIO/);
    await child.kill();
    await check(folder, texts, outcomes);
  }, inject);
}

fault.unless(noStrace, 'E06', 'a write that gives EIO: not acknowledged, not stored, the next one works', async () => {
  const folder = newFolder();
  const texts = range(6).map((at) => `text ${at}`);
  const inject = traced({ inject: 'write:error=EIO:when=3', paths: [join(folder, FIRST)] });
  await onlyTheThirdFails(folder, texts, inject);
});

fault.unless(noStrace, 'E06', 'a sync that gives EIO: nothing acknowledged before the file is opened ' +
  'anew and checked', async () => {
  const folder = newFolder();
  const output = join(newFolder(), 'trace');
  const texts = range(6).map((at) => `text ${at}`);
  const inject = traced({ inject: 'fdatasync:error=EIO:when=3', paths: [join(folder, FIRST)], output });
  await onlyTheThirdFails(folder, texts, inject);
  const calls = [...readFileSync(output, 'latin1').matchAll(/^\d+ +(\w+)\(.*? = (-?\d+)/gm)].map(([, call, result]) =>
    `${call}${call === 'fdatasync' ? ` ${result}` : ''}`)
      .filter((call) => /^(?:open|ftruncate|fdatasync|write)/.test(call));
  const failed = calls.indexOf('fdatasync -1');
  expect(calls.slice(failed + 1, failed + 7))
    .toEqual(['ftruncate', 'openat', 'openat', 'openat', 'fdatasync 0', 'write']);
});

fault.unless(noStrace, 'E06', 'a sync in the background that gives EIO: what it was for is written ' +
  'and synced again', async () => {
  const folder = newFolder();
  const output = join(newFolder(), 'trace');
  const inject = traced({ inject: 'fdatasync:error=EIO:when=1', paths: [join(folder, FIRST)], output });
  await JournalProcess.with({ options: { folder, fsync: 'interval', intervalMs: 1 } }, async (child) => {
    const texts = range(3).map((at) => `text ${at}`);
    const first = await child.append(texts, { together: true });
    const told = (): Promise<string[]> => child.ask<string[]>('told');
    while (!(await told()).some((line) => line.includes('EIO'))) await new Promise(setImmediate);
    const later = await child.append(['later']);
    expect(later).toEqual([{ number: 3 }]);
    await child.kill();
    await check(folder, [...texts, 'later'], [...first, ...later]);
  }, inject);
  const calls = [...readFileSync(output, 'latin1').matchAll(/^\d+ +(fdatasync|p?write(?:64)?)\(.*? = (-?\d+)/gm)];
  const [failed, again, synced] = calls.slice(calls.findIndex(([, call, result]) => call === 'fdatasync' && result === '-1'));
  expect([failed?.[1], again?.[1], synced?.[1]]).toEqual(['fdatasync', 'pwrite64', 'fdatasync']);
  expect(again?.[2]).toBe(calls[0]?.[2]); // the same bytes as those that were written first
});

fault.unless(noStrace, 'E06', 'a sync in the background that gives EIO while a write is under way: ' +
  'that is not acknowledged', async () => {
  const THREADS = 2; // one syncs while the other writes
  const folder = newFolder();
  const inject = traced({ inject: ['fdatasync:error=EIO:when=1', 'write:delay_enter=150000'], threads: THREADS,
    paths: [join(folder, FIRST)] });
  await JournalProcess.with({ options: { folder, fsync: 'interval', intervalMs: 1 } }, async (child) => {
    const texts = range(6).map((at) => `text ${at}`.padEnd(70_000)); // so much that a thread writes it
    const outcomes = await child.append(texts);
    expect(outcomes[0]).toEqual({ number: 0 });
    expect(outcomes[1]?.error).toMatch(/EIO/);
    const failed = outcomes.flatMap(({ error }) => error ?? []);
    expect(failed.length, 'each thread fails its first sync, whenever the system gives it one').toBeLessThanOrEqual(THREADS);
    for (const error of failed) expect(error).toMatch(/EIO/);
    await child.kill();
    await check(folder, texts, outcomes);
  }, inject);
});

fault.unless(noStrace, 'E06', 'syncs that never work again: no more acknowledgements', async () => {
  const folder = newFolder();
  const inject = traced({ inject: 'fdatasync:error=EIO:when=3+', paths: [join(folder, FIRST)] });
  await JournalProcess.with({ options: { folder, fsync: 'always' } }, async (child) => {
    const texts = range(8).map((at) => `text ${at}`);
    const outcomes = await child.append(texts);
    expect(outcomes.map(({ error }) => error !== undefined)).toEqual(range(8).map((at) => at >= 2));
    await expect(child.ask('close')).rejects.toThrow(/its last sync failed: EIO/);
    await child.kill();
    await check(folder, texts, outcomes);
  }, inject);
});

const library = noCompiler() === undefined ? compile() : '';
for (const how of ['1', 'half']) {
  fault.unless(noCompiler(), 'E07', `writes that take ${how === '1' ? 'a byte' : 'half'} each time: the rest is written, nothing torn`,
    async () => {
      const folder = newFolder();
      const texts = range(200).map((at) => `text ${at} ☃ ${'.'.repeat(at)}`);
      const acks = join(newFolder(), 'acks');
      await JournalProcess.with({ options: { folder, maxSegmentBytes: 10_000 }, acks }, async (child) => {
        const outcomes = await child.append(texts.slice(0, 100), { together: true });
        outcomes.push(...await child.append(texts.slice(100)));
        expect(outcomes.map(({ number }) => number)).toEqual(range(200));
        await child.ask('load', { name: 'killed', inFlight: 50 });
        while (child.acknowledged().size < 400) await new Promise(setImmediate);
        await child.kill(); // within some group's many writes
        const start = await found(folder);
        expect([...start.texts.values()].slice(0, 200)).toEqual(texts);
        for (const [number, text] of child.acknowledged()) expect(start.texts.get(number)).toBe(text);
        expect([...start.texts.keys()]).toEqual(range(start.count));
      }, { env: { LD_PRELOAD: library, SHORT: how } });
    });
}

fault('E09', 'kill -9 at random moments while files follow each other fast: all acknowledged, none twice', async () => {
  const random = seeded();
  const folder = newFolder();
  const acks = join(newFolder(), 'acks');
  const options = { folder, maxSegmentBytes: 2_000 };
  const rounds = FULL ? 100 : 6;
  for (let round = 0; round < rounds; round++) {
    const child = await JournalProcess.start({ options, acks });
    expect(child.told.filter((line) => !/no whole record. They are cut off/.test(line)), `round ${round}`).toEqual([]);
    const before = child.acknowledged().size;
    await child.ask('load', { name: `round ${round}`, inFlight: 8 });
    const most = before + random.between(1, 300);
    while (child.acknowledged().size < most) await new Promise(setImmediate);
    await child.kill();
  }
  const { texts, count } = await found(folder);
  expect([...texts.keys()]).toEqual(range(count));
  for (const [number, text] of readAcks(acks)) expect(texts.get(number)).toBe(text);
  expect(new Set(texts.values()).size).toBe(texts.size);
  expect(doubled(folder)).toEqual([]);
  expect(segmentsOf(folder).length).toBeGreaterThan(rounds);
});

fault.unless(noStrace, 'E09', 'kill -9 at each system call on the files of two rotations: all ' +
  'acknowledged, none twice', async () => {
  const own = range(12).map((at) => `text number ${at}`);
  const options = { maxSegmentBytes: 100, fsync: 'always' } as const;
  const run = async (inject?: string) => {
    const folder = newFolder();
    const acks = join(newFolder(), 'acks');
    const output = join(newFolder(), 'trace');
    const paths = [folder, ...range(12).map((at) => join(folder, `journal-${String(at).padStart(16, '0')}.log`))];
    const setUp = { options: { folder, ...options }, acks, own };
    const child = new JournalProcess(setUp, traced({ paths, output, ...inject === undefined ? {} : { inject } }));
    const exit = await within(15_000, child.exited, 'the end of the journal\'s process');
    return { folder, exit, child, output };
  };
  const whole = await run();
  expect(whole.exit.code).toBe(0);
  const calls = [...readFileSync(whole.output, 'latin1').matchAll(/^\d+ +(\w+)\(/gm)].map(([, call = '']) => call)
    .filter((call) => /^(?:openat|write|fdatasync|fsync|close)$/.test(call));
  const steps = calls.map((call, at) => `${call}:signal=KILL:when=${calls.slice(0, at + 1)
    .filter((one) => one === call).length}`);
  expect(new Set(steps).size).toBeGreaterThan(20);
  let killed = 0;
  for (const inject of some([...new Set(steps)], 5)) {
    const { folder, child, exit } = await run(inject);
    if (exit.signal === 'SIGKILL') killed++;
    const { texts, count } = await found(folder, (journal) => journal.append('after'), { maxSegmentBytes: 100 });
    expect([...texts.values()], inject).toEqual(own.slice(0, count));
    for (const [number, text] of child.acknowledged()) expect(texts.get(number), inject).toBe(text);
    expect([...(await found(folder)).texts.values()], inject).toEqual([...own.slice(0, count), 'after']);
    expect(doubled(folder), inject).toEqual([]);
  }
  expect(killed).toBeGreaterThan(0);
});

function noTmpfs(): string | undefined {
  if (process.getuid?.() !== 0) return 'needs root, to mount a tmpfs';
  const folder = mkdtempSync(join(tmpdir(), 'portcall-mount-'));
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', folder], { stdio: 'ignore' });
    execFileSync('umount', [folder], { stdio: 'ignore' });
    return undefined;
  } catch {
    return 'needs the right to mount a tmpfs';
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function noCompiler(): string | undefined {
  try {
    execFileSync('gcc', ['--version'], { stdio: 'ignore' });
    return undefined;
  } catch {
    return 'needs gcc, for a library that shortens writes';
  }
}

function compile(): string {
  const folder = mkdtempSync(join(tmpdir(), 'portcall-short-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  const path = join(folder, 'short_writes.so');
  const source = fileURLToPath(new URL('../helpers/programs/short_writes.c', import.meta.url));
  execFileSync('gcc', ['-shared', '-fPIC', '-o', path, source, '-ldl']);
  return path;
}
