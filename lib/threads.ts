/**
 * A callback in threads of its own, for work that keeps a processor busy:
 * `new MicroServer(await threaded('./callback.ts', { threads: 4 }), 'LIFE_GEN')`.
 */
import { once } from 'node:events';
import { setTimeout as pause } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { Worker } from 'node:worker_threads';
import { logToStderr, positive, textOf } from './micro_client.ts';
import type { Log } from './micro_client.ts';
import { MicroServer } from './micro_server.ts';
import type { Context, Limits, Request, Service } from './micro_server.ts';
import { Pool } from './pool.ts';
import { PortDuplex } from './port_duplex.ts';
import { strategy as leastBusy } from './routing/least_busy.ts';
import { workerFrames, type WorkerLink } from './worker_link.ts';

export interface ThreadOptions {
  threads: number;
  options?: object; // for the file's `createX`, if that is what it exports; what can be cloned
  maxInFlight?: number; // requests that a thread has at a time; others wait for any; default 64
  maxQueued?: number; // that wait so; default 4,096
  /**
   * How long a thread may be busy with one request before others that it was handed go to other
   * threads; and, where nobody waits for that one any more, before the thread is replaced. Default 500.
   */
  blockedMs?: number;
  log?: Log;
}

/** What a thread is given. */
export interface ThreadData {
  file: string; options: object | undefined; node: string; claims: Int32Array; limits: Partial<Limits>;
}

const LOOK_MS = 100, STOP_MS = 1_000;
const MAX_RESTART_MS = 5_000; // from the death of a thread to the next, if it dies again and again
/** The server in front has limits for all that; none of them must be met here first. */
const LIMITS = { maxMessageBytes: 2 ** 28, callbackTimeoutMs: 2 ** 31 - 1 };

/**
 * Starts threads, each of which loads the file; resolves when all have. A thread that dies, or that a
 * request blocks for good, is replaced: that request alone fails.
 *
 * Each thread has its own memory: what the callback keeps in variables or in `client.state` is seen
 * by one of them only. A client never counts as loopback there.
 *
 * @param file A path, or a file URL: its default export is the callback, or a service.
 * @throws {Error} The file can't be loaded.
 */
export async function threaded(file: URL | string, options: ThreadOptions): Promise<Service> {
  const threads = positive(options, 'threads', 1);
  const isUrl = file instanceof URL || file.startsWith('file:');
  const href = isUrl ? String(file) : pathToFileURL(file).href;
  const crew = new Crew(href, options);
  const hired = Promise.all(Array.from({ length: threads }, () => crew.hire()));
  const contracts = await hired.catch(async (error: unknown) => {
    await crew.stop();
    throw error;
  });
  return {
    callback: (_text, context) => crew.pool.forward(context as Request),
    ...(contracts[0] !== undefined && { contract: contracts[0] }),
    stop: () => crew.stop(),
  };
}

class Crew {
  readonly pool: Pool;
  readonly #file: string; readonly #options: object | undefined; readonly #log: Log;
  readonly #limits: Pick<Limits, 'maxMessageBytes' | 'callbackTimeoutMs' | 'maxInFlight'>;
  readonly #back: MicroServer; // never listens: threads are served as if they had dialled
  readonly #threads = new Map<string, Worker>();
  readonly #joined = new Map<string, () => void>(); // what waits for a thread to be there
  readonly #ticks: NodeJS.Timeout;
  #hired = 0; #deaths = 0; // so far; the latter since a thread last lived for some time
  #isOver = false;

  constructor(file: string, options: ThreadOptions) {
    const blockedMs = positive(options, 'blockedMs', 500);
    this.#file = file;
    this.#options = options.options;
    this.#log = options.log ?? logToStderr;
    const heartbeat = { intervalMs: LOOK_MS, timeoutMs: Math.max(1, blockedMs - LOOK_MS) };
    const { maxInFlight } = (this.#limits = { ...LIMITS, maxInFlight: positive(options, 'maxInFlight', 64) });
    this.pool = new Pool(leastBusy(), () => {}, // threads that come and go are no news
      { ...options, maxInFlight, maxQueuedBytes: LIMITS.maxMessageBytes, heartbeat });
    const join = (_text: string, context: Context) => {
      this.pool.join(context as Request);
      this.#joined.get(((context as Request).message.tag as WorkerLink).id)?.();
      return null;
    };
    this.#back = new MicroServer(join, 'threads', { ...LIMITS, log: this.#log });
    this.pool.start();
    this.#ticks = setInterval(() => this.#look(), LOOK_MS).unref();
  }

  /** Starts one thread; resolves with the service's contract once it has loaded the file. */
  async hire(): Promise<Service['contract']> {
    const node = `thread ${++this.#hired}`;
    const claims = new Int32Array(new SharedArrayBuffer(4 * this.#limits.maxInFlight));
    const workerData: ThreadData =
      { file: this.#file, options: this.#options, node, claims, limits: this.#limits };
    const { code, isText } = program();
    const thread = new Worker(code, { workerData, eval: isText });
    this.#threads.set(node, thread);
    const died = once(thread, 'exit').then(() => { throw new Error('it ended before it was ready'); });
    died.catch(() => {}); // it may die later, which is told below
    const ready = Promise.race([once(thread, 'message'), died]);
    const [{ contract }] = await ready as [Pick<Service, 'contract'>];
    const duplex = new PortDuplex(thread);
    const born = performance.now();
    thread.on('error', (error) => this.#log('error', `A thread failed: ${textOf(error)}`));
    thread.once('exit', () => {
      duplex.destroy();
      this.#threads.delete(node);
      if (performance.now() - born > MAX_RESTART_MS) this.#deaths = 0;
      void this.#replace();
    });
    const joined = new Promise<void>((resolve) => { this.#joined.set(node, resolve); });
    this.#back.serve(duplex, { dialect: workerFrames(this.pool, claims) });
    await Promise.race([joined, died]).finally(() => this.#joined.delete(node));
    thread.unref();
    return contract;
  }

  /** Lets them end what they opened, if they do so in time. */
  async stop(): Promise<void> {
    this.#isOver = true;
    clearInterval(this.#ticks);
    const threads = [...this.#threads.values()];
    const late = setTimeout(() => { for (const thread of threads) void thread.terminate(); }, STOP_MS);
    const ends = threads.map((thread) => // also of one that fails meanwhile, where once() would reject
      new Promise((resolve) => { thread.once('exit', resolve); }));
    await this.#back.stop({ graceMs: 0 });
    await Promise.all(ends);
    clearTimeout(late);
    this.pool.stop();
  }

  async #replace(): Promise<void> {
    if (this.#isOver) return;
    const isFirst = this.#deaths++ === 0;
    const waitMs = isFirst ? 0 : Math.min(MAX_RESTART_MS, 50 * 2 ** Math.min(this.#deaths, 10));
    await pause(waitMs, undefined, { ref: false });
    if (this.#isOver) return;
    await this.hire().catch((error: unknown) => {
      this.#log('error', `Cannot replace a thread: ${textOf(error)}`);
      void this.#replace();
    });
  }

  /** Ends threads that are busy with what nobody waits for. */
  #look(): void {
    for (const node of this.pool.stuck()) void this.#threads.get(node)?.terminate();
  }
}

/** Node 20 reads no TypeScript in a thread, and does not hand on what reads it in the main one. */
function program(): { code: URL | string; isText: boolean } {
  const [extension = ''] = /\.\w+$/.exec(import.meta.url) ?? [];
  const url = new URL(`./thread${extension}`, import.meta.url);
  const reads = process.features as { typescript?: unknown };
  const isOther = 'bun' in process.versions || 'deno' in process.versions;
  if (extension !== '.ts' || isOther || reads.typescript) return { code: url, isText: false };
  const tsx = JSON.stringify(import.meta.resolve('tsx/esm/api'));
  const self = JSON.stringify(url);
  const code = `import(${tsx}).then(({ register }) => { register(); return import(${self}); })`;
  return { code, isText: true };
}
