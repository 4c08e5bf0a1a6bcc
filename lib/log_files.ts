/** Where log lines go: into files that rotate, or to a logger that is there already. */
import * as fs from 'node:fs';
import { basename, dirname, extname, join } from 'node:path';
import { logToStderr, oneLine, positive, quoted, textOf, type Log } from './micro_client.ts';

export interface LogFilesOptions {
  maxBytes?: number; // of a file; past it, and at each day's end (UTC), the next begins; default 10 MB
  maxDays?: number; // after which a full file is deleted; default 7
  maxFiles?: number; // full files that are kept; past it the oldest is deleted; default 100
  now?: () => number; // milliseconds since 1970; for tests
}

/** What has these three methods: `console`, a pino. */
export type Logger = Record<'info' | 'warn' | 'error', (text: string) => void>;

const DAY_MS = 86_400_000;

/**
 * A log option that hands each text to a logger: `{ log: toLog(pino()) }`. The text is one line,
 * without control characters. What the logger throws goes to stderr, and harms nobody.
 *
 * @throws {TypeError} It lacks one of the methods.
 */
export function toLog(logger: Logger): Log {
  for (const level of ['info', 'warn', 'error'] as const) {
    if (typeof logger?.[level] === 'function') continue;
    throw new TypeError(`Cannot log to ${quoted(logger)}: expected its method ${level}, as of console`);
  }
  return (level, text) => {
    try {
      logger[level](oneLine(text));
    } catch (error) {
      logToStderr('error', `Cannot log "${text}": ${textOf(error)}`);
    }
  };
}

/**
 * Appends lines to `path`, each written before `log` returns: the last line before a crash is there.
 * A full file becomes `name.2025-11-11T19-04-12-123Z.log`. A path belongs to one process.
 *
 * Where a line can't be written, the disk being full, it is dropped and counted; the first that can
 * tells how many were.
 *
 * @example
 * const files = new LogFiles('logs/router.log');
 * new MicroServer(callback, 'LIFE_GEN', { log: files.log });
 */
export class LogFiles {
  /** Lines that could not be written so far. */
  dropped = 0;
  readonly #path: string;
  readonly #options: Required<LogFilesOptions>;
  #fd: number | undefined;
  #bytes = 0; #day = ''; // of the file under way
  #isTorn = false; // it ends amid a line
  #untold = 0; // of those dropped

  /**
   * @throws {Error} The file can't be opened.
   * @throws {TypeError | RangeError} Wrong options.
   */
  constructor(path: string, options: LogFilesOptions = {}) {
    this.#path = path;
    this.#options = {
      maxBytes: positive(options, 'maxBytes', 10_000_000),
      maxDays: positive(options, 'maxDays', 7),
      maxFiles: positive(options, 'maxFiles', 100),
      now: options.now ?? Date.now,
    };
    try {
      fs.mkdirSync(dirname(path), { recursive: true });
      this.#open();
    } catch (cause) {
      const why = `${textOf(cause)}. Make its folder writable, or log elsewhere`;
      throw new Error(`Cannot log to "${path}": ${why}`, { cause });
    }
    this.#sweep();
  }

  /** For the `log` option of clients, servers and routers. */
  readonly log: Log = (level, text) => {
    const at = new Date(this.#options.now()).toISOString();
    const line = (what: string, said: string) => `${at} ${what} ${oneLine(said)}\n`;
    const behind = this.#untold > 0 ? line('warn', `${this.#untold} lines could not be logged`) : '';
    try {
      const bytes = Buffer.from(`${this.#isTorn ? '\n' : ''}${behind}${line(level, text)}`);
      this.#rotate(at.slice(0, 10), bytes.length);
      this.#append(bytes);
      this.#untold = 0;
    } catch {
      this.dropped++;
      this.#untold++;
    }
  };

  /** Closes the file. A later line opens it again. */
  close(): void {
    if (this.#fd !== undefined) fs.closeSync(this.#fd);
    this.#fd = undefined;
  }

  #open(): number {
    const fd = fs.openSync(this.#path, 'a', 0o640);
    const { size, mtimeMs } = fs.fstatSync(fd);
    this.#bytes = size;
    this.#day = new Date(size > 0 ? mtimeMs : this.#options.now()).toISOString().slice(0, 10);
    return this.#fd = fd;
  }

  #append(bytes: Buffer): void {
    const fd = this.#fd ?? this.#open();
    const written = fs.writeSync(fd, bytes); // less than all, where the disk is full from there on
    this.#bytes += written;
    this.#isTorn = bytes[written - 1] !== 10;
    if (written < bytes.length) throw new Error('the disk is full');
  }

  /** Begins a new file where the line won't fit, or another day has come. */
  #rotate(day: string, bytes: number): void {
    if (this.#fd === undefined) this.#open();
    const isFull = this.#bytes + bytes > this.#options.maxBytes || this.#day !== day;
    if (!isFull || this.#bytes === 0) {
      this.#day = day;
      return;
    }
    this.close();
    fs.renameSync(this.#path, this.#nameOfFull());
    this.#isTorn = false;
    this.#open();
    this.#sweep();
  }

  #nameOfFull(): string {
    const [stem, extension] = this.#words();
    for (let at = this.#options.now(); ; at++) { // two within a millisecond must not be one
      const stamp = new Date(at).toISOString().replaceAll(/[:.]/g, '-');
      const name = join(dirname(this.#path), `${stem}.${stamp}${extension}`);
      if (!fs.existsSync(name)) return name;
    }
  }

  #words(): [stem: string, extension: string] {
    const extension = extname(this.#path);
    return [basename(this.#path, extension), extension];
  }

  /** Deletes full files that are too old or too many. */
  #sweep(): void {
    const [stem, extension] = this.#words();
    const oldest = new Date(this.#options.now() - this.#options.maxDays * DAY_MS).toISOString();
    const stampOf = (name: string): string | undefined => {
      const isOurs = name.startsWith(`${stem}.`) && name.endsWith(extension);
      const stamp = name.slice(stem.length + 1, extension === '' ? undefined : -extension.length);
      return isOurs && /^\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d-\d{3}Z$/.test(stamp) ? stamp : undefined;
    };
    const folder = dirname(this.#path);
    try {
      const full = fs.readdirSync(folder).filter((name) => stampOf(name) !== undefined).sort().reverse();
      for (const [at, name] of full.entries()) {
        const isKept = at < this.#options.maxFiles &&
          (stampOf(name) as string) > oldest.replaceAll(/[:.]/g, '-');
        if (!isKept) fs.rmSync(join(folder, name), { force: true });
      }
    } catch (error) { // the next sweep tries again; a log must not end what it tells of
      logToStderr('warn', `Cannot delete old logs in "${folder}": ${textOf(error)}`);
    }
  }
}
