/** Opening what must be a file: not a link that leads elsewhere, nor a pipe that never answers. */
import { constants } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';

/**
 * Opens a file, whatever was planted at its name.
 *
 * @param flags Of `fs.constants`: `O_RDONLY`, `O_RDWR | O_CREAT`, …
 * @throws {Error} It is a symbolic link, a folder, a pipe: in one line. Or the system's (`ENOENT`, …).
 */
export async function openPlainFile(path: string, flags: number): Promise<FileHandle> {
  let file: FileHandle;
  try {
    file = await open(path, flags | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw code === 'ELOOP' || code === 'EISDIR' || code === 'ENXIO' ? noFile(path, error) : error;
  }
  try {
    if ((await file.stat()).isFile()) return file;
  } catch (error) {
    await file.close();
    throw error;
  }
  await file.close();
  throw noFile(path);
}

function noFile(path: string, cause?: unknown): Error {
  return new Error(`Cannot open "${path}": it is a link, a folder or a pipe, expected a plain file. ` +
    'Remove it', { cause });
}
