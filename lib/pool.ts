/**
 * Workers, and the requests that go to them: what a router and a service in threads have in common.
 * Its workers join over connections on which the roles are turned round.
 */
import { Heartbeat, type HeartbeatOptions } from './heartbeat.ts';
import { Alarm, MicroError, now, positive, publish, quoted } from './micro_client.ts';
import type { Log } from './micro_client.ts';
import { DEFAULT_LIMITS } from './micro_server.ts';
import type { Client, Later, Request } from './micro_server.ts';
import { Job, WorkerLink, type LinkOwner } from './worker_link.ts';

/** A worker, as a strategy sees it. */
export interface Candidate {
  readonly id: string;
  readonly inFlight: number; // requests that it was sent and has not answered
  readonly hasRoom: boolean; // for one more
}
/** What is to be sent, as a strategy sees it. */
export interface Routed { readonly text: string; readonly client: Client }
/**
 * Picks a worker of those that are there; there is one at least. One without room keeps the request
 * waiting for that very worker; none at all, for whoever has room first.
 */
export type Strategy = (workers: readonly Candidate[], message: Routed) => Candidate | undefined;

export interface PoolOptions {
  heartbeat?: HeartbeatOptions;
  maxInFlight?: number; // requests that a worker has at a time; default 256
  maxQueued?: number; // that wait for a worker; past it `SERVER_BUSY`; default 4,096
  maxQueuedBytes?: number; // and their letters; default 16 MiB, as much as a worker has at a time
  /**
   * Sends what carries an id to another worker when its own is lost. Only where workers share what
   * they know of ids: else it may be done twice. Default false.
   */
  resend?: boolean;
}

export type WorkerStats = Pick<WorkerLink, 'id' | 'address' | 'state' | 'inFlight' | 'sent'>;

/** What clients are told to do where there is no room: wait so long. */
const RETRY_AFTER_MS = 200;

export class Pool implements LinkOwner {
  choose: Strategy;
  readonly maxInFlight: number; readonly maxSentBytes: number;
  readonly #maxQueued: number; readonly #resends: boolean;
  readonly #log: Log;
  readonly #heartbeat: Heartbeat<WorkerLink>;
  readonly #alarm = new Alarm((at) => this.#look(at));
  readonly #workers = new Map<string, WorkerLink>(); // by id
  #ready: WorkerLink[] = []; // those of them that take requests
  readonly #waiting = new Set<Job>(); // for any worker
  #queued = 0; #queuedBytes = 0; // there, and for particular ones
  #ticks: NodeJS.Timeout | undefined;

  /** @throws {TypeError | RangeError} Wrong options. */
  constructor(choose: Strategy, log: Log, options: PoolOptions) {
    this.choose = choose;
    this.#log = log;
    this.maxInFlight = positive(options, 'maxInFlight', DEFAULT_LIMITS.maxInFlight);
    this.maxSentBytes = positive(options, 'maxQueuedBytes', 16 * 1024 * 1024);
    this.#maxQueued = positive(options, 'maxQueued', 4_096);
    this.#heartbeat = new Heartbeat(options.heartbeat);
    this.#resends = options.resend === true;
  }

  get queued(): number { return this.#queued; }
  get workers(): WorkerStats[] {
    return Array.from(this.#workers.values(),
      ({ id, address, state, inFlight, sent }) => ({ id, address, state, inFlight, sent }));
  }

  start(): void {
    this.#ticks ??= setInterval(() => this.#beat(), this.#heartbeat.intervalMs).unref();
  }
  stop(): void {
    clearInterval(this.#ticks);
    this.#ticks = undefined;
    this.#alarm.stop();
  }

  // Requests.
  /** What a worker will answer. */
  forward(request: Request): Later {
    const { client } = request;
    if (!client.state.has(this)) this.#meet(client);
    const job = new Job(this, request);
    this.#route(job);
    return job;
  }

  /** Its workers are told when it has gone. */
  #meet(client: Client): void {
    client.state.set(this, true);
    const onGone = () => { for (const link of this.#workers.values()) link.gone(client.id); };
    client.signal.addEventListener('abort', onGone, { once: true });
  }

  /** Sends a request to the worker that the strategy picks, or lets it wait. */
  #route(job: Job): void {
    job.request.onward = job; // far cheaper than its signal
    let link: WorkerLink | undefined;
    try {
      if (this.#ready.length > 0) link = this.choose(this.#ready, job) as WorkerLink | undefined;
    } catch (error) {
      return job.fail(error);
    }
    // It picked none, or one that has left.
    if (link?.state !== 'joined') link = this.#ready.find(({ hasRoom }) => hasRoom);
    if (link === undefined || !link.hasRoom) this.#queue(job, link?.queue ?? this.#waiting);
    else link.send(job);
  }

  #queue(job: Job, queue: Set<Job>): void {
    const { limitMs, since } = job.request;
    if (this.#queued >= this.#maxQueued || this.#queuedBytes + job.length > this.maxSentBytes) {
      return job.fail(busy(`${this.#queued} requests wait for a worker already`));
    }
    job.dueAt = since + limitMs - Math.min(100, limitMs / 10); // in time to be told so
    job.queue = queue.add(job);
    this.#queued++;
    this.#queuedBytes += job.length;
    this.#alarm.at(job.dueAt);
  }

  #dequeue(job: Job): void {
    if (job.queue?.delete(job) !== true) return;
    job.queue = undefined;
    this.#queued--;
    this.#queuedBytes -= job.length;
  }

  /** Hands a worker what waits for it, then what waits for anybody. */
  #refill(link: WorkerLink): void {
    while (link.state === 'joined' && link.hasRoom) {
      const job = first(link.queue) ?? first(this.#waiting);
      if (job === undefined) return;
      this.#dequeue(job);
      link.send(job);
    }
  }

  /** Asks the strategy again, where workers came or went. */
  #reroute(queue: ReadonlySet<Job>): void {
    for (const job of [...queue]) {
      this.#dequeue(job);
      this.#route(job);
    }
  }

  left(job: Job): void {
    if (job.request.controller?.signal.aborted !== true) return; // its reply is kept by its id
    this.#dequeue(job);
    job.isOver = true;
    job.link?.cancel(job);
  }

  /** Ends what has waited too long for a worker; tells when to look again. */
  #look(at: number): number {
    let next = Infinity;
    const queues = Array.from(this.#workers.values(), (link) => link.queue);
    for (const queue of [this.#waiting, ...queues]) {
      for (const job of queue) {
        if (job.dueAt > at) { next = Math.min(next, job.dueAt); continue; }
        this.#dequeue(job);
        const count = this.#ready.length;
        job.fail(count > 0 ? busy(`none of ${count} workers had room in time`)
          : new MicroError('NO_WORKER', 'Cannot route it: no worker came in time. Is one running?'));
      }
    }
    return next;
  }

  // Workers.
  heard(link: WorkerLink): void {
    if (link.state === 'new' || link.state === 'closed') return;
    if (this.#heartbeat.heard(link) && link.state === 'out') this.#admit(link, 'answers again');
  }
  freed(link: WorkerLink): void { if (this.#queued > 0) this.#refill(link); }
  again(job: Job): void { this.#route(job); }
  drains(link: WorkerLink): void {
    if (link.state === 'joined') this.#dismiss(link, 'draining', 'drains');
  }
  misread(link: WorkerLink, why: string): void {
    this.#log('warn', `Worker ${quoted(link.id)} sent what can't be used: ${why}`);
  }

  /** The callback of the back: what a worker says first. */
  join({ message: { tag: link }, client }: Request): null {
    if (!(link instanceof WorkerLink)) {
      const why = 'this port is for workers. Dial the router\'s front';
      throw new MicroError('BAD_MESSAGE', `Cannot take a request here: ${why}`);
    }
    link.address = client.address;
    link.id ||= `worker ${client.id}`;
    const twin = this.#workers.get(link.id);
    if (twin !== undefined && twin.state !== 'out') {
      const why = `worker ${quoted(link.id)} at ${twin.address} is here. Give each an id of its own`;
      link.close(new MicroError('SERVER_BUSY', `Cannot join: ${why}`, { retryAfterMs: 1_000 }));
      return null;
    }
    if (twin !== undefined) this.#lost(twin, 'another one with its id came');
    this.#workers.set(link.id, link);
    const onEnd = () => this.#lost(link, 'its connection ended');
    client.signal.addEventListener('abort', onEnd, { once: true });
    this.#heartbeat.heard(link);
    this.#admit(link, 'joined');
    return null;
  }

  #admit(link: WorkerLink, what: string): void {
    link.state = 'joined';
    this.#ready.push(link);
    this.#log('info', `Worker ${quoted(link.id)} at ${link.address} ${what}`);
    publish('worker_joined', () => ({ worker: link.id }));
    this.#reroute(this.#waiting);
  }

  /** It gets no more; what it was not sent goes to others. */
  #dismiss(link: WorkerLink, state: 'out' | 'draining' | 'closed', why: string): void {
    const isMeant = state === 'draining' || link.state === 'draining';
    link.state = state;
    this.#ready = this.#ready.filter((other) => other !== link);
    this.#log(isMeant ? 'info' : 'warn', `Worker ${quoted(link.id)} at ${link.address}: ${why}`);
    if (!isMeant) publish('worker_lost', () => ({ worker: link.id }));
    this.#reroute(link.queue);
  }

  #lost(link: WorkerLink, why: string): void {
    if (link.state === 'closed') return;
    this.#workers.delete(link.id);
    this.#heartbeat.leave(link);
    this.#fail(link, 'closed', why);
    link.close();
  }

  /** What it was sent may be done; what it answers late is dropped. */
  #fail(link: WorkerLink, state: 'out' | 'closed', why: string): void {
    this.#dismiss(link, state, why);
    for (const job of link.pending) {
      const { request, parts } = job;
      const isSafe = this.#resends && request.message.id !== undefined && parts === undefined;
      if (link.takesBack(job) || isSafe) {
        link.cancel(job);
        this.#route(job.copy());
      } else if (state === 'closed' || !link.isThread) { // a busy thread hears of nothing else
        const text = `Cannot get the reply of worker ${quoted(link.id)}: ${why}`;
        job.fail(new MicroError('CONNECTION_LOST', text));
        link.cancel(job);
      }
    }
  }

  /** The ids of workers that are busy with what nobody waits for. */
  stuck(): string[] {
    return [...this.#workers.values()].filter((link) => link.isStuck).map(({ id }) => id);
  }

  /** Pings all, those that are out too: who answers is back. */
  #beat(): void {
    for (const link of this.#heartbeat.tick(now())) {
      const why = `nothing came of it for ${this.#heartbeat.outAfterMs} ms`;
      if (link.state === 'joined') this.#fail(link, 'out', why); else this.#lost(link, why);
    }
    for (const link of this.#workers.values()) link.ping();
  }
}

const first = (queue: ReadonlySet<Job>): Job | undefined => queue.values().next().value;
const busy = (why: string): MicroError =>
  new MicroError('SERVER_BUSY', `Cannot route it: ${why}`, { retryAfterMs: RETRY_AFTER_MS });
