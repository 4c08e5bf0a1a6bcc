/** The journal: what was appended is read, in order and bounded; nothing else ever is. */
import {
  appendFileSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, symlinkSync, truncateSync, writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { crc32 as crcOfZlib } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { crc32 } from '../lib/crc32.ts';
import { Journal } from '../lib/journal.ts';
import { RecordReader, textOf, type Damage } from '../lib/journal_records.ts';
import { until } from './helpers/deadline.ts';
import { range } from './helpers/ended.ts';
import { FULL } from './helpers/faults.ts';
import { found, linesOf, lineStarts, segmentsOf, withJournal } from './helpers/journal_files.ts';
import { JournalProcess } from './helpers/journal_process.ts';
import { FUZZ_SEED, fuzzRuns, seeded } from './helpers/random.ts';
import { scratch } from './helpers/scratch.ts';
import { noStrace, traced } from './helpers/strace.ts';

const newFolder = scratch('journal');

const TEXTS = ['one', '', ' ', '"', '{"a":1}', 'two\nlines', '\n', '\r', 'a\r\n', '\0', 'naïve ☃ 🎵', '\ud800', 'a\udc00b',
  '00000000 7 not a header', '\u2028\u2029', 'x'.repeat(100_000), '☃\n'.repeat(50_000), 'y'.repeat(1024 * 1024)];

/** What a reader makes of bytes that come in pieces. */
function readAll(bytes: Buffer, pieceBytes = () => bytes.length || 1) {
  const records: [number, string][] = [];
  const damages: Damage[] = [];
  const reader = new RecordReader(0, 0, {
    record: (number, _offset, buffer, from, to) => { records.push([number, textOf(buffer, from, to)]); },
    damage: (damage) => { damages.push(damage); },
  });
  for (let end = 0; end < bytes.length;) {
    end = Math.min(bytes.length, end + pieceBytes());
    const held = Buffer.from(bytes.subarray(reader.offset, end));
    reader.read(held, held.length);
  }
  reader.end();
  return { records, damages, endOfLines: reader.offset, next: reader.next };
}

describe('crc32', () => {
  it('has the check value of its catalogue: "123456789" gives cbf43926', () => {
    expect(crc32(Buffer.from('123456789')).toString(16)).toBe('cbf43926');
    expect(crc32(Buffer.alloc(0))).toBe(0);
    expect(crc32(Buffer.from('..123456789..'), 2, 11).toString(16)).toBe('cbf43926');
  });
  it('equals zlib\'s for all lengths', (ctx) => {
    if (typeof crcOfZlib !== 'function') ctx.skip('needs a Node whose zlib has crc32');
    const bytes = seeded(1).bytes(300);
    for (let end = 0; end <= bytes.length; end++) expect(crc32(bytes, 0, end)).toBe(crcOfZlib(bytes.subarray(0, end)));
  });
});

describe('records', () => {
  it('are lines with checksum, number and text', () => {
    expect(linesOf(['one', 'two\nlines']).toString()).toBe('421cbf46 0 one\n' + `${
      crc32(Buffer.from('1"two\\nlines"')).toString(16).padStart(8, '0')} 1"two\\nlines"\n`);
  });

  it('are the same in a group as one by one, whatever their number and text', () => {
    const alone = (text: string, number: number) => linesOf([text], number).toString();
    for (const first of [0, 1, 8, 9, 95, 99_999, 2 ** 31 - 3, 9_999_999_999, 2 ** 53 - 100]) {
      for (const odd of ['', '\n', 'two\nlines', '\ud800', '☃']) {
        const texts = [...range(12).map((at) => `text ${at}`), odd, 'last'];
        expect(linesOf(texts, first).toString()).toBe(texts.map((text, at) => alone(text, first + at)).join(''));
      }
    }
    expect(alone('x', 12_345)).toMatch(/^[0-9a-f]{8} 12345 x\n$/);
  });

  it('are read back whatever their text is, in pieces of every size', () => {
    const random = seeded();
    const small = TEXTS.filter(({ length }) => length < 1_000);
    const bytes = linesOf(small);
    const expected = small.map((text, number) => [number, text]);
    expect(readAll(linesOf(TEXTS)).records).toEqual(TEXTS.map((text, number) => [number, text]));
    for (let size = 1; size <= bytes.length; size++) expect(readAll(bytes, () => size).records).toEqual(expected);
    for (let run = 0; run < fuzzRuns(100); run++) {
      expect(readAll(bytes, () => random.between(1, 40)), `FUZZ_SEED=${FUZZ_SEED}, run ${run}`)
        .toEqual({ records: expected, damages: [], endOfLines: bytes.length, next: small.length });
    }
  });

  it('of 64 KiB, cut at every single byte: every whole one before the cut is read, nothing else', () => {
    const random = seeded();
    const texts: string[] = [];
    for (let bytes = 0; bytes < 65_536; bytes += 30 + texts.at(-1)!.length) {
      texts.push(`${random()} ☃`.repeat(random.between(1, 20)));
    }
    const whole = linesOf(texts).subarray(0, 65_536);
    const starts = lineStarts(whole);
    // A cut changes no line before it: what is read once up to it is enough to look at.
    const buffer = Buffer.alloc(whole.length);
    let line = 0;
    let read: [number, string][] = [];
    for (let cut = 0; cut <= whole.length; cut++) {
      if (starts[line + 1] === cut) line++;
      buffer.fill(0x0a); // what lies behind the cut must not be looked at
      whole.copy(buffer, 0, 0, cut);
      read = [];
      const from = Math.max(0, line - 1);
      const reader = new RecordReader(from, starts[from] as number, {
        record: (number, _offset, bytes, at, to) => { read.push([number, textOf(bytes, at, to)]); },
        damage: (damage) => { throw new Error(`cut at ${cut}: ${JSON.stringify(damage)}`); },
      });
      const tail = buffer.subarray(starts[from]);
      reader.read(tail, cut - (starts[from] as number));
      reader.end();
      if (reader.offset !== starts[line] || reader.next !== line) throw new Error(`cut at ${cut}: up to ${reader.offset}`);
      if (read.some(([number, text]) => text !== texts[number])) throw new Error(`cut at ${cut}: another text`);
    }
    expect(line).toBe(starts.length - 1);
    for (const cut of seeded().sample(range(whole.length), 200)) {
      const { records, damages } = readAll(whole.subarray(0, cut));
      expect(damages).toEqual([]);
      expect(records).toEqual(texts.slice(0, starts.filter((at) => at <= cut && at > 0).length)
        .map((text, number) => [number, text]));
    }
  });

  it.each<[string, (lines: string[]) => string[], number[], Partial<Damage>[]]>([
    ['lost', (all) => all.filter((_, at) => at !== 2), [0, 1, 3, 4], [{ bytes: 0, from: 2, to: 3 }]],
    ['doubled', (all) => all.flatMap((line, at) => (at === 2 ? [line, line] : [line])), [0, 1, 2, 3, 4],
      [{ from: 3, to: 3 }]],
    ['swapped', (all) => [0, 2, 1, 3, 4].map((at) => all[at]!), [0, 2, 3, 4], [{ from: 1, to: 2 }, { from: 3, to: 3 }]],
    ['renumbered', (all) => all.map((line, at) => (at === 2 ? line.replace(' 2 ', ' 9 ') : line)), [0, 1, 3, 4],
      [{ from: 2, to: 3 }]],
    ['split in two', (all) => all.map((line, at) => (at === 2 ? line.replace('text', 'te\nxt') : line)), [0, 1, 3, 4],
      [{ from: 2, to: 3 }]],
    ['joined with the next', (all) => all.map((line, at) => (at === 2 ? line.trim() : line)), [0, 1, 4],
      [{ from: 2, to: 4 }]],
    ['foreign', (all) => all.map((line, at) => (at === 2 ? 'hello\n\n' : line)), [0, 1, 3, 4], [{ from: 2, to: 3 }]],
  ])('a line that is %s is told, the rest is read', (_name, change, numbers, damages) => {
    const lines = linesOf(range(5).map((number) => `text ${number}`)).toString().split(/(?<=\n)/);
    const got = readAll(Buffer.from(change(lines).join('')));
    expect(got.records).toEqual(numbers.map((number) => [number, `text ${number}`]));
    expect(got.damages).toEqual(damages.map((damage) => expect.objectContaining(damage) as Damage));
    expect(got.next).toBe(5);
  });

  it('that are served from bytes that were changed at random are those that were written', () => {
    const random = seeded();
    const texts = range(60).map((number) => `${number} ${'.'.repeat(number)}`);
    for (let run = 0; run < fuzzRuns(600); run++) {
      const bytes = Buffer.from(linesOf(texts));
      const [at, length] = [random.int(bytes.length), random.between(1, 300)];
      if (run % 3 === 0) bytes.subarray(at, at + length).fill(0);
      else if (run % 3 === 1) random.bytes(length).copy(bytes, at);
      else bytes.copyWithin(at, random.int(bytes.length), bytes.length);
      const { records } = readAll(bytes, () => random.between(1, 999));
      for (const [number, text] of records) expect(text, `FUZZ_SEED=${FUZZ_SEED}, run ${run}`).toBe(texts[number]);
      expect(records.map(([number]) => number)).toEqual(records.map(([number]) => number).toSorted((a, b) => a - b));
    }
  });
});

describe('Journal', () => {
  it('stores texts of any kind and reads them, before and after the next start', async () => {
    const folder = join(newFolder(), 'made', 'for it');
    const expected = TEXTS.map((text, number) => ({ number, text }));
    const everything = async (journal: Journal) => {
      const all = [];
      for (let page; (page = await journal.read(all.length, 7)).length > 0;) all.push(...page);
      return all;
    };
    await withJournal({ folder }, async (journal) => {
      await Promise.all(TEXTS.map((text) => journal.append(text)));
      expect(await everything(journal)).toEqual(expected);
    });
    const { texts, told, count } = await found(folder, async (journal) => {
      expect(await everything(journal)).toEqual(expected);
    });
    expect([...texts]).toEqual(TEXTS.map((text, number) => [number, text]));
    expect([told, count]).toEqual([[], TEXTS.length]);
  });

  it.each(['always', 'interval', 'never'] as const)('with fsync %s tells numbers at the call, ' +
    'acknowledges together', async (fsync) => {
    await withJournal({ folder: newFolder(), fsync, intervalMs: 1 }, async (journal) => {
      const first = journal.append('a');
      expect(journal.count).toBe(1);
      const second = journal.append('b');
      expect(second).toBe(first);
      await first;
      const third = journal.append('c');
      expect(third).not.toBe(first);
      await third;
      expect(await journal.read(1, 9)).toEqual([{ number: 1, text: 'b' }, { number: 2, text: 'c' }]);
      expect(journal.count).toBe(3);
    });
  });

  it('goes on in new files, numbered by their first record, and reads over their borders', async () => {
    const folder = newFolder();
    const options = { folder, maxSegmentBytes: 200 };
    await withJournal(options, async (journal) => {
      for (let number = 0; number < 60; number++) await journal.append(`text ${number}`);
    });
    const files = segmentsOf(folder);
    expect(files.length).toBeGreaterThan(4);
    for (const file of files) {
      const first = Number(/^\S+ (\d+)/.exec(readFileSync(file, 'utf8'))?.[1]);
      expect(file).toBe(join(folder, `journal-${String(first).padStart(16, '0')}.log`));
    }
    await withJournal(options, async (journal) => {
      for (const from of range(62)) {
        expect((await journal.read(from, 25)).map(({ number, text }) => [number, text]))
          .toEqual(range(60).slice(from, from + 25).map((number) => [number, `text ${number}`]));
      }
      await journal.append('last');
      expect(await journal.read(60, 5)).toEqual([{ number: 60, text: 'last' }]);
    });
  });

  it('reads pages from anywhere, of about 1 MiB at most', async () => {
    await withJournal({ folder: newFolder() }, async (journal) => {
      for (let round = 0; round < 5; round++) {
        for (let at = 0; at < 1_000; at++) void journal.append(`${5_000 - journal.count} ${'z'.repeat(400)}`);
        await journal.append('end of a group');
      }
      for (const from of [0, 1, 1_000, 1_001, 1_023, 1_024, 2_048, 4_444, 5_004]) {
        const page = await journal.read(from, 3);
        expect(page.map(({ number }) => number)).toEqual(range(5_005).slice(from, from + 3));
        expect(page[0]?.text.slice(0, 4)).toBe(from % 1_001 === 1_000 ? 'end ' : `${5_000 - from} zz`.slice(0, 4));
      }
      expect(await journal.read(5_005, 3)).toEqual([]);
      expect(await journal.read(0, 0)).toEqual([]);
      const most = await journal.read(10, 1e9);
      expect(most.length).toBeGreaterThan(2_000);
      expect(most.length).toBeLessThan(3_000);
    });
  });

  it('keeps a number from being given again after damage, also at the end', async () => {
    const folder = newFolder();
    await withJournal({ folder }, (journal) => Promise.all(range(5).map((at) => journal.append(`text ${at}`))));
    const [file = ''] = segmentsOf(folder);
    const bytes = readFileSync(file);
    bytes[bytes.length - 3]! ^= 1;
    writeFileSync(file, bytes);
    const offset = lineStarts(bytes)[4];
    const { told, count } = await found(folder, (journal) => journal.append('next'));
    expect(count).toBe(5);
    expect(told).toEqual([`Cannot read ${bytes.length - offset!} bytes from byte ${offset} on of "${file}": ` +
      'they are damaged; record 4 is left out']);
    const after = await found(folder, async (journal) => {
      expect((await journal.read(0, 99)).map(({ number }) => number)).toEqual([0, 1, 2, 3, 5]);
      expect((await journal.read(4, 99)).map(({ number }) => number)).toEqual([5]);
    });
    expect([...after.texts.keys()]).toEqual([0, 1, 2, 3, 5]);
    expect([after.told, after.count]).toEqual([told, 6]);
  });

  it('tells of files that are missing between others, and of records at their end', async () => {
    const folder = newFolder();
    const lines = linesOf(range(9).map((at) => `text ${at}`));
    const starts = lineStarts(lines);
    const file = (first: number): string => join(folder, `journal-${String(first).padStart(16, '0')}.log`);
    writeFileSync(file(0), lines.subarray(0, starts[2]! + 5)); // records 0, 1 and a torn one
    writeFileSync(file(3), lines.subarray(starts[3], starts[5]));
    writeFileSync(file(7), lines.subarray(starts[6], starts[8])); // begins with one that is not its own
    const { told, texts, count } = await found(folder);
    expect([...texts.keys()]).toEqual([0, 1, 3, 4, 7]);
    expect(count).toBe(8);
    expect(told.map((one) => one.replace(folder, ''))).toEqual([
      expect.stringMatching(/record 2 is missing/),
      expect.stringMatching(/from byte \d+ on: its last 5 bytes are no whole record. They are left out/),
      expect.stringMatching(/records 5 to 6 are missing/),
      expect.stringMatching(/from byte 0 on .* damaged; no record is missing/),
    ]);
    expect(statSync(file(0)).size).toBe(starts[2]! + 5);
  });

  it('leaves to each file its own numbers, whatever the one before it holds', async () => {
    const folder = newFolder();
    const file = (first: number): string => join(folder, `journal-${String(first).padStart(16, '0')}.log`);
    const lines = linesOf(['zero', 'one', 'rejected', 'rejected too']);
    const [, second = 0, third = 0] = lineStarts(lines);
    writeFileSync(file(2), linesOf(['two', 'three'], 2));
    const expectAll = async (...expected: string[]): Promise<string[]> => {
      const { texts, told } = await found(folder, async (journal) => {
        expect((await journal.read(0, 9)).map(({ text }) => text)).toEqual(expected);
      });
      expect([...texts.values()]).toEqual(expected);
      return told;
    };
    writeFileSync(file(0), lines); // was moved away with a group that could not be taken back, and put back
    expect(await expectAll('zero', 'one', 'two', 'three'))
      .toEqual([expect.stringMatching(/damaged; no record is missing/)]);
    const split = Buffer.from(lines.subarray(0, third));
    split[second + 12] = 0x0a; // one bad line becomes two
    writeFileSync(file(0), split);
    expect(await expectAll('zero', 'two', 'three')).toEqual([expect.stringMatching(/damaged; record 1 is left out/)]);
  });

  it('reads what comes after a line that is longer than any of its own', async () => {
    const folder = newFolder();
    const lines = linesOf(['a', 'b', 'c']);
    const [, second = 0, third = 0] = lineStarts(lines);
    await withJournal({ folder }, () => {});
    const long = Buffer.alloc(17 * 1024 * 1024, 'x');
    writeFileSync(segmentsOf(folder)[0]!, Buffer.concat([lines.subarray(0, second), long, lines.subarray(second)]));
    const { texts, told } = await found(folder);
    expect([...texts]).toEqual([[0, 'a'], [2, 'c']]);
    expect(told).toEqual([expect.stringContaining(`${long.length + third - second} bytes from byte ${second} on`)]);
  });

  it('cuts off an end without line feeds, however long', async () => {
    const folder = newFolder();
    const lines = linesOf(['a', 'b']);
    await withJournal({ folder }, () => {});
    const [file = ''] = segmentsOf(folder);
    writeFileSync(file, Buffer.concat([lines, Buffer.alloc(40 * 1024 * 1024)])); // zeros: a size that came without data
    const { told, texts } = await found(folder, (journal) => journal.append('c'));
    expect([...texts.values()]).toEqual(['a', 'b']);
    expect(told).toEqual([expect.stringContaining(`its last ${40 * 1024 * 1024} bytes are no whole record`)]);
    expect([...(await found(folder)).texts.values()]).toEqual(['a', 'b', 'c']);
  });

  it('takes a text of 16 MiB less its line\'s rest, and none that is longer', { timeout: 60_000 }, async () => {
    const folder = newFolder();
    const most = 16 * 1024 * 1024 - '00000000 0 \n'.length;
    await withJournal({ folder }, async (journal) => {
      await journal.append('x'.repeat(most));
      await expect(journal.append('x'.repeat(most + 1))).rejects.toThrow(/a line has over 16777216 bytes/);
      await expect(journal.append('☃'.repeat(most / 3 + 1))).rejects.toThrow(/a line has over/);
      expect(journal.count).toBe(1);
    });
    const { texts, told } = await found(folder);
    expect([texts.get(0)?.length, told]).toEqual([most, []]);
  });

  it('lets so much wait, and no more', async () => {
    await withJournal({ folder: newFolder(), maxWaitingBytes: 1_000 }, async (journal) => {
      const text = 'x'.repeat(88); // a line of 100 for numbers of one digit
      const outcomes = await Promise.allSettled(range(6).map(() => journal.append(text)));
      expect(outcomes.map(({ status }) => status)).toEqual([...range(5).map(() => 'fulfilled'), 'rejected']);
      expect((outcomes[5] as PromiseRejectedResult).reason).toMatchObject({
        message: expect.stringContaining('1000 bytes wait to be written, at most 1000 may') as string });
      await journal.append(text);
      expect(journal.count).toBe(6);
    });
  });

  it('writes on close what waits, and takes nothing afterwards', async () => {
    const folder = newFolder();
    const journal = await Journal.open({ folder, maxSegmentBytes: 1 });
    let isStored = false;
    const text = 'waits'.repeat(2 * 1024 * 1024);
    const first = journal.append(text);
    await new Promise(setImmediate);
    await new Promise(setImmediate); // it is being written now
    const last = journal.append('last').then(() => { isStored = true; });
    const closed = journal.close();
    expect(journal.close()).toBe(closed);
    await expect(journal.append('late')).rejects.toThrow(/it is closed/);
    await closed;
    expect(isStored).toBe(true);
    await Promise.all([first, last]);
    expect([...(await found(folder)).texts.values()]).toEqual([text, 'last']);
  });

  it('refuses a second opener in one line, and lets it in after close', async () => {
    const folder = newFolder();
    const journal = await Journal.open({ folder });
    await expect(Journal.open({ folder })).rejects.toThrow(/^Cannot lock ".*": this process \(pid \d+\) holds it/);
    await withJournal({ folder, name: 'another' }, (other) => other.append('beside it'));
    await journal.close();
    expect((await found(folder)).texts.size).toBe(0);
    expect((await found(folder, undefined, { name: 'another' })).texts.size).toBe(1);
  });

  it('releases its lock when a start fails', async () => {
    const folder = newFolder();
    await withJournal({ folder }, (journal) => journal.append('no JSON'));
    await expect(Journal.open({ folder, onRecord: (text) => JSON.parse(text) as void })).rejects.toThrow(SyntaxError);
    expect((await found(folder)).texts.size).toBe(1);
  });

  it('tells in one line why it cannot start', async () => {
    const folder = newFolder();
    writeFileSync(join(folder, 'file'), '');
    await expect(Journal.open({ folder: join(folder, 'file') }))
      .rejects.toThrow(/^Cannot open the journal in .*EEXIST/);
    await expect(Journal.open({ folder: join(folder, 'file', 'in', 'it') })).rejects.toThrow(/^Cannot open .*ENOTDIR/);
    if (existsSync('/proc/self')) { // which says ENOENT to mkdir, though it is there
      await expect(Journal.open({ folder: '/proc/none/such' })).rejects.toThrow(/^Cannot open .*ENOENT/);
    }
    mkdirSync(join(folder, 'journal-0000000000000000.log'));
    await expect(Journal.open({ folder })).rejects.toThrow(/^Cannot open ".*0.log": it is .* a folder/);
    symlinkSync(join(folder, 'file'), join(folder, 'linked-0000000000000000.log'));
    await expect(Journal.open({ folder, name: 'linked' })).rejects.toThrow(/expected a plain file/);
    for (const name of ['', '../up', 'a/b', '.hidden', 'x'.repeat(101)]) {
      await expect(Journal.open({ folder, name })).rejects.toThrow(RangeError);
    }
    await expect(Journal.open({ folder, fsync: 'sometimes' as 'never' })).rejects.toThrow(/Cannot use fsync/);
    await expect(Journal.open({ folder, maxSegmentBytes: 0 })).rejects.toThrow(RangeError);
    await expect(withJournal({ folder: newFolder() }, (journal) => journal.append(7 as never)))
      .rejects.toThrow(TypeError);
  });

  it('starts with what each step of beginning a new file leaves behind', async () => {
    const folder = newFolder();
    await withJournal({ folder, maxSegmentBytes: 60 }, async (journal) => {
      for (let at = 0; at < 4; at++) await journal.append(`text number ${at}`);
    });
    const [, last = ''] = segmentsOf(folder);
    const bytes = readFileSync(last);
    for (const cut of FULL ? range(bytes.length + 1) : [0, 1, 5, 20, bytes.length - 1, bytes.length]) {
      writeFileSync(last, bytes);
      truncateSync(last, cut);
      const { texts, count } = await found(folder, (journal) => journal.append('after'), { maxSegmentBytes: 60 });
      const next = [...(await found(folder)).texts.values()];
      expect(next).toEqual([...texts.values(), 'after']);
      expect(count).toBe(texts.size);
    }
  });

  it('syncs each record soon, also one written during a sync, or before a kill', async (ctx) => {
    if (noStrace !== undefined) ctx.skip(noStrace);
    const folder = newFolder();
    const output = join(newFolder(), 'trace');
    const syncs = (): number => [...readFileSync(output, 'latin1').matchAll(/fdatasync.*= 0/g)].length;
    const options = { folder, fsync: 'interval', intervalMs: 1 } as const;
    const inject = traced({ inject: 'fdatasync:delay_enter=200000', threads: 2, output,
      paths: [folder, join(folder, 'journal-0000000000000000.log')] });
    await JournalProcess.with({ options }, async (child) => {
      await child.append(['first']);
      await until(() => /fdatasync\(/.test(readFileSync(output, 'latin1')), 5_000, 'the first sync');
      await child.append(['during it']);
      await until(() => syncs() === 2, 5_000, 'the sync of a record written during one');
    }, inject);
    rmSync(output);
    await JournalProcess.with({ options }, async () => {
      expect(readFileSync(output, 'latin1'))
        .toMatch(/fdatasync\([^]* fsync\(/); // what the killed one left, and its name
    }, inject);
  });

  it('does not take what is not of its names for its own', async () => {
    const folder = newFolder();
    for (const name of ['journal-1.log', 'journal-0000000000000000.log.bak', 'xjournal-0000000000000000.log']) {
      appendFileSync(join(folder, name), 'foreign\n');
    }
    const { told, count } = await found(folder);
    expect([told, count]).toEqual([[], 0]);
  });
});
