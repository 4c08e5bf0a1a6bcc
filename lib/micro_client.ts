/**
 * portcall's client: `await new MicroClient('LIFE_GEN').sendMessage('music')`. Copy this file alone to call services,
 * `micro_server.ts` too to offer them. PROTOCOL.md tells the wire. In this order: the client; errors; the seams
 * (dialect, codec, transport); lines and frames; writing, timing, dialling; small checks; the look-up in ports.json.
 */
import { Buffer, isAscii, isUtf8 } from 'node:buffer';
import { existsSync, readFileSync } from 'node:fs';
import { connect, isIPv6, type NetConnectOpts, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';

export interface CallOptions {
  timeoutMs?: number; // for the whole call, connecting included; for a stream, up to each part
  signal?: AbortSignal;
  retry?: boolean; // try again until the deadline, as long as the message is known not to have run
  id?: string; // makes sending twice safe where the server has `dedupe`; 128 bytes, percent-encoded
}
export interface ClientOptions {
  ports?: Ports;
  token?: string; // the secret of a server with the option `token`
  timeoutMs?: number; // of a call that names none; default 5,000
  retry?: boolean; // likewise; default false: a call fails with the dial it waits for
  dialect?: Dialect; // default frames()
  maxQueued?: number; // calls waiting for anything at all; past it `SERVER_BUSY`, not sent; default 16,384
  maxMessageBytes?: number; // of UTF-8, sent or received; past it `MESSAGE_TOO_LARGE`; default 1 MiB
  hello?: Readonly<Record<string, string>>; // more to say of oneself: `node`, `role`
  log?: Log;
}

const BACKOFF_MS = { first: 50, last: 900 }; // full jitter: a random part of 50 ms, doubling to 900 ms
const MAX_MISREADS = 20; // on a connection, until it is given up
const CLOSE_MS = 1_000; // what a peer gets to close its side after ours

/**
 * Calls the service under a key. Connects on the first message, pipelines, reconnects. A pending call keeps the
 * process alive, nothing else does: a script needs no `close()`.
 */
export class MicroClient {
  readonly #key: string | number;
  readonly #options: ClientOptions;
  readonly #timeoutMs: number;
  readonly #maxQueued: number;
  readonly #maxMessageBytes: number;
  readonly #alarm = new Alarm((at) => this.#walk(at));
  readonly #calls: (Call | undefined)[] = []; // by slot
  readonly #free: number[] = []; // slots; one is free again when its final frame has come
  readonly #links = new Set<Link>(); // the one below, and those that only finish their calls
  #link: Link | undefined; // takes new calls, once it is open
  #isDialling = false;
  #queue: Call[] = []; // on no connection yet
  #failedDials = 0; // in a row
  #retryAt = 0; // all retries share the dials
  #address: Address | undefined;
  #closing: Promise<void> | undefined;
  /**
   * @param key A name in ports.json, a port, or an address such as `tcp://127.0.0.1:5467`.
   * @throws {TypeError | RangeError} Wrong options. A wrong address is told by the calls.
   */
  constructor(key: string | number, options: ClientOptions = {}) {
    checkSetUp(key, options);
    this.#key = key;
    this.#options = options;
    this.#timeoutMs = positive(options, 'timeoutMs', 5_000);
    this.#maxQueued = positive(options, 'maxQueued', 16_384);
    this.#maxMessageBytes = positive(options, 'maxMessageBytes', 1024 * 1024);
  }
  /**
   * Sends one message and resolves with its reply; the parts of a stream come joined by line breaks.
   *
   * @param text Any string that UTF-8 can carry, up to `maxMessageBytes`.
   * @throws {MicroError} `CONNECTION_REFUSED`, `CONNECT_TIMEOUT`, `SERVER_BUSY`: it has not run. `TIMEOUT`,
   *   `CONNECTION_LOST`, `ABORTED`, `CLOSED`: `error.outcome` tells whether it may have. `CALLBACK_FAILED`: it has.
   * @example const line = await new MicroClient('LIFE_GEN').sendMessage('music');
   */
  sendMessage(text: string, options: CallOptions = NO_OPTIONS): Promise<string> {
    if (options !== NO_OPTIONS) checkCall(options);
    if (options.retry ?? this.#options.retry) return this.#persist(text, options);
    return new Promise((resolve, reject) => this.#submit(newCall(text, resolve, reject), options));
  }
  /**
   * Sends one message and yields the parts of its reply as they come (one, if it is no stream). The service is at most
   * 256 parts and 1 MiB ahead of the loop; leaving the loop cancels it. It is not retried.
   */
  streamMessage(text: string, options: CallOptions = NO_OPTIONS): AsyncIterable<string> {
    checkCall(options);
    return this.#stream(text, options);
  }
  /** Resolves with the milliseconds to the server and back. Its callback is not called. */
  async ping(options: CallOptions = NO_OPTIONS): Promise<number> {
    checkCall(options);
    const began = now();
    await new Promise((resolve, reject) => {
      this.#submit(Object.assign(newCall('', resolve, reject), { isPing: true }), options);
    });
    return now() - began;
  }
  /** Ends the connection. Pending and later calls fail with `CLOSED`. */
  close(): Promise<void> {
    return this.#closing ??= Promise.resolve().then(async () => {
      for (const call of this.#calls) if (call) this.#giveUp(call, 'CLOSED', 'the client was closed');
      this.#alarm.stop();
      await Promise.all([...this.#links].map((link) => this.#end(link)));
    });
  }
  /** Sends again what is known not to have run, or is safe to send twice, until the deadline. */
  async #persist(text: string, options: CallOptions): Promise<string> {
    const deadline = now() + (options.timeoutMs ?? this.#timeoutMs);
    for (;;) {
      const call = newCall(text, NOTHING, NOTHING);
      try {
        return await new Promise((resolve, reject) => {
          const timeoutMs = Math.max(deadline - now(), 1);
          this.#submit(Object.assign(call, { resolve, reject }), { ...options, timeoutMs });
        });
      } catch (error) {
        const { code, outcome, retryAfterMs = 0 } = error as MicroError;
        const isSafe = outcome !== 'maybe done' || (options.id !== undefined && call.link?.dedupes === true);
        if (!isSafe || !RETRIED.has(code) || call.joined || this.#closing || deadline - now() < 10) throw error;
        const mostMs = Math.min(BACKOFF_MS.last, BACKOFF_MS.first * 2 ** Math.max(0, this.#failedDials - 1));
        if (this.#retryAt < now()) this.#retryAt = now() + retryAfterMs + Math.random() * mostMs;
        await pause(Math.min(this.#retryAt, deadline - 9) - now(), options.signal);
      }
    }
  }
  async *#stream(text: string, options: CallOptions): AsyncGenerator<string, void, undefined> {
    const parts: string[] = [];
    let failure: Error | undefined;
    let wake = NOTHING;
    const call = newCall(text, (reply) => { if (!call.isStreamed) parts.push(reply); wake(); },
      (error) => { failure = error; wake(); });
    call.onPart = (part) => { parts.push(part); wake(); };
    this.#submit(call, options);
    try {
      for (;;) {
        while (parts.length > 0) {
          yield parts.shift() as string;
          this.#took(call, parts.length === 0);
        }
        if (failure !== undefined) throw failure;
        if (call.isSettled) return;
        await new Promise<void>((resolve) => { wake = resolve; });
      }
    } finally {
      this.#giveUp(call, 'ABORTED', 'its reader stopped');
    }
  }
  #submit(call: Call, { signal, id, timeoutMs = this.#timeoutMs }: CallOptions): void {
    const refusal = this.#refusal(call.text, signal);
    call.isSettled = refusal !== undefined;
    if (refusal !== undefined) return call.reject(refusal);
    call.limitMs = timeoutMs;
    if (timeoutMs !== this.#timeoutMs) call.timeoutMs = Math.ceil(timeoutMs);
    call.deadline = now() + timeoutMs;
    call.id = id;
    if (signal !== undefined) {
      const onAbort = () => this.#giveUp(call, 'ABORTED', 'the caller aborted it', signal.reason);
      signal.addEventListener('abort', onAbort);
      call.release = () => signal.removeEventListener('abort', onAbort);
    }
    call.tag = this.#free.pop() ?? this.#calls.length;
    this.#calls[call.tag] = call;
    this.#alarm.at(call.deadline);
    if (this.#link?.state === 'open' && !this.#link.duplex.writableNeedDrain) return this.#send(call, this.#link);
    this.#queue.push(call);
    this.#connect();
  }
  /** Why a message can't even be queued, if so. */
  #refusal(text: unknown, signal: AbortSignal | undefined): MicroError | undefined {
    const refuse = (code: ErrorCode, why: string, cause?: unknown) =>
      new MicroError(code, `Cannot send to ${this.#name()}: ${why}`, { outcome: 'not sent', cause });
    if (this.#closing !== undefined) return refuse('CLOSED', 'the client was closed. Make a new one');
    if (signal?.aborted) return refuse('ABORTED', 'the caller aborted it', signal.reason);
    if (typeof text !== 'string') return refuse('BAD_MESSAGE', `it is ${quoted(text)}, expected a string`);
    if (!isWellFormed(text)) return refuse('BAD_MESSAGE', 'it has half a surrogate pair, which UTF-8 can\'t carry');
    if (exceeds(text, this.#maxMessageBytes)) return refuse('MESSAGE_TOO_LARGE', `it has ${Buffer.byteLength(text)} bytes, ` +
      `expected at most ${this.#maxMessageBytes}. Send it in pieces, or raise maxMessageBytes on both sides`);
    return this.#calls.length - this.#free.length < this.#maxQueued ? undefined
      : refuse('SERVER_BUSY', `${this.#maxQueued} calls wait already. Await some, or raise maxQueued`);
  }
  #send(call: Call, link: Link): void {
    call.link = link;
    call.heard = link.heard;
    if (link.live++ === 0) (link.duplex as Partial<Socket>).ref?.();
    const bytes = call.isPing ? link.codec.control?.('ping', call.tag) : link.codec.request(call);
    if (bytes !== undefined) link.outbox.push(bytes);
    else this.#giveUp(call, 'PROTOCOL_ERROR', 'its dialect has no ping');
  }
  #name(): string {
    const url = this.#address?.url;
    return quoted(this.#key) + (url === undefined || url === this.#key ? '' : ` (${url})`);
  }

  // Connecting: one dial for all that wait.
  #connect(): void {
    if (this.#link !== undefined || this.#isDialling || this.#closing !== undefined) return;
    this.#isDialling = true;
    this.#dial().catch((error: unknown) => this.#refused(error)).finally(() => { this.#isDialling = false; });
  }
  async #dial(): Promise<void> {
    const address = this.#resolve();
    const transport = DIALLED_BY_NET.has(address.scheme) ? NET : await loadTransport(address.scheme);
    if (transport.dial === undefined) throw new Error('it can only be listened on');
    const { token, hello, dialect = frames() } = this.#options;
    const duplex = transport.dial(address, { options: this.#options,
      ready: () => this.#connected(link), receive: (chunk) => this.#receive(link, chunk) });
    const link = this.#link = this.#attach(duplex, dialect.open({ side: 'dialled', role: 'client',
      maxMessageBytes: this.#maxMessageBytes,
      hello: { timeout: String(this.#timeoutMs), ...hello, ...(token !== undefined && { token }) } }));
  }
  /** Runs calls over a duplex; `data` is for transports that don't hand over chunks by themselves. */
  #attach(duplex: Duplex, codec: Codec): Link {
    const link: Link = { duplex, codec, outbox: new Outbox(duplex), state: 'dialling', live: 0, heard: 0,
      quietHeard: -1, quietAt: 0, misreads: 0, dedupes: false, sink: {
        hello: (fields) => { link.dedupes = fields['dedupe'] !== undefined; },
        response: (tag, kind, body) => this.#response(link, tag as number, kind, body),
        control: (word) => { if (word === 'draining') this.#retire(link); },
        message: () => this.#misread(link, 'PROTOCOL_ERROR', 'it asks, expected replies'),
        error: (code, why, tag) => this.#misread(link, code, why, tag as number | undefined),
        write: (bytes) => { link.heard++; link.outbox.push(bytes); }, // a ping came
        close: (last) => this.#lost(link, last instanceof MicroError ? last : undefined),
      } };
    this.#links.add(link);
    duplex.on('data', (chunk: Uint8Array) => this.#receive(link, chunk));
    duplex.on('drain', () => this.#pump());
    duplex.on('error', (error) => this.#lost(link, error));
    duplex.on('end', () => this.#lost(link));
    duplex.on('close', () => { this.#lost(link); this.#links.delete(link); });
    return link;
  }
  #connected(link: Link): void {
    if (link.state !== 'dialling') return;
    link.state = 'open';
    this.#failedDials = 0;
    (link.duplex as Partial<Socket>).unref?.();
    link.codec.start?.(link.sink);
    this.#pump();
  }
  /** The key's line is read again at each dial; where the file broke, the old address stays. */
  #resolve(): Address {
    try {
      this.#address = resolveAddress(this.#key, this.#options.ports);
    } catch (error) {
      if (this.#address === undefined) throw error;
      this.#warn(`${textOf(error)}; staying with ${this.#address.url}`);
    }
    if (this.#address.host !== '0.0.0.0' && this.#address.host !== '::') return this.#address;
    throw new MicroError('BAD_ADDRESS', `Cannot dial ${this.#address.url}: servers bind there, expected one host. ` +
      'Dial 127.0.0.1, or its name');
  }
  #refused(error: unknown, calls = this.#queue.splice(0)): void {
    this.#failedDials++;
    for (const call of calls) {
      this.#fail(call, error instanceof MicroError ? new MicroError(error.code, error.message, error)
        : new MicroError('CONNECTION_REFUSED', `Cannot reach ${this.#name()}: ${textOf(error)}. Is the service running?`,
          { cause: error }));
    }
  }
  /** Hands waiting calls to the connection, as far as it takes them. */
  #pump(): void {
    const at = now();
    let taken = 0;
    for (const link = this.#link; taken < this.#queue.length; taken++) {
      if (link?.state !== 'open' || link.duplex.writableNeedDrain) break;
      const call = this.#queue[taken] as Call;
      if (call.isSettled) continue;
      if (at - (call.deadline - call.limitMs) > 100) call.timeoutMs = Math.max(1, Math.ceil(call.deadline - at));
      this.#send(call, link);
    }
    this.#queue.splice(0, taken);
    if (this.#queue.length > 0) this.#connect();
  }

  // What the codec tells.
  #receive(link: Link, chunk: Uint8Array): void {
    if (link.state !== 'closed') link.codec.receive(chunk, link.sink);
  }
  #response(link: Link, slot: number, kind: Kind, body: string | MicroError): void {
    const call = this.#calls[slot];
    link.heard++;
    if (call?.link !== link) return this.#misread(link, 'PROTOCOL_ERROR', `no call has slot ${slot}`);
    if (kind === 'part') return this.#part(call, body as string);
    if (kind === 'end') call.isStreamed = true;
    this.#giveSlotBack(call);
    if (call.isSettled) return; // too late: its caller has an error
    if (kind === 'error') this.#settle(call, body as MicroError);
    else this.#settle(call, undefined, kind === 'end' ? (call.joined ?? []).join('\n') : body as string);
  }
  #part(call: Call, part: string): void {
    if (call.isSettled) return;
    call.isStreamed = true;
    call.deadline = now() + call.limitMs;
    call.untaken++;
    if (call.onPart !== undefined) return call.onPart(part);
    (call.joined ??= []).push(part);
    call.joinedLength += part.length + 1;
    this.#took(call, false);
    if (call.joinedLength <= this.#maxMessageBytes) return;
    this.#giveUp(call, 'MESSAGE_TOO_LARGE', 'its parts exceed maxMessageBytes. Use streamMessage');
  }
  /** A part was taken: gives credit back, some at a time. */
  #took(call: Call, isAll: boolean): void {
    if (call.isSettled || !call.isStreamed) return;
    call.untaken--;
    call.deadline = now() + call.limitMs;
    if (++call.taken < 32 && !isAll) return;
    const credit = call.link?.codec.control?.('credit', call.tag, call.taken);
    if (credit !== undefined) call.link?.outbox.push(credit);
    call.taken = 0;
  }
  /** Something on the connection that can't be used, perhaps a call's reply. */
  #misread(link: Link, code: ErrorCode, why: string, slot = -1): void {
    const call = this.#calls[slot];
    if (call?.link === link) this.#giveUp(call, code, why);
    else if (++link.misreads < MAX_MISREADS) this.#warn(`${this.#name()} sent what can't be used: ${why}`);
    else this.#lost(link, new MicroError('PROTOCOL_ERROR', `Cannot go on with ${this.#name()}: ${why}`, { outcome: 'maybe done' }));
  }
  #warn(text: string): void {
    (this.#options.log ?? logToStderr)('warn', text);
  }

  // Settling: each call once.
  #settle(call: Call, error: Error | undefined, text = ''): void {
    call.isSettled = true;
    call.release?.();
    if (call.link !== undefined && --call.link.live === 0) this.#rest(call.link);
    if (error === undefined) call.resolve(text);
    else call.reject(error);
  }
  #fail(call: Call, error: MicroError): void {
    this.#giveSlotBack(call);
    if (!call.isSettled) this.#settle(call, error);
  }
  #giveSlotBack(call: Call): void {
    if (this.#calls[call.tag] !== call) return;
    this.#calls[call.tag] = undefined;
    this.#free.push(call.tag);
  }
  /** Ends a call from this side. Once sent, its slot stays taken until the server has answered it. */
  #giveUp(call: Call, code: ErrorCode, why: string, cause?: unknown): void {
    if (call.isSettled) return;
    const { link } = call;
    const error = new MicroError(code, `Cannot get the reply of ${this.#name()}: ${why}`,
      { outcome: link === undefined ? 'not sent' : 'maybe done', cause });
    if (link === undefined || link.state === 'closed') return this.#fail(call, error);
    const cancel = link.codec.control?.('cancel', call.tag);
    if (cancel !== undefined) link.outbox.push(cancel);
    else this.#retire(link); // a late reply would be taken for the next call's
    if (code === 'TIMEOUT' && call.heard === link.heard) this.#doubt(link, call);
    this.#settle(call, error);
  }
  /** Nothing came since the call left. The second time in a row, not even the answer to a cancel: the peer is gone. */
  #doubt(link: Link, call: Call): void {
    if (link.quietHeard !== link.heard) link.quietAt = now();
    else if (call.deadline - call.limitMs > link.quietAt) this.#retire(link);
    link.quietHeard = link.heard;
  }
  /** It takes no new calls, and ends when those that it has are settled. */
  #retire(link: Link): void {
    if (this.#link === link) this.#link = undefined;
    if (link.state === 'open') link.state = 'retired';
    if (link.live === 0) this.#rest(link);
  }
  #rest(link: Link): void {
    if (link.state !== 'dialling') (link.duplex as Partial<Socket>).unref?.();
    if (link.state === 'retired') void this.#end(link);
  }
  /** Says goodbye and closes; resolves when it is closed. */
  async #end(link: Link): Promise<void> {
    const goodbye = link.state === 'open' || link.state === 'retired' ? link.codec.control?.('goodbye') : undefined;
    if (goodbye !== undefined) link.outbox.push(goodbye);
    this.#lost(link);
    if (!link.duplex.closed) await new Promise((resolve) => link.duplex.once('close', resolve));
  }
  #lost(link: Link, reason?: Error): void {
    if (link.state === 'closed') return;
    const wasOpen = link.state !== 'dialling';
    const unsent = this.#link === link ? this.#queue.splice(0) : []; // dialling at once meets who is about to end
    link.state = 'closed';
    this.#retire(link);
    link.outbox.flush();
    link.duplex.end();
    const timer = setTimeout(() => link.duplex.destroy(), wasOpen ? CLOSE_MS : 0);
    link.duplex.once('close', () => clearTimeout(timer));
    if (!wasOpen) return this.#refused(reason ?? new Error('it closed'), unsent);
    for (const call of [...this.#calls.filter((one) => one?.link === link), ...unsent] as Call[]) {
      const outcome = call.link === undefined ? 'not sent' : 'maybe done';
      this.#fail(call, reason instanceof MicroError ? new MicroError(reason.code, reason.message, reason)
        : new MicroError('CONNECTION_LOST', `Cannot get the reply of ${this.#name()}: ` +
          `${reason?.message ?? 'the connection ended'}; the message was ${outcome === 'not sent' ? 'not sent' :
            'perhaps handled'}`, { outcome, cause: reason }));
    }
  }
  /** Ends what is overdue and tells when to look again. */
  #walk(at: number): number {
    let next = Infinity;
    for (const call of this.#calls) {
      if (call === undefined || call.isSettled) continue;
      if (call.untaken > 0) call.deadline = at + call.limitMs; // its reader's time, not the server's
      const isConnected = call.link !== undefined || this.#link?.state === 'open';
      if (call.deadline > at) next = Math.min(next, call.deadline);
      else if (!isConnected) this.#giveUp(call, 'CONNECT_TIMEOUT', `no connection within ${Math.round(call.limitMs)} ms`);
      else this.#giveUp(call, 'TIMEOUT', `no answer within ${Math.round(call.limitMs)} ms. Give it a longer timeoutMs`);
    }
    this.#queue = this.#queue.filter((call) => !call.isSettled);
    if (this.#queue.length === 0 && this.#link?.state === 'dialling') this.#lost(this.#link); // nobody waits for it
    return next;
  }
}

/** What `retry` sends again, if it was not run. */
const RETRIED: ReadonlySet<string> = new Set(['CONNECTION_REFUSED', 'CONNECTION_LOST', 'SERVER_BUSY', 'NO_WORKER']);
const NO_OPTIONS: CallOptions = {};
const NOTHING = (): void => {};

/** A call that waits, and its own message. One shape, and plain fields: one is made a call. */
interface Call extends Message {
  tag: number;
  resolve(reply: string): void;
  reject(error: Error): void;
  link: Link | undefined;
  release: (() => void) | undefined; // of its signal
  onPart: ((part: string) => void) | undefined;
  joined: string[] | undefined; // parts, for sendMessage
  isPing: boolean; isSettled: boolean; isStreamed: boolean;
  deadline: number; limitMs: number;
  heard: number; // by its link when it left
  joinedLength: number; untaken: number; taken: number; // parts: with the reader; since the last credit
}

function newCall(text: string, resolve: (reply: string) => void, reject: (error: Error) => void): Call {
  return { tag: -1, text, timeoutMs: undefined, id: undefined, client: undefined, resolve, reject, link: undefined,
    release: undefined, onPart: undefined, joined: undefined, isPing: false, isSettled: false, isStreamed: false,
    deadline: 0, limitMs: 0, heard: 0, joinedLength: 0, untaken: 0, taken: 0 };
}

/** One connection of a client. */
interface Link {
  readonly duplex: Duplex;
  readonly codec: Codec;
  readonly outbox: Outbox;
  readonly sink: Sink;
  state: 'dialling' | 'open' | 'retired' | 'closed';
  live: number; // calls that are not settled
  heard: number; // messages
  quietHeard: number; // so many when a call timed out with nothing heard since it left
  quietAt: number; // the first time so
  misreads: number;
  dedupes: boolean;
}

// ---------------------------------------------------------------------------------------------------------- Errors

/** Whether the work may have been done: of the call, not of the code. */
export type Outcome = 'not sent' | 'refused' | 'maybe done' | 'failed';

/** Every code: who is at fault, and the outcome where the error names no other. */
export const ERRORS = {
  UNKNOWN_SERVICE: { fault: 'the caller\'s set-up', outcome: 'not sent' },
  BAD_PORTS_FILE: { fault: 'the caller\'s set-up', outcome: 'not sent' },
  BAD_ADDRESS: { fault: 'the caller\'s set-up', outcome: 'not sent' },
  BAD_MESSAGE: { fault: 'the caller\'s text', outcome: 'refused' },
  CONNECTION_REFUSED: { fault: 'nobody answers there', outcome: 'not sent' },
  CONNECT_TIMEOUT: { fault: 'nobody answers there', outcome: 'not sent' },
  PORT_IN_USE: { fault: 'another process', outcome: 'not sent' },
  SERVER_BUSY: { fault: 'the server sheds load', outcome: 'refused' },
  NO_WORKER: { fault: 'the router has nobody', outcome: 'refused' },
  TIMEOUT: { fault: 'the network or a slow service', outcome: 'maybe done' },
  CONNECTION_LOST: { fault: 'the network or a slow service', outcome: 'maybe done' },
  ABORTED: { fault: 'the caller', outcome: 'maybe done' },
  CLOSED: { fault: 'the caller', outcome: 'maybe done' },
  CALLBACK_FAILED: { fault: 'the service', outcome: 'failed' },
  PROTOCOL_ERROR: { fault: 'the peer', outcome: 'refused' },
  MESSAGE_TOO_LARGE: { fault: 'the peer', outcome: 'refused' },
  UNAUTHORIZED: { fault: 'the peer', outcome: 'refused' },
} as const satisfies Record<string, { fault: string; outcome: Outcome }>;
export type ErrorCode = keyof typeof ERRORS;

/** Every failure of a call, of a look-up and of a start. */
export class MicroError extends Error {
  override readonly name = 'MicroError';
  readonly code: ErrorCode;
  readonly outcome: Outcome;
  readonly retryAfterMs: number | undefined; // where the server said when to try again
  constructor(code: ErrorCode, message: string, { outcome, retryAfterMs, cause }:
    { outcome?: Outcome; retryAfterMs?: number | undefined; cause?: unknown } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code;
    this.outcome = outcome ?? ERRORS[code].outcome;
    this.retryAfterMs = retryAfterMs;
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
export type Kind = 'reply' | 'part' | 'end' | 'error' | 'notice' | 'goodbye';
export type Control = 'cancel' | 'credit' | 'ping' | 'draining' | 'goodbye' | 'gone';

export interface Message {
  tag: Tag;
  text: string;
  parts?: readonly Uint8Array[] | undefined;
  timeoutMs?: number | undefined;
  id?: string | undefined;
  client?: string | undefined; // behind a router
  oneWay?: boolean | undefined; // nobody waits for a reply
}
/** How bytes on one connection become messages. Sans-IO: sees no socket, no timer, no service. */
export interface Dialect {
  readonly name: string;
  readonly ordered: boolean; // replies leave in the order of their requests
  readonly multipart?: boolean; // a reply may have several parts
  matches(head: Uint8Array): 'yes' | 'no' | 'more'; // whether a connection that begins so is its own
  open(options: CodecOptions): Codec;
}
export interface CodecOptions {
  side: 'accepted' | 'dialled'; // who dialled speaks first
  role: 'server' | 'client'; // who takes requests, who replies; either may have dialled
  maxMessageBytes: number;
  hello?: Readonly<Record<string, string>>; // what to say of oneself, where there is a greeting
}
/** One connection's state. Never throws; a chunk is lent, so that what is kept of it is copied. */
export interface Codec {
  readonly heldBytes: number; // of an unfinished message
  start?(sink: Sink): void;
  receive(chunk: Uint8Array, sink: Sink): void;
  end?(sink: Sink): void; // the peer half-closed
  request(message: Message): Body;
  encode(kind: Kind, body: Body | readonly Body[] | MicroError, tag?: Tag): Body;
  control?(word: Control, argument?: Tag | string, count?: number): Body | undefined; // none: it has no such thing
  idleMs?(): number | undefined; // after so much silence, idle() decides; asked after each chunk
  idle?(sink: Sink): void;
}
/** What a codec tells its connection. */
export interface Sink {
  hello?(fields: Readonly<Record<string, string>>): void;
  message(message: Message): void;
  response(tag: Tag, kind: 'reply' | 'part' | 'end' | 'error', body: string | MicroError): void;
  control?(word: Control, argument: Tag | string, count: number): void;
  command?(line: string, tag: Tag): void; // for the server itself: `$ping`
  error(code: ErrorCode, text: string, tag?: Tag): void; // what can't be used; the connection goes on
  write(bytes: Body): void;
  close(last?: MicroError | Body): void; // it ends with these bytes, or with the error in the dialect's words
}
/** How bytes travel: a file each in `transports/`, exporting `transport`. Tcp, and dialling ipc, are in the core. */
export interface Transport {
  dial?(address: Address, options: DialOptions): Duplex;
  listen?(address: Address, options: object,
    onDuplex: (duplex: Duplex, how?: { side: 'dialled'; dialect: Dialect }) => void,
    onError: (error: Error) => void): Promise<{ readonly address: Address; close(): Promise<void> }>;
}
export interface DialOptions {
  options: object; // the client's
  ready(): void; // connected; before, an error or a close is a refusal
  receive(chunk: Uint8Array): void; // for who reads into a buffer of its own, in place of `data`
}

// ------------------------------------------------------------------------------------------------ Lines and frames

const LF = 10;
const EMPTY = Buffer.alloc(0);
const HELLO = '\x01portcall/1';
const MAX_HELLO_BYTES = 8 * 1024;
/** A frame's head, but for a slot alone: PROTOCOL.md, "Frames". */
const HEAD = /^(0|[1-9]\d{0,8})(?:@([1-9]\d{0,14}))?(?:#([^~\\]{1,128}))?(?:~([^\\]{1,128}))?([+.!]?)(\\?)$/;
const HEAD_BYTES = 512; // hold the longest
const REASON = /^([A-Z_]{1,40}) ([nrmf])(?: (\d{1,9}))?: ([^]*)$/;
const OUTCOMES = { n: 'not sent', r: 'refused', m: 'maybe done', f: 'failed' } as const;

/** Cuts bytes into lines of UTF-8. What a line means, those tell that extend it. */
export abstract class LineCodec implements Codec {
  heldBytes = 0;
  #held: Buffer[] = []; // the unfinished line, in few pieces
  #tail: Buffer = EMPTY; // the last of them
  #tailBytes = 0;
  #isSkipping = false; // too long and told so: the rest is dropped up to its LF
  protected readonly max: number;
  protected maxLine: number; // every letter may be escaped, and there is a head
  constructor(maxMessageBytes: number) {
    this.max = maxMessageBytes;
    this.maxLine = 2 * maxMessageBytes + HEAD_BYTES;
  }
  abstract request(message: Message): string;
  abstract encode(kind: Kind, body: Body | readonly Body[] | MicroError, tag?: Tag): string;
  protected abstract line(text: string, start: number, end: number, sink: Sink): void; // up to its LF at `end`
  protected abstract bad(code: ErrorCode, why: string, head: string, sink: Sink): void; // and how the line began
  receive(chunk: Uint8Array, sink: Sink): void {
    let bytes = Buffer.isBuffer(chunk) ? chunk : Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length);
    if (this.heldBytes > 0 || this.#isSkipping) {
      const end = bytes.indexOf(LF) + 1;
      this.#hold(end === 0 ? bytes : bytes.subarray(0, end), sink);
      if (end === 0) return;
      const line = this.#take();
      if (!this.#isSkipping) this.#decode(line, sink);
      this.#isSkipping = false;
      bytes = bytes.subarray(end);
    }
    const end = bytes.lastIndexOf(LF) + 1;
    if (end > 0) this.#decode(end === bytes.length ? bytes : bytes.subarray(0, end), sink);
    if (end < bytes.length) this.#hold(bytes.subarray(end), sink);
  }
  #decode(bytes: Buffer, sink: Sink): void {
    const ascii = isAscii(bytes); // one byte is one letter then: no decoding, and lines are slices
    if (ascii || isUtf8(bytes)) {
      const text = bytes.toString(ascii ? 'latin1' : 'utf8');
      for (let start = 0, end; (end = text.indexOf('\n', start)) !== -1; start = end + 1) {
        const isLong = (end - start) * 3 >= this.maxLine && exceeds(text.slice(start, end), this.maxLine - 1);
        if (isLong) this.tooLarge(text.slice(start, start + HEAD_BYTES), sink);
        else this.line(text, start, end, sink);
      }
      return;
    }
    for (let start = 0, end; (end = bytes.indexOf(LF, start) + 1) !== 0; start = end) {
      const line = bytes.subarray(start, end);
      const head = line.toString('latin1', 0, HEAD_BYTES);
      if (isUtf8(line)) this.#decode(line, sink);
      else if (line.length > this.maxLine) this.tooLarge(head, sink);
      else this.bad('BAD_MESSAGE', 'Cannot read a text that is not UTF-8', head, sink);
    }
  }
  /** Keeps a copy: small pieces fill up a larger one, and nothing kept is copied again before the line's end. */
  #hold(piece: Buffer, sink: Sink): void {
    if (this.#isSkipping) return;
    if (this.heldBytes + piece.length > this.maxLine) {
      this.#isSkipping = true;
      return this.tooLarge(Buffer.concat([this.#take(), piece]).toString('latin1', 0, HEAD_BYTES), sink);
    }
    const fits = piece.copy(this.#tail, this.#tailBytes);
    this.#tailBytes += fits;
    if (fits < piece.length) {
      this.#tail = Buffer.allocUnsafe(Math.max(piece.length - fits, Math.min(this.heldBytes, 1024 * 1024)));
      this.#held.push(this.#tail);
      this.#tailBytes = piece.copy(this.#tail, 0, fits);
    }
    this.heldBytes += piece.length;
  }
  #take(): Buffer {
    const [first = EMPTY, ...more] = this.#held;
    const taken = more.length === 0 ? first.subarray(0, this.heldBytes) : Buffer.concat(this.#held, this.heldBytes);
    this.heldBytes = this.#tailBytes = 0;
    this.#held = [];
    this.#tail = EMPTY;
    return taken;
  }
  protected tooLarge(head: string, sink: Sink): void {
    this.bad('MESSAGE_TOO_LARGE', `Cannot read a message of over ${this.max} bytes`, head, sink);
  }
}

class FrameCodec extends LineCodec {
  readonly #options: CodecOptions;
  readonly #isServer: boolean;
  #isGreeted = false;
  constructor(options: CodecOptions) {
    super(options.maxMessageBytes);
    this.#options = options;
    this.#isServer = options.role === 'server';
    this.maxLine = MAX_HELLO_BYTES;
  }
  start(sink: Sink): void {
    if (this.#options.side === 'dialled') sink.write(this.#hello());
  }
  #hello(): string {
    const fields = Object.entries(this.#options.hello ?? {});
    return `${HELLO}${fields.map(([name, value]) => ` ${name}=${encodeURIComponent(value)}`).join('')}\n`;
  }
  request({ tag, text, timeoutMs, id, client }: Message): string {
    let head = String(tag);
    if (timeoutMs !== undefined) head += `@${timeoutMs}`;
    if (id !== undefined) head += `#${encodeURIComponent(id).replaceAll('~', '%7E')}`;
    if (client !== undefined) head += `~${encodeURIComponent(client)}`;
    return framed(head, text);
  }
  encode(kind: Kind, body: Body | readonly Body[] | MicroError, tag?: Tag): string {
    if (kind === 'reply') return framed(String(tag), body as string);
    if (kind === 'part') return framed(`${String(tag)}+`, body as string);
    if (kind === 'end') return `${String(tag)}.\n`;
    const { code, outcome, retryAfterMs, message } = body as MicroError;
    const head = kind === 'error' ? `${String(tag)}!` : kind === 'notice' ? '!' : 'goodbye';
    return `${head} ${code} ${outcome[0]}${retryAfterMs === undefined ? '' : ` ${retryAfterMs}`}: ${oneLine(message)}\n`;
  }
  control(...words: unknown[]): string {
    return `${words.map((word) => encodeURIComponent(String(word))).join(' ')}\n`;
  }
  protected line(text: string, start: number, end: number, sink: Sink): void {
    let slot = 0;
    let at = start;
    let code = text.charCodeAt(at);
    for (; code >= 48 && code <= 57; code = text.charCodeAt(++at)) slot = slot * 10 + code - 48;
    const digits = at - start;
    const isSlot = digits > 0 && digits <= 9 && (digits === 1 || text.charCodeAt(start) !== 48);
    if (!isSlot || code !== 32 || !this.#isGreeted) return this.#other(text.slice(start, end), sink);
    this.#plain({ tag: slot, text: text.slice(at + 1, end), timeoutMs: undefined, id: undefined, client: undefined }, sink);
  }
  #plain(message: Message, sink: Sink): void {
    if (exceeds(message.text, this.max)) this.tooLarge(`${message.tag as number} `, sink);
    else if (this.#isServer) sink.message(message);
    else sink.response(message.tag, 'reply', message.text);
  }
  /** Every line but a request or a reply whose head is a slot alone. */
  #other(line: string, sink: Sink): void {
    if (!this.#isGreeted) return this.#greet(line, sink);
    if (line === '') return;
    const [head = '', rest] = halves(line, ' ');
    const [found, slot, ms, id, client, mark, flag] = (head.length < HEAD_BYTES && HEAD.exec(head)) || [];
    if (found === undefined) return this.#control(head, rest, line, sink);
    const tag = Number(slot);
    const text = flag ? rest?.split('\\\\').map((part) => part.replaceAll('\\n', '\n')).join('\\') : rest;
    const error = mark === '!' ? reason(text) : undefined;
    const isBare = !ms && !id && !client;
    if (text !== undefined && exceeds(text, this.max)) this.tooLarge(`${head} `, sink);
    else if (mark === '' && text !== undefined && (this.#isServer || isBare)) {
      const timeoutMs = ms === undefined ? undefined : Number(ms);
      this.#plain({ tag, text, timeoutMs, id: decoded(id), client: decoded(client) }, sink);
    } else if (this.#isServer || !isBare || mark === '' || (text === undefined) !== (mark === '.')) this.#unreadable(line, sink);
    else if (mark !== '!') sink.response(tag, mark === '.' ? 'end' : 'part', text ?? '');
    else if (error !== undefined) sink.response(tag, 'error', error);
    else this.#unreadable(line, sink);
  }
  #control(word: string, text: string | undefined, line: string, sink: Sink): void {
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
    else if (word !== 'pong' || !isLone) this.#unreadable(line, sink);
  }
  #greet(line: string, sink: Sink): void {
    const [greeting = '', ...fields] = line.split(' ');
    if (greeting === HELLO) {
      this.#isGreeted = true;
      this.maxLine = 2 * this.max + HEAD_BYTES;
      if (this.#options.side === 'accepted') sink.write(this.#hello());
      const known = fields.map((field) => halves(field, '=').map(decoded)).filter(([, value]) => value !== undefined);
      return sink.hello?.(Object.fromEntries(known) as Record<string, string>);
    }
    // A server that serves no more, or no such version, says so before its hello; perhaps before it knows the dialect.
    const [, code = '', ms] = /^ERR ([A-Z_]+) (?:retry after (\d+) ms)?/.exec(line) ?? [];
    const isError = Object.hasOwn(ERRORS, code);
    sink.close((greeting === 'goodbye' ? reason(line.slice(8)) : undefined) ??
      new MicroError(isError ? code as ErrorCode : 'PROTOCOL_ERROR', this.#isServer
        ? `Cannot speak ${quoted(greeting.slice(1, 32))}: expected ${quoted(HELLO.slice(1))}`
        : `Cannot use what answers: expected a portcall server, got ${quoted(line.slice(0, 64))}`,
      { outcome: isError || this.#isServer ? 'refused' : 'maybe done', retryAfterMs: ms ? Number(ms) : undefined }));
  }
  protected bad(code: ErrorCode, why: string, head: string, sink: Sink): void {
    const outcome = this.#isServer ? 'refused' : 'maybe done';
    if (!this.#isGreeted) return sink.close(new MicroError('PROTOCOL_ERROR', `${why}: expected a hello`, { outcome }));
    const [, digits, , , , mark] = HEAD.exec(halves(head, ' ')[0] ?? '') ?? [];
    const slot = digits === undefined ? undefined : Number(digits);
    const fault = this.#isServer || code !== 'BAD_MESSAGE' ? code : 'PROTOCOL_ERROR'; // a garbled reply
    if (this.#isServer || mark !== '' || slot === undefined) sink.error(fault, why, slot);
    else sink.response(slot, 'error', new MicroError(fault, why, { outcome }));
  }
  #unreadable(line: string, sink: Sink): void {
    sink.error('PROTOCOL_ERROR', `Cannot read the frame ${quoted(line.slice(0, 64))}`);
  }
}

/** The dialect of MicroClient: one frame a line, replies in any order. */
export function frames(): Dialect {
  const begin = HELLO.slice(0, -1);
  return { name: 'frames', ordered: false, open: (options) => new FrameCodec(options), matches(head) {
    const first = Buffer.from(head.subarray(0, begin.length)).toString('latin1');
    return first === begin ? 'yes' : begin.startsWith(first) ? 'more' : 'no';
  } };
}

function framed(head: string, text: string): string {
  if (!text.includes('\n')) return `${head} ${text}\n`;
  return `${head}\\ ${text.replaceAll('\\', '\\\\').replaceAll('\n', '\\n')}\n`;
}

function reason(text = ''): MicroError | undefined {
  const [, code, outcome, retry, message = ''] = REASON.exec(text) ?? [];
  return code === undefined ? undefined
    : new MicroError(Object.hasOwn(ERRORS, code) ? code as ErrorCode : 'PROTOCOL_ERROR', message,
      { outcome: OUTCOMES[outcome as keyof typeof OUTCOMES], retryAfterMs: retry ? Number(retry) : undefined });
}

/** Before and after the first separator; one half where there is none. */
function halves(text: string, separator: string): string[] {
  const at = text.indexOf(separator);
  return at === -1 ? [text] : [text.slice(0, at), text.slice(at + 1)];
}

function decoded(field: string | undefined): string | undefined {
  try { return field === undefined ? undefined : decodeURIComponent(field); } catch { return field; }
}

// -------------------------------------------------------------------------------------- Writing, timing, dialling

/**
 * All writes of one tick in one; the first early, so that both sides' cores work at once (flushing once a tick only
 * halves the rate at 1,000 in flight).
 */
export class Outbox {
  readonly #duplex: Duplex;
  readonly #owner: { flooded(): void } | undefined;
  #text = '';
  #early = 512;
  #isScheduled = false;
  /** @param owner Is told when the peer reads more slowly than it is written to. */
  constructor(duplex: Duplex, owner?: { flooded(): void }) {
    this.#duplex = duplex;
    this.#owner = owner;
  }
  push(data: Body): void {
    if (typeof data !== 'string') return this.flush(data);
    this.#text += data;
    if (this.#text.length >= this.#early) {
      this.#early = Math.min(this.#early * 2, 16_384);
      this.flush();
    }
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    process.nextTick(Outbox.#tick, this);
  }
  static #tick(outbox: Outbox): void {
    outbox.#isScheduled = false;
    outbox.#early = 512;
    outbox.flush();
  }
  flush(behind?: Uint8Array): void {
    const text = this.#text;
    this.#text = '';
    if (!this.#duplex.writable) return;
    // Latin1 is copied where UTF-8 is encoded; for ASCII both are the same bytes.
    if (text !== '') this.#duplex.write(text, Buffer.byteLength(text) === text.length ? 'latin1' : 'utf8');
    if (behind !== undefined) this.#duplex.write(behind);
    if (this.#duplex.writableNeedDrain) this.#owner?.flooded();
  }
}

/** One unref'd timer for many deadlines: a timer a call costs a third of the rate. */
export class Alarm {
  readonly #walk: (at: number) => number; // ends what is overdue and returns when to be called again
  #due = Infinity;
  #timer: NodeJS.Timeout | undefined;
  constructor(walk: (at: number) => number) {
    this.#walk = walk;
  }
  at(due: number): void {
    if (due >= this.#due) return;
    this.stop();
    this.#due = due;
    this.#timer = setTimeout(() => {
      this.#due = Infinity;
      this.at(this.#walk(now()));
    }, Math.min(Math.max(Math.ceil(due - now()), 1), 0x7fff_ffff)).unref();
  }
  stop(): void {
    clearTimeout(this.#timer);
    this.#due = Infinity;
  }
}

/** Milliseconds that never go back; `performance` would have to be loaded first. */
export const now = (): number => process.uptime() * 1000;

/** Waits, at most until the signal is aborted. */
async function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  await new Promise<void>((resolve) => {
    timer = setTimeout(resolve, ms);
    signal?.addEventListener('abort', () => resolve(), { once: true });
  });
  clearTimeout(timer);
}

const DIALLED_BY_NET: ReadonlySet<string> = new Set(['tcp', 'ipc']);
const CHUNK = Buffer.allocUnsafeSlow(64 * 1024); // all clients read into it: what is kept is copied
const NET: Transport = {
  dial({ host, port, path }, { ready, receive }) {
    const onread = { buffer: CHUNK, callback: (bytes: number) => { receive(CHUNK.subarray(0, bytes)); return true; } };
    const socket = connect({ ...(path === undefined ? { host, port } : { path }), noDelay: true, onread } as NetConnectOpts);
    return socket.once('connect', () => {
      // A free port in the range of outgoing ones may be dialled from itself, and connects.
      const isSelf = path === undefined && socket.localPort === port && socket.localAddress === socket.remoteAddress;
      if (isSelf) socket.destroy(new Error('nobody listens there'));
      else ready();
    });
  },
};

/** The specifier is computed, so that the file may be missing. */
export async function loadTransport(scheme: string): Promise<Transport> {
  const file = `transports/${scheme}${/\.\w+$/.exec(import.meta.url)?.[0] ?? '.ts'}`;
  try {
    return ((await import(/* @vite-ignore */ `./${file}`)) as { transport: Transport }).transport;
  } catch (cause) {
    throw new MicroError('BAD_ADDRESS', `Cannot use ${scheme}://: expected lib/${file}. Copy it beside this one`, { cause });
  }
}

// ---------------------------------------------------------------------------------------------------- Small checks

export const exceeds = (text: string, maxBytes: number): boolean =>
  text.length * 3 > maxBytes && Buffer.byteLength(text) > maxBytes;
export const isWellFormed = (text: string): boolean =>
  (text as string & { isWellFormed(): boolean }).isWellFormed(); // ES2024, Node 20
export const textOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
/** What may stand in one line: no line break, no control character, 4,096 letters at most. */
export const oneLine = (text: string): string =>
  Buffer.from(text.slice(0, 4096).replace(/[\p{Cc}\p{Zl}\p{Zp}]+/gu, ' ')).toString();
/** A value as messages show it: on one line, cut, with nothing that could steer a terminal. */
export function quoted(value: unknown): string {
  const text = typeof value === 'string' ? JSON.stringify(value.slice(0, 200))
    : typeof value === 'object' && value !== null ? 'an object' : String(value).slice(0, 200);
  return text.replace(/[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}]/gu, (letter) =>
    `\\u${letter.charCodeAt(0).toString(16).padStart(4, '0')}`);
}
export const logToStderr: Log = (level, text) => {
  if (level !== 'info') process.stderr.write(`portcall: ${oneLine(text)}\n`);
};
export function positive<K extends string>(options: { readonly [name in K]?: number }, name: K, standard: number): number {
  const value: unknown = options[name] ?? standard;
  if (typeof value !== 'number') throw new TypeError(`Cannot use ${name} ${quoted(value)}: expected a number`);
  if (!(value > 0)) throw new RangeError(`Cannot use ${name} ${value}: expected more than 0`);
  return value;
}
/** A token that is named but empty or missing must not mean that none is wanted. */
export function checkSetUp(key: unknown, options: { token?: string }): void {
  const isKey = typeof key === 'string' || typeof key === 'number';
  if (!isKey) throw new TypeError(`Cannot use key ${quoted(key)}: expected a name in ports.json, a port or an address`);
  if (!('token' in options) || (typeof options.token === 'string' && options.token !== '')) return;
  throw new TypeError(`Cannot use token ${quoted(options.token)}: expected a secret. Leave it out if none is wanted`);
}
function checkCall({ id, signal, ...options }: CallOptions): void {
  positive(options, 'timeoutMs', 1);
  const isId = typeof id === 'string' && isWellFormed(id) && /^.{1,128}$/.test(encodeURIComponent(id));
  if (id !== undefined && !isId) throw new TypeError(`Cannot use id ${quoted(id)}: expected 1 to 128 bytes, percent-encoded`);
  if (signal === undefined || signal instanceof AbortSignal) return;
  throw new TypeError(`Cannot use signal ${quoted(signal)}: expected an AbortSignal`);
}

// ------------------------------------------------------------------------------------- The look-up in ports.json

export interface Address { url: string; scheme: string; host?: string; port?: number; path?: string }
type Table = Readonly<Record<string, unknown>>;
export type Ports = string | Table; // the path of a ports file, or an object in its stead
const MAX_PATH_BYTES = 107; // a Unix socket's: sun_path holds 108, the last of them NUL
const NUMBER = /^-?\d+(\.\d+)?$/;
const JSON_STRING = /^"(?:[^"\\\0-\x1f]|\\(?:["\\/bfnrt]|u[\da-fA-F]{4}))*"$/;
const JSON_PLAIN = /^(?:-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)$/;

/** Where a key leads. A port number, its digits or a URL in place of a key needs no file. */
export function resolveAddress(key: string | number, ports?: Ports, warn?: (text: string) => void): Address {
  const name = String(key);
  const isDirect = typeof key === 'number' || NUMBER.test(name) || name.includes('://');
  const { file, table } = isDirect ? { table: { [name]: key } } : readPorts(ports, name);
  const where = file === undefined ? `address ${quoted(key)}` : `${quoted(key)} in ${quoted(file)}`;
  const known = Object.keys(table).filter((other) => // `portcall: {…}` is the CLI's own section
    other !== 'portcall' || typeof table[other] !== 'object');
  if (!known.includes(name)) throw new MicroError('UNKNOWN_SERVICE', `Cannot find service ${where}: ${suggest(name, known)}`);
  const found = parseAddress(table[name]);
  const twin = typeof found === 'string' || found.port === 0 ? undefined // 0: each gets its own
    : known.find((other) => other !== name && (parseAddress(table[other]) as Partial<Address>).url === found.url);
  if (typeof found === 'string' || twin !== undefined) {
    throw new MicroError(isDirect ? 'BAD_ADDRESS' : 'BAD_PORTS_FILE', `Cannot read ${where}: ${typeof found === 'string'
      ? found : `${quoted(twin)} has ${found.url} too, expected an address for each. Change one`}`);
  }
  const { port = 0 } = found;
  if (!isDirect && typeof ports !== 'object' && port >= 32_768 && port <= 60_999) {
    warn?.(`Port ${port} of ${where} may be taken: outgoing connections are given 32768 to 60999`);
  }
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
    const table = JSON.parse(text);
    if (/^\s*\{/.test(text)) return { file, table };
  } catch (error) {
    cause = error as NodeJS.ErrnoException;
  }
  const is = cause?.code === 'ENOENT' ? 'no such file' : cause?.code === 'EISDIR' ? 'it is a folder' : cause?.code;
  const fault = is === undefined ? findJsonFault(text) : `${is}, looked in ${quoted(process.cwd())}` +
    `${given === undefined ? ' and above' : ''}. Make it, set PORTCALL_PORTS, or give an address such as 5467`;
  const task = key === undefined ? 'read' : `find service ${quoted(key)} in`;
  throw new MicroError('BAD_PORTS_FILE', `Cannot ${task} ${quoted(file)}: ${fault}`, { cause });
}

/** Reads a port number, its digits, or a URL; what isn't tcp or ipc is left to its transport. Or tells what is wrong. */
function parseAddress(value: unknown): Address | string {
  const given = typeof value === 'string' || typeof value === 'number' ? String(value) : '';
  const url = NUMBER.test(given) ? `tcp://127.0.0.1:${given}` : given;
  const form = /^([a-z][\w+.-]*):\/\/(([^@/?#]*@)?(\[[^\]]*\]|[^:/?#]*)(?::([^/?#]*))?(.*))$/is;
  const [, name = '', rest = '', user, host = '', digits = '', path = ''] = form.exec(url) ?? [];
  const scheme = name.toLowerCase();
  const bytes = Buffer.byteLength(rest);
  const port = NUMBER.test(digits) ? Number(digits) : NaN;
  const bare = host.replace(/^\[(.*)\]$/, '$1'); // as node:net takes IPv6
  const isHost = bare === host ? /^[^\s!-,/:-@[-^`{-~]+$/.test(host) : isIPv6(bare);
  if (/[\0-\x1f\x7f-\x9f]/.test(url)) return 'it has a control character, expected none';
  if (scheme === 'ipc' && bytes > MAX_PATH_BYTES) return `path has ${bytes} bytes, expected at most ${MAX_PATH_BYTES}`;
  if (scheme === 'ipc' && rest.startsWith('/')) return { url, scheme, path: rest };
  if (port > 65_535) return `port is ${digits}, expected at most 65535`;
  if (port < 0 || port % 1 > 0) return `port is ${digits}, expected a natural number`;
  if (!/^(?:|tcp|ipc)$/.test(scheme)) return { url, scheme, host: bare, path, ...(port >= 0 && { port }) };
  if (scheme === 'tcp' && isHost && port >= 0 && user === undefined && path.length <= 1) {
    return { url: `tcp://${host.toLowerCase()}:${port}`, scheme, host: bare, port };
  }
  return `it is ${quoted(value)}, expected a port, tcp://host:port or ipc:///path`;
}

/** Names the key that differs in one place only, and there in a third of its letters at most. */
function suggest(key: string, known: readonly string[]): string {
  const near = known.find((name) => {
    const [a, b] = [key.toUpperCase(), name.toUpperCase()];
    let [start, end] = [0, 0];
    while (start < a.length && a[start] === b[start]) start++;
    while (end < Math.min(a.length, b.length) - start && a.at(-1 - end) === b.at(-1 - end)) end++;
    return (Math.max(a.length, b.length) - start - end) * 3 <= a.length;
  });
  const list = known.slice(0, 12).map((name) => (/^[\w.-]{1,64}$/.test(name) ? name : quoted(name))).join(', ') || 'none';
  return `${near === undefined ? 'no such key.' : `did you mean ${quoted(near)}?`} Known: ${list}${known.length > 12 ? ', …' : ''}`;
}

/** Where JSON breaks, and what should stand there: engines word it differently, or don't tell. */
function findJsonFault(text: string): string {
  const tokens = [...text.matchAll(/"(?:\\.|[^"\\])*"?|[{}[\],:]|[^ \t\n\r"{}[\],:]+/gs)];
  let [next, expected] = [0, ''];
  const take = (wanted: string, form?: RegExp): boolean => {
    const token = tokens[next]?.[0] ?? '';
    expected = wanted;
    return (form?.test(token) ?? wanted.endsWith(`"${token}"`)) && ++next > 0;
  };
  const list = (item: () => boolean, end: string): boolean => {
    if (take(end)) return true;
    do if (!item()) return false; while (take('","'));
    return take(`"," or ${end}`);
  };
  const member = () => take('a key in double quotes', JSON_STRING) && take('":"') && value();
  const value = (): boolean => take('"{"') ? list(member, '"}"') : take('"["') ? list(value, '"]"')
    : take('', JSON_STRING) || take('a value', JSON_PLAIN);
  const root = 'an object such as {"LIFE_GEN": 5467}';
  if (take(root, /^\{$/) && list(member, '"}"')) expected = 'the end';
  if (tokens.length === 0) return `it is empty, expected ${root}`;
  const head = text.slice(0, tokens[next]?.index).split('\n');
  const is = next < tokens.length ? quoted(tokens[next]![0]) : 'the end';
  return `line ${head.length}, column ${head.at(-1)!.length + 1} is ${is}, expected ${expected}`;
}
