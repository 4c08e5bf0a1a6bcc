/** A journal's files seen from outside, and a start whose finds are told. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Journal, type JournalOptions } from '../../lib/journal.ts';
import { linesOf as unsealed, seal } from '../../lib/journal_records.ts';

interface Found {
  /** By number. */
  texts: Map<number, string>;
  /** What `log` was told at the start, a line each. */
  told: string[];
  count: number;
}

/** Starts a journal, does `task` with it, and closes it. */
export async function withJournal<T>(options: JournalOptions, task: (journal: Journal) => Promise<T> | T): Promise<T> {
  const journal = await Journal.open(options);
  try {
    return await task(journal);
  } finally {
    await journal.close();
  }
}

/** What a start finds. `task` may go on with the journal. */
export async function found(folder: string, task: (journal: Journal) => Promise<unknown> = async () => {},
  options: Partial<JournalOptions> = {}): Promise<Found> {
  const texts = new Map<number, string>();
  const told: string[] = [];
  const all = { folder, log: (_level: string, text: string) => { told.push(text); }, ...options,
    onRecord: (text: string, number: number) => { texts.set(number, text); } };
  const count = await withJournal(all, async (journal) => {
    const first = journal.count;
    await task(journal);
    return first;
  });
  return { texts, told, count };
}

/** Paths in order. */
export function segmentsOf(folder: string): string[] {
  return readdirSync(folder).filter((file) => file.endsWith('.log')).sort().map((file) => join(folder, file));
}

/** A journal's lines as it would write them. */
export function linesOf(texts: readonly string[], first = 0): Buffer {
  const lines = Buffer.from(unsealed(first, texts));
  seal(lines, lines.length, first, () => {});
  return lines;
}

/** Where each line of a file begins, and behind the last one. */
export function lineStarts(bytes: Buffer): number[] {
  const starts = [0];
  for (let lf; (lf = bytes.indexOf(0x0a, starts.at(-1))) !== -1;) starts.push(lf + 1);
  return starts;
}

/** Numbers that stand in more than one line of all the files, whole ones or not. */
export function doubled(folder: string): number[] {
  const lines = segmentsOf(folder).flatMap((path) => readFileSync(path, 'latin1').split('\n').slice(0, -1));
  const numbers = lines.map((line) => Number(/^[\da-f]{8} (\d+)/.exec(line)?.[1]));
  return numbers.filter((number, at) => numbers.indexOf(number) !== at);
}
