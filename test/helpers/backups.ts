/** A backup server in a process of its own, with a source and a folder that are gone afterwards. */
import { createHash } from 'node:crypto';
import { lstatSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, isAbsolute, join } from 'node:path';
import { expect } from 'vitest';
import type { BackupOptions } from '../../services/backup.ts';
import type { ChildOptions } from './child.ts';
import { until } from './deadline.ts';
import { monitored, type Monitor, type MonitorOptions } from './monitor.ts';
import { RawClient, WAIT_MS } from './raw_client.ts';
import { ServerProcess } from './server_process.ts';

export const NONE = 'No backup found.';
const LOCK = '.portcall-backup.lock';
export const hashOf = (bytes: string | Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

/** What a test may set; the clock can't cross to the server's process. */
interface TrialOptions extends Omit<BackupOptions, 'clock' | 'folder' | 'source'> {
  /** The source's. Default `notes.txt`. */
  name?: string;
  /** What is in the source at first; undefined: there is none. Default `first`. */
  content?: string | Uint8Array | undefined;
  child?: ChildOptions;
  monitor?: MonitorOptions;
}

export class Trial {
  readonly root: string;
  readonly source: string;
  readonly folder: string;
  readonly #options: TrialOptions;
  #server: ServerProcess | undefined;

  constructor(options: TrialOptions = {}) {
    const { content = 'content' in options ? undefined : 'first' } = options;
    this.root = mkdtempSync(join(tmpdir(), 'portcall-backup-'));
    this.source = join(this.root, options.name ?? 'notes.txt');
    this.folder = join(this.root, 'backups');
    this.#options = options;
    if (content !== undefined) this.write(content);
  }

  /** Makes one, starts its server, does `task` under the standing monitor, and leaves nothing. */
  static async with<T>(options: TrialOptions, task: (trial: Trial, monitor: Monitor) => Promise<T>): Promise<T> {
    return Trial.alone(options, async (trial) => {
      await trial.start();
      return monitored(trial.server, options.monitor ?? {}, (monitor) => task(trial, monitor));
    });
  }

  /** As `with`, but neither server nor monitor is there yet. */
  static async alone<T>(options: TrialOptions, task: (trial: Trial) => Promise<T>): Promise<T> {
    const trial = new Trial(options);
    try {
      return await task(trial);
    } finally {
      await trial.#server?.kill();
      rmSync(trial.root, { recursive: true, force: true });
    }
  }

  get server(): ServerProcess {
    if (this.#server === undefined) throw new Error('Cannot ask a server that was not started');
    return this.#server;
  }

  /** Starts a server, the next one if there was one. */
  async start(more: Partial<BackupOptions> = {}): Promise<ServerProcess> {
    const { name: _name, content: _content, child = {}, monitor: _monitor, ...options } = this.#options;
    const all = { everyMs: 3_600_000, ...options, source: this.source, folder: this.folder, ...more };
    const service = { file: 'backup.ts', create: 'createBackup', options: all };
    return this.#server = await ServerProcess.start({ callback: 'never', service, signals: true }, child);
  }

  write(content: string | Uint8Array, file = this.source): void {
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, content);
  }

  /** Over lines, on a connection of its own. */
  ask(message: string, ms = WAIT_MS): Promise<string> {
    return RawClient.with(this.server.port, async (client) => {
      await client.write(`${message}\n`);
      return client.readLine(ms, `the reply to "${message}"`);
    });
  }

  async status(): Promise<Record<string, unknown>> {
    return JSON.parse(await this.ask('status')) as Record<string, unknown>;
  }

  /** The bytes of what `revert` answers, which must be a good backup; undefined: there is none. */
  async revert(): Promise<Buffer | undefined> {
    const path = await this.ask('revert');
    return path === NONE ? undefined : this.good(path);
  }

  /** Checks a path that was answered: absolute, a plain file in the folder, with the hash in its name. */
  good(path: string): Buffer {
    expect(isAbsolute(path), path).toBe(true);
    expect(dirname(path)).toBe(this.folder);
    expect(lstatSync(path).isFile(), path).toBe(true);
    const bytes = readFileSync(path);
    expect(path).toContain(hashOf(bytes));
    return bytes;
  }

  /** Awaits a backup of these bytes. */
  async backedUp(content: string, ms: number): Promise<void> {
    await until(async () => (await this.revert())?.toString() === content, ms, `a backup of "${content}"`);
  }

  /** What is in the folder beside the lock, sorted. */
  files(): string[] {
    return readdirSync(this.folder).filter((name) => name !== LOCK).sort();
  }
}
