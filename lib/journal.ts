/**
 * An append-only journal: numbered texts, each with a checksum, in files that `less` shows.
 *
 * A journal `name` in a folder is files `name-<number of its first record>.log` (the format:
 * `journal_records.ts`) and a lock, `.name.lock`. One process at a time has it open.
 *
 * What an `append` that has resolved promises:
 *
 * | `fsync`    | the process is killed | the system crashes or loses power                        |
 * | ---------- | --------------------- | -------------------------------------------------------- |
 * | `always`   | the record is there   | it is there: the disk had it before                      |
 * | `interval` | the record is there   | the last `intervalMs`, and a sync's time, may be lost  |
 * | `never`    | the record is there   | what the system had not written, some 30 s on Linux      |
 *
 * A rejected one is not stored, unless its message says that it may be.
 *
 * A damaged record is never served: it is told at the start with file and offset, stays in the
 * file, is left out, and its number is not given again. What stands behind the last line end of
 * the last file is a write that a kill or a loss of power interrupted: it is told, and cut off.
 */
import { mkdir, stat } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { syncFolder } from './atomic_file.ts';
import { lockFolder, type FolderLock } from './folder_lock.ts';
import { lineOf, linesOf, MAX_LINE_BYTES, seal, textOf, type Damage } from './journal_records.ts';
import { countUpTo, Segment } from './journal_segment.ts';
import { JournalWriter } from './journal_writer.ts';
import { positive, textOf as reasonOf, type Log } from './micro_client.ts';

export interface JournalOptions {
  /** Created where it is missing. */
  folder: string;
  /** What its files' names begin with: letters, digits, `_`, `.`, `-`. Default `journal`. */
  name?: string;
  /** When records are made to reach the disk: see the head of this file. Default `interval`. */
  fsync?: 'always' | 'interval' | 'never';
  /** How long a record may wait for its sync with `interval`, in milliseconds. Default 100. */
  intervalMs?: number;
  /** From what size on the next group begins a new file. Default 64 MiB. */
  maxSegmentBytes?: number;
  /**
   * What may wait to be written, in bytes as memory holds it (two a UTF-16 unit). Past it `append`
   * rejects. Default 64 MiB.
   */
  maxWaitingBytes?: number;
  /** Called at the start for each record, in order. What it throws, `open` rejects with. */
  onRecord?(text: string, number: number): void;
  /** Told of damage, of failures and of their end. Default: nobody. */
  log?: Log;
}

export interface JournalRecord { number: number; text: string }

/** Appends that are written and acknowledged together. */
interface Group {
  first: number;
  /** What stands in a line before its text. */
  headLetters: number;
  texts: string[];
  /** In memory, as {@link JournalOptions.maxWaitingBytes} counts. */
  bytes: number;
  promise: Promise<void>;
  resolve: () => void;
  reject: (error: Error) => void;
}

const NAME = /^[\w-][\w.-]{0,99}$/;
const PAGE_BYTES = 1024 * 1024;
const SCAN_BYTES = 1024 * 1024;
const KEPT_BYTES = 1024 * 1024; // a buffer larger than that is let go after its group
const MOST_TOLD = 100;
const PASSES = 32; // groups that go without waiting for more, where that was in vain
const SHORT_LETTERS = MAX_LINE_BYTES / 8; // as JSON, a letter takes 6 bytes at most

export class Journal {
  readonly #folder: string;
  readonly #name: string;
  readonly #fsync: 'always' | 'interval' | 'never';
  readonly #intervalMs: number;
  readonly #maxSegmentBytes: number;
  readonly #maxWaitingBytes: number;
  readonly #log: Log;
  readonly #lock: FolderLock;
  readonly #segments: Segment[] = [];
  #writer!: JournalWriter; // set by #start
  #storedCount = 0;
  #count = 0;
  #waiting: Group | undefined;
  #waitingBytes = 0;
  #buffer = Buffer.allocUnsafeSlow(64 * 1024);
  #flushing: Promise<void> | undefined;
  #timer: NodeJS.Timeout | undefined;
  #closing: Promise<void> | undefined;
  #isFailing = false;
  #expected = 0; #expectedUntil = 0; #passes = 0; // events to share a sync; groups that wait for none

  private constructor(options: JournalOptions, lock: FolderLock) {
    this.#folder = resolve(options.folder);
    this.#name = options.name ?? 'journal';
    this.#fsync = options.fsync ?? 'interval';
    this.#intervalMs = positive(options, 'intervalMs', 100);
    this.#maxSegmentBytes = positive(options, 'maxSegmentBytes', 64 * 1024 * 1024);
    this.#maxWaitingBytes = positive(options, 'maxWaitingBytes', 64 * 1024 * 1024);
    this.#log = options.log ?? (() => {});
    this.#lock = lock;
  }

  /**
   * Creates the folder, takes its lock, reads and checks all that is there, cuts off a torn end.
   *
   * @throws {Error} Another process has it open (the message names its pid); the folder is no
   *   folder, or can't be read or written; or the system's.
   */
  static async open(options: JournalOptions): Promise<Journal> {
    const { folder, name = 'journal', fsync = 'interval' } = options;
    if (!NAME.test(name)) {
      throw new RangeError(`Cannot name a journal "${name}": expected ${NAME.source}`);
    }
    if (!['always', 'interval', 'never'].includes(fsync)) {
      throw new RangeError(`Cannot use fsync "${fsync}": expected "always", "interval" or "never"`);
    }
    try {
      await makeFolder(resolve(folder), fsync);
      const lock = await lockFolder(folder, { name: `.${name}.lock` });
      try {
        const journal = new Journal(options, lock);
        await journal.#start(options.onRecord);
        return journal;
      } catch (error) {
        await lock.release();
        throw error;
      }
    } catch (error) {
      if (!(error instanceof Error) || !('code' in error)) throw error;
      throw new Error(`Cannot open the journal in "${folder}": ${error.message}`, { cause: error });
    }
  }

  /** How many numbers are given: records 0 to `count - 1`. The next one appended gets `count`. */
  get count(): number {
    return this.#count;
  }

  /**
   * Stores a text under the number that {@link count} shows at the call. What is appended while a
   * write is under way is written together after it, and shares one promise.
   *
   * @param text Any string, up to 16 MiB as a line.
   * @returns Resolves when it is written, and has reached the disk with `fsync: 'always'`. Rejects
   *   when it is not stored: no room, too much waits, the journal is closed. All that waited is
   *   rejected then and `count` is what it was before them; later ones are tried anew.
   */
  append(text: string): Promise<void> {
    if (typeof text !== 'string') {
      return Promise.reject(new TypeError(`Cannot append ${typeof text}: expected a string`));
    }
    if (this.#closing !== undefined) return Promise.reject(this.#problem('it is closed'));
    if (text.length > SHORT_LETTERS && Buffer.byteLength(lineOf(this.#count, text)) > MAX_LINE_BYTES) {
      return Promise.reject(this.#problem(`a line has over ${MAX_LINE_BYTES} bytes`));
    }
    const group = this.#waiting ?? newGroup(this.#count);
    const bytes = 2 * (group.headLetters + text.length + 1);
    if (this.#waitingBytes + bytes > this.#maxWaitingBytes) {
      return Promise.reject(this.#problem(`${this.#waitingBytes} bytes wait to be written, ` +
        `at most ${this.#maxWaitingBytes} may. Wait for earlier ones`));
    }
    this.#waitingBytes += bytes;
    this.#waiting = group;
    group.texts.push(text);
    group.bytes += bytes;
    this.#count++;
    this.#flushing ??= this.#flush();
    return group.promise;
  }

  /**
   * Some stored records in order: from number `from` on, at most `most`, ending early after about 1
   * MiB of lines. Those that are damaged are left out. Empty: there are no more. The next page
   * begins after the last one's number.
   */
  async read(from: number, most: number): Promise<JournalRecord[]> {
    const page: JournalRecord[] = [];
    let bytesLeft = PAGE_BYTES;
    let at = Math.max(0, countUpTo(this.#segments, ({ first }) => first, from) - 1);
    for (let segment; most > 0 && (segment = this.#segments[at]) !== undefined; at++) {
      const reading = segment.read(segment.markBefore(from), {
        damage: () => {},
        record(number, _offset, bytes, start, end) {
          if (number < from) return false;
          page.push({ number, text: textOf(bytes, start, end) });
          bytesLeft -= end - start;
          return page.length >= most || bytesLeft <= 0;
        },
      }, { limit: this.#segments[at + 1]?.first });
      await reading.catch(ignoreMissing);
      if (page.length >= most || bytesLeft <= 0) break;
    }
    return page;
  }

  /** Writes what waits, syncs, releases the lock. Rejects when the last sync failed. */
  close(): Promise<void> {
    return this.#closing ??= this.#close();
  }

  async #close(): Promise<void> {
    await this.#flushing;
    clearTimeout(this.#timer);
    const writer = this.#writer;
    try {
      if (writer.isLost) return; // nothing was acknowledged since
      await (writer.doubt === undefined ? writer.sync() : writer.repair());
    } catch (error) {
      throw new Error(`Cannot close the journal in "${this.#folder}" well: its last sync failed: ` +
        reasonOf(error), { cause: error });
    } finally {
      await writer.close().finally(() => this.#lock.release());
    }
  }

  // ----------------------------------------------------------------------------------- The start
  async #start(onRecord: JournalOptions['onRecord']): Promise<void> {
    const found = await Segment.find(this.#folder, this.#name);
    const buffer = Buffer.allocUnsafeSlow(SCAN_BYTES);
    let next = 0;
    let told = 0;
    for (const [at, segment] of found.entries()) {
      const tell = (damage: Damage): void => {
        if (told++ < MOST_TOLD) this.#log('error', describe(damage, segment.path));
      };
      if (segment.first > next) tell({ offset: 0, bytes: 0, from: next, to: segment.first });
      await segment.measure();
      const foundBytes = segment.bytes;
      const reader = await segment.read({ number: segment.first, offset: 0 }, {
        damage: tell,
        record(number, offset, bytes, start, end) {
          segment.mark(number, offset);
          onRecord?.(textOf(bytes, start, end), number);
        },
      }, { limit: found[at + 1]?.first, buffer });
      reader.end();
      next = reader.next;
      segment.bytes = reader.endOfLines;
      if (foundBytes > segment.bytes) {
        const way = at === found.length - 1 ? 'cut off' : 'left out';
        this.#log('warn', `Cannot read "${segment.path}" from byte ${segment.bytes} on: its last ` +
          `${foundBytes - segment.bytes} bytes are no whole record. They are ${way}`);
      }
      this.#segments.push(segment);
    }
    if (told > MOST_TOLD) {
      this.#log('error', `${told - MOST_TOLD} more places of the journal are damaged`);
    }
    this.#count = this.#storedCount = next;
    const last = this.#segments.at(-1);
    this.#writer = await (last === undefined ? this.#createSegment() : JournalWriter.open(last));
    if (last === undefined || this.#fsync === 'never') return;
    try {
      await this.#writer.sync(); // a killed process may have left it to the system
      await syncFolder(this.#folder);
    } catch (error) {
      await this.#writer.close();
      throw error;
    }
  }

  // ------------------------------------------------------------------------------- Group commit
  /**
   * Writes group after group while there are any. Never rejects: each group tells its own callers.
   */
  async #flush(): Promise<void> {
    await turn(); // for all that this turn of the event loop brings
    for (let group; (group = this.#waiting) !== undefined;) {
      if (this.#fsync === 'always') await this.#gather(group);
      this.#waiting = undefined;
      const began = performance.now();
      try {
        await this.#write(group);
        this.#storedCount += group.texts.length;
        this.#waitingBytes -= group.bytes;
        this.#tellSuccess();
        group.resolve();
        this.#expected = group.texts.length + this.#count - this.#storedCount;
        this.#expectedUntil = performance.now() + (performance.now() - began) / 2;
      } catch (error) {
        this.#fail(group, error);
      }
    }
    this.#flushing = undefined;
  }

  /**
   * Who was just answered often has more at once. Lets that share a sync with what waits already, up
   * to half the time that a sync takes: 64 callers share one, in place of two by turns with 32 each.
   * Where it doesn't come, the next groups don't wait for it.
   */
  async #gather(group: Group): Promise<void> {
    if (this.#passes > 0) return void this.#passes--;
    while (group.texts.length < this.#expected && performance.now() < this.#expectedUntil) await turn();
    if (group.texts.length < this.#expected / 2) this.#passes = PASSES;
  }

  async #write(group: Group): Promise<void> {
    await this.#makeReady();
    const { segment } = this.#writer;
    const lines = linesOf(group.first, group.texts);
    const bytes = Buffer.byteLength(lines);
    const buffer = bytes <= this.#buffer.length ? this.#buffer : Buffer.allocUnsafeSlow(bytes);
    if (bytes <= KEPT_BYTES) this.#buffer = buffer;
    buffer.write(lines, 0, bytes === lines.length ? 'latin1' : 'utf8'); // ASCII is both, and copied
    seal(buffer, bytes, group.first, (number, at) => segment.mark(number, segment.bytes + at));
    await this.#writer.append(buffer, bytes, this.#fsync === 'always');
    if (this.#fsync === 'interval') this.#syncSoon();
  }

  /** Sees to a file that can take a group: mended, or a new one. */
  async #makeReady(): Promise<void> {
    const writer = this.#writer;
    const { path, bytes, first } = writer.segment;
    if (writer.isLost) {
      if (!await this.#lock.isInPlace()) {
        throw new Error('its folder or lock was moved or removed. Put it back, or start anew');
      }
    } else if (writer.doubt !== undefined) {
      return writer.repair();
    } else if (bytes < this.#maxSegmentBytes) {
      return;
    } else if (this.#fsync !== 'never') {
      await writer.sync();
    }
    this.#writer = await this.#createSegment();
    if (writer.isLost) {
      this.#log('error', `The journal lost "${path}", which something else moved, removed or ` +
        `changed: a start may not find records from number ${first} on. ` +
        `"${this.#writer.segment.path}" was begun`);
    }
    await writer.close().catch(() => {}); // all in it was synced, or is lost
  }

  async #createSegment(): Promise<JournalWriter> {
    const segment = new Segment(this.#folder, this.#name, this.#storedCount);
    const writer = await JournalWriter.create(segment);
    try {
      if (this.#fsync !== 'never') await syncFolder(this.#folder);
    } catch (error) {
      await writer.close();
      throw error;
    }
    if (this.#segments.at(-1)?.first === segment.first) this.#segments.pop(); // it was lost
    this.#segments.push(segment);
    return writer;
  }

  /** One sync at a time, however long it takes. */
  #syncSoon(): void {
    this.#timer ??= setTimeout(async () => {
      try {
        await this.#writer.sync();
      } catch (error) {
        this.#tellFailure(error);
      }
      this.#timer = undefined;
      const { isSynced, doubt } = this.#writer;
      if (!isSynced && doubt === undefined && this.#closing === undefined) this.#syncSoon();
    }, this.#intervalMs).unref();
  }

  #fail(group: Group, cause: unknown): void {
    const error = this.#problem(reasonOf(cause), cause);
    this.#tellFailure(cause);
    group.reject(error);
    this.#waiting?.reject(error);
    this.#waiting = undefined;
    this.#waitingBytes = 0;
    this.#count = this.#storedCount;
  }

  #tellSuccess(): void {
    if (!this.#isFailing) return;
    this.#isFailing = false;
    this.#log('warn', `The journal in "${this.#folder}" takes records again`);
  }

  #tellFailure(cause: unknown): void {
    if (!this.#isFailing) this.#log('error', this.#problem(reasonOf(cause), cause).message);
    this.#isFailing = true;
  }

  #problem(why: string, cause?: unknown): Error {
    return new Error(`Cannot append to the journal in "${this.#folder}": ${why}`,
      cause === undefined ? undefined : { cause });
  }
}

/**
 * With its parents, each name of which reaches the disk. Not by `mkdir`'s own `recursive`: that asks
 * for ever (Node 20) where a file system says `ENOENT` to making a folder in one that is there, as
 * `/proc` does.
 */
async function makeFolder(folder: string, fsync: JournalOptions['fsync']): Promise<void> {
  if (await isFolder(folder)) return;
  if (dirname(folder) !== folder) await makeFolder(dirname(folder), fsync);
  await mkdir(folder).catch(async (error: unknown) => {
    if (!await isFolder(folder)) throw error; // another was quicker
  });
  if (fsync !== 'never') await syncFolder(dirname(folder));
}

async function isFolder(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory();
  } catch (error) {
    ignoreMissing(error as NodeJS.ErrnoException);
    return false;
  }
}

function newGroup(first: number): Group {
  let settle: Pick<Group, 'resolve' | 'reject'> | undefined;
  const promise = new Promise<void>((resolve, reject) => { settle = { resolve, reject }; });
  return { first, headLetters: lineOf(first, '').length - 1, texts: [], bytes: 0, promise, ...settle! };
}

function describe({ offset, bytes, from, to }: Damage, path: string): string {
  const numbers = to > from + 1 ? `records ${from} to ${to - 1} are` : `record ${from} is`;
  if (bytes === 0) {
    return `Cannot find all records before byte ${offset} of "${path}": ${numbers} missing`;
  }
  const lost = to > from ? `${numbers} left out` : 'no record is missing';
  return `Cannot read ${bytes} bytes from byte ${offset} on of "${path}": they are damaged; ` +
    lost;
}

function ignoreMissing(error: NodeJS.ErrnoException): void {
  if (error.code !== 'ENOENT') throw error;
}
