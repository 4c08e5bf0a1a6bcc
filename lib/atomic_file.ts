/** Files that are there whole or not at all, through a crash and through a loss of power. */
import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { open, rename, unlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';

/**
 * Writes a file so that whoever opens it, at any moment and after any crash, finds the old content
 * or the new one. It has reached the disk, and so has its name, when this resolves.
 *
 * A symbolic link at `path` is replaced, not followed. A kill at the wrong moment may leave a file
 * `.tmp.<pid>.<random>` beside it, which nothing reads.
 *
 * @param options.mode Permissions of the new file, less the umask. Default 0o666. Those of a file
 *   that is replaced are not kept.
 * @throws {Error} The system's (`ENOSPC`, `EACCES`, …). The old content is untouched and no
 *   temporary file stays, unless it was the folder's own sync that failed: then the new content is
 *   in place, but may not outlast a loss of power.
 */
export async function writeFileAtomically(
  path: string, data: string | Uint8Array, { mode = 0o666 }: { mode?: number } = {},
): Promise<void> {
  const folder = dirname(path);
  const temporary = temporaryName(folder);
  const file = await open(temporary, 'wx', mode); // O_EXCL: never through a link that lies there
  try {
    try {
      await file.writeFile(data);
      await file.sync(); // before the rename: else a loss of power could leave the name, but no bytes
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await unlink(temporary).catch(() => {}); // the first error is the one to tell
    throw error;
  }
  await syncFolder(folder);
}

/** Makes what was created, renamed or removed in a folder outlast a loss of power. */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

/** A name that no other process and no other call takes: short, since the target's may be 255 long. */
export function temporaryName(folder: string): string {
  return join(folder, `.tmp.${process.pid}.${randomBytes(8).toString('hex')}`);
}
