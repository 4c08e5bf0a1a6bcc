/** BACKUP: copies a file every so often, and tells the path of the latest copy that is good. */
import { statSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import type { Context, Service } from '../lib/index.ts';
import { raw } from '../lib/dialects/raw.ts';
import { BackupFolder, type Backup, type GoodBackup } from '../lib/backup_folder.ts';
import { OneAtATime } from '../lib/one_at_a_time.ts';
import { checkKeep, type Keep } from '../lib/retention.ts';
import { Schedule, type Clock } from '../lib/schedule.ts';
import { identityOf, kindOf, openToRead } from '../lib/untrusted_file.ts';
import { copyVerified } from '../lib/verified_copy.ts';

export interface BackupOptions {
  /** The file. It may be missing, then it is waited for. A symbolic link stands for its target. */
  source: string;
  /** Milliseconds between two copies, from 1 up. Default 60,000. */
  everyMs?: number;
  /** Where the backups go; made if need be. One service a folder. Default `backups`. */
  folder?: string;
  /** How many, or how many of which age. Default 10. */
  keep?: Keep;
  /** The first copy now, not one interval after the first client came. Default false. */
  startAtOnce?: boolean;
  /** How long a source must have been left alone before it is copied. Default 100. */
  settleMs?: number;
  /** When to give up one that is never left alone, from the asking. Default 8,000. */
  patienceMs?: number;
  clock?: Clock;
}

export interface BackupService extends Service {
  /**
   * Settles once the folder is this service's own. Rejects where it can't be: another process holds
   * it, it can't be written, …; then every message gets that error too.
   */
  readonly ready: Promise<void>;
}

type Outcome = 'made' | 'unchanged' | Error;

/** Past it `list` and `verify` name the newest only: a reply has a limit. */
const MOST_TOLD = 1_000;
const MOST_QUOTED = 200;
/** A tick of a file's times is 4 or 10 ms; a busy program may rest for 20 in mid-work. */
const SETTLE_MS = 100;
/** From the asking on: leaves 2 s of the 10 that an answer may take to the last try. */
const PATIENCE_MS = 8_000;

/**
 * `revert` → the absolute path of the latest good backup, or `No backup found.`; `backup` → makes
 * one now, `Backup completed`; `list`, `status`, `verify` → JSON; `exit` closes the connection. The
 * first letter may be a capital. It serves once: what was stopped stays so. A `backup` that takes
 * longer than the server waits is answered `TIMEOUT` and goes on; `status` tells how far it is.
 *
 * A backup is good if it was copied whole, from a source that stood still meanwhile, and still has
 * the hash in its name. Whoever may write to the folder can put a file there by that rule.
 *
 * @throws {RangeError | TypeError} Wrong options.
 * @throws {Error} What is at `source` is no plain file.
 */
export function createBackup(options: BackupOptions): BackupService {
  const engine = new BackupEngine(options);
  const commands: Readonly<Record<string, (context: Context) => Promise<string> | null>> = {
    revert: async () => (await engine.newest())?.path ?? 'No backup found.',
    async backup() {
      const outcome = await engine.backUp();
      return outcome instanceof Error ? `Backup failed: ${outcome.message}` : 'Backup completed';
    },
    list: async () => JSON.stringify((await engine.good()).map(told)),
    status: async () => JSON.stringify(await engine.status()),
    verify: async () => JSON.stringify(await engine.verify()),
    exit(context) {
      context.close();
      return null;
    },
  };
  const byMessage = new Map(Object.entries(commands).flatMap(([name, command]) =>
    [name, `${name[0]?.toUpperCase()}${name.slice(1)}`].map((word) => [word, command] as const)));
  return {
    dialects: [raw({ words: [...byMessage.keys()] })],
    contract: {
      summary: 'Backs up a file and tells the path of the latest good backup.',
      messages: {
        revert: { example: 'revert', reply: 'No backup found.' },
        backup: { example: 'backup', reply: 'Backup completed' },
        list: { example: 'list', reply: '[]' },
        verify: { example: 'verify', reply: '{"checked":0,"good":0,"bad":[]}' },
        unknown: { example: 'undo', reply: "Invalid request command 'undo' sent." },
      },
    },
    ready: engine.ready,
    callback(message, context) {
      const command = byMessage.get(message);
      if (command !== undefined) return command(context);
      return `Invalid request command '${shortened(message)}' sent.`;
    },
    connected: () => engine.start(),
    stop: () => engine.stop(),
  };
}

/** One copy at a time, on a schedule and on demand. */
class BackupEngine {
  readonly ready: Promise<void>;
  readonly #source: string;
  readonly #path: string;
  readonly #keep: Keep;
  readonly #everyMs: number;
  readonly #settleMs: number;
  readonly #patienceMs: number;
  readonly #clock: Clock | undefined;
  readonly #folder: Promise<BackupFolder>;
  readonly #schedule: Schedule;
  readonly #stopped = new AbortController();
  readonly #copies = new OneAtATime((askedAt) => this.#run(askedAt));
  readonly #checks = new OneAtATime(async () => (await this.#folder).verify());
  #progress: { phase: 'copying' | 'comparing'; bytes: number; of: number } | undefined;
  #runs = 0;
  #last: { at: string; outcome: 'made' | 'unchanged' | 'failed'; error?: string } | undefined;
  /** The source when it was found to be this backup's. */
  #known: { identity: string; name: string } | undefined;

  constructor(options: BackupOptions) {
    const { source, everyMs = 60_000, folder = 'backups', keep = 10 } = options;
    const { settleMs = SETTLE_MS, patienceMs = PATIENCE_MS } = options;
    if (typeof source !== 'string' || source === '') {
      throw new TypeError('Cannot back up: expected the option source, the path of a file');
    }
    expectMs('every', everyMs);
    expectMs('with settleMs', settleMs);
    expectMs('with patienceMs', patienceMs);
    checkKeep(keep);
    this.#source = resolve(source);
    this.#path = resolve(folder);
    this.#keep = keep;
    this.#everyMs = everyMs;
    this.#settleMs = settleMs;
    this.#patienceMs = patienceMs;
    this.#clock = options.clock;
    refuseOther(this.#source);
    this.#schedule = new Schedule({ everyMs, task: () => this.#copies.running ?? this.backUp(),
      ...(options.clock && { clock: options.clock }) });
    this.#folder = BackupFolder.open(this.#path, this.#source, this.#stopped.signal);
    this.ready = this.#folder.then(() => {});
    this.ready.catch(() => {}); // told to whoever awaits it, and to each client
    if (options.startAtOnce === true) this.#schedule.start({ atOnce: true });
  }

  start(): void {
    this.#schedule.start();
  }

  /** Ends a copy that goes on, leaving nothing of it, and lets the folder go. */
  async stop(): Promise<void> {
    this.#schedule.stop();
    this.#stopped.abort(new Error('Cannot go on: the service stops'));
    await Promise.all([this.#copies.ended(), this.#checks.ended()]);
    await this.#folder.then((folder) => folder.close(), () => {});
  }

  /** Backs up what the source is from now on. Never rejects. */
  backUp(): Promise<Outcome> {
    return this.#copies.run();
  }

  async newest(): Promise<GoodBackup | undefined> {
    return (await this.#folder).newest();
  }

  async good(): Promise<GoodBackup[]> {
    return (await this.#folder).good(MOST_TOLD);
  }

  async verify(): Promise<{ checked: number; good: number; bad: string[] }> {
    const { checked, bad } = await this.#checks.run();
    return { checked, good: checked - bad.length, bad: pathsOf(bad) };
  }

  async status(): Promise<object> {
    const folder = await this.#folder;
    const latest = await folder.newest();
    const { nextAtMs } = this.#schedule;
    return {
      source: this.#source, folder: this.#path, everyMs: this.#everyMs, keep: this.#keep,
      trouble: await troubleWith(this.#source),
      doing: this.#copies.running !== undefined ? 'copying'
        : nextAtMs === undefined ? 'waiting for a client' : 'waiting',
      progress: this.#progress ?? null,
      nextAt: nextAtMs === undefined ? null : timeOf(nextAtMs),
      runs: this.#runs,
      last: this.#last ?? null,
      latest: latest === undefined ? null : told(latest),
      backups: (await folder.all()).length,
      bad: pathsOf(await folder.bad()),
    };
  }

  async #run(askedAt: number): Promise<Outcome> {
    const atMs = this.#clock?.wallMs() ?? Date.now();
    const outcome = await this.#copy(askedAt, atMs).catch((error: Error): Outcome => error);
    const isFailed = outcome instanceof Error;
    const trouble = isFailed ? outcome : await this.#prune();
    this.#runs++;
    this.#last = { at: timeOf(atMs), outcome: isFailed ? 'failed' : outcome,
      ...(trouble && { error: trouble.message }) };
    this.#progress = undefined;
    return outcome;
  }

  async #copy(askedAt: number, atMs: number): Promise<'made' | 'unchanged'> {
    const folder = await this.#folder;
    await folder.expectOwned();
    const latest = await folder.newest();
    if (latest !== undefined && latest.name === this.#known?.name) {
      const now = await stat(this.#source, { bigint: true }).catch(() => undefined);
      if (now !== undefined && identityOf(now) === this.#known.identity) return 'unchanged';
    }
    this.#known = undefined;
    const { copy, sourceIdentity } = await copyVerified(this.#source, this.#path, {
      nameOf: (sha256) => folder.nextName(sha256, atMs),
      unless: latest?.path,
      settleMs: this.#settleMs,
      giveUpAt: askedAt + this.#patienceMs,
      signal: this.#stopped.signal,
      progress: (phase, bytes, of) => { this.#progress = { phase, bytes, of }; },
    });
    if (copy !== undefined) folder.vouchFor(copy.name, copy.identity);
    const name = copy?.name ?? latest?.name;
    if (sourceIdentity !== undefined && name !== undefined) {
      this.#known = { identity: sourceIdentity, name };
    }
    return copy === undefined ? 'unchanged' : 'made';
  }

  /** What is too old and stays is no reason to call a backup failed. */
  async #prune(): Promise<Error | undefined> {
    return (await this.#folder).prune(this.#keep).then(() => undefined, (error: Error) => error);
  }
}

function expectMs(what: string, ms: unknown): void {
  if (Number.isFinite(ms) && Number(ms) >= 1) return;
  const unit = what === 'every' ? ' ms' : '';
  throw new RangeError(`Cannot back up ${what} ${ms}${unit}: expected milliseconds from 1 up`);
}

/** What is there and can't be a source is told at the start; what is missing may yet come. */
function refuseOther(source: string): void {
  let kind: string;
  try {
    kind = kindOf(statSync(source, { bigint: true }));
  } catch {
    return;
  }
  if (kind !== 'a plain file') {
    const name = JSON.stringify(source);
    throw new Error(`Cannot back up ${name}: it is ${kind}, expected a plain file`);
  }
}

/** Why a source can't be read now, if it can't. */
async function troubleWith(source: string): Promise<string | null> {
  try {
    await (await openToRead(source, { follow: true })).close();
    return null;
  } catch (error) {
    return (error as Error).message;
  }
}

function told({ path, bytes, sha256, atMs }: GoodBackup): object {
  return { path, bytes, sha256, at: timeOf(atMs) };
}

function pathsOf(backups: readonly Backup[]): string[] {
  return backups.slice(0, MOST_TOLD).map(({ path }) => path);
}

function timeOf(ms: number): string {
  return new Date(ms).toISOString();
}

/** Without half a surrogate pair at its end. */
function shortened(text: string): string {
  if (text.length <= MOST_QUOTED) return text;
  return `${text.slice(0, MOST_QUOTED).replace(/[\uD800-\uDBFF]$/, '')}…`;
}
