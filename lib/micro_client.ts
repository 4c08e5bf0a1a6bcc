/**
 * portcall's client: `await new MicroClient('LIFE_GEN').sendMessage('music')`. Copy this file alone to call services,
 * `micro_server.ts` too to offer them. PROTOCOL.md tells the wire. In this order: the client; errors; the seams
 * (dialect, codec, transport); lines and frames; writing, timing, dialling; small checks; the look-up in ports.json.
 */
import type { Duplex } from 'node:stream';
// Not by import: that reads all that they export, and so loads much that nobody calls. 0.6 ms of a script's 13.
const { Buffer, isAscii, isUtf8 } = process.getBuiltinModule('node:buffer');
const { channel } = process.getBuiltinModule('node:diagnostics_channel');
const { existsSync, readFileSync } = process.getBuiltinModule('node:fs');
const { connect, isIPv6 } = process.getBuiltinModule('node:net'), { hrtime } = process;
export interface CallOptions {
  signal?: AbortSignal; timeoutMs?: number; // the latter: of the whole call, or to each part of a stream
  retry?: boolean; // try again until the deadline, as long as the message is known not to have run
  id?: string; // makes sending twice safe where the server has `dedupe`; 128 bytes, percent-encoded
}
export interface ClientOptions {
  ports?: Ports; token?: string; // the latter: the secret of a server with the option `token`
  timeoutMs?: number; retry?: boolean; // of a call that names none; default 5,000, and false: it fails with its dial
  dialect?: Dialect; // where the address names none, as zmtp+tcp://host:port does; default frames()
  maxQueued?: number; // calls waiting for anything at all; past it `SERVER_BUSY`, not sent; default 16,384
  maxMessageBytes?: number; // of UTF-8, sent or received; past it `MESSAGE_TOO_LARGE`; default 1 MiB
  log?: Log; hello?: Readonly<Record<string, string>>; // the latter: more to say of oneself, `node` or `role`
}
const RETRIED: ReadonlySet<ErrorCode> = new Set(['CONNECTION_REFUSED', 'CONNECTION_LOST', 'SERVER_BUSY', 'NO_WORKER']);
const MAX_MISREADS = 20, CLOSE_MS = 1_000; // on a connection, until it is given up; for a peer to close its side
const NO_OPTIONS: CallOptions = {}, SOON = Promise.resolve(); // the latter: behind a caller that goes on with another
/** Calls the service under a key. Connects on the first message, pipelines, reconnects. A pending call keeps the
 * process alive, nothing else does: a script needs no `close()`. */
export class MicroClient {
  readonly #key: string | number;
  readonly #options: ClientOptions & { timeoutMs: number; maxQueued: number; maxMessageBytes: number; log: Log };
  readonly #alarm = new Alarm((at) => this.#walk(at));
  readonly #calls: (Call | undefined)[] = []; readonly #free: number[] = []; // slots; free once the final frame came
  readonly #links = new Set<Link>(); // the one below, and those that only finish their calls
  #link: Link | undefined; #queue: Call[] = []; // the former takes new calls, once it is open; these are on none yet
  #isDialling = false; #failedDials = 0; #retryAt = 0; // the last two: in a row; of all retries, they share the dials
  #tickAt = 0; // the time of this tick, as long as the link has something to write in it
  #address: Address | undefined; #closing: Promise<void> | undefined;
  /** @param key A name in ports.json, a port, or an address: `tcp://127.0.0.1:5467`. The calls tell a wrong one. */
  constructor(key: string | number, options: ClientOptions = {}) {
    checkSetUp(key, options); this.#key = key;
    this.#options = { ...options, log: (level, text) => (options.log ?? logToStderr)(level, oneLine(text)),
      timeoutMs: positive(options, 'timeoutMs', 5_000), maxQueued: positive(options, 'maxQueued', 16_384),
      maxMessageBytes: positive(options, 'maxMessageBytes', 1024 * 1024) };
  }
  /** Sends one message and resolves with its reply; the parts of a stream come joined by line breaks.
   * @param text Any string that UTF-8 can carry, up to `maxMessageBytes`.
   * @throws {MicroError} `CONNECTION_REFUSED`, `CONNECT_TIMEOUT`, `SERVER_BUSY`: it has not run. `TIMEOUT`,
   *   `CONNECTION_LOST`, `ABORTED`, `CLOSED`: `error.outcome` tells whether it may have. `CALLBACK_FAILED`: it has. */
  sendMessage(text: string, options: CallOptions = NO_OPTIONS): Promise<string> {
    if (options !== NO_OPTIONS) checkCall(options);
    const isRetried = options.retry ?? this.#options.retry;
    return new Promise((resolve, reject) => this.#submit(newCall(text, resolve, reject, isRetried), options));
  }
  /** Yields the parts of the reply as they come (one, if it is no stream). The service is at most 256 parts and 1 MiB
   * ahead of the loop; leaving the loop cancels it. It is not retried. */
  streamMessage(text: string, options: CallOptions = NO_OPTIONS): AsyncIterable<string> {
    checkCall(options); return this.#stream(text, options);
  }
  /** Resolves with the milliseconds to the server and back. Its callback is not called. */
  async ping(options: CallOptions = NO_OPTIONS): Promise<number> {
    checkCall(options); const began = now();
    await new Promise<string>((resolve, reject) => this.#submit(newCall('', resolve, reject, false, true), options));
    return now() - began;
  }
  /** Ends the connection. Pending and later calls fail with `CLOSED`. */
  close(): Promise<void> {
    return this.#closing ??= Promise.resolve().then(async () => {
      for (const call of this.#calls) if (call) this.#giveUp(call, 'CLOSED', 'the client was closed');
      this.#alarm.stop();
      await Promise.all(Array.from(this.#links, (link) => {
        this.#retire(link); this.#lost(link); // the latter where it is not open yet
        return link.duplex.closed || new Promise((end) => link.duplex.once('close', end));
      }));
    });
  }
  async *#stream(text: string, options: CallOptions): AsyncGenerator<string, void, undefined> {
    const parts: string[] = []; let [failure, wake]: [Error?, (() => void)?] = [];
    const call = newCall(text, (reply) => { if (!call.flow?.hasBegun) parts.push(reply); wake?.(); },
      (error) => { failure = error; wake?.(); });
    call.flow = newFlow((part) => { parts.push(part); wake?.(); }); this.#submit(call, options);
    try {
      for (;; await new Promise<void>((resolve) => { wake = resolve; })) {
        for (let part; (part = parts.shift()) !== undefined; this.#took(call, parts.length === 0)) yield part;
        if (failure !== undefined) throw failure;
        if (call.isSettled) return;
      }
    } finally { this.#giveUp(call, 'ABORTED', 'its reader stopped'); }
  }
  #submit(call: Call, { signal, id, timeoutMs = this.#options.timeoutMs }: CallOptions): void {
    const refusal = this.#refusal(call.text, signal);
    if (refusal !== undefined) return call.reject(refusal);
    const link = this.#link;
    if (link === undefined || !link.outbox.isScheduled) this.#tickAt = Math.ceil(now()); // an integer takes no memory
    call.deadline = this.#tickAt + timeoutMs; call.limitMs = timeoutMs; call.id = id;
    if (timeoutMs !== this.#options.timeoutMs) call.timeoutMs = Math.ceil(timeoutMs);
    if (signal !== undefined) {
      const onAbort = () => this.#giveUp(call, 'ABORTED', 'the caller aborted it', signal.reason);
      signal.addEventListener('abort', onAbort);
      call.release = () => signal.removeEventListener('abort', onAbort);
    }
    call.tag = this.#free.pop() ?? this.#calls.length; this.#calls[call.tag] = call; this.#alarm.at(call.deadline);
    if (link?.state === 'open' && !link.duplex.writableNeedDrain) return this.#send(call, link);
    this.#queue.push(call); this.#connect();
  }
  #refusal(text: unknown, signal: AbortSignal | undefined): MicroError | undefined { // why it can't even be queued
    const { maxMessageBytes, maxQueued } = this.#options; let code: ErrorCode = 'BAD_MESSAGE', why = '';
    if (this.#closing !== undefined) [code, why] = ['CLOSED', 'the client was closed. Make a new one'];
    else if (signal?.aborted === true) [code, why] = ['ABORTED', 'the caller aborted it'];
    else if (typeof text !== 'string') why = `it is ${quoted(text)}, expected a string`;
    else if (!isWellFormed(text)) why = 'it has half a surrogate pair, which UTF-8 can\'t carry';
    else if (exceeds(text, maxMessageBytes)) [code, why] = ['MESSAGE_TOO_LARGE', `it has ${Buffer.byteLength(text)} ` +
      `bytes, expected at most ${maxMessageBytes}. Send it in pieces, or raise maxMessageBytes on both sides`];
    else if (this.#calls.length - this.#free.length < maxQueued) return undefined;
    else [code, why] = ['SERVER_BUSY', `${maxQueued} calls wait already. Await some, or raise maxQueued`];
    const cause: unknown = signal?.reason;
    return new MicroError(code, `Cannot send to ${this.#name()}: ${why}`, { outcome: 'not sent', cause });
  }
  #send(call: Call, link: Link): void {
    call.link = link; call.heard = link.heard;
    if (link.live++ === 0 && !link.isRef) { link.isRef = true; link.duplex.ref?.(); }
    if (!call.isPing) link.outbox.push(link.codec.request(call), link.live === 1);
    else if (!tell(link, 'ping', call.tag)) this.#giveUp(call, 'PROTOCOL_ERROR', 'its dialect has no ping');
  }
  #name(): string {
    const { url = this.#key } = this.#address ?? {};
    return url === this.#key ? quoted(url) : `${quoted(this.#key)} (${url})`;
  }
  #connect(): void { // one dial for all that wait
    if (this.#link !== undefined || this.#isDialling || this.#closing !== undefined) return;
    this.#isDialling = true; const failed = (error: Error) => this.#fail(this.#queue.splice(0), error, true);
    this.#dial().finally(() => { this.#isDialling = false; }).catch(failed);
  }
  async #dial(): Promise<void> {
    try { // the key's line is read again at each dial; where the file broke, the old address stays
      this.#address = resolveAddress(this.#key, this.#options.ports);
    } catch (error) {
      if (this.#address === undefined) throw error;
      this.#options.log('warn', `${textOf(error)}; staying with ${this.#address.url}`);
    }
    const { dialect: named, scheme, host, url } = this.#address;
    const why = 'servers bind there, expected one host. Dial 127.0.0.1, or its name';
    if (host === '0.0.0.0' || host === '::') throw new MicroError('BAD_ADDRESS', `Cannot dial ${url}: ${why}`);
    const transport = scheme === 'tcp' || scheme === 'ipc' ? NET : await loadTransport(scheme);
    if (transport.dial === undefined) throw new Error('it can only be listened on');
    const { token, hello, timeoutMs, maxMessageBytes, dialect: usual = frames() } = this.#options;
    const dialect = named === undefined ? usual : await loadDialect(named);
    if (this.#closing !== undefined) return; // while they were loaded
    const codec = dialect.open({ side: 'dialled', role: 'client', maxMessageBytes,
      hello: { timeout: String(timeoutMs), ...hello, ...(token !== undefined && { token }) } });
    const receive = (data: Uint8Array) => { poll.came(); if (link.state !== 'closed') codec.receive(data, link.sink); };
    const ready = () => {
      if (link.state !== 'dialling') return;
      link.state = 'open'; this.#failedDials = 0; this.#rest(link);
      codec.start?.(link.sink); this.#pump(); publish('connected', () => ({ key: this.#key, url }));
    };
    const duplex = transport.dial(this.#address, { options: this.#options, ready, receive });
    const link: Link = newLink(duplex, codec, () => { if (link.live === 0) this.#rest(link); }, {
      hello: (fields) => { link.dedupes = 'dedupe' in fields; },
      response: (tag, kind, body) => this.#response(link, tag as number, kind, body),
      control: (word) => { if (word === 'draining') this.#retire(link); },
      message: () => this.#misread(link, 'PROTOCOL_ERROR', 'it asks, expected replies'),
      error: (code, why, tag) => this.#misread(link, code, why, tag as number | undefined),
      write: (bytes) => { link.heard++; link.outbox.push(bytes); }, // a ping came
      close: (last) => this.#lost(link, last instanceof MicroError ? last : undefined),
    });
    this.#links.add(this.#link = link);
    duplex.on('data', receive).on('drain', () => this.#pump()).on('error', (error) => this.#lost(link, error));
    duplex.on('end', () => this.#lost(link)).on('close', () => { this.#lost(link); this.#links.delete(link); });
  }
  /** Hands waiting calls to the connection, as far as it takes them. */
  #pump(): void {
    const [link, at] = [this.#link, now()]; let taken = 0;
    for (const call of this.#queue) {
      if (link?.state !== 'open' || link.duplex.writableNeedDrain) break;
      taken++; if (call.isSettled) continue;
      if (at - (call.deadline - call.limitMs) > 100) call.timeoutMs = Math.max(1, Math.ceil(call.deadline - at));
      this.#send(call, link);
    }
    this.#queue.splice(0, taken); if (this.#queue.length > 0) this.#connect();
  }
  #response(link: Link, slot: number, kind: Kind, body: string | MicroError): void {
    const call = this.#calls[slot]; link.heard++;
    if (call?.link !== link) return this.#misread(link, 'PROTOCOL_ERROR', `no call has slot ${slot}`);
    if (kind === 'error') return this.#settle(call, body as MicroError);
    if (kind === 'reply') return this.#settle(call, undefined, body as string);
    const flow = call.flow ??= newFlow(); flow.hasBegun = true;
    if (kind === 'end') return this.#settle(call, undefined, flow.joined.slice(0, -1));
    if (call.isSettled) return;
    call.deadline = now() + call.limitMs; flow.untaken++;
    if (flow.onPart !== undefined) return flow.onPart(body as string);
    flow.joined += `${body as string}\n`; this.#took(call, false);
    if (flow.joined.length <= this.#options.maxMessageBytes) return;
    this.#giveUp(call, 'MESSAGE_TOO_LARGE', 'its parts exceed maxMessageBytes. Use streamMessage');
  }
  #took(call: Call, isAll: boolean): void { // a part: gives credit back, some at a time
    const { flow, isSettled, link, tag } = call; if (isSettled || !flow?.hasBegun) return;
    call.deadline = now() + call.limitMs; flow.untaken--;
    if (++flow.taken < 32 && !isAll) return;
    tell(link as Link, 'credit', tag, flow.taken); flow.taken = 0;
  }
  /** Something on the connection that can't be used, perhaps a call's reply. */
  #misread(link: Link, code: ErrorCode, why: string, slot = -1): void {
    const call = this.#calls[slot];
    if (call?.link === link) return this.#giveUp(call, code, why);
    const isHopeless = ++link.misreads >= MAX_MISREADS || code === 'MESSAGE_TOO_LARGE'; // that may go on without end
    if (!isHopeless) return this.#options.log('warn', `${this.#name()} sent what can't be used: ${why}`);
    const text = `Cannot go on with ${this.#name()}: ${why}`;
    this.#lost(link, new MicroError('PROTOCOL_ERROR', text, { outcome: 'maybe done' }));
  }
  /** Settles a call, once, or sends it again. Its slot is free again when its answer has come, or can't any more. */
  #settle(call: Call, error: MicroError | undefined, text = '', isFinal = true): void {
    const { link, isSettled, tag } = call;
    const goesOn = error !== undefined && call.isRetried && !isSettled && this.#persists(call, error);
    call.isSettled = !goesOn;
    if (isFinal && !goesOn && this.#calls[tag] === call) { this.#calls[tag] = undefined; this.#free.push(tag); }
    if (isSettled) return; // too late: its caller has an error
    if (!goesOn) { call.release?.(); if (call.timer !== undefined) clearTimeout(call.timer); }
    if (error === undefined) call.resolve(text); else if (!goesOn) call.reject(error);
    if (link !== undefined && --link.live === 0) void SOON.then(link.onIdle);
  }
  /** Tries again later what is known not to have run, or is safe to send twice. It keeps its slot. */
  #persists(call: Call, { code, outcome, retryAfterMs = 0 }: MicroError): boolean {
    const at = now(), isSafe = outcome !== 'maybe done' || (call.id !== undefined && call.link?.dedupes === true);
    if (!isSafe || !RETRIED.has(code) || call.flow?.hasBegun || call.deadline - at < 10) return false;
    // Full jitter, 50 ms doubling to 900; then 900 each time, which keeps the clients as far apart as chance put them.
    const steps = Math.max(0, this.#failedDials - 1);
    const backOffMs = (steps > 5 ? 1 : Math.random()) * Math.min(900, 50 * 2 ** steps);
    if (this.#retryAt < at + 2) this.#retryAt = at + backOffMs; // timers may be 2 ms early
    const waitMs = Math.min(this.#retryAt + retryAfterMs, call.deadline - 9) - at;
    call.timer = setTimeout(() => { this.#queue.push(call); this.#pump(); }, waitMs); call.link = undefined;
    publish('retried', () => ({ key: this.#key, code, waitMs })); return true;
  }
  /** Ends a call from this side. Once sent, its slot stays taken until the server has answered it. */
  #giveUp(call: Call, code: ErrorCode, why: string, cause?: unknown): void {
    const { link } = call; const isFinal = link === undefined || link.state === 'closed';
    if (call.isSettled && !isFinal) return;
    // Without it, a late reply would be taken for the next call's.
    if (!isFinal && !tell(link, 'cancel', call.tag)) this.#retire(link);
    this.#settle(call, new MicroError(code, `Cannot get the reply of ${this.#name()}: ${why}`,
      { outcome: link === undefined ? 'not sent' : 'maybe done', cause }), '', isFinal);
    if (isFinal || code !== 'TIMEOUT' || call.heard !== link.heard) return;
    // Nothing came since the call left. The second time in a row, not even the answer to a cancel: the peer is gone.
    if (link.quietHeard !== link.heard) link.quietAt = now();
    else if (call.deadline - call.limitMs > link.quietAt) this.#retire(link);
    link.quietHeard = link.heard;
  }
  /** It takes no new calls, and ends when those that it has are settled. */
  #retire(link: Link): void {
    if (this.#link === link) this.#link = undefined;
    if (link.live === 0) this.#rest(link);
  }
  #rest(link: Link): void { // nothing waits on it
    if (link.state === 'dialling') return;
    link.isRef = false; link.duplex.unref?.();
    if (link.state === 'closed' || this.#link === link) return;
    tell(link, 'goodbye'); this.#lost(link);
  }
  #lost(link: Link, reason?: Error): void {
    if (link.state === 'closed') return;
    const isDial = link.state === 'dialling';
    const unsent = this.#link === link ? this.#queue.splice(0) : []; // dialling at once meets who is about to end
    link.state = 'closed'; this.#retire(link); link.outbox.flush(); link.duplex.end();
    if (!isDial) publish('disconnected', () => ({ key: this.#key, url: this.#address?.url }));
    const timer = setTimeout(() => link.duplex.destroy(), isDial ? 0 : CLOSE_MS);
    link.duplex.once('close', () => clearTimeout(timer));
    this.#fail([...this.#calls.filter((call) => call?.link === link) as Call[], ...unsent], reason, isDial);
  }
  /** Ends calls with what ended their dial or their connection. */
  #fail(calls: readonly Call[], cause: Error | undefined, isDial: boolean): void {
    if (isDial) this.#failedDials++;
    const why = textOf(cause ?? (isDial ? 'it closed' : 'the connection ended'));
    const refused = `Cannot reach ${this.#name()}: ${why}. Is the service running?`;
    for (const call of calls) {
      const lost = `${why}; the message was ${call.link === undefined ? 'not sent' : 'perhaps handled'}`;
      if (cause instanceof MicroError) this.#settle(call, new MicroError(cause.code, cause.message, cause));
      else if (isDial) this.#settle(call, new MicroError('CONNECTION_REFUSED', refused, { cause }));
      else this.#giveUp(call, 'CONNECTION_LOST', lost, cause);
    }
  }
  #walk(at: number): number { // ends what is overdue and tells when to look again
    let next = Infinity;
    for (const call of this.#calls) {
      if (call === undefined || call.isSettled) continue;
      if (call.flow?.untaken) call.deadline = at + call.limitMs; // its reader's time, not the server's
      const [ms, isDial] = [Math.round(call.limitMs), call.link === undefined && this.#link?.state !== 'open'];
      if (call.deadline > at) next = Math.min(next, call.deadline);
      else if (isDial) this.#giveUp(call, 'CONNECT_TIMEOUT', `no connection within ${ms} ms`);
      else this.#giveUp(call, 'TIMEOUT', `no answer within ${ms} ms. Give it a longer timeoutMs`);
    }
    this.#queue = this.#queue.filter((call) => !call.isSettled);
    if (this.#queue.length === 0 && this.#link?.state === 'dialling') this.#lost(this.#link); // nobody waits for it
    return next;
  }
}
/** A call that waits, and its own message. Plain fields, and rare ones apart: a million a second are made. */
type Call = ReturnType<typeof newCall>;
function newCall(text: string, resolve: (reply: string) => void, reject: (error: Error) => void,
  isRetried = false, isPing = false) {
  return { tag: -1, text, timeoutMs: undefined as number | undefined, id: undefined as string | undefined,
    resolve, reject, isRetried, isPing, isSettled: false, deadline: 0, limitMs: 0,
    link: undefined as Link | undefined, heard: 0, // that it left on, and what that had heard by then
    release: undefined as (() => void) | undefined, timer: undefined as NodeJS.Timeout | undefined, // signal; next try
    flow: undefined as ReturnType<typeof newFlow> | undefined }; // of a stream
}
/** The parts of a call: whether one came, how many are with the reader, and how many it took since the last credit. */
const newFlow = (onPart?: (part: string) => void) => ({ onPart, joined: '', hasBegun: false, untaken: 0, taken: 0 });
type Link = ReturnType<typeof newLink>; // one connection of a client
function newLink(duplex: Duplex & { ref?(): void; unref?(): void }, codec: Codec, onIdle: () => void, sink: Sink) {
  return { duplex, codec, onIdle, sink, outbox: new Outbox(duplex), state: 'dialling' as 'dialling' | 'open' | 'closed',
    isRef: true, live: 0, heard: 0, misreads: 0, dedupes: false, // calls that are not settled; messages; useless ones
    quietHeard: -1, quietAt: 0 }; // heard when a call timed out with nothing since it left; the first time so
}
/** Writes a control message, if the dialect has it. */
function tell({ codec, outbox }: Link, ...words: Parameters<NonNullable<Codec['control']>>): boolean {
  const bytes = codec.control?.(...words);
  if (bytes !== undefined) outbox.push(bytes); return bytes !== undefined;
}
// ---------------------------------------------------------------------------------------------------------- Errors
/** Whether the work may have been done: of the call, not of the code. */
export type Outcome = 'not sent' | 'refused' | 'maybe done' | 'failed';
/** Every code, by who is at fault, with the outcome where the error names no other. */
export const ERRORS = {
  UNKNOWN_SERVICE: 'not sent', BAD_PORTS_FILE: 'not sent', BAD_ADDRESS: 'not sent', BAD_MESSAGE: 'refused', // caller
  CONNECTION_REFUSED: 'not sent', CONNECT_TIMEOUT: 'not sent', PORT_IN_USE: 'not sent', // nobody; who has the port
  SERVER_BUSY: 'refused', NO_WORKER: 'refused', // the server sheds load; the router has nobody
  TIMEOUT: 'maybe done', CONNECTION_LOST: 'maybe done', // the network, or a slow service
  ABORTED: 'maybe done', CLOSED: 'maybe done', CALLBACK_FAILED: 'failed', // the caller; the service
  PROTOCOL_ERROR: 'refused', MESSAGE_TOO_LARGE: 'refused', UNAUTHORIZED: 'refused', // the peer
} as const satisfies Record<string, Outcome>;
export type ErrorCode = keyof typeof ERRORS;
/** Every failure of a call, of a look-up and of a start. */
export class MicroError extends Error {
  override readonly name = 'MicroError'; readonly code: ErrorCode; readonly outcome: Outcome;
  readonly retryAfterMs: number | undefined; // where the server said when to try again
  constructor(code: ErrorCode, message: string, { outcome, retryAfterMs, cause }: Partial<MicroError> = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code; this.outcome = outcome ?? ERRORS[code]; this.retryAfterMs = retryAfterMs;
  }
}
// ------------------------------------------------------------------------------------------------------- The seams
export type Body = string | Uint8Array;
/** What a callback may answer; `null` where there is nothing to say. */
export type Value = string | null | { parts: readonly Body[] } | AsyncIterable<string>;
export type Log = (level: 'info' | 'warn' | 'error', text: string) => void;
/** What a request is known by on its connection: a number, or what the dialect needs to answer it. */
export type Tag = number | object;
/** `goodbye` is an error that ends the connection; `notice` one that doesn't, and names no request. */
export type Kind = Response | 'notice' | 'goodbye'; type Response = 'reply' | 'part' | 'end' | 'error';
export type Control = 'cancel' | 'credit' | 'ping' | 'draining' | 'goodbye' | 'gone';
export interface Message {
  tag: Tag; text: string;
  timeoutMs?: number | undefined; id?: string | undefined; parts?: readonly Uint8Array[] | undefined;
  client?: string | undefined; oneWay?: boolean | undefined; // whose it is, behind a router; nobody awaits a reply
}
/** How bytes on one connection become messages. Sans-IO: sees no socket, no timer, no service. */
export interface Dialect {
  readonly name: string; readonly ordered: boolean; readonly multipart?: boolean; // replies: in order; in parts too
  matches(head: Uint8Array): 'yes' | 'no' | 'more'; // whether a connection that begins so is its own
  open(options: CodecOptions): Codec;
}
export interface CodecOptions {
  side: 'accepted' | 'dialled'; role: 'server' | 'client'; // who dialled speaks first; either takes requests
  maxMessageBytes: number; readsParts?: boolean; // of a message, even where it isn't UTF-8: else `BAD_MESSAGE`
  hello?: Readonly<Record<string, string>>; // what to say of oneself, in a greeting
  lines?(): LineCodec; // of a server: what its lines are read by, for a dialect that shares connections with them
}
/** One connection's state. Never throws; a chunk is lent, so that what is kept of it is copied. */
export interface Codec {
  readonly heldBytes: number; // of an unfinished message
  start?(sink: Sink): void; receive(chunk: Uint8Array, sink: Sink): void; end?(sink: Sink): void; // at a half-close
  request(message: Message): Body; encode(kind: Kind, body: Body | readonly Body[] | MicroError, tag?: Tag): Body;
  control?(word: Control, argument?: Tag | string, count?: number): Body | undefined; // none: it has no such thing
  idleMs?(): number | undefined; idle?(sink: Sink): void; // after so much silence the latter decides; asked each chunk
}
/** What a codec tells its connection. */
export interface Sink {
  hello?(fields: Readonly<Record<string, string>>): void;
  message(message: Message): void; response(tag: Tag, kind: Response, body: string | MicroError): void;
  control?(word: Control, argument: Tag | string, count: number): void;
  command?(line: string, tag: Tag): void; // for the server itself: `$ping`
  error(code: ErrorCode, text: string, tag?: Tag): void; // what can't be used; the connection goes on
  write(bytes: Body): void; finish?(): void; // the latter: the peer asks no more, it ends once all is answered
  close(last?: MicroError | Body): void; // at once, with these bytes, or the error in the dialect's words
}
/** How bytes travel: a file each in `transports/`, exporting `transport`. Tcp, and dialling ipc, are in the core. */
export interface Transport {
  /** Before ready(), an error or a close is a refusal; receive() is for who reads into a buffer of its own. */
  dial?(address: Address, hooks: { options: object; ready(): void; receive(chunk: Uint8Array): void }): Duplex;
  listen?(address: Address, options: object,
    onDuplex: (duplex: Duplex, how?: { side: 'dialled'; dialect: Dialect }) => void,
    onError: (error: Error) => void): Promise<{ readonly address: Address; close(): Promise<void> }>;
}
// ------------------------------------------------------------------------------------------------ Lines and frames
const LF = 10; const EMPTY = Buffer.alloc(0); const HELLO = '\x01portcall/1';
/** A frame's head, but for a slot alone: PROTOCOL.md, "Frames". */
const HEAD = /^(0|[1-9]\d{0,8})(?:@([1-9]\d{0,14}))?(?:#([^~\\]{1,128}))?(?:~([^\\]{1,128}))?([+.!]?)(\\?)$/;
const HEAD_BYTES = 512; // hold the longest
const REASON = /^([A-Z_]{1,40}) ([nrmf])(?: (\d{1,9}))?: ([^]*)$/;
const KINDS: Readonly<Record<string, Response>> = { '': 'reply', '+': 'part', '.': 'end', '!': 'error' };
const OUTCOMES: Readonly<Record<string, Outcome>> = { n: 'not sent', r: 'refused', m: 'maybe done', f: 'failed' };
type Sliced = Buffer & Record<'latin1Slice' | 'utf8Slice', (start: number, end: number) => string>;
/** Cuts bytes into lines of UTF-8. What a line means, those tell that extend it. */
export abstract class LineCodec implements Codec {
  heldBytes = 0; #held: Buffer = EMPTY; // of the unfinished line; that, and room for more of it
  #isSkipping = false; // too long and told so: the rest is dropped up to its LF
  protected readonly max: number; protected maxLine: number; // every letter may be escaped, and there is a head
  constructor(max: number) { this.max = max; this.maxLine = 2 * max + HEAD_BYTES; }
  abstract request(message: Message): Body;
  abstract encode(kind: Kind, body: Body | readonly Body[] | MicroError, tag?: Tag): Body;
  protected abstract line(text: string, start: number, end: number, sink: Sink): void; // up to its LF at `end`
  protected abstract bad(code: ErrorCode, why: string, head: string, sink: Sink): void; // and how the line began
  receive(chunk: Uint8Array, sink: Sink): void {
    let bytes = Buffer.isBuffer(chunk) ? chunk : Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length);
    if (this.heldBytes > 0 || this.#isSkipping) {
      const end = bytes.indexOf(LF) + 1; this.#hold(end === 0 ? bytes : bytes.subarray(0, end), sink);
      if (end === 0) return;
      this.#isSkipping = false; this.#decode(this.#take(), sink); bytes = bytes.subarray(end);
    }
    const end = bytes[bytes.length - 1] === LF ? bytes.length : bytes.lastIndexOf(LF) + 1;
    if (end > 0) this.#decode(end === bytes.length ? bytes : bytes.subarray(0, end), sink);
    if (end < bytes.length) this.#hold(bytes.subarray(end), sink);
  }
  #decode(bytes: Buffer, sink: Sink): void {
    const ascii = isAscii(bytes); // one byte is one letter then: no decoding, and lines are slices
    if (ascii || isUtf8(bytes)) {
      const text = (bytes as Sliced)[ascii ? 'latin1Slice' : 'utf8Slice'](0, bytes.length);
      for (let start = 0, end; (end = text.indexOf('\n', start)) !== -1; start = end + 1) {
        const isLong = (end - start) * 3 >= this.maxLine && exceeds(text.slice(start, end), this.maxLine - 1);
        if (isLong) this.tooLarge(text.slice(start, start + HEAD_BYTES), sink); else this.line(text, start, end, sink);
      }
      return;
    }
    for (let start = 0, end; (end = bytes.indexOf(LF, start) + 1) !== 0; start = end) {
      const line = bytes.subarray(start, end); const head = line.toString('latin1', 0, HEAD_BYTES);
      if (isUtf8(line)) this.#decode(line, sink);
      else if (line.length > this.maxLine) this.tooLarge(head, sink);
      else this.bad('BAD_MESSAGE', 'Cannot read a text that is not UTF-8', head, sink);
    }
  }
  /** Keeps a copy, in one buffer that grows: a million chunks of one byte must not cost a million buffers. */
  #hold(piece: Buffer, sink: Sink): void {
    if (this.#isSkipping) return; const bytes = this.heldBytes + piece.length;
    if (bytes > this.maxLine) {
      this.#isSkipping = true;
      return this.tooLarge(Buffer.concat([this.#take(), piece]).toString('latin1', 0, HEAD_BYTES), sink);
    }
    if (bytes > this.#held.length) {
      const grown = Buffer.allocUnsafe(Math.max(bytes, Math.min(4 * bytes, this.maxLine)));
      this.#held.copy(grown, 0, 0, this.heldBytes); this.#held = grown;
    }
    piece.copy(this.#held, this.heldBytes); this.heldBytes = bytes;
  }
  get held(): Buffer { return this.#held.subarray(0, this.heldBytes); } // the unfinished line so far, lent
  #take(): Buffer { const taken = this.held; [this.#held, this.heldBytes] = [EMPTY, 0]; return taken; }
  protected tooLarge(head: string, sink: Sink): void {
    this.bad('MESSAGE_TOO_LARGE', `Cannot read a message of over ${this.max} bytes`, head, sink);
  }
}
class FrameCodec extends LineCodec {
  readonly #isServer: boolean; readonly #isAccepted: boolean; readonly #hello: string; #isGreeted = false;
  constructor({ maxMessageBytes, role, side, hello = {} }: CodecOptions) {
    super(maxMessageBytes); this.maxLine = 8 * 1024; // of a hello
    this.#isServer = role === 'server'; this.#isAccepted = side === 'accepted';
    const fields = Object.entries(hello).map(([name, value]) => ` ${name}=${encodeURIComponent(value)}`);
    this.#hello = `${HELLO}${fields.join('')}\n`;
  }
  start(sink: Sink): void { if (!this.#isAccepted) sink.write(this.#hello); }
  request({ tag, text, timeoutMs, id, client }: Message): Body {
    let head = timeoutMs === undefined ? String(tag) : `${String(tag)}@${timeoutMs}`;
    if (id !== undefined) head += `#${encodeURIComponent(id).replaceAll('~', '%7E')}`;
    if (client !== undefined) head += `~${encodeURIComponent(client)}`;
    return framed(head, text);
  }
  encode(kind: Kind, body: Body | readonly Body[] | MicroError, tag?: Tag): Body {
    const slot = String(tag);
    if (kind === 'reply' || kind === 'part') return framed(kind === 'part' ? `${slot}+` : slot, body as string);
    if (kind === 'end') return `${slot}.\n`;
    const { code, outcome, retryAfterMs: ms, message } = body as MicroError;
    const head = kind === 'error' ? `${slot}!` : kind === 'notice' ? '!' : 'goodbye';
    return `${head} ${code} ${outcome[0]}${ms === undefined ? '' : ` ${ms}`}: ${oneLine(message)}\n`;
  }
  control(...words: unknown[]): string { return `${words.map((one) => encodeURIComponent(String(one))).join(' ')}\n`; }
  /** Nearly all are a request or a reply whose head is a slot alone, or at a worker one with its router's client. */
  protected line(text: string, start: number, end: number, sink: Sink): void {
    let slot = 0, at = start, code = text.charCodeAt(start);
    for (; code >= 48 && code <= 57; code = text.charCodeAt(++at)) slot = slot * 10 + code - 48;
    const digits = at - start, isSlot = digits > 0 && digits <= 9 && (digits === 1 || text.charCodeAt(start) !== 48);
    if (code === 126 && this.#isServer) do code = text.charCodeAt(++at); while (code >= 48 && code <= 57);
    const client = at - start > digits ? text.slice(start + digits + 1, at) : undefined;
    if (!this.#isGreeted) return this.#greet(text.slice(start, end), sink);
    if (!isSlot || code !== 32 || client === '' || at - start > 128) return this.#other(text.slice(start, end), sink);
    const body = text.slice(at + 1, end);
    if (exceeds(body, this.max)) this.tooLarge(`${slot} `, sink);
    else if (!this.#isServer) sink.response(slot, 'reply', body);
    else sink.message({ tag: slot, text: body, timeoutMs: undefined, id: undefined, client });
  }
  #other(line: string, sink: Sink): void {
    const at = line.indexOf(' ');
    const [head, rest] = at === -1 ? [line] : [line.slice(0, at), line.slice(at + 1)];
    const parsed = head.length < HEAD_BYTES ? HEAD.exec(head) : null;
    const isRead = parsed === null ? this.#control(head, rest, sink) : this.#addressed(parsed, rest, sink);
    if (!isRead && line !== '') sink.error('PROTOCOL_ERROR', `Cannot read the frame ${quoted(line.slice(0, 64))}`);
  }
  /** A frame for a slot; false if it can't be read. */
  #addressed([head, slot, ms, id, client, mark = '', flag]: string[], rest: string | undefined, sink: Sink): boolean {
    const tag = Number(slot); const text = flag && rest ? unescaped(rest) : rest;
    const body = mark === '!' ? reason(text) : text ?? '';
    const isWanted = this.#isServer ? mark === '' : !ms && !id && !client;
    if (exceeds(text ?? '', this.max)) this.tooLarge(`${head!} `, sink);
    else if (!isWanted || body === undefined || (mark === '.') !== (text === undefined)) return false;
    else if (!this.#isServer) sink.response(tag, KINDS[mark]!, body);
    else sink.message({ tag, text: text!, timeoutMs: numbered(ms), id: decoded(id), client: decoded(client) });
    return true;
  }
  #control(word: string, text: string | undefined, sink: Sink): boolean {
    const [, slot, count] = /^(0|[1-9]\d{0,8})(?: ([1-9]\d{0,8}))?$/.exec(text ?? '') ?? [];
    const isLone = slot !== undefined && count === undefined;
    const isOfSlot = word === 'cancel' ? isLone : word === 'credit' && count !== undefined;
    if (word === 'ping' && isLone) sink.write(`pong ${slot}\n`);
    else if (word === 'pong' && isLone && !this.#isServer) sink.response(Number(slot), 'reply', '');
    else if (isOfSlot && this.#isServer) sink.control?.(word as Control, Number(slot), Number(count));
    else if (word === 'gone' && text && this.#isServer) sink.control?.(word, decoded(text) ?? '', 0);
    else if ((word === 'draining' || word === 'goodbye') && text === undefined) sink.control?.(word, '', 0);
    else if (word === 'goodbye') sink.close(reason(text));
    else if (word === '!' && !this.#isServer) sink.error('PROTOCOL_ERROR', text ?? '');
    else return word === 'pong' && isLone;
    return true;
  }
  #greet(line: string, sink: Sink): void {
    const [greeting = '', ...words] = line.split(' ');
    if (greeting === HELLO) {
      this.#isGreeted = true; this.maxLine = 2 * this.max + HEAD_BYTES;
      if (this.#isAccepted) sink.write(this.#hello);
      const fields = words.map((word) => word.split('=')).filter(({ length }) => length > 1); // a pattern takes 0.2 ms
      return sink.hello?.(Object.fromEntries(fields.map(([name, ...value]) => [name, value.join('=')].map(decoded))));
    }
    // A server that serves no more, or no such version, says so before its hello; perhaps before it knows the dialect.
    const [, code = '', ms] = /^ERR ([A-Z_]+) (?:retry after (\d+) ms)?/.exec(line) ?? [];
    const outcome = Object.hasOwn(ERRORS, code) || this.#isServer ? 'refused' : 'maybe done';
    const why = this.#isServer ? `Cannot speak ${quoted(greeting.slice(1, 32))}: expected ${quoted(HELLO.slice(1))}`
      : `Cannot use what answers: expected a portcall server, got ${quoted(line.slice(0, 64))}`;
    sink.close((greeting === 'goodbye' && reason(line.slice(8))) ||
      new MicroError(known(code), why, { outcome, retryAfterMs: numbered(ms) }));
  }
  protected bad(code: ErrorCode, why: string, head: string, sink: Sink): void {
    const outcome = this.#isServer ? 'refused' : 'maybe done';
    if (!this.#isGreeted) return sink.close(new MicroError('PROTOCOL_ERROR', `${why}: expected a hello`, { outcome }));
    const [, digits, , , , mark] = HEAD.exec(head.split(' ', 1)[0]!) ?? []; const slot = numbered(digits);
    const fault = this.#isServer || code !== 'BAD_MESSAGE' ? code : 'PROTOCOL_ERROR'; // a garbled reply
    if (this.#isServer || mark !== '' || slot === undefined) sink.error(fault, why, slot);
    else sink.response(slot, 'error', new MicroError(fault, why, { outcome }));
  }
}
/** The dialect of MicroClient: one frame a line, replies in any order. */
export function frames(): Dialect {
  return { name: 'frames', ordered: false, open: (options) => new FrameCodec(options), matches(head) {
    const first = String.fromCharCode(...head.subarray(0, HELLO.length - 1)); // whatever its version
    return first === HELLO.slice(0, -1) ? 'yes' : HELLO.startsWith(first) ? 'more' : 'no';
  } };
}
function framed(head: string, text: string): Body {
  if (text.includes('\n')) return `${head}\\ ${escaped(text)}\n`;
  if (text.length < 65_536) return `${head} ${text}\n`;
  const textBytes = Buffer.byteLength(text); // a large text is copied but once, straight to where it is sent from
  const bytes = Buffer.allocUnsafe(head.length + 2 + textBytes);
  bytes.write(`${head} `, 'latin1'); bytes.write(text, head.length + 1, textBytes === text.length ? 'latin1' : 'utf8');
  bytes[bytes.length - 1] = LF; return bytes;
}
/** By splitting: a million line breaks in 20 ms, where `replaceAll` takes 100. */
const escaped = (text: string): string => text.split('\\').join('\\\\').split('\n').join('\\n');
const unescaped = (text: string): string => text.split('\\\\')
  .map((piece) => (piece.includes('\\') ? piece.split('\\n').join('\n') : piece)).join('\\');
function reason(text = ''): MicroError | undefined {
  const [, code, outcome = '', ms, message = ''] = REASON.exec(text) ?? [];
  if (code === undefined) return undefined;
  return new MicroError(known(code), message, { outcome: OUTCOMES[outcome]!, retryAfterMs: numbered(ms) });
}
const known = (code: string): ErrorCode => (Object.hasOwn(ERRORS, code) ? code as ErrorCode : 'PROTOCOL_ERROR');
const numbered = (digits: string | undefined) => (digits === undefined ? undefined : Number(digits));
const decoded = (field?: string) => { try { return field && decodeURIComponent(field); } catch { return field; } };
// --------------------------------------------------------------------------------------- Writing, timing, dialling
/** All writes of a tick in one; the first early, so that both cores work: else half the rate at 1,000 in flight. How
 * early, the last tick tells: 9 % more at 1,000 in flight than from 512 letters on each time. */
export class Outbox {
  readonly #duplex: Duplex; readonly #owner: { flooded(): void } | undefined; // is told when the peer reads slowly
  isScheduled = false; #text = ''; #early = 512; // the first: something waits, or will, for release()
  constructor(duplex: Duplex, owner?: { flooded(): void }) { this.#duplex = duplex; this.#owner = owner; }
  /** @param isLone Nothing more is expected in this tick. */
  push(data: Body, isLone = false): void {
    if (typeof data !== 'string') return this.flush(data);
    this.#text += data; if (isLone && !this.isScheduled) return this.flush();
    if (this.#text.length >= this.#early) { this.#early = Math.min(this.#early * 2, 16_384); this.flush(); }
    if (this.hold()) process.nextTick(Outbox.#release, this);
  }
  /** Gathers what is pushed up to release(), which is up to the caller if this is true. */
  hold(): boolean { return !this.isScheduled && (this.isScheduled = true); }
  gather(): void { this.#early = 16_384; } // nothing early in this tick: what comes is known, and comes at once
  release(): void { this.isScheduled = false; this.#early = Math.max(512, this.#early / 2); this.flush(); }
  static #release(outbox: Outbox): void { outbox.release(); } // a closure for each would be kept by each connection
  flush(behind?: Uint8Array): void {
    const text = this.#text; this.#text = ''; if (!this.#duplex.writable) return;
    // Latin1 is copied where UTF-8 is encoded; for ASCII both are the same bytes.
    if (text !== '') this.#duplex.write(text, Buffer.byteLength(text) === text.length ? 'latin1' : 'utf8');
    if (behind !== undefined) this.#duplex.write(behind);
    if (this.#duplex.writableNeedDrain) this.#owner?.flooded();
  }
}
/** One unref'd timer for many deadlines: a timer a call costs a third of the rate. */
export class Alarm {
  #due = Infinity; #timer: NodeJS.Timeout | undefined;
  readonly #walk: (at: number) => number; // ends what is overdue and returns when to be called again
  constructor(walk: (at: number) => number) { this.#walk = walk; }
  at(due: number): void {
    if (due >= this.#due) return;
    this.stop(); this.#due = due;
    const ring = () => { this.#due = Infinity; this.at(this.#walk(now())); }; // once what came meanwhile is read
    this.#timer = setTimeout(setImmediate, Math.min(Math.max(Math.ceil(due - now()), 1), 0x7fff_ffff), ring).unref();
  }
  stop(): void { clearTimeout(this.#timer); this.#due = Infinity; }
}
/** Tells who listens on `portcall:…` of node:diagnostics_channel: lib/monitor.ts has the names. */
export const publish = (event: string, facts: () => object, told = channel(`portcall:${event}`)): void =>
  void (told.hasSubscribers && told.publish(facts()));
/** Looks for 50 us whether more comes before the event loop sleeps, which is what it takes to sleep and be woken: one
 * message at a time is 4 times as fast, for half the processor time. Where nothing came, or all at once, it is left for
 * twice as many chunks as before, up to 1,024: slow answers, one core, full load. PORTCALL_BUSY_POLL=0 turns it off. */
export const poll = { isOn: false, until: 0, looks: 0, full: 0, // looks since the last chunk; turns with one at once
  passes: 8, left: process.env['PORTCALL_BUSY_POLL'] === '0' ? Infinity : 16, // chunks without
  came(at?: number): void { // a chunk
    const { isOn, looks } = this; if (isOn ? looks > 1 && (at ?? now()) > this.until : this.left-- > 0) return;
    this.full = isOn && looks < 2 ? this.full + looks : 0; this.looks = 0; this.isOn = true;
    if (!isOn) setImmediate(lookAgain); else if (looks > 1) this.passes = 8; // it paid
  } };
function lookAgain(): void {
  const at = now(); if (++poll.looks === 1) poll.until = at + 0.05; // once the chunk is handled
  if (at < poll.until && poll.full < 64) return void setImmediate(lookAgain);
  poll.isOn = false; poll.left = poll.passes = Math.min(1_024, 2 * poll.passes);
}
/** Milliseconds that never go back. `performance` would have to be loaded first; a BigInt takes 57 ns, this 42. */
export const now = (): number => { const time = hrtime(); return time[0] * 1e3 + time[1] / 1e6; };
const CHUNK = Buffer.allocUnsafeSlow(64 * 1024), VIEWS: Buffer[] = []; // all read into it: what is kept is copied
const NET: Transport = {
  dial({ host, port, path }, { ready, receive }) {
    const cut = (to: number) => (to < 512 ? VIEWS[to] ??= CHUNK.subarray(0, to) : CHUNK.subarray(0, to)); // -40 ns
    const onread = { buffer: CHUNK, callback: (bytes: number) => { receive(cut(bytes)); return true; } };
    const socket = connect({ ...(path ? { path } : { host: host!, port: port! }), noDelay: true, onread });
    return socket.once('connect', () => {
      // A free port in the range of outgoing ones may be dialled from itself, and connects.
      const isSelf = path === undefined && socket.localPort === port && socket.localAddress === socket.remoteAddress;
      if (isSelf) socket.destroy(new Error('nobody listens there')); else ready();
    });
  },
};
const extension = (): string => /\.\w+$/.exec(import.meta.url)?.[0] ?? '.ts';
/** An optional file of this folder. The specifier is computed, so that the file may be missing. */
export const loadBeside = (name: string): Promise<unknown> => import(/* @vite-ignore */ `./${name}${extension()}`);
async function loadPart<T>(kind: 'dialect' | 'transport', name: string, shown: string): Promise<T> {
  const why = `Cannot use ${shown}: expected lib/${kind}s/${name}${extension()}. Copy it beside this one`;
  try { return ((await loadBeside(`${kind}s/${name}`)) as Record<string, T>)[kind] as T; }
  catch (cause) { throw new MicroError('BAD_ADDRESS', why, { cause }); }
}
export const loadTransport = (scheme: string) => loadPart<Transport>('transport', scheme, `${scheme}://`);
export const loadDialect = async (name: string) => (await loadPart<() => Dialect>('dialect', name, `${name}+`))();
// ---------------------------------------------------------------------------------------------------- Small checks
export const exceeds = (text: string, maxBytes: number): boolean =>
  text.length * 3 > maxBytes && Buffer.byteLength(text) > maxBytes;
export const isWellFormed = (text: string) => (text as string & { isWellFormed(): boolean }).isWellFormed(); // ES2024
/** Of anything that was thrown; even where that throws when it is asked. */
export function textOf(error: unknown): string {
  try { return error instanceof Error ? String(error.message) : String(error); } catch { return 'it has no text'; }
}
/** What may stand in one line: no line break, no control character, 4,096 letters at most. */
export const oneLine = (text: string): string =>
  Buffer.from(text.slice(0, 4096).replace(/[\0-\x1f\x7f-\x9f\u2028\u2029]+/g, ' ')).toString();
export const errorText = ({ code, message, retryAfterMs: ms }: MicroError): string => // for who reads no frames
  `ERR ${code} ${ms === undefined ? oneLine(message) : `retry after ${ms} ms`}`;
/** A value as messages show it: on one line, cut, with nothing that could steer a terminal. */
export function quoted(value: unknown): string {
  const text = typeof value === 'string' ? JSON.stringify(value.slice(0, 200))
    : typeof value === 'object' && value !== null ? 'an object' : String(value).slice(0, 200);
  // Spelt out: \p{Cc}, \p{Bidi_Control} and their like cost each process 0.3 ms a pattern, whether it runs or not.
  return text.replace(/[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g, escapeOf);
}
export const escapeOf = (letter: string): string => `\\u${letter.charCodeAt(0).toString(16).padStart(4, '0')}`;
export const logToStderr: Log = (level, text) =>
  void (level === 'info' || process.stderr.write(`portcall: ${oneLine(text)}\n`));
const refused = (what: string, value: unknown, expected: string) =>
  new TypeError(`Cannot use ${what} ${quoted(value)}: expected ${expected}`);
export function positive<K extends string>(options: { readonly [N in K]?: number }, name: K, standard: number): number {
  const value: unknown = options[name] ?? standard;
  if (typeof value !== 'number') throw refused(name, value, 'a number');
  if (value > 0) return value;
  throw new RangeError(`Cannot use ${name} ${value}: expected more than 0`);
}
/** A token that is named but empty or missing must not mean that none is wanted. */
export function checkSetUp(key: unknown, options: { token?: string }): void {
  const isKey = typeof key === 'string' || typeof key === 'number';
  if (!isKey) throw refused('key', key, 'a name in ports.json, a port or an address');
  const isToken = !('token' in options) || (typeof options.token === 'string' && options.token !== '');
  if (!isToken) throw refused('token', options.token, 'a secret. Leave it out if none is wanted');
}
function checkCall({ id, signal, ...options }: CallOptions): void {
  positive(options, 'timeoutMs', 1);
  const isId = typeof id === 'string' && isWellFormed(id) && /^.{1,128}$/.test(encodeURIComponent(id));
  if (id !== undefined && !isId) throw refused('id', id, '1 to 128 bytes, percent-encoded');
  if (signal !== undefined && !(signal instanceof AbortSignal)) throw refused('signal', signal, 'an AbortSignal');
}
// ------------------------------------------------------------------------------------- The look-up in ports.json
export interface Address { url: string; scheme: string; host?: string; port?: number; path?: string; dialect?: string }
export type Ports = string | Table; // the path of a ports file, or an object in its stead
type Table = Readonly<Record<string, unknown>>; const NUMBER = /^-?\d+(\.\d+)?$/;
/** Where a key leads. A port number, its digits or a URL in place of a key needs no file. */
export function resolveAddress(key: string | number, ports?: Ports, warn?: (text: string) => void): Address {
  const name = String(key), isDirect = typeof key === 'number' || NUMBER.test(name) || name.includes('://');
  const { file, table } = isDirect ? { table: { [name]: key } } : readPorts(ports, name);
  const where = () => (file === undefined ? `address ${quoted(key)}` : `${quoted(key)} in ${quoted(file)}`);
  const known = Object.keys(table).filter((one) => one !== 'portcall' || typeof table[one] !== 'object'); // the CLI's
  const failure = (code: ErrorCode, why: string) => new MicroError(code, `Cannot ${why}`);
  if (!known.includes(name)) throw failure('UNKNOWN_SERVICE', `find service ${where()}: ${suggest(name, known)}`);
  const found = parseAddress(table[name]); const code = isDirect ? 'BAD_ADDRESS' : 'BAD_PORTS_FILE';
  if (typeof found === 'string') throw failure(code, `read ${where()}: ${found}`);
  const { url, port } = found;
  const twin = port === 0 ? undefined // 0: each gets its own
    : known.find((other) => other !== name && (parseAddress(table[other]) as Partial<Address>).url === url);
  const remedy = 'expected an address for each. Change one';
  if (twin !== undefined) throw failure(code, `read ${where()}: ${quoted(twin)} has ${url} too, ${remedy}`);
  const isTransient = !isDirect && typeof ports !== 'object' && port !== undefined && port >= 32_768 && port <= 60_999;
  if (isTransient) warn?.(`Port ${port} of ${where()} may be taken: outgoing connections are given 32768 to 60999`);
  return found;
}
/** The table that keys are looked up in, and its name for messages. They tell `key`, if given. */
export function readPorts(ports?: Ports, key?: string): { file: string; table: Table } {
  const given = ports ?? (process.env['PORTCALL_PORTS'] || undefined);
  if (typeof given === 'object') return { file: 'options.ports', table: given };
  const upwards = Array.from({ length: 64 }, (_, up) => `${'../'.repeat(up)}ports.json`);
  const file = given ?? upwards.find((path) => existsSync(path)) ?? 'ports.json';
  let [text, cause]: [string, NodeJS.ErrnoException?] = [''];
  try {
    text = readFileSync(file, 'utf8').replace(/^\uFEFF/, '');
    if (/^\s*\{/.test(text)) return { file, table: JSON.parse(text) };
  } catch (error) { cause = error as NodeJS.ErrnoException; }
  const is = cause?.code === 'ENOENT' ? 'no such file' : cause?.code === 'EISDIR' ? 'it is a folder' : cause?.code;
  const fault = is === undefined ? findJsonFault(text) : `${is}, looked in ${quoted(process.cwd())}` +
    `${given === undefined ? ' and above' : ''}. Make it, set PORTCALL_PORTS, or give an address such as 5467`;
  const task = key === undefined ? 'read' : `find service ${quoted(key)} in`;
  throw new MicroError('BAD_PORTS_FILE', `Cannot ${task} ${quoted(file)}: ${fault}`, { cause });
}
/** Reads a port number, its digits or a URL, or tells what is wrong; schemes but tcp and ipc are their transports'. */
function parseAddress(value: unknown): Address | string {
  if (typeof value === 'number' && value >>> 0 === value && value <= 65_535) // no pattern need be compiled: 0.3 ms
    return { url: `tcp://127.0.0.1:${value}`, scheme: 'tcp', host: '127.0.0.1', port: value };
  const given = typeof value === 'string' || typeof value === 'number' ? String(value) : '';
  const url = NUMBER.test(given) ? `tcp://127.0.0.1:${given}` : given;
  const form = /^(?:([A-Za-z]\w*)\+)?([A-Za-z][\w.-]*):\/\/(([^@/?#]*@)?(\[[^\]]*\]|[^:/?#]*)(?::([^/?#]*))?(.*))$/s;
  const [, named, name = '', rest = '', user, host = '', digits = '', path = ''] = form.exec(url) ?? [];
  const scheme = name.toLowerCase(), bytes = Buffer.byteLength(rest);
  const base = { url: `${scheme}://${rest}`, scheme, ...(named && { dialect: named.toLowerCase() }) };
  const port = NUMBER.test(digits) ? Number(digits) : NaN, bare = host.replace(/^\[(.*)\]$/, '$1'); // as net has it
  const isHost = bare === host ? /^[^\s!-,/:-@[-^`{-~]+$/.test(host) : isIPv6(bare);
  if (/[\0-\x1f\x7f-\x9f]/.test(url)) return 'it has a control character, expected none';
  if (scheme === 'ipc' && bytes > 107) return `path has ${bytes} bytes, expected at most 107`; // 108 with its NUL
  if (scheme === 'ipc' && rest.startsWith('/')) return { ...base, path: rest };
  if (port < 0 || port > 65_535 || port % 1 > 0) return `port is ${digits}, expected a whole number from 0 to 65535`;
  if (!/^(?:|tcp|ipc)$/.test(scheme)) return { ...base, host: bare, path, ...(port >= 0 && { port }) };
  const isTcp = scheme === 'tcp' && isHost && port >= 0 && user === undefined && path.length <= 1;
  return isTcp ? { ...base, url: `tcp://${host.toLowerCase()}:${port}`, host: bare, port }
    : `it is ${quoted(value)}, expected a port, tcp://host:port or ipc:///path`;
}
/** Names the key that differs in one place only, and there in a third of its letters at most. */
function suggest(key: string, known: readonly string[]): string {
  const asked = key.toUpperCase(), cut = Math.floor(asked.length / 3);
  const isNear = (name: string) => Math.abs(name.length - asked.length) <= cut && [...asked, ''].some((_, at) =>
    name.startsWith(asked.slice(0, at)) && name.endsWith(asked.slice(at + cut)));
  const near = known.find((name) => isNear(name.toUpperCase()));
  const list = known.slice(0, 12).map((name) => (/^[\w.-]{1,64}$/.test(name) ? name : quoted(name)));
  if (known.length > 12) list.push('…');
  return `${near === undefined ? 'no such key.' : `did you mean ${quoted(near)}?`} Known: ${list.join(', ') || 'none'}`;
}
/** Where JSON breaks and what would do there, found by trying: engines word it differently, or don't tell. */
function findJsonFault(text: string): string {
  const tokens = [...text.matchAll(/"(?:\\.|[^"\\])*"?|[{}[\],:]|[^ \t\n\r"{}[\],:]+/gs)];
  const wanted = (at: number): string[] => { // what can stand in place of this token
    const open: string[] = []; // what is open wants these, the last first
    for (const [token] of tokens.slice(0, at))
      if (token === open.at(-1)) open.pop(); else if (/^[[{]$/.test(token)) open.push(token === '{' ? '}' : ']');
    const head = text.slice(0, tokens[at]?.index), inner = open.at(-1), ends = open.reverse().join('');
    const ways = { 'a key in double quotes': '"":0', '":"': ':0', 'a value': ' 0',
      '","': inner === '}' ? ',"":0' : ',0', [inner === undefined ? 'the end' : quoted(inner)]: '' };
    return Object.entries(ways).filter(([, way]) => isJson(head + way + ends)).map(([name]) => name);
  };
  let [good, bad] = [0, tokens[0]?.[0] === '{' ? tokens.length + 1 : 1];
  for (let at; (at = (good + bad) >> 1) > good;) if (wanted(at).length > 0) good = at; else bad = at;
  const before = text.slice(0, tokens[good]?.index).split('\n'), [token] = tokens[good] ?? [];
  const is = `line ${before.length}, column ${before.at(-1)!.length + 1} is ${token ? quoted(token) : 'the end'}`;
  const expected = good > 0 ? wanted(good).join(' or ') : 'an object such as {"LIFE_GEN": 5467}';
  return `${tokens.length === 0 ? 'it is empty' : is}, expected ${expected}`;
}
function isJson(text: string): boolean { try { JSON.parse(text); return true; } catch { return false; } }
