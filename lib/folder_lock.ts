/**
 * One owner a folder. The lock is a file that names its owner; an owner that ended without releasing
 * it, by `kill -9` or loss of power, is found dead and succeeded.
 *
 * Node offers no `flock`, so this rests on what link(2) and rename(2) promise, in this order:
 * 1. The file is written whole under a name of its own, then linked to the lock's name, which fails
 *    where there is one already. So a lock is never seen half-written by its maker's crash.
 * 2. To succeed a dead owner D, one links its own file to `<lock>.after.<id of D>`: one wins. It
 *    looks again whether D's lock is still in place, then renames its own over it.
 *
 * Why two cannot both win: a claim on D goes only after D's lock was replaced, ids are random and do
 * not come back. So who links a claim on D and still finds D in place is D's only successor, and
 * until it acts nobody else changes the lock. If it dies before, it is succeeded in the same way.
 *
 * It guards against processes of the same machine and, in containers, of the same pid namespace.
 */
import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import * as fs from 'node:fs/promises';
import { join } from 'node:path';
import { openPlainFile } from './plain_file.ts';

export interface FolderLock {
  /** False: its file is gone or another's, as after the folder was moved away by hand. */
  isInPlace(): Promise<boolean>;
  /** Removes the lock's file. Once only; a second call does nothing. */
  release(): Promise<void>;
}

interface Owner {
  pid: number;
  /** `<boot>/<ticks since then>`; empty where the system doesn't tell. */
  started: string;
  id: string;
}

const MOST_TRIES = 100; // each but the last was overtaken by another that took or released it
const MOST_BYTES = 4_096;

/**
 * Takes a folder for this process, or fails at once: it does not wait.
 *
 * @param options.name The lock file's name in the folder. Default `.lock`.
 * @throws {Error} A live process holds it, this one included; the message names pid and folder. What
 *   lies at the lock's name is no file, or a symbolic link. Or the system's, such as `EACCES`.
 */
export async function lockFolder(
  folder: string, { name = '.lock' }: { name?: string } = {},
): Promise<FolderLock> {
  const path = join(folder, name);
  const self: Owner = {
    pid: process.pid,
    started: await startOf(process.pid) ?? '',
    id: randomBytes(12).toString('hex'),
  };
  for (let tries = 0; tries < MOST_TRIES; tries++) {
    if (!await take(path, folder, self)) continue;
    await sweep(folder, name);
    const isInPlace = async (): Promise<boolean> => (await read(path))?.id === self.id;
    let isHeld = true;
    return {
      isInPlace,
      async release() {
        if (!isHeld) return;
        isHeld = false;
        if (await isInPlace()) await fs.unlink(path);
      },
    };
  }
  throw new Error(`Cannot lock "${folder}": others took and left it ${MOST_TRIES} times meanwhile. ` +
    'Try again');
}

/** False: someone else was quicker, and all is to be looked at anew. */
async function take(path: string, folder: string, self: Owner): Promise<boolean> {
  const own = `${path}.${self.id}.tmp`;
  await fs.writeFile(own, `${JSON.stringify(self)}\n`, { flag: 'wx' });
  try {
    if (await link(own, path)) return true;
    const line = await lineOfOwners(path);
    const last = line.at(-1);
    if (last === undefined) return false;
    if (await isAlive(last)) {
      const holder = last.pid === self.pid ? `this process (pid ${last.pid})` : `pid ${last.pid}`;
      throw new Error(`Cannot lock "${folder}": ${holder} holds it. Stop it, or take another folder`);
    }
    const claim = claimOn(path, last);
    if (!await link(own, claim)) return false;
    try {
      const now = await lineOfOwners(path);
      const isMine = [...line, self].every(({ id }, at) => id === now[at]?.id);
      if (isMine) await fs.rename(own, path);
      return isMine;
    } finally {
      await fs.rm(claim, { force: true }); // not before the rename: see the head of this file
    }
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return false; // swept by one that holds the lock by now
    throw error;
  } finally {
    await fs.rm(own, { force: true });
  }
}

/** Who has the lock, who claimed to succeed it, who claimed to succeed that one, … */
async function lineOfOwners(path: string): Promise<Owner[]> {
  const line: Owner[] = [];
  for (let owner = await read(path); owner !== undefined; owner = await read(claimOn(path, owner))) {
    line.push(owner);
  }
  return line;
}

function claimOn(path: string, { id }: Owner): string {
  return `${path}.after.${id}`;
}

async function link(from: string, to: string): Promise<boolean> {
  try {
    await fs.link(from, to);
    return true;
  } catch (error) {
    if (codeOf(error) === 'EEXIST') return false;
    throw error;
  }
}

/** Undefined: no such file. One that tells no owner was torn by a loss of power: of a dead one. */
async function read(path: string): Promise<Owner | undefined> {
  let file: fs.FileHandle;
  try {
    file = await openPlainFile(path, constants.O_RDONLY);
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return undefined;
    throw error;
  }
  try {
    const { ino, mtimeNs } = await file.stat({ bigint: true });
    const { buffer, bytesRead } = await file.read(Buffer.alloc(MOST_BYTES), 0, MOST_BYTES, 0);
    return parse(buffer.toString('utf8', 0, bytesRead)) ??
      { pid: 0, started: '', id: `torn-${ino}-${mtimeNs}` };
  } finally {
    await file.close();
  }
}

function parse(text: string): Owner | undefined {
  try {
    const { pid, started, id } = JSON.parse(text) as Partial<Owner>;
    const isOwner = Number.isSafeInteger(pid) && Number(pid) > 0 && typeof started === 'string' &&
      typeof id === 'string' && /^[\da-f]{24}$/.test(id);
    return isOwner ? { pid: Number(pid), started, id } : undefined;
  } catch {
    return undefined;
  }
}

async function isAlive({ pid, started }: Owner): Promise<boolean> {
  if (pid === 0) return false;
  try {
    process.kill(pid, 0);
  } catch (error) {
    if (codeOf(error) === 'ESRCH') return false; // EPERM: it lives, under another user
  }
  const now = await startOf(pid);
  return now === undefined || started === '' || now === started;
}

/**
 * When a process started, as text that no later one of the same pid has. Undefined where the system
 * doesn't tell. A process that ended but was not yet reaped has none of it: `ended`.
 *
 * @see proc_pid_stat(5): fields 3 (state), 20 (threads) and 22 (start).
 */
async function startOf(pid: number): Promise<string | undefined> {
  try {
    const [stat, boot] = await Promise.all([
      fs.readFile(`/proc/${pid}/stat`, 'latin1'),
      fs.readFile('/proc/sys/kernel/random/boot_id', 'latin1'),
    ]);
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' '); // the name may have blanks
    const [state = '', threads, ticks] = [fields[0], fields[17], fields[19]];
    // While a thread is left, it may still be within a write.
    if (/[ZX]/.test(state) && Number(threads) <= 1) return 'ended';
    return `${boot.trim()}/${ticks}`;
  } catch {
    return undefined;
  }
}

/** Removes what takers left behind that were killed. Who takes still starts anew. */
async function sweep(folder: string, name: string): Promise<void> {
  for (const left of await fs.readdir(folder)) {
    if (left.startsWith(`${name}.after.`) || (left.startsWith(`${name}.`) && left.endsWith('.tmp'))) {
      await fs.rm(join(folder, left), { force: true });
    }
  }
}

function codeOf(error: unknown): string | undefined {
  return (error as NodeJS.ErrnoException).code;
}
