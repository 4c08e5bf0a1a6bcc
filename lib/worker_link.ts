/**
 * The router's end of a worker's connection: what it was sent, and what it answers. On this connection
 * the roles are turned round: the worker dialled, and is asked.
 */
import { Deferred } from './later.ts';
import { MicroError, frames, quoted } from './micro_client.ts';
import type {
  Body, Codec, Control, Dialect, ErrorCode, Kind, Sink, Tag,
} from './micro_client.ts';
import type { Client, Request } from './micro_server.ts';
import type { Candidate, Routed } from './pool.ts';

/** What nearly all callers give a request: a MicroClient's default. Others are sent with their own. */
const USUAL_MS = 5_000;
const PING_SLOT = 999_999_999; // no request has it
const MAX_MISREADS = 20; // things that can't be used, until the connection is given up
const MAX_CLIENTS = 4_096; // that a worker remembers: those it was told of first are forgotten first
const WINDOW_PARTS = 256; // that a worker may be ahead with, by the protocol

/** One request on its way through the router. Plain fields: one is made a message. */
export class Job extends Deferred implements Routed {
  readonly owner: LinkOwner; readonly request: Request;
  readonly clientId: string; readonly length: number;
  isOver = false; // answered, or nobody waits for it any more
  parts: Parts | undefined = undefined; // of a stream
  link: WorkerLink | undefined = undefined; slot = -1; // where it was sent
  queue: Set<Job> | undefined = undefined; // that it waits in
  dueAt = Infinity; // when it will have waited long enough there
  constructor(owner: LinkOwner, request: Request) {
    super();
    this.owner = owner;
    this.request = request;
    this.clientId = request.client.id;
    this.length = request.message.text.length;
  }
  /** For another try, behind the same caller. */
  copy(): Job {
    const job = new Job(this.owner, this.request);
    job.whom = this.whom;
    return job;
  }
  /** The front has settled its request: with its answer, or since nobody waits for that any more. */
  left(): void { if (!this.isOver) this.owner.left(this); }
  get text(): string { return this.request.message.text; }
  get client(): Client { return this.request.client; }
  fail(error: unknown): void {
    if (this.isOver) return;
    this.isOver = true;
    if (this.parts === undefined) this.reject(error); else this.parts.fail(error);
  }
}

/** The parts of a worker's stream, as the front takes them: whoever reads slowly asks for few. */
class Parts implements AsyncIterableIterator<string> {
  readonly #job: Job;
  #held: string[] = []; #taken = 0;
  #end: 'none' | 'ended' | { error: unknown } = 'none';
  #wake = (): void => {};
  constructor(job: Job) { this.#job = job; }
  [Symbol.asyncIterator](): this { return this; }
  /** False if the worker sends more than it may. */
  push(part: string): boolean {
    this.#wake();
    return this.#held.push(part) <= WINDOW_PARTS;
  }
  end(): void { this.#end = 'ended'; this.#wake(); }
  fail(error: unknown): void { this.#end = { error }; this.#wake(); }
  async next(): Promise<IteratorResult<string, undefined>> {
    while (this.#held.length === 0 && this.#end === 'none') {
      await new Promise<void>((wake) => { this.#wake = wake; });
    }
    const value = this.#held.shift();
    if (value !== undefined) {
      if (++this.#taken >= 32 || this.#held.length === 0) {
        this.#job.link?.credit(this.#job, this.#taken);
        this.#taken = 0;
      }
      return { done: false, value };
    }
    if (typeof this.#end === 'object') throw this.#end.error;
    return { done: true, value: undefined };
  }
  /** The caller reads no more. */
  async return(): Promise<IteratorResult<string, undefined>> {
    this.#held = [];
    if (this.#end === 'none') this.#job.link?.cancel(this.#job);
    this.end();
    return { done: true, value: undefined };
  }
}

/** What the router does with what a worker's connection tells. */
export interface LinkOwner {
  readonly maxInFlight: number; readonly maxSentBytes: number;
  heard(link: WorkerLink): void; // anything came
  freed(link: WorkerLink): void; // it may have one more
  left(job: Job): void; // nobody waits for it
  again(job: Job): void; // the worker drains, and never began it
  drains(link: WorkerLink): void;
  misread(link: WorkerLink, why: string): void;
}

/** `new` until it said who it is, `out` while it is silent. Only who has `joined` gets requests. */
export type LinkState = 'new' | 'joined' | 'out' | 'draining' | 'closed';

export class WorkerLink implements Candidate, Sink {
  id = ''; address = '';
  state: LinkState = 'new';
  inFlight = 0; sent = 0; // the latter: in all
  readonly queue = new Set<Job>(); // waiting for room on this very worker
  readonly #owner: LinkOwner; readonly #codec: Codec;
  #sink: Sink | undefined; // the connection
  readonly #jobs: (Job | undefined)[] = []; readonly #free: number[] = []; // by slot
  #sentBytes = 0; #misreads = 0;
  #gathered = ''; // for this tick's write
  readonly #clients = new Set<string>(); // that the worker was told of
  /** Of a thread, by slot: 0 handed over, 1 begun by it, 2 taken back. Who is first has the request. */
  readonly #claims: Int32Array | undefined;
  constructor(owner: LinkOwner, codec: Codec, claims?: Int32Array) {
    this.#owner = owner;
    this.#codec = codec;
    this.#claims = claims;
  }
  get isThread(): boolean { return this.#claims !== undefined; }
  /** It is busy with what nobody waits for. */
  get isStuck(): boolean {
    return this.state === 'out' &&
      this.#jobs.some((job, slot) => job?.isOver === true && this.#claims?.[slot] === 1);
  }
  get hasRoom(): boolean {
    const { maxInFlight, maxSentBytes } = this.#owner;
    return this.inFlight < maxInFlight && this.#sentBytes < maxSentBytes;
  }
  /** As the connection sees it: a codec whose only message is that a worker joins. */
  asCodec(): Codec {
    const codec = this.#codec;
    return {
      get heldBytes() { return codec.heldBytes; },
      start: (sink) => { this.#sink = sink; },
      receive: (chunk) => { this.#owner.heard(this); codec.receive(chunk, this); },
      request: (message) => codec.request(message),
      encode: (...told) => codec.encode(...told),
      control: (...told) => codec.control?.(...told),
    };
  }
  // To the worker.
  send(job: Job): void {
    const { request: { limitMs, message: { id, text } }, clientId: client } = job;
    const slot = this.#free.pop() ?? this.#jobs.length;
    let timeoutMs: number | undefined;
    if (job.dueAt !== Infinity) timeoutMs = timeLeft(job.request); // it waited
    else if (limitMs !== USUAL_MS) timeoutMs = Math.ceil(limitMs);
    this.#jobs[slot] = job;
    if (this.#claims !== undefined) Atomics.store(this.#claims, slot, 0);
    job.link = this;
    job.slot = slot;
    this.inFlight++;
    this.sent++;
    this.#sentBytes += job.length;
    if (!this.#clients.has(client)) this.#remember(client);
    this.#gather(this.#codec.request({ tag: slot, text, timeoutMs, id, client }));
  }
  /**
   * All that a tick has for a worker leaves in one write: a third fewer writes, which are most of what
   * a router does. A client's leave early instead, since its peer has nothing else to do.
   */
  #gather(bytes: Body): void {
    if (typeof bytes === 'string') {
      if (this.#gathered === '') process.nextTick(WorkerLink.#release, this);
      this.#gathered += bytes;
    } else {
      WorkerLink.#release(this);
      this.write(bytes);
    }
  }
  static #release(link: WorkerLink): void {
    const text = link.#gathered;
    link.#gathered = '';
    if (text !== '') link.write(text);
  }
  /** Nobody waits for it any more. Its slot stays taken until the worker has answered. */
  cancel(job: Job): void {
    job.isOver = true;
    if (this.#jobs[job.slot] === job) this.#tell('cancel', job.slot);
  }
  credit(job: Job, parts: number): void {
    if (this.#jobs[job.slot] === job) this.#tell('credit', job.slot, parts);
  }
  ping(): void { this.#tell('ping', PING_SLOT); }
  gone(client: string): void { if (this.#clients.delete(client)) this.#tell('gone', client); }
  /** What it was sent and has not answered. */
  get pending(): Job[] { return this.#jobs.filter((job) => job?.isOver === false) as Job[]; }
  /** Whether it will surely not begin it any more. Only of a thread is that known. */
  takesBack({ slot }: Job): boolean {
    return this.#claims !== undefined && Atomics.compareExchange(this.#claims, slot, 0, 2) === 0;
  }
  #remember(client: string): void {
    this.#clients.add(client);
    if (this.#clients.size > MAX_CLIENTS) this.gone(this.#clients.values().next().value as string);
  }
  #tell(...words: Parameters<NonNullable<Codec['control']>>): void {
    const bytes = this.#codec.control?.(...words);
    if (bytes !== undefined) this.#gather(bytes); // behind the request that it is about
  }
  // From the worker.
  hello(fields: Readonly<Record<string, string>>): void {
    const { role = 'client', node } = fields;
    this.#sink?.hello?.(fields); // which has the token
    if (role !== 'worker') {
      const why = `Cannot take a ${quoted(role)} here: expected a worker. Dial the router's front`;
      return this.close(new MicroError('PROTOCOL_ERROR', why));
    }
    this.id = node?.slice(0, 128) ?? '';
    this.#sink?.message({ tag: this, text: '', oneWay: true });
  }
  response(slot: Tag, kind: Exclude<Kind, 'notice' | 'goodbye'>, body: string | MicroError): void {
    if (slot === PING_SLOT) return;
    const job = this.#jobs[slot as number];
    if (job === undefined) return this.error('PROTOCOL_ERROR', `no request has slot ${String(slot)}`);
    if (kind === 'part') return this.#part(job, body as string);
    this.#jobs[slot as number] = undefined;
    this.#free.push(slot as number);
    this.inFlight--;
    this.#sentBytes -= job.length;
    if (!job.isOver) this.#settle(job, kind, body);
    this.#owner.freed(this);
  }
  #settle(job: Job, kind: Kind, body: string | MicroError): void {
    if (kind === 'error') {
      const { code, outcome } = body as MicroError;
      const isRefused = this.state === 'draining' && code === 'SERVER_BUSY' && outcome === 'refused';
      const isUntried = isRefused && job.parts === undefined;
      return isUntried ? this.#owner.again(job) : job.fail(body);
    }
    job.isOver = true;
    if (kind === 'reply') return job.resolve(body as string);
    const parts = job.parts ?? new Parts(job); // which has none, if it is new
    if (job.parts === undefined) job.resolve(parts);
    parts.end();
  }
  #part(job: Job, part: string): void {
    if (job.isOver) return;
    if (job.parts === undefined) job.resolve(job.parts = new Parts(job));
    if (job.parts.push(part)) return;
    const why = `worker ${quoted(this.id)} sent more of a stream than it had credit for`;
    job.fail(new MicroError('PROTOCOL_ERROR', `Cannot go on: ${why}`, { outcome: 'maybe done' }));
    this.cancel(job);
    this.error('PROTOCOL_ERROR', why);
  }
  control(word: Control): void {
    if (word === 'draining') this.#owner.drains(this);
    else if (word === 'goodbye') this.close();
  }
  message(): void { this.error('PROTOCOL_ERROR', 'it asks, expected replies'); }
  error(_code: ErrorCode, why: string): void {
    this.#owner.misread(this, why);
    const last = `Cannot go on after ${MAX_MISREADS} errors: ${why}`;
    if (++this.#misreads >= MAX_MISREADS) this.close(new MicroError('PROTOCOL_ERROR', last));
  }
  write(bytes: Body): void { this.#sink?.write(bytes); }
  close(last?: MicroError | Body): void {
    // A worker that stopped: it has answered all that it began.
    const isEnd = this.state === 'draining' && last instanceof MicroError && last.code === 'SERVER_BUSY';
    if (isEnd) this.#jobs.forEach((job, slot) => job && this.response(slot, 'error', last));
    this.#sink?.close(isEnd ? undefined : last);
  }
}

/** Frames with the roles turned round: who dials is a worker, and is asked. */
export function workerFrames(owner: LinkOwner, claims?: Int32Array): Dialect {
  const plain = frames();
  return {
    ...plain,
    name: 'worker',
    open({ maxMessageBytes, hello }) {
      const codec = plain.open({ side: 'accepted', role: 'client', maxMessageBytes,
        hello: { timeout: String(USUAL_MS), ...hello } });
      return new WorkerLink(owner, codec, claims).asCodec();
    },
  };
}

const timeLeft = ({ deadline }: Request): number => Math.max(1, Math.ceil(deadline - Date.now()));
