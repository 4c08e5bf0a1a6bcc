/** The file that a journal writes to: a group of lines stays in it whole, or not at all. */
import { constants, lstatSync, write, writeSync } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import type { Segment } from './journal_segment.ts';
import { openPlainFile } from './plain_file.ts';

const COPY_BYTES = 1024 * 1024;
/**
 * At the end, wherever that is: in a file that another cut, a fixed offset would leave a hole of
 * zeros.
 */
const APPENDING = constants.O_RDWR | constants.O_APPEND;
/** The system copies that in some 20 µs, less than a thread takes to be woken and to tell of it. */
const AT_ONCE_BYTES = 64 * 1024;

/** Of a file, whatever its name. */
interface Identity { readonly dev: number; readonly ino: number }

export class JournalWriter {
  readonly segment: Segment;
  #file: FileHandle;
  readonly #identity: Identity;
  /** Up to where it has reached the disk. */
  #syncedBytes: number;
  #syncing: Promise<void> = Promise.resolve();
  #doubt: Error | undefined;
  #isLost = false;

  private constructor(segment: Segment, file: FileHandle, identity: Identity) {
    this.segment = segment;
    this.#file = file;
    this.#identity = identity;
    this.#syncedBytes = segment.bytes;
  }

  /**
   * Makes a new file. It may be there already if it is empty: a try that got no further left it.
   */
  static async create(segment: Segment): Promise<JournalWriter> {
    return JournalWriter.#open(segment, APPENDING | constants.O_CREAT, async (file) => {
      const { size } = await file.stat();
      if (size === 0) return;
      throw new Error(`Cannot begin "${segment.path}": a file of ${size} bytes lies there ` +
        'that is not of this journal. Move it away');
    });
  }

  /** Opens a file that was read, and cuts off what is behind `segment.bytes`. */
  static async open(segment: Segment): Promise<JournalWriter> {
    return JournalWriter.#open(segment, APPENDING, (file) => cut(file, segment.bytes));
  }

  static async #open(
    segment: Segment, flags: number, prepare: (file: FileHandle) => Promise<void>,
  ): Promise<JournalWriter> {
    const file = await openPlainFile(segment.path, flags);
    try {
      await prepare(file);
      return new JournalWriter(segment, file, await file.stat());
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /**
   * Why nothing may be acknowledged before {@link repair}: a failed sync, or bytes not taken back.
   */
  get doubt(): Error | undefined {
    return this.#doubt;
  }

  /** Its name leads elsewhere or nowhere, or another changed its length: a new file is wanted. */
  get isLost(): boolean {
    return this.#isLost;
  }

  get isSynced(): boolean {
    return this.#syncedBytes === this.segment.bytes;
  }

  /**
   * Appends whole lines. Resolves when they are written, with `sync` to the disk itself, and the
   * file is the one that the next start will read. Rejects when none is in it, or, by its words,
   * may be.
   */
  async append(lines: Buffer, bytes: number, sync: boolean): Promise<void> {
    const end = this.segment.bytes + bytes;
    let done = 0;
    try {
      while (done < bytes) { // a system may take less than it was given
        const rest = [this.#file.fd, lines, done, bytes - done, null] as const;
        done += bytes <= AT_ONCE_BYTES ? writeAtOnce(...rest) : await writeSome(...rest);
      }
      if (sync) await this.#sync(end);
      this.#checkPlace(end);
      if (this.#doubt !== undefined) throw this.#doubt; // of a sync in the background
    } catch (error) {
      this.segment.unmark();
      await this.#takeBack(done, error as Error);
      throw error;
    }
    this.segment.bytes = end;
  }

  /** Resolves when all that was appended so far has reached the disk. */
  sync(): Promise<void> {
    const end = this.segment.bytes;
    this.#syncing = this.#syncing.catch(() => {}).then(() => this.#sync(end));
    return this.#syncing;
  }

  async #sync(end: number): Promise<void> {
    try {
      await this.#file.datasync();
      this.#syncedBytes = Math.max(this.#syncedBytes, end);
    } catch (error) {
      this.#doubt = error as Error;
      throw error;
    }
  }

  /** Synchronous: 2 µs, and nothing can come between it and what it lets through. */
  #checkPlace(expectedBytes?: number): void {
    const { path } = this.segment;
    const { dev, ino } = this.#identity;
    const stat = lstatSync(path, { throwIfNoEntry: false });
    if (stat !== undefined && stat.ino === ino && stat.dev === dev &&
      stat.size === (expectedBytes ?? stat.size)) return;
    this.#isLost = true;
    throw new Error(stat === undefined ? `"${path}" is no longer there`
      : `"${path}" was changed by something else`);
  }

  /**
   * So many bytes were written of a group that failed; the file may have another name by now. Where
   * another had cut it, they are its last ones, yet not behind what was acknowledged.
   */
  async #takeBack(bytes: number, reason: Error): Promise<void> {
    try {
      const { size } = await this.#file.stat();
      await cut(this.#file, Math.max(0, Math.min(this.segment.bytes, size - bytes)));
    } catch (error) {
      this.#doubt ??= error as Error;
      throw new Error(`${reason.message}; it may be stored, as it could not be taken back: ` +
        (error as Error).message, { cause: reason });
    }
  }

  /**
   * Opens the file anew, cuts it to what was acknowledged, reads back what may not have reached the
   * disk, writes it once more and syncs. Linux takes pages for clean once their writing has failed
   * (fsync(2), "EIO"): a second sync alone would promise what isn't so.
   */
  async repair(): Promise<void> {
    const { segment } = this;
    await this.#syncing.catch(() => {});
    this.#checkPlace(); // another's file must not be cut
    const file = await openPlainFile(segment.path, APPENDING);
    try {
      await cut(file, segment.bytes);
      this.#checkPlace(segment.bytes);
      await this.#checkUnsynced();
      await this.#writeUnsyncedAgain();
      await file.datasync();
    } catch (error) {
      await file.close();
      throw error;
    }
    const old = this.#file;
    this.#file = file;
    this.#syncedBytes = segment.bytes;
    this.#doubt = undefined;
    await old.close().catch(() => {}); // it may tell once more of the failure that was repaired
  }

  async #checkUnsynced(): Promise<void> {
    const { segment } = this;
    let isSound = true;
    const reader = await segment.read({ number: segment.first, offset: this.#syncedBytes }, {
      record: () => {},
      damage: ({ bytes, offset }) => { isSound &&= bytes === 0 && offset === this.#syncedBytes; },
    });
    if (isSound && reader.endOfLines === segment.bytes) return;
    throw new Error(`"${segment.path}" lost records between bytes ${this.#syncedBytes} and ` +
      `${segment.bytes}`);
  }

  async #writeUnsyncedAgain(): Promise<void> {
    const end = this.segment.bytes;
    const file = await openPlainFile(this.segment.path, constants.O_RDWR);
    try {
      const buffer = Buffer.allocUnsafe(COPY_BYTES);
      for (let at = this.#syncedBytes; at < end;) {
        const { bytesRead } = await file.read(buffer, 0, Math.min(COPY_BYTES, end - at), at);
        if (bytesRead === 0) throw new Error(`"${this.segment.path}" ends at byte ${at}`);
        for (let done = 0; done < bytesRead;) {
          done += await writeSome(file.fd, buffer, done, bytesRead - done, at + done);
        }
        at += bytesRead;
      }
    } finally {
      await file.close();
    }
  }

  async close(): Promise<void> {
    await this.#syncing.catch(() => {});
    await this.#file.close();
  }
}

/**
 * As `FileHandle.write`, which costs 5 µs more of the main thread. Resolves with what was taken.
 */
function writeSome(
  file: number, bytes: Buffer, offset: number, length: number, position: number | null,
): Promise<number> {
  return new Promise((resolve, reject) => {
    write(file, bytes, offset, length, position, (error, taken) => {
      if (error === null && taken > 0) resolve(taken);
      else reject(error ?? new Error('the file took no byte'));
    });
  });
}

function writeAtOnce(...rest: Parameters<typeof writeSome>): number {
  const taken = writeSync(...rest);
  if (taken > 0) return taken;
  throw new Error('the file took no byte');
}

async function cut(file: FileHandle, bytes: number): Promise<void> {
  const { size } = await file.stat();
  if (size > bytes) await file.truncate(bytes);
}
