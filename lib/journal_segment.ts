/** One file of a journal: found by its name, and read in bounded pieces. */
import { constants } from 'node:fs';
import { lstat, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { MAX_LINE_BYTES, RecordReader, type RecordSink } from './journal_records.ts';
import { openPlainFile } from './plain_file.ts';

const READ_BYTES = 64 * 1024; // to begin with: it grows to the longest line
const MARK_RECORDS = 1_024;
const MARK_BYTES = 1024 * 1024;

/** Where to begin to read: a record's number, and the offset of its line. */
export interface Mark { number: number; offset: number }

export class Segment {
  readonly path: string;
  /** Number of the first record that it may hold: its name tells. */
  readonly first: number;
  /** Up to where it holds what was stored. What lies behind is nobody's. */
  bytes = 0;
  /** One in 1,024 records, or one a MiB. */
  readonly #marks: Mark[] = [];

  constructor(folder: string, name: string, first: number) {
    this.path = join(folder, `${name}-${String(first).padStart(16, '0')}.log`);
    this.first = first;
  }

  /** Those that a folder has, in order. */
  static async find(folder: string, name: string): Promise<Segment[]> {
    const prefix = `${name}-`;
    return (await readdir(folder))
      .filter((file) => file.startsWith(prefix) && /^\d{16}\.log$/.test(file.slice(prefix.length)))
      .map((file) => new Segment(folder, name, parseInt(file.slice(prefix.length), 10)))
      .sort((one, other) => one.first - other.first);
  }

  /** Takes the file as long as it is found. */
  async measure(): Promise<void> {
    this.bytes = (await lstat(this.path)).size;
  }

  /** Notes where a record is. They come in order. */
  mark(number: number, offset: number): void {
    const last = this.#marks.at(-1);
    const isNear = last !== undefined && number - last.number < MARK_RECORDS &&
      offset - last.offset < MARK_BYTES;
    if (!isNear) this.#marks.push({ number, offset });
  }

  /** Forgets the marks of what was not stored after all. */
  unmark(): void {
    while ((this.#marks.at(-1)?.offset ?? -1) >= this.bytes) this.#marks.pop();
  }

  /** The last mark that is not behind a record; else the file's begin. */
  markBefore(number: number): Mark {
    const at = countUpTo(this.#marks, (mark) => mark.number, number) - 1;
    return this.#marks[at] ?? { number: this.first, offset: 0 };
  }

  /**
   * Reads lines up to `bytes`, or until the sink has enough.
   *
   * @param buffer To read into. One of 64 KiB if not given; a longer line makes it grow.
   * @returns The reader as it stands: behind its offset is no whole line.
   */
  async read({ number, offset }: Mark, sink: RecordSink,
    buffer: Buffer = Buffer.allocUnsafe(READ_BYTES)): Promise<RecordReader> {
    const reader = new RecordReader(number, offset, sink);
    const file = await openPlainFile(this.path, constants.O_RDONLY);
    try {
      let held = 0;
      for (let position = offset; position < this.bytes;) {
        if (held === buffer.length) buffer = grown(buffer);
        const most = Math.min(buffer.length - held, this.bytes - position);
        const { bytesRead } = await file.read(buffer, held, most, position);
        if (bytesRead === 0) break; // others cut it
        position += bytesRead;
        held += bytesRead;
        if (reader.read(buffer, held)) break;
        if (position - reader.offset === MAX_LINE_BYTES) reader.skip(MAX_LINE_BYTES);
        buffer.copyWithin(0, held - (position - reader.offset), held);
        held = position - reader.offset;
      }
      return reader;
    } finally {
      await file.close();
    }
  }
}

/** How many of a list in ascending order are not above `value`. */
export function countUpTo<T>(list: readonly T[], key: (entry: T) => number, value: number): number {
  let [low, high] = [0, list.length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (key(list[middle]!) <= value) low = middle + 1;
    else high = middle;
  }
  return low;
}

function grown(buffer: Buffer): Buffer {
  const larger = Buffer.allocUnsafe(Math.min(2 * buffer.length, MAX_LINE_BYTES));
  buffer.copy(larger);
  return larger;
}
