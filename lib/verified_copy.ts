/**
 * Copies a file while others may write to it, so that the copy is what the source was at one
 * instant, or there is no copy.
 *
 * Why it is: the source is read twice, from first to last byte, and both readings are equal. Take
 * the instant between them. What a byte was then, it was at both readings, unless it changed and
 * changed back; and then the file's times tell of it, which are equal before and behind as well.
 * Times tell it only if the last write lies further back than their tick; hence the wait for rest,
 * which also lets whoever rewrites a file in several steps come to its end. A program that writes
 * through a map in memory leaves the times alone; against that one the second reading stands alone.
 *
 * The second reading is compared with the copy, which has reached the disk by then. It comes out of
 * the system's memory, as any reading does: a disk that corrupts what it stores is found later.
 */
import { createHash, randomBytes } from 'node:crypto';
import { constants, type BigIntStats } from 'node:fs';
import { lstat, open, rename, unlink, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { syncFolder } from './atomic_file.ts';
import {
  BLOCK_BYTES, blocksOf, identityOf, openToRead, readFully, reasonOf,
} from './untrusted_file.ts';

export interface CopyOptions {
  /** The name in the folder, known once the content is. */
  nameOf(sha256: string): string;
  /** A file in which the source's bytes may stand already: then no copy is made. */
  unless?: string | undefined;
  /** How long the source must have been left alone: more than a tick of its times, 4 or 10 ms. */
  settleMs: number;
  /** When to give up a source that does not hold still, on the clock of `performance.now()`. */
  giveUpAt: number;
  signal?: AbortSignal;
  progress?(phase: 'copying' | 'comparing', doneBytes: number, ofBytes: number): void;
}

export interface Copied {
  /** Undefined: `unless` has these bytes already. */
  copy: { name: string; sha256: string; bytes: number; identity: string } | undefined;
  /**
   * The source's, as `identityOf` tells it. Undefined while the source is too young for a later
   * change to show in it.
   */
  sourceIdentity: string | undefined;
}

const COARSE_SETTLE_MS = 2_100; // FAT counts times by 2 s
const BETWEEN_TRIES_MS = 25;
const LOOK_EVERY_BYTES = 16 * BLOCK_BYTES;
/**
 * A page that is mapped and dirty is written to without any trace in the file's times, until the
 * system has written it back: after 30 s and 5 s more, as Linux is set. The next one shows.
 */
const WRITTEN_BACK_MS = 60_000;
const PAGE_BYTES = 4_096;
const ZEROS = Buffer.alloc(BLOCK_BYTES);
const TEMPORARY = /^\.portcall-[\da-f]{16}\.part$/;

/** Whether a name in a folder is that of an unfinished copy, left behind by a kill. */
export function isTemporary(name: string): boolean {
  return TEMPORARY.test(name);
}

/**
 * Copies `source`, links in its path followed, into `folder`: hashed, compared, synced, and renamed
 * into place when all that is done. The copy has the permissions of the source and keeps its holes.
 * A source that changes meanwhile is tried again.
 *
 * @throws {Error} One sentence. The source is missing, can't be read, is no plain file or never
 *   held still; the folder can't be written; or the `signal`'s reason. No temporary file stays.
 */
export async function copyVerified(
  source: string, folder: string, options: CopyOptions,
): Promise<Copied> {
  const { signal, giveUpAt } = options;
  for (;;) {
    signal?.throwIfAborted();
    const file = await openToRead(source, { follow: true });
    try {
      return await tryToCopy(file, folder, options);
    } catch (error) {
      const isUnsteady = error instanceof Unsteady;
      if (!isUnsteady && !isOfSystem(error)) throw error;
      const why = isUnsteady ? 'it does not hold still' : reasonOf(error);
      if (!isUnsteady || performance.now() >= giveUpAt) {
        throw new Error(`Cannot copy ${JSON.stringify(source)}: ${why}`, { cause: error });
      }
    } finally {
      await file.close();
    }
    await wait(BETWEEN_TRIES_MS, undefined, { signal });
  }
}

/** The source changed under the copy. */
class Unsteady extends Error {}

async function tryToCopy(
  source: FileHandle, folder: string, options: CopyOptions,
): Promise<Copied> {
  const { unless, signal } = options;
  const before = await rest(source, options);
  const ageMs = Date.now() - Number(before.mtimeMs);
  const sourceIdentity = ageMs > WRITTEN_BACK_MS ? identityOf(before) : undefined;
  if (unless !== undefined && await isEqualTo(unless, source, before, options)) {
    await expectSame(source, before);
    return { copy: undefined, sourceIdentity };
  }

  const temporary = join(folder, `.portcall-${randomBytes(8).toString('hex')}.part`);
  const { O_RDWR, O_CREAT, O_EXCL, O_NOFOLLOW } = constants;
  const owners = Number(before.mode) & 0o600; // others get theirs when all is there
  const copy = await open(temporary, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, owners)
    .catch((cause: unknown) => { throw unwritable(folder, cause); });
  try {
    const sha256 = await write(copy, source, before, options)
      .catch((error: unknown) => { throw isOfWriting(error) ? unwritable(folder, error) : error; });
    const isEqual = await compare(source, copy, Number(before.size), options);
    await expectSame(source, before);
    if (!isEqual) throw new Unsteady();
    signal?.throwIfAborted();
    const name = options.nameOf(sha256);
    const path = join(folder, name);
    await rename(temporary, path).then(() => syncFolder(folder))
      .catch((cause: unknown) => { throw unwritable(folder, cause); });
    const identity = identityOf(await copy.stat({ bigint: true }));
    if (identityOf(await lstat(path, { bigint: true })) !== identity) {
      throw new Error(`Cannot keep ${JSON.stringify(path)}: it was replaced`);
    }
    return { copy: { name, sha256, bytes: Number(before.size), identity }, sourceIdentity };
  } catch (error) {
    await unlink(temporary).catch(() => {}); // the first error is the one to tell
    throw error;
  } finally {
    await copy.close();
  }
}

/** Waits until the source was left alone for long enough; gives what it is then. */
async function rest(
  source: FileHandle, { settleMs, giveUpAt, signal }: CopyOptions,
): Promise<BigIntStats> {
  for (;;) {
    const stat = await source.stat({ bigint: true });
    const isCoarse = stat.mtimeNs % 1_000_000_000n === 0n;
    // A time in the future, after a clock was set back, is as far from now's as one in the past.
    const awayMs = (ns: bigint) => Math.abs(Date.now() - Number(ns / 1_000n) / 1_000);
    const restedMs = Math.min(awayMs(stat.mtimeNs), awayMs(stat.ctimeNs)); // the first can be set
    const leftMs = (isCoarse ? Math.max(settleMs, COARSE_SETTLE_MS) : settleMs) - restedMs;
    if (leftMs <= 0) return stat;
    if (performance.now() >= giveUpAt) throw new Unsteady();
    await wait(Math.ceil(leftMs), undefined, { signal });
  }
}

/**
 * What takes the last name from the open file, such as a new version renamed over it, changes
 * `ctime` and how many names there are. The content stays: it is one generation, whole.
 */
async function expectSame(source: FileHandle, before: BigIntStats): Promise<void> {
  const now = await source.stat({ bigint: true });
  const isSame = now.size === before.size && now.mtimeNs === before.mtimeNs &&
    (now.ctimeNs === before.ctimeNs || now.nlink !== before.nlink);
  if (!isSame) throw new Unsteady();
}

/** Fills the copy and brings it to the disk. Gives the hash of what was read. */
async function write(
  copy: FileHandle, source: FileHandle, before: BigIntStats, { signal, progress }: CopyOptions,
): Promise<string> {
  const bytes = Number(before.size);
  const hasHoles = before.blocks * 512n < before.size;
  const hash = createHash('sha256');
  let readBytes = 0;
  for await (const { block, at } of blocksOf(source, bytes, signal)) {
    hash.update(block);
    for (const [from, to] of hasHoles ? dataIn(block) : [[0, block.length] as const]) {
      await writeFully(copy, block.subarray(from, to), at + from);
    }
    readBytes = at + block.length;
    progress?.('copying', readBytes, bytes);
    if (at % LOOK_EVERY_BYTES === 0) await expectSame(source, before); // not only after 100 GiB
  }
  const isMore = (await source.read(Buffer.alloc(1), 0, 1, bytes)).bytesRead > 0; // so does /proc
  if (readBytes !== bytes || isMore) throw new Unsteady();
  await copy.truncate(bytes);
  await copy.chmod(await modeFor(copy, before));
  await copy.sync();
  return hash.digest('hex');
}

/** A group's rights are for the source's group, not for the one that new files here get. */
async function modeFor(copy: FileHandle, { mode, gid }: BigIntStats): Promise<number> {
  const own = await copy.stat({ bigint: true });
  return Number(mode) & (own.gid === gid ? 0o777 : 0o707);
}

/** Where a block has bytes other than zero, in whole pages. */
function* dataIn(block: Buffer): Generator<[from: number, to: number]> {
  if (block.equals(ZEROS.subarray(0, block.length))) return;
  let from = -1;
  for (let at = 0; at < block.length; at += PAGE_BYTES) {
    const page = block.subarray(at, at + PAGE_BYTES);
    const isHole = page.equals(ZEROS.subarray(0, page.length));
    if (!isHole && from === -1) from = at;
    if (isHole && from !== -1) {
      yield [from, at];
      from = -1;
    }
  }
  if (from !== -1) yield [from, block.length];
}

async function writeFully(file: FileHandle, bytes: Buffer, at: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    done += (await file.write(bytes, done, bytes.length - done, at + done)).bytesWritten;
  }
}

/** Whether a file, if it is there and can be read, has the source's bytes. */
async function isEqualTo(
  path: string, source: FileHandle, { size }: BigIntStats, options: CopyOptions,
): Promise<boolean> {
  const other = await openToRead(path).catch(() => undefined);
  try {
    return other !== undefined && (await other.stat({ bigint: true })).size === size &&
      await compare(source, other, Number(size), options);
  } finally {
    await other?.close();
  }
}

async function compare(
  source: FileHandle, other: FileHandle, bytes: number, { signal, progress }: CopyOptions,
): Promise<boolean> {
  const buffer = Buffer.allocUnsafe(Math.min(bytes, BLOCK_BYTES));
  let equalBytes = 0;
  for await (const { block, at } of blocksOf(source, bytes, signal)) {
    if (!block.equals(await readFully(other, buffer.subarray(0, block.length), at))) return false;
    equalBytes = at + block.length;
    progress?.('comparing', equalBytes, bytes);
  }
  return equalBytes === bytes;
}

function isOfSystem(error: unknown): boolean {
  return (error as NodeJS.ErrnoException).syscall !== undefined;
}

function isOfWriting(error: unknown): boolean {
  return isOfSystem(error) && (error as NodeJS.ErrnoException).syscall !== 'read';
}

function unwritable(folder: string, cause: unknown): Error {
  return new Error(`Cannot write a copy into ${JSON.stringify(folder)}: ${reasonOf(cause)}`,
    { cause });
}
