/**
 * Reads plain files of which nothing is trusted: what lies at a path may be a folder, a pipe, a
 * device or a link somewhere else, and may change while it is read.
 */
import { createHash } from 'node:crypto';
import { constants, type BigIntStats } from 'node:fs';
import { open, stat as statOf, type FileHandle } from 'node:fs/promises';
import { getSystemErrorMap } from 'node:util';

/** What is read at a time: 1 ms of hashing or so, which is how long others wait for the thread. */
export const BLOCK_BYTES = 1024 * 1024;

/**
 * Opens a plain file for reading; never waits, and never touches what is no plain file.
 *
 * @param options.follow Whether a symbolic link at `path` is followed. Default false.
 * @throws {Error} `Cannot open "…": …` in one sentence, with the system's error as its `cause`.
 */
export async function openToRead(
  path: string, { follow = false }: { follow?: boolean } = {},
): Promise<FileHandle> {
  const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK, O_NOCTTY } = constants;
  let file: FileHandle | undefined;
  try {
    // Opening a device may act on it, so it is looked at before. In between it may become a pipe,
    // at which O_NONBLOCK does not wait, and so it is looked at behind as well.
    if (follow) refuseOther(await statOf(path));
    file = await open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | (follow ? 0 : O_NOFOLLOW));
    refuseOther(await file.stat());
    return file;
  } catch (cause) {
    await file?.close();
    throw new Error(`Cannot open ${JSON.stringify(path)}: ${reasonOf(cause)}`, { cause });
  }
}

function refuseOther(stat: Parameters<typeof kindOf>[0]): void {
  const kind = kindOf(stat);
  if (kind !== 'a plain file') throw new Error(`it is ${kind}, expected a plain file`);
}

/** In words, for an error. */
export function kindOf(
  stat: Pick<BigIntStats, 'isFile' | 'isDirectory' | 'isFIFO' | 'isSocket'>,
): string {
  return stat.isFile() ? 'a plain file' : stat.isDirectory() ? 'a folder' : stat.isFIFO() ? 'a pipe'
    : stat.isSocket() ? 'a socket' : 'a device';
}

/** The system's words for what it refused, such as `no space left on device`; else the message. */
export function reasonOf(error: unknown): string {
  const { errno, code, message } = error as NodeJS.ErrnoException;
  if (code === 'ELOOP') return 'it is a symbolic link, or too many of them';
  return getSystemErrorMap().get(errno ?? 0)?.[1] ?? message;
}

/**
 * Equal as long as neither content nor kind was touched: any write changes a time in it. Only a
 * write within one tick of the last one, or through a map of the file in memory, may not.
 */
export function identityOf({ dev, ino, size, mtimeNs, ctimeNs }: BigIntStats): string {
  return [dev, ino, size, mtimeNs, ctimeNs].join(':');
}

/** The first `bytes` of a file, less if it ends before. A block is lent until the next is asked. */
export async function* blocksOf(
  file: FileHandle, bytes: number, signal?: AbortSignal,
): AsyncGenerator<{ block: Buffer; at: number }, void> {
  const buffer = Buffer.allocUnsafe(Math.min(bytes, BLOCK_BYTES));
  for (let at = 0; at < bytes;) {
    signal?.throwIfAborted();
    const { bytesRead } = await file.read(buffer, 0, Math.min(buffer.length, bytes - at), at);
    if (bytesRead === 0) return;
    yield { block: buffer.subarray(0, bytesRead), at };
    at += bytesRead;
  }
}

/** SHA-256 of the first `bytes` of a file, in hex. */
export async function hashOf(
  file: FileHandle, bytes: number, signal?: AbortSignal,
): Promise<string> {
  const hash = createHash('sha256');
  for await (const { block } of blocksOf(file, bytes, signal)) hash.update(block);
  return hash.digest('hex');
}

/** Fills `buffer` from a place in a file; gives what there was. */
export async function readFully(file: FileHandle, buffer: Buffer, at: number): Promise<Buffer> {
  let filled = 0;
  while (filled < buffer.length) {
    const { bytesRead } = await file.read(buffer, filled, buffer.length - filled, at + filled);
    if (bytesRead === 0) break;
    filled += bytesRead;
  }
  return buffer.subarray(0, filled);
}
