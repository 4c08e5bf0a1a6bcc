/** Journals whose files were cut, changed, or taken by another. */
import { copyFileSync, mkdirSync, readFileSync, renameSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { afterAll, expect } from 'vitest';
import { until } from '../helpers/deadline.ts';
import { range } from '../helpers/ended.ts';
import { fault, FULL, some } from '../helpers/faults.ts';
import { found, lineStarts, segmentsOf, withJournal } from '../helpers/journal_files.ts';
import { JournalProcess } from '../helpers/journal_process.ts';
import { scratch } from '../helpers/scratch.ts';

const newFolder = scratch('journal-damage');
const children: JournalProcess[] = [];
afterAll(async () => { await Promise.all(children.map((child) => child.kill())); });

/** A journal with these texts; its only file, and what that holds. */
async function written(texts: readonly string[]): Promise<{ folder: string; file: string; bytes: Buffer }> {
  const folder = newFolder();
  await withJournal({ folder }, (journal) => Promise.all(texts.map((text) => journal.append(text))));
  const [file = ''] = segmentsOf(folder);
  return { folder, file, bytes: readFileSync(file) };
}

fault('E02', 'a journal of 50 events cut at every byte: the whole ones are there, appends outlast the next start', async () => {
  const texts = range(50).map((at) => JSON.stringify({ at, text: at % 5 === 0 ? 'two\nlines ☃' : 'x'.repeat(at % 23) }));
  const { folder, file, bytes } = await written(texts);
  const starts = lineStarts(bytes);
  const near = starts.flatMap((at) => [at - 1, at, at + 1]).filter((cut) => cut >= 0 && cut <= bytes.length);
  for (const cut of FULL ? range(bytes.length + 1) : [...some(range(bytes.length), 150), ...some(near, 50)]) {
    writeFileSync(file, bytes.subarray(0, cut));
    const whole = starts.filter((at) => at > 0 && at <= cut).length;
    const kept = texts.slice(0, whole);
    const start = await found(folder, (journal) => journal.append(`after ${cut}`));
    expect([...start.texts.values()], `cut at ${cut}`).toEqual(kept);
    expect(start.count).toBe(whole);
    const torn = cut - starts[whole]!;
    expect(start.told).toEqual(torn === 0 ? [] : [`Cannot read "${file}" from byte ${starts[whole]} on: its last ` +
      `${torn} bytes are no whole record. They are cut off`]);
    const next = await found(folder);
    expect([...next.texts.values()]).toEqual([...kept, `after ${cut}`]);
    expect(next.told).toEqual([]);
  }
});

fault('E03', 'each bit of a record flipped: never served as good, told with its offset, the others served', async () => {
  const texts = range(4).map((at) => `{"at":${1_763_735_723_000 + at},"text":"event ☃ ${at}"}`);
  const { folder, file, bytes } = await written(texts);
  const starts = lineStarts(bytes);
  for (const victim of [1, 3]) { // in the middle; the last
    const [from = 0, to = 0] = starts.slice(victim);
    for (const bit of some(range(8 * (to - from)), 120)) {
      const where = `bit ${bit} of record ${victim}`;
      const broken = Buffer.from(bytes);
      broken[from + (bit >> 3)]! ^= 1 << (bit & 7);
      writeFileSync(file, broken);
      const isEnd = bit >> 3 === to - from - 1; // without its line feed it is one line with the next
      const start = await found(folder, async (journal) => {
        for (const { number, text } of await journal.read(0, 99)) expect(text, where).toBe(texts[number]);
      });
      const lost = isEnd && victim < 3 ? [victim, victim + 1] : [victim];
      expect([...start.texts], where).toEqual([...texts.entries()].filter(([number]) => !lost.includes(number)));
      expect(start.told, where).toHaveLength(1);
      expect(start.told[0], where).toMatch(new RegExp(`from byte ${from} on`));
      expect(start.told[0], where).toContain(file);
    }
  }
});

fault('E08', 'a second opener on the same folder is refused in one line with the pid; a killed one\'s lock blocks nobody',
  async () => {
    const folder = newFolder();
    for (let round = 0; round < 3; round++) {
      await JournalProcess.with({ options: { folder } }, async (first) => {
        const refusal = `Cannot lock "${folder}": pid ${first.pid} holds it. Stop it, or take another folder`;
        await expect(JournalProcess.start({ options: { folder } })).rejects.toThrow(refusal);
        await expect(found(folder)).rejects.toThrow(refusal);
        expect(await first.append([`round ${round}`])).toEqual([{ number: round }]); // undisturbed
      }); // kill -9
      expect([...(await found(folder)).texts.values()]).toEqual(range(round + 1).map((at) => `round ${at}`));
    }
  });

/** What can happen to the file that is written to, or to its folder, and who does so must find it again. */
const MISHAPS: Record<string, (file: string) => void> = {
  'deleted': (file) => rmSync(file),
  'renamed': (file) => renameSync(file, `${file}.old`),
  'moved elsewhere': (file) => renameSync(file, join(newFolder(), basename(file))),
  'replaced by a copy of itself': (file) => {
    copyFileSync(file, `${file}.new`);
    renameSync(`${file}.new`, file);
  },
  'cut to nothing': (file) => truncateSync(file),
  'cut somewhere': (file) => truncateSync(file, 100),
  'written to by another': (file) => writeFileSync(file, 'foreign\n', { flag: 'a' }),
};

for (const fsync of ['always', 'interval'] as const) {
  fault('E10', `the file deleted, renamed, replaced, cut under a journal with fsync ${fsync}: ` +
    'what is acknowledged after it survives kill -9', async () => {
    for (const [name, happens] of Object.entries(MISHAPS)) {
      const folder = newFolder();
      const acks = join(newFolder(), 'acks');
      const child = await JournalProcess.start({ options: { folder, fsync }, acks });
      children.push(child);
      await child.ask('load', { name: 'a', inFlight: 16 });
      await until(() => child.acknowledged().size > 50, 5_000, 'the first acknowledgements');
      happens(segmentsOf(folder)[0]!);
      const invoked = await child.ask<number>('invoked'); // later ones are sent after it
      await until(() => [...child.acknowledged().values()].some((text) => Number(text.slice(2)) > invoked + 100), 5_000,
        `acknowledgements after the file was ${name}`);
      await child.kill();
      const { texts } = await found(folder);
      const [after, seen] = [new Map<number, string>(), new Set<string>()];
      for (const [number, text] of child.acknowledged()) {
        if (Number(text.slice(2)) >= invoked) after.set(number, text);
      }
      expect(after.size).toBeGreaterThan(50);
      for (const [number, text] of after) expect(texts.get(number), `${name}: ${number}`).toBe(text);
      for (const text of texts.values()) {
        expect(seen.has(text), `${text} twice`).toBe(false);
        seen.add(text);
      }
    }
  });
}

fault('E10', 'the folder moved away under a journal: an error, until it is back', async () => {
  const folder = join(newFolder(), 'journal');
  await JournalProcess.with({ options: { folder } }, async (child) => {
    expect(await child.append(['before'])).toEqual([{ number: 0 }]);
    renameSync(folder, `${folder}.moved`);
    const gone = await child.append(['lost', 'lost too']);
    for (const { error } of gone) expect(error).toMatch(/^Cannot append to the journal in ".*": .*no longer there|moved or removed/);
    mkdirSync(folder); // a new folder isn't this one: another may have taken it
    expect((await child.append(['lost']))[0]?.error).toMatch(/its folder or lock was moved or removed/);
    expect(segmentsOf(folder)).toEqual([]);
    rmSync(folder, { recursive: true });
    renameSync(`${folder}.moved`, folder);
    expect(await child.append(['after'])).toEqual([{ number: 1 }]);
  });
  expect([...(await found(folder)).texts.values()]).toEqual(['before', 'after']);
  expect(dirname(segmentsOf(folder)[0]!)).toBe(folder);
});
