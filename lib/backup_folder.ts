/** A folder of backups of one source: which there are, which of them are good, which may go. */
import { readdirSync } from 'node:fs';
import { lstat, mkdir, readdir, rm, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { syncFolder } from './atomic_file.ts';
import { namesFor, type BackupName, type BackupNames } from './backup_name.ts';
import { lockFolder, type FolderLock } from './folder_lock.ts';
import { hashOf, identityOf, openToRead, reasonOf } from './untrusted_file.ts';
import { retained, type Keep } from './retention.ts';
import { isTemporary } from './verified_copy.ts';

export interface Backup extends BackupName {
  path: string;
  /** Its name in the folder. */
  name: string;
}

export interface GoodBackup extends Backup { bytes: number }

/** What was found out about a file, and holds as long as it has this identity. */
interface Verdict { identity: string; isGood: boolean | Promise<boolean | undefined> }

const LOCK = '.portcall-backup.lock';

export class BackupFolder {
  readonly path: string;
  readonly #names: BackupNames;
  readonly #lock: FolderLock;
  readonly #signal: AbortSignal;
  readonly #verdicts = new Map<string, Verdict>();

  private constructor(path: string, source: string, signal: AbortSignal, lock: FolderLock) {
    this.path = path;
    this.#names = namesFor(source);
    this.#signal = signal;
    this.#lock = lock;
  }

  /**
   * Makes the folder if need be, for its owner alone; locks it; removes what a killed owner left.
   *
   * @param path An absolute path, as `source` is.
   * @param signal Ends readings that go on.
   * @throws {Error} Another process holds the folder: its pid is told. Or it can't be made or read.
   */
  static async open(path: string, source: string, signal: AbortSignal): Promise<BackupFolder> {
    let lock: FolderLock | undefined;
    try {
      await mkdir(path, { recursive: true, mode: 0o700 });
      lock = await lockFolder(path, { name: LOCK });
      for (const name of await readdir(path)) {
        // A folder of such a name is no copy of ours, and stays.
        if (isTemporary(name)) await unlink(join(path, name)).catch(() => {});
      }
      return new BackupFolder(path, source, signal, lock);
    } catch (cause) {
      await lock?.release();
      const { syscall, message } = cause as NodeJS.ErrnoException;
      throw new Error(syscall === undefined ? message
        : `Cannot keep backups in ${JSON.stringify(path)}: ${reasonOf(cause)}`, { cause });
    }
  }

  /** Lets the folder go. */
  close(): Promise<void> {
    return this.#lock.release();
  }

  /**
   * Before anything is written: the folder may have been moved or removed by hand, and another be
   * there by now.
   *
   * @throws {Error} It is no longer this one's.
   */
  async expectOwned(): Promise<void> {
    if (await this.#lock.isInPlace()) return;
    throw new Error(`Cannot write into ${JSON.stringify(this.path)}: its lock is gone, as after ` +
      'the folder was moved. Start again');
  }

  /** The name for a backup that is made now: greater than all that are there. */
  nextName(sha256: string, atMs: number): string {
    // At once, so that it stands in the line that renames: names come one by one under the lock.
    const orders = this.#parse(readdirSync(this.path)).map(({ order }) => order);
    return this.#names.format({ order: 1 + Math.max(0, ...orders), atMs, sha256 });
  }

  /** Notes that a file is good, from who made it. */
  vouchFor(name: string, identity: string): void {
    this.#verdicts.set(name, { identity, isGood: true });
  }

  /** Those that are there, the newest first, good or not. */
  async all(): Promise<Backup[]> {
    const found = await readdir(this.path).catch((cause: NodeJS.ErrnoException) => {
      if (cause.code === 'ENOENT') return []; // with all that was in it
      throw new Error(`Cannot read ${JSON.stringify(this.path)}: ${reasonOf(cause)}`, { cause });
    });
    const backups = this.#parse(found);
    const names = new Set(backups.map(({ name }) => name));
    for (const name of this.#verdicts.keys()) if (!names.has(name)) this.#verdicts.delete(name);
    return backups.sort((a, b) => b.order - a.order);
  }

  /** The newest that is good. */
  async newest(): Promise<GoodBackup | undefined> {
    for (const backup of await this.all()) {
      const good = await this.#ifGood(backup);
      if (good !== undefined) return good;
    }
    return undefined;
  }

  /** Those that are good, the newest first, `most` at most. */
  async good(most: number): Promise<GoodBackup[]> {
    const found: GoodBackup[] = [];
    for (const backup of await this.all()) {
      if (found.length === most) break;
      const good = await this.#ifGood(backup);
      if (good !== undefined) found.push(good);
    }
    return found;
  }

  /** Those known not to be what their names say. */
  async bad(): Promise<Backup[]> {
    return (await this.all()).filter(({ name }) => this.#verdicts.get(name)?.isGood === false);
  }

  /** Reads all of them, known or not. */
  async verify(): Promise<{ checked: number; bad: Backup[] }> {
    const bad: Backup[] = [];
    let checked = 0;
    for (const backup of await this.all()) {
      const stat = await plainStat(backup.path);
      if (stat === undefined) continue;
      const identity = identityOf(stat);
      const isGood = await this.#read(backup, identity);
      if (isGood !== undefined) this.#verdicts.set(backup.name, { identity, isGood });
      checked++;
      if (isGood !== true) bad.push(backup);
    }
    return { checked, bad };
  }

  /**
   * Removes what is not to be kept. To be called when the newest good one was just seen: it stays,
   * whatever `keep` says. Bad ones don't count, and go with the good ones of their age.
   *
   * @throws {Error} One can't be removed.
   */
  async prune(keep: Keep): Promise<void> {
    const all = await this.all();
    const isBad = ({ name }: Backup): boolean => this.#verdicts.get(name)?.isGood === false;
    const kept = retained(all.filter((backup) => !isBad(backup)), keep);
    const oldest = Math.min(...[...kept].map(({ order }) => order));
    const gone = all.filter((backup) =>
      (isBad(backup) ? backup.order < oldest : !kept.has(backup)));
    try {
      for (const { path } of gone) await rm(path, { force: true });
      if (gone.length > 0) await syncFolder(this.path);
    } catch (cause) {
      throw new Error(`Cannot remove an old backup from ${JSON.stringify(this.path)}: ` +
        reasonOf(cause), { cause });
    }
  }

  #parse(names: readonly string[]): Backup[] {
    return names.flatMap((name) => {
      const facts = this.#names.parse(name);
      return facts === undefined ? [] : [{ ...facts, name, path: join(this.path, name) }];
    });
  }

  async #ifGood(backup: Backup): Promise<GoodBackup | undefined> {
    const stat = await plainStat(backup.path);
    if (stat === undefined) return undefined;
    const identity = identityOf(stat);
    let verdict = this.#verdicts.get(backup.name);
    if (verdict?.identity !== identity) {
      // Whoever asks meanwhile shares it.
      verdict = { identity, isGood: this.#read(backup, identity) };
      this.#verdicts.set(backup.name, verdict);
      const isGood = await verdict.isGood;
      if (isGood !== undefined) verdict.isGood = isGood;
      else if (this.#verdicts.get(backup.name) === verdict) this.#verdicts.delete(backup.name);
    }
    return await verdict.isGood ? { ...backup, bytes: Number(stat.size) } : undefined;
  }

  /**
   * Whether a file has the hash that its name says, and was one and the same all the while.
   * Undefined: it can't be read now, for which it may not be to blame.
   */
  async #read({ path, sha256 }: Backup, identity: string): Promise<boolean | undefined> {
    const file = await openToRead(path).catch(() => undefined);
    try {
      const before = await file?.stat({ bigint: true });
      if (file === undefined || before === undefined) return undefined;
      return await hashOf(file, Number(before.size), this.#signal) === sha256 &&
        [before, await file.stat({ bigint: true })].every((stat) => identityOf(stat) === identity);
    } catch {
      this.#signal.throwIfAborted();
      return undefined;
    } finally {
      await file?.close();
    }
  }
}

/** Undefined: there is nothing, or no plain file; a symbolic link is none. */
async function plainStat(path: string) {
  const stat = await lstat(path, { bigint: true }).catch(() => undefined);
  return stat?.isFile() ? stat : undefined;
}
