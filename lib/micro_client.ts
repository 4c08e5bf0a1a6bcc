/**
 * portcall's client: `await new MicroClient('LIFE_GEN').sendMessage('music')`. Copy this file alone
 * to call services, `micro_server.ts` too to offer them. PROTOCOL.md tells the wire.
 *
 * In this order: the client; errors; the seams (dialect, transport); the codec of lines and frames;
 * writing and timing; tcp and ipc; the look-up in ports.json.
 */
import { Buffer, isAscii, isUtf8 } from 'node:buffer';
import { existsSync, readFileSync } from 'node:fs';
import { connect, isIPv6, type NetConnectOpts, type Socket } from 'node:net';
import { basename, extname } from 'node:path';
import type { Duplex } from 'node:stream';

export interface CallOptions {
  /** Milliseconds for the whole call, connecting included; for a stream, up to each part. */
  timeoutMs?: number;
  signal?: AbortSignal;
  /** Try again until the deadline, as long as the message is known not to have run. */
  retry?: boolean;
  /** Makes sending twice safe where the server has `dedupe`. At most 128 bytes, percent-encoded. */
  id?: string;
}

export interface ClientOptions {
  ports?: Ports;
  /** The secret of a server with the option `token`. */
  token?: string;
  /** Deadline of a call that names none. Default 5,000. */
  timeoutMs?: number;
  /** Default of the calls' `retry`. Default false: a call fails with the dial it waits for. */
  retry?: boolean;
  /** Default {@link frames}. */
  dialect?: Dialect;
  /** Calls waiting for anything at all, past which `SERVER_BUSY`, not sent. Default 16,384. */
  maxQueued?: number;
  /** Longest message and reply, in bytes of UTF-8; past it `MESSAGE_TOO_LARGE`. Default 1 MiB. */
  maxMessageBytes?: number;
  /** More to say in the hello: `node`, `role`. */
  hello?: Readonly<Record<string, string>>;
  log?: Log;
}

/** Retries are spaced by full jitter: a random part of 50 ms, doubling to 900 ms. */
const BACKOFF_MS = { first: 50, last: 900 };
/** A dial is begun afresh after this: the kernel repeats a lost SYN ever more seldom. */
const DIAL_ATTEMPT_MS = 2_000;
/** What a peer gets to close its side after ours. */
const CLOSE_MS = 1_000;

/**
 * Calls the service under a key. Connects on the first message, pipelines, reconnects. A pending
 * call keeps the process alive, nothing else does: a script needs no `close()`.
 */
export class MicroClient {
  readonly #key: string | number;
  readonly #options: ClientOptions;
  readonly #timeoutMs: number;
  readonly #maxQueued: number;
  readonly #maxMessageBytes: number;
  readonly #log: Log;
  readonly #alarm = new Alarm((now) => this.#walk(now));
  readonly #calls: (Call | undefined)[] = []; // by slot
  readonly #free: number[] = []; // slots; one is free again when its final frame has come
  readonly #links = new Set<Link>(); // the current one, and those that only finish their calls
  #link: Link | undefined;
  #queue: Call[] = []; // calls that are on no connection yet
  #dial: { abort: AbortController; since: number } | undefined;
  #redial: NodeJS.Timeout | undefined;
  #failures = 0; // in a row
  #address: Address | undefined;
  #closing: Promise<void> | undefined;

  /**
   * @param key A name in ports.json, a port, or an address such as `tcp://127.0.0.1:5467`.
   * @throws {TypeError | RangeError} Wrong options. A wrong address is told by the calls.
   */
  constructor(key: string | number, options: ClientOptions = {}) {
    if (typeof key !== 'string' && typeof key !== 'number') {
      throw new TypeError(`Cannot call a service by ${quoted(key)}: expected a key or a port`);
    }
    checkToken(options);
    this.#key = key;
    this.#options = options;
    this.#timeoutMs = positive(options, 'timeoutMs', 5_000);
    this.#maxQueued = positive(options, 'maxQueued', 16_384);
    this.#maxMessageBytes = positive(options, 'maxMessageBytes', 1024 * 1024);
    this.#log = options.log ?? logToStderr;
  }

  /**
   * Sends one message and resolves with its reply; the parts of a stream come joined by line breaks.
   *
   * @param text Any string that UTF-8 can carry, up to `maxMessageBytes`.
   * @throws {MicroError} `CONNECTION_REFUSED`, `CONNECT_TIMEOUT`, `SERVER_BUSY`: it has not run.
   *   `TIMEOUT`, `CONNECTION_LOST`, `ABORTED`, `CLOSED`: `error.outcome` tells whether it may have.
   *   `CALLBACK_FAILED`: it has.
   * @example const line = await new MicroClient('LIFE_GEN').sendMessage('music');
   */
  sendMessage(text: string, options: CallOptions = NO_OPTIONS): Promise<string> {
    if (options !== NO_OPTIONS) checkCall(options);
    return new Promise((resolve, reject) => this.#submit(newCall(text, resolve, reject), options));
  }

  /**
   * Sends one message and yields the parts of its reply as they come (one, if it is no stream). The
   * service is at most 256 parts and 1 MiB ahead of the loop; leaving the loop cancels it.
   */
  streamMessage(text: string, options: CallOptions = NO_OPTIONS): AsyncIterable<string> {
    checkCall(options);
    return this.#stream(text, options);
  }

  /** Resolves with the milliseconds to the server and back. Its callback is not called. */
  async ping(options: CallOptions = NO_OPTIONS): Promise<number> {
    checkCall(options);
    const began = performance.now();
    await new Promise<string>((resolve, reject) => {
      const call = newCall('', resolve, reject);
      call.isPing = true;
      this.#submit(call, options);
    });
    return performance.now() - began;
  }

  /** Ends the connection. Pending and later calls fail with `CLOSED`. */
  close(): Promise<void> {
    this.#closing ??= Promise.resolve().then(async () => {
      for (const call of this.#calls) {
        if (call !== undefined) this.#giveUp(call, 'CLOSED', 'the client was closed');
      }
      this.#queue = [];
      clearTimeout(this.#redial);
      this.#dial?.abort.abort();
      this.#alarm.stop();
      await Promise.all([...this.#links].map((link) => this.#end(link)));
    });
    return this.#closing;
  }

  async *#stream(text: string, options: CallOptions): AsyncGenerator<string, void, undefined> {
    const parts: string[] = [];
    let wake = (): void => {};
    let failure: Error | undefined;
    const call = newCall(text, (last) => {
      if (!call.streamed) parts.push(last);
      wake();
    }, (error) => { failure = error; wake(); });
    call.onPart = (part) => { parts.push(part); wake(); };
    this.#submit(call, options);
    try {
      for (;;) {
        while (parts.length > 0) {
          yield parts.shift() as string;
          if (call.streamed) this.#took(call, parts.length === 0);
        }
        if (failure !== undefined) throw failure;
        if (call.settled) return;
        await new Promise<void>((resolve) => { wake = resolve; });
      }
    } finally {
      this.#giveUp(call, 'ABORTED', 'its reader stopped');
    }
  }

  #submit(call: Call, options: CallOptions): void {
    const { signal } = options;
    const refusal = this.#refusal(call.text, signal);
    if (refusal !== undefined) return call.reject(refusal);
    call.limitMs = options.timeoutMs ?? this.#timeoutMs;
    if (call.limitMs !== this.#timeoutMs) call.timeoutMs = call.limitMs;
    call.deadline = performance.now() + call.limitMs;
    call.retry = options.retry ?? this.#options.retry ?? false;
    call.id = options.id;
    if (signal !== undefined) {
      const onAbort = () => this.#giveUp(call, 'ABORTED', 'the caller aborted it', signal.reason);
      signal.addEventListener('abort', onAbort);
      call.release = () => signal.removeEventListener('abort', onAbort);
    }
    call.tag = this.#free.pop() ?? this.#calls.length;
    this.#calls[call.tag] = call;
    this.#alarm.at(call.deadline);
    const link = this.#link;
    if (link !== undefined && !link.duplex.writableNeedDrain) return this.#send(call, link);
    this.#queue.push(call);
    if (link === undefined && (this.#redial === undefined || !call.retry)) this.#connect();
  }

  /** Why a message can't even be queued, if so. */
  #refusal(text: string, signal: AbortSignal | undefined): MicroError | undefined {
    const refuse = (code: ErrorCode, why: string, cause?: unknown) => new MicroError(code,
      `Cannot send to ${this.#name()}: ${why}`, { outcome: 'not sent', cause });
    if (this.#closing !== undefined) return refuse('CLOSED', 'the client was closed. Make a new one');
    if (signal?.aborted) return refuse('ABORTED', 'the caller aborted it', signal.reason);
    if (typeof text !== 'string') return refuse('BAD_MESSAGE', `it is ${typeof text}, expected a string`);
    if (!wellFormed(text)) {
      return refuse('BAD_MESSAGE', 'it has half a surrogate pair, expected what UTF-8 can carry');
    }
    if (exceeds(text, this.#maxMessageBytes)) {
      return refuse('MESSAGE_TOO_LARGE', `it has ${Buffer.byteLength(text)} bytes, expected at most ` +
        `${this.#maxMessageBytes}. Send it in pieces, or raise maxMessageBytes on both sides`);
    }
    if (this.#calls.length - this.#free.length >= this.#maxQueued) {
      return refuse('SERVER_BUSY', `${this.#maxQueued} calls wait already. Await some, or raise maxQueued`);
    }
    return undefined;
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
    return url === undefined || url === this.#key ? quoted(this.#key) : `${quoted(this.#key)} (${url})`;
  }

  // Connecting: one dial for all that wait.

  #connect(): void {
    if (this.#dial !== undefined || this.#closing !== undefined) return;
    clearTimeout(this.#redial);
    this.#redial = undefined;
    const dial = { abort: new AbortController(), since: performance.now() };
    this.#dial = dial;
    this.#alarm.at(dial.since + DIAL_ATTEMPT_MS);
    this.#open(dial.abort.signal).then(() => {
      this.#dial = undefined;
      this.#failures = 0;
      this.#pump();
    }, (error: unknown) => {
      if (dial.abort.signal.aborted) return;
      this.#dial = undefined;
      this.#failures++;
      for (const call of this.#queue.splice(0)) {
        this.#fail(call, error instanceof MicroError ? error : new MicroError('CONNECTION_REFUSED',
          `Cannot reach ${this.#name()}: ${textOf(error)}. Is the service running?`, { cause: error }));
      }
    });
  }

  async #open(signal: AbortSignal): Promise<void> {
    const address = this.#resolve();
    const reader: Reader = { receive: () => {} };
    const transport: Transport = DIALLED_BY_NET.has(address.scheme) ? NET : await loadTransport(address.scheme);
    if (transport.dial === undefined) {
      throw new MicroError('BAD_ADDRESS', `Cannot dial ${address.url}: it can only be listened on`);
    }
    const duplex = await transport.dial(address, { signal, reader, options: this.#options });
    const { token, hello } = this.#options;
    const link = this.#adopt(duplex, (this.#options.dialect ?? frames()).open({
      side: 'dialled', role: 'client', maxMessageBytes: this.#maxMessageBytes,
      hello: { timeout: String(this.#timeoutMs), ...hello, ...(token !== undefined && { token }) },
    }));
    reader.receive = (chunk) => this.#receive(link, chunk);
  }

  /** The key's line is read again at each dial; where the file broke, the old address stays. */
  #resolve(): Address {
    try {
      this.#address = resolveAddress(this.#key, this.#options.ports);
    } catch (error) {
      if (this.#address === undefined) throw error;
      this.#log('warn', `${textOf(error)}; staying with ${this.#address.url}`);
    }
    const { host, url } = this.#address;
    if (host !== '0.0.0.0' && host !== '::') return this.#address;
    throw new MicroError('BAD_ADDRESS',
      `Cannot dial ${url}: that is where servers bind, expected one host. Dial 127.0.0.1, or its name`);
  }

  /** Runs calls over a connected duplex, whoever dialled it. */
  #adopt(duplex: Duplex, codec: Codec): Link {
    const link: Link = { duplex, codec, outbox: new Outbox(duplex), live: 0, heard: 0, quietAt: 0,
      quietHeard: -1, dedupes: false, state: 'open', sink: {
        hello: (fields) => { link.dedupes = fields['dedupe'] !== undefined; },
        response: (tag, kind, body) => this.#response(link, tag as number, kind, body),
        control: (word) => { if (word === 'draining') this.#retire(link); },
        message: () => link.sink.error('PROTOCOL_ERROR', 'it sent a request, expected replies'),
        error: (code, why, tag) => this.#misread(link, code, why, tag as number | undefined),
        write: (bytes) => link.outbox.push(bytes),
        close: (last) => this.#lost(link, last instanceof MicroError ? last : undefined),
      } };
    duplex.on('data', (chunk: Uint8Array) => this.#receive(link, chunk));
    duplex.on('drain', () => this.#pump());
    duplex.on('error', (error) => this.#lost(link, undefined, error));
    duplex.on('end', () => this.#lost(link));
    duplex.on('close', () => { this.#lost(link); this.#links.delete(link); });
    (duplex as Partial<Socket>).unref?.();
    this.#link = link;
    this.#links.add(link);
    codec.start?.(link.sink);
    return link;
  }

  /** Hands waiting calls to the connection, as far as it takes them. */
  #pump(): void {
    const now = performance.now();
    let taken = 0;
    for (; taken < this.#queue.length; taken++) {
      if (this.#link === undefined || this.#link.duplex.writableNeedDrain) break;
      const call = this.#queue[taken] as Call;
      if (call.settled) continue;
      const leftMs = call.deadline - now;
      if (call.limitMs - leftMs > 100) call.timeoutMs = Math.max(1, Math.ceil(leftMs));
      this.#send(call, this.#link);
    }
    this.#queue.splice(0, taken);
    if (this.#queue.length > 0 && this.#link === undefined) this.#connect();
  }

  #receive(link: Link, chunk: Uint8Array): void {
    link.heard++;
    if (link.state !== 'closed') link.codec.receive(chunk, link.sink);
  }

  #response(link: Link, slot: number, kind: Kind, body: string | MicroError): void {
    const call = this.#calls[slot];
    if (call === undefined || call.link !== link) {
      return this.#misread(link, 'PROTOCOL_ERROR', `no call has slot ${slot}`);
    }
    if (kind === 'part') return this.#part(call, body as string);
    this.#calls[slot] = undefined;
    this.#free.push(slot);
    if (call.settled) return; // too late: the caller has its error
    if (kind === 'error') this.#fail(call, body as MicroError);
    else this.#settle(call, undefined, kind === 'end' ? (call.joined ?? []).join('\n') : body as string);
  }

  #part(call: Call, part: string): void {
    if (call.settled) return;
    call.streamed = true;
    call.deadline = performance.now() + call.limitMs;
    if (call.onPart !== undefined) {
      call.untaken++;
      return call.onPart(part);
    }
    (call.joined ??= []).push(part);
    call.joinedBytes += part.length + 1;
    this.#took(call, false);
    if (call.joinedBytes > this.#maxMessageBytes) {
      this.#giveUp(call, 'MESSAGE_TOO_LARGE', 'its parts are over maxMessageBytes. Use streamMessage');
    }
  }

  /** A part was taken: gives credit back, some at a time. */
  #took(call: Call, all: boolean): void {
    call.untaken--;
    call.deadline = performance.now() + call.limitMs;
    if (++call.taken < 32 && !all) return;
    const credit = call.link?.codec.control?.('credit', call.tag, call.taken);
    if (credit !== undefined && !call.settled) call.link?.outbox.push(credit);
    call.taken = 0;
  }

  /** Something on the connection that can't be used, perhaps a call's reply. */
  #misread(link: Link, code: ErrorCode, why: string, slot = -1): void {
    const call = this.#calls[slot];
    if (call?.link === link) this.#giveUp(call, code, why);
    else this.#log('warn', `${this.#name()} sent what can't be read: ${why}`);
  }

  // Settling: each call once.

  #settle(call: Call, error: Error | undefined, text = ''): void {
    const { link } = call;
    call.settled = true;
    call.release?.();
    if (link !== undefined && --link.live === 0) this.#idle(link);
    if (error === undefined) call.resolve(text);
    else call.reject(error);
  }

  /** A call failed for good, unless it may be tried again. Its slot is free. */
  #fail(call: Call, error: MicroError): void {
    const unrun = error.outcome === 'not sent' || error.outcome === 'refused' ||
      (call.id !== undefined && call.link?.dedupes === true);
    const again = call.retry && unrun && RETRIED.has(error.code) && !call.streamed;
    if (!again || this.#closing !== undefined) {
      if (this.#calls[call.tag] === call) this.#release(call);
      return this.#settle(call, error);
    }
    if (call.link !== undefined && --call.link.live === 0) this.#idle(call.link);
    call.link = undefined;
    if (this.#calls[call.tag] !== call) {
      call.tag = this.#free.pop() as number;
      this.#calls[call.tag] = call;
    }
    this.#queue.push(call);
    if (this.#redial !== undefined || this.#dial !== undefined) return;
    const mostMs = Math.min(BACKOFF_MS.last, BACKOFF_MS.first * 2 ** Math.max(0, this.#failures - 1));
    this.#redial = setTimeout(() => {
      this.#redial = undefined;
      this.#pump();
    }, (error.retryAfterMs ?? 0) + Math.random() * mostMs);
  }

  #release(call: Call): void {
    this.#calls[call.tag] = undefined;
    this.#free.push(call.tag);
  }

  /** Ends a call from this side. Its slot stays taken until the server has answered it. */
  #giveUp(call: Call, code: ErrorCode, why: string, cause?: unknown): void {
    if (call.settled) return;
    const { link } = call;
    const error = new MicroError(code, `Cannot get the reply of ${this.#name()}: ${why}`,
      { outcome: link === undefined ? 'not sent' : 'maybe done', cause });
    if (link === undefined || link.state === 'closed') {
      this.#release(call);
    } else {
      const cancel = link.codec.control?.('cancel', call.tag);
      if (cancel === undefined) this.#retire(link); // a late reply would meet the next call
      else link.outbox.push(cancel);
      if (call.heard === link.heard) this.#quiet(link, call);
    }
    this.#settle(call, error);
  }

  /** Nothing came since the call left. The second time in a row the peer is taken for gone. */
  #quiet(link: Link, call: Call): void {
    if (link.quietHeard === link.heard && call.deadline - call.limitMs > link.quietAt) this.#retire(link);
    else if (link.quietHeard !== link.heard) link.quietAt = performance.now();
    link.quietHeard = link.heard;
  }

  /** It takes no new calls, and ends when those that it has are settled. */
  #retire(link: Link): void {
    if (this.#link === link) this.#link = undefined;
    if (link.state !== 'open') return;
    link.state = 'retired';
    if (link.live === 0) this.#idle(link);
  }

  #idle(link: Link): void {
    (link.duplex as Partial<Socket>).unref?.();
    if (link.state === 'retired') void this.#end(link);
  }

  /** Says goodbye and closes; resolves when it is closed. */
  async #end(link: Link): Promise<void> {
    const goodbye = link.state === 'closed' ? undefined : link.codec.control?.('goodbye');
    if (goodbye !== undefined) link.outbox.push(goodbye);
    this.#lost(link);
    if (!link.duplex.closed) await new Promise((resolve) => link.duplex.once('close', resolve));
  }

  #lost(link: Link, reason?: MicroError, cause?: Error): void {
    if (link.state === 'closed') return;
    this.#retire(link);
    link.state = 'closed';
    link.outbox.flush();
    link.duplex.end();
    const timer = setTimeout(() => link.duplex.destroy(), CLOSE_MS);
    link.duplex.once('close', () => clearTimeout(timer));
    for (const call of this.#calls) {
      if (call?.link !== link) continue;
      this.#release(call);
      if (call.settled) continue;
      this.#fail(call, reason === undefined
        ? new MicroError('CONNECTION_LOST', `Cannot get the reply of ${this.#name()}: ` +
          `${cause?.message ?? 'the connection ended'}. The message may have been handled`, { cause })
        : new MicroError(reason.code, reason.message, reason));
    }
    this.#pump();
  }

  /** Ends what is overdue and tells when to look again. */
  #walk(now: number): number {
    let next = Infinity;
    for (const call of this.#calls) {
      if (call === undefined || call.settled) continue;
      if (call.untaken > 0) call.deadline = now + call.limitMs; // its reader's time, not the server's
      if (call.deadline > now) next = Math.min(next, call.deadline);
      else if (call.link ?? this.#link) {
        this.#giveUp(call, 'TIMEOUT', `no answer within ${call.limitMs} ms. Give it a longer timeoutMs`);
      } else this.#giveUp(call, 'CONNECT_TIMEOUT', `no connection within ${call.limitMs} ms`);
    }
    this.#queue = this.#queue.filter((call) => !call.settled);
    if (this.#queue.length === 0) clearTimeout(this.#redial);
    if (this.#dial === undefined) return next;
    const again = this.#dial.since + DIAL_ATTEMPT_MS;
    if (now < again && this.#queue.length > 0) return Math.min(next, again);
    this.#dial.abort.abort();
    this.#dial = undefined;
    if (this.#queue.length > 0) this.#connect();
    return Math.min(next, now + DIAL_ATTEMPT_MS);
  }
}

/** What `retry` sends again, if it was not run. */
const RETRIED: ReadonlySet<string> = new Set(
  ['CONNECTION_REFUSED', 'CONNECTION_LOST', 'SERVER_BUSY', 'NO_WORKER']);
const NO_OPTIONS: CallOptions = {};

/** A call that waits, and its own message. One literal, so that all have one shape. */
function newCall(text: string, resolve: (text: string) => void, reject: (error: Error) => void) {
  return { tag: -1, text, timeoutMs: undefined as number | undefined, client: undefined,
    id: undefined as string | undefined, resolve, reject, isPing: false, settled: false, retry: false,
    deadline: 0, limitMs: 0, link: undefined as Link | undefined, heard: 0,
    release: undefined as (() => void) | undefined, streamed: false,
    onPart: undefined as ((part: string) => void) | undefined,
    parts: undefined, joined: undefined as string[] | undefined, joinedBytes: 0, untaken: 0, taken: 0 };
}
type Call = ReturnType<typeof newCall>;

/** One connection of a client. */
interface Link {
  readonly duplex: Duplex;
  readonly codec: Codec;
  readonly outbox: Outbox;
  readonly sink: Sink;
  state: 'open' | 'retired' | 'closed';
  live: number; // unsettled calls
  heard: number; // chunks
  quietAt: number; // when a call first timed out with nothing heard since it left
  quietHeard: number;
  dedupes: boolean;
}

// ---------------------------------------------------------------------------------------- Errors

/** Whether the work may have been done: of the call, not of the code. */
export type Outcome = 'not sent' | 'refused' | 'maybe done' | 'failed';

/** Every error code: who is at fault, and the outcome where the error names no other. */
export const ERRORS = {
  UNKNOWN_SERVICE: { fault: 'the set-up', outcome: 'not sent' },
  BAD_PORTS_FILE: { fault: 'the set-up', outcome: 'not sent' },
  BAD_ADDRESS: { fault: 'the set-up', outcome: 'not sent' },
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
  /** Milliseconds after which trying again makes sense, where the server said so. */
  readonly retryAfterMs: number | undefined;

  constructor(code: ErrorCode, message: string, { outcome, retryAfterMs, cause }:
    { outcome?: Outcome | undefined; retryAfterMs?: number | undefined; cause?: unknown } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code;
    this.outcome = outcome ?? ERRORS[code].outcome;
    this.retryAfterMs = retryAfterMs;
  }
}

// ------------------------------------------------------------------------------------- The seams

export type Body = string | Uint8Array;
/** What a callback may answer; `null` where there is nothing to say. */
export type Value = string | null | { parts: readonly Body[] } | AsyncIterable<string>;
export type Log = (level: 'info' | 'warn' | 'error', text: string) => void;
/** What a request is known by on its connection: a number, or what the dialect needs to answer. */
export type Tag = number | object;

/** One request, as a codec reads or writes it. */
export interface Message {
  tag: Tag;
  text: string;
  parts?: readonly Uint8Array[] | undefined;
  /** Milliseconds it may take, where it says so. */
  timeoutMs?: number | undefined;
  id?: string | undefined;
  /** The client behind a router. */
  client?: string | undefined;
  /** Nobody waits for a reply. */
  oneWay?: boolean | undefined;
}

/** How bytes on one connection become messages. Sans-IO: sees no socket, no timer, no service. */
export interface Dialect {
  readonly name: string;
  /** Replies leave in the order of their requests. */
  readonly ordered: boolean;
  /** Whether a reply may have several parts. */
  readonly multipart?: boolean;
  /** Whether a connection that begins so is this dialect's. */
  matches(head: Uint8Array): 'yes' | 'no' | 'more';
  open(options: CodecOptions): Codec;
}

export interface CodecOptions {
  /** Who dialled, and so who speaks first. */
  side: 'accepted' | 'dialled';
  /** A server takes requests, a client takes replies; either may have dialled. */
  role: 'server' | 'client';
  maxMessageBytes: number;
  /** What to say of oneself, where the dialect has a greeting. */
  hello?: Readonly<Record<string, string>>;
}

/** `goodbye` is an error that ends the connection, `notice` one that does not and names no request. */
export type Kind = 'reply' | 'part' | 'end' | 'error' | 'notice' | 'goodbye';
export type Control = 'cancel' | 'credit' | 'ping' | 'draining' | 'goodbye' | 'gone';

/**
 * One connection's state. Never throws, and gives the same for every split of the same bytes.
 * A chunk is lent: what is kept of it is copied.
 */
export interface Codec {
  /** Bytes held of an unfinished message. */
  readonly heldBytes: number;
  start?(sink: Sink): void;
  receive(chunk: Uint8Array, sink: Sink): void;
  /** The peer half-closed. */
  end?(sink: Sink): void;
  request(message: Message): Body;
  encode(kind: Kind, body: Body | readonly Body[] | MicroError, tag?: Tag): Body;
  /** A control message's bytes; absent where the dialect has none of that kind. */
  control?(word: Control, argument?: number | string, count?: number): Body | undefined;
  /** Milliseconds of silence after which {@link idle} decides; asked after each chunk. */
  idleMs?(): number | undefined;
  idle?(sink: Sink): void;
}

/** What a codec tells its connection. */
export interface Sink {
  hello?(fields: Readonly<Record<string, string>>): void;
  message(message: Message): void;
  response(tag: Tag, kind: 'reply' | 'part' | 'end' | 'error', body: string | MicroError): void;
  control?(word: Control, argument: number | string, count: number): void;
  /** A line for the server itself: `$ping`. */
  command?(line: string, tag: Tag): void;
  /** Something the peer sent can't be used; the connection goes on. */
  error(code: ErrorCode, text: string, tag?: Tag): void;
  write(bytes: Body): void;
  /** The connection must end: the bytes, or the error as the dialect words it, are the last. */
  close(last?: MicroError | Body): void;
}

/** How bytes travel. One file each in `transports/`, exporting `transport`; tcp and ipc are here. */
export interface Transport {
  /** Resolves with a connected duplex; an aborted signal gives up and destroys it. */
  dial?(address: Address, options: DialOptions): Promise<Duplex>;
  listen?(address: Address, options: object,
    onDuplex: (duplex: Duplex, how?: { side: 'dialled'; dialect: Dialect }) => void,
    onError: (error: Error) => void): Promise<{ readonly address: Address; close(): Promise<void> }>;
}
/** A transport that reads into a buffer of its own calls `receive` in place of emitting `data`. */
export interface Reader { receive(chunk: Uint8Array): void }
export interface DialOptions { signal: AbortSignal; reader: Reader; options: object }

// ------------------------------------------------------------------------------- Lines and frames

const LF = 10;
const EMPTY = Buffer.alloc(0);
const HELLO = '\x01portcall/';
const VERSION = '1';
/** A frame's head, but for the plain `<slot>`: see PROTOCOL.md "Frames". */
const HEAD = /^(0|[1-9]\d{0,8})(?:@([1-9]\d{0,14}))?(?:#([^~\\]{1,128}))?(?:~([^\\]{1,128}))?([+.!]?)(\\?)$/;
const REASON = /^([A-Z_]{1,40}) ([nrmf])(?: (\d{1,9}))?: ([^]*)$/;
const OUTCOMES = { n: 'not sent', r: 'refused', m: 'maybe done', f: 'failed' } as const;
/** What a browser, a proxy or an SSH client says first; none of it may reach a callback. */
const FOREIGN = /^(?:[A-Z]+ \S.* (?:HTTP|RTSP|SIP)\/\d|PRI \* |Host[ \t]*:|SSH-\d)/i;

/** Cuts bytes into lines of UTF-8. What a line means is told by those that extend it. */
abstract class LineCodec implements Codec {
  heldBytes = 0;
  #held: Buffer[] = []; // the unfinished line, in few pieces
  #tail: Buffer = EMPTY; // the last of them
  #tailBytes = 0;
  #skipping = false; // too long and told so: the rest is dropped up to its LF
  protected readonly max: number;

  constructor(max: number) {
    this.max = max;
  }

  abstract request(message: Message): string;
  abstract encode(kind: Kind, body: Body | readonly Body[] | MicroError, tag?: Tag): string;
  /** One line of `text`, from `start` to before its LF at `end`. */
  protected abstract line(text: string, start: number, end: number, sink: Sink): void;
  /** A line that can't be read, and how it began. */
  protected abstract bad(code: ErrorCode, why: string, head: string, sink: Sink): void;

  receive(chunk: Uint8Array, sink: Sink): void {
    let bytes = Buffer.isBuffer(chunk) ? chunk
      : Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length);
    if (this.heldBytes > 0 || this.#skipping) {
      const end = bytes.indexOf(LF) + 1;
      this.#hold(end === 0 ? bytes : bytes.subarray(0, end), sink);
      if (end === 0) return;
      this.finish(sink);
      bytes = bytes.subarray(end);
    }
    const end = bytes.lastIndexOf(LF) + 1;
    if (end > 0) this.#decode(end === bytes.length ? bytes : bytes.subarray(0, end), sink);
    if (end < bytes.length) this.#hold(bytes.subarray(end), sink);
  }

  protected finish(sink: Sink): void {
    const { heldBytes } = this;
    const line = this.#held.length === 1 ? this.#tail.subarray(0, heldBytes)
      : Buffer.concat(this.#held, heldBytes);
    this.#drop();
    if (!this.#skipping) this.#decode(line, sink);
    this.#skipping = false;
  }

  #decode(bytes: Buffer, sink: Sink): void {
    const ascii = isAscii(bytes); // then one byte is one letter: three times as fast as UTF-8
    if (ascii || isUtf8(bytes)) {
      const text = bytes.toString(ascii ? 'latin1' : 'utf8');
      let start = 0;
      for (let end; (end = text.indexOf('\n', start)) !== -1; start = end + 1) {
        this.line(text, start, end, sink);
      }
      return;
    }
    const end = bytes.indexOf(LF) + 1;
    if (end < bytes.length) {
      this.#decode(bytes.subarray(0, end), sink);
      this.#decode(bytes.subarray(end), sink);
    } else {
      this.bad('BAD_MESSAGE', 'Cannot read a text that is not UTF-8',
        bytes.toString('latin1', 0, 512), sink);
    }
  }

  /** Keeps a copy: small pieces fill up a larger one, and nothing kept is ever copied twice. */
  #hold(piece: Buffer, sink: Sink): void {
    if (this.#skipping) return;
    if (this.heldBytes + piece.length > 2 * this.max + 64) {
      const begun = (this.#held[0] ?? EMPTY).subarray(0, this.heldBytes);
      const head = Buffer.concat([begun, piece.subarray(0, 512)]);
      this.#skipping = true;
      this.#drop();
      return this.tooLarge(head.toString('latin1', 0, 512), sink);
    }
    const fits = piece.copy(this.#tail, this.#tailBytes);
    this.#tailBytes += fits;
    if (fits < piece.length) {
      const room = Math.max(piece.length - fits, Math.min(this.heldBytes, 1024 * 1024));
      this.#tail = Buffer.allocUnsafe(room);
      this.#held.push(this.#tail);
      this.#tailBytes = piece.copy(this.#tail, 0, fits);
    }
    this.heldBytes += piece.length;
  }

  #drop(): void {
    this.heldBytes = this.#tailBytes = 0;
    this.#held = [];
    this.#tail = EMPTY;
  }

  protected tooLarge(head: string, sink: Sink): void {
    this.bad('MESSAGE_TOO_LARGE', `Cannot read a message of over ${this.max} bytes`, head, sink);
  }
}

class FrameCodec extends LineCodec {
  readonly #options: CodecOptions;
  readonly #isServer: boolean;
  #greeted = false;

  constructor(options: CodecOptions) {
    super(options.maxMessageBytes);
    this.#options = options;
    this.#isServer = options.role === 'server';
  }

  start(sink: Sink): void {
    if (this.#options.side === 'dialled') sink.write(this.#hello());
  }

  #hello(): string {
    const fields = Object.entries(this.#options.hello ?? {});
    return `${HELLO}${VERSION}${fields.map(([k, v]) => ` ${k}=${encodeURIComponent(v)}`).join('')}\n`;
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
    const retry = retryAfterMs === undefined ? '' : ` ${retryAfterMs}`;
    return `${head} ${code} ${outcome[0]}${retry}: ${oneLine(message)}\n`;
  }

  control(word: Control, argument?: number | string, count?: number): string {
    const words = [word, argument, count].filter((part) => part !== undefined);
    return `${words.join(' ')}\n`;
  }

  protected line(text: string, start: number, end: number, sink: Sink): void {
    let slot = 0;
    let at = start;
    let code = text.charCodeAt(at);
    for (; code >= 48 && code <= 57; code = text.charCodeAt(++at)) slot = slot * 10 + code - 48;
    const digits = at - start;
    if (code !== 32 || digits === 0 || digits > 9 || !this.#greeted ||
      (digits > 1 && text.charCodeAt(start) === 48)) {
      return this.#other(text.slice(start, end), sink);
    }
    this.#plain(slot, text.slice(at + 1, end), sink);
  }

  #plain(tag: number, text: string, sink: Sink,
    timeoutMs?: number, id?: string, client?: string): void {
    if (exceeds(text, this.max)) return this.tooLarge(`${tag} `, sink);
    if (this.#isServer) sink.message({ tag, text, timeoutMs, id, client });
    else sink.response(tag, 'reply', text);
  }

  /** Every line but a request or reply whose head is a slot alone. */
  #other(line: string, sink: Sink): void {
    if (!this.#greeted) return this.#greet(line, sink);
    const space = line.indexOf(' ');
    const head = space === -1 ? line : line.slice(0, space);
    const rest = space === -1 ? '' : line.slice(space + 1);
    const [found, slot, ms, id, client, mark, escaped] =
      (head.length < 512 ? HEAD.exec(head) : null) ?? [];
    if (found === undefined) return this.#control(head, rest, line, sink);
    const tag = Number(slot);
    const text = escaped ? rest.replace(/\\([^])/g, (_, c: string) => (c === 'n' ? '\n' : c)) : rest;
    if (exceeds(text, this.max)) return this.tooLarge(`${head} `, sink);
    const error = mark === '!' ? reason(text) : undefined;
    if (mark === '' && space !== -1 && (this.#isServer || !(ms ?? id ?? client))) {
      this.#plain(tag, text, sink, ms === undefined ? undefined : Number(ms),
        decoded(id), decoded(client));
    } else if (this.#isServer || ms || id || client) this.#unreadable(line, sink);
    else if (mark === '.' && space === -1) sink.response(tag, 'end', '');
    else if (mark === '+' && space !== -1) sink.response(tag, 'part', text);
    else if (error !== undefined) sink.response(tag, 'error', error);
    else this.#unreadable(line, sink);
  }

  #control(word: string, rest: string, line: string, sink: Sink): void {
    const [first = '', second = ''] = rest.split(' ', 3);
    const slot = /^\d{1,9}$/.test(first) ? Number(first) : undefined;
    if (word === 'ping' && slot !== undefined) sink.write(`pong ${slot}\n`);
    else if (word === 'pong' && slot !== undefined) {
      if (!this.#isServer) sink.response(slot, 'reply', '');
    } else if ((word === 'cancel' || word === 'credit') && slot !== undefined && this.#isServer) {
      sink.control?.(word, slot, Number(second) || 0);
    } else if (word === 'gone' && this.#isServer) sink.control?.(word, decoded(first) ?? '', 0);
    else if (word === 'draining') sink.control?.(word, 0, 0);
    else if (word === 'goodbye') {
      if (rest !== '') sink.close(reason(rest));
      else sink.control?.(word, 0, 0);
    } else if (word === '!' && !this.#isServer) sink.error(reason(rest)?.code ?? 'PROTOCOL_ERROR', rest);
    else this.#unreadable(line, sink);
  }

  #greet(line: string, sink: Sink): void {
    const [greeting, ...fields] = line.split(' ');
    if (greeting === HELLO + VERSION) {
      this.#greeted = true;
      if (this.#options.side === 'accepted') sink.write(this.#hello());
      return sink.hello?.(Object.fromEntries(fields.map((field) => {
        const equals = field.indexOf('=');
        return [field.slice(0, equals), decoded(field.slice(equals + 1)) ?? ''];
      })));
    }
    const [, code, ms] = /^ERR ([A-Z_]+) (?:retry after (\d+) ms)?/.exec(line) ?? [];
    const known = code !== undefined && Object.hasOwn(ERRORS, code);
    sink.close(new MicroError(known ? code as ErrorCode : 'PROTOCOL_ERROR',
      this.#isServer ? `Cannot speak ${quoted(greeting?.slice(1, 32))}: expected portcall/${VERSION}`
        : `Cannot talk to it: it said ${quoted(line.slice(0, 64))}, expected a portcall server`,
      { outcome: known || this.#isServer ? 'refused' : 'maybe done',
        retryAfterMs: ms === undefined ? undefined : Number(ms) }));
  }

  protected bad(code: ErrorCode, why: string, head: string, sink: Sink): void {
    if (!this.#greeted) return this.#greet(head, sink);
    const [, slot, , , , mark] = HEAD.exec(head.slice(0, head.indexOf(' ') + 1).trim()) ?? [];
    if (this.#isServer || mark !== '' || slot === undefined) {
      sink.error(code, why, slot === undefined ? undefined : Number(slot));
    } else {
      sink.response(Number(slot), 'error', new MicroError(code, why, { outcome: 'maybe done' }));
    }
  }

  #unreadable(line: string, sink: Sink): void {
    sink.error('PROTOCOL_ERROR', `Cannot read the frame ${quoted(line.slice(0, 64))}`);
  }
}

class PlainCodec extends LineCodec {
  readonly #isServer: boolean;
  readonly #asked: Tag[] = [];
  #next = 0;
  #begun = false;

  constructor({ maxMessageBytes, role }: CodecOptions) {
    super(maxMessageBytes);
    this.#isServer = role === 'server';
  }

  request({ tag, text }: Message): string {
    this.#asked.push(tag);
    return `${text.startsWith('$') ? '$' : ''}${text.replaceAll('\n', '\\n')}\n`;
  }

  encode(kind: Kind, body: Body | readonly Body[] | MicroError): string {
    if (kind === 'end') return '\n';
    if (body instanceof MicroError) {
      return body.retryAfterMs === undefined ? `ERR ${body.code} ${oneLine(body.message)}\n`
        : `ERR ${body.code} retry after ${body.retryAfterMs} ms\n`;
    }
    const text = body as string;
    if (kind === 'part' && text === '') return '\\e\n';
    return text.includes('\n') ? `${text.replaceAll('\n', '\\n')}\n` : `${text}\n`;
  }

  /** A last line without its LF counts when the peer half-closes. */
  end(sink: Sink): void {
    if (this.heldBytes > 0) this.receive(Buffer.from('\n'), sink);
  }

  protected line(text: string, start: number, end: number, sink: Sink): void {
    let line = text.slice(start, text.charCodeAt(end - 1) === 13 && end > start ? end - 1 : end);
    if (!this.#isServer) return this.#reply(line, sink);
    if (line === '') return;
    if (!this.#begun && FOREIGN.test(line)) return sink.close(HTTP_REFUSAL);
    if (exceeds(line, this.max)) return this.tooLarge(line, sink);
    const tag = this.#next++;
    if (line.charCodeAt(0) === 36) { // $
      if (line.charCodeAt(1) !== 36) return sink.command?.(line, tag);
      line = line.slice(1);
    }
    this.#begun = true;
    sink.message({ tag, text: line, timeoutMs: undefined, id: undefined, client: undefined });
  }

  #reply(line: string, sink: Sink): void {
    const tag = this.#asked.shift();
    const [, code, text = ''] = /^ERR ([A-Z_]+) ([^]*)$/.exec(line) ?? [];
    if (tag === undefined) sink.error('PROTOCOL_ERROR', `Cannot match ${quoted(line.slice(0, 64))}`);
    else if (code === undefined || !Object.hasOwn(ERRORS, code)) sink.response(tag, 'reply', line);
    else sink.response(tag, 'error', new MicroError(code as ErrorCode, text));
  }

  protected bad(code: ErrorCode, why: string, _head: string, sink: Sink): void {
    sink.error(code, why, this.#isServer ? this.#next++ : this.#asked.shift());
  }
}

const REFUSED = 'This port speaks portcall, not HTTP: nothing was run. Ask with nc or a MicroClient\n';
const HTTP_REFUSAL = 'HTTP/1.1 400 Bad Request\r\nServer: portcall\r\nContent-Type: text/plain\r\n' +
  `Content-Length: ${REFUSED.length}\r\nConnection: close\r\n\r\n${REFUSED}`;

/** The dialect of MicroClient: one frame a line, replies in any order. */
export function frames(): Dialect {
  return {
    name: 'frames',
    ordered: false,
    matches(head) {
      const begin = Buffer.from(HELLO).subarray(0, head.length);
      if (begin.compare(head, 0, begin.length) !== 0) return 'no';
      return head.length < HELLO.length ? 'more' : 'yes';
    },
    open: (options) => new FrameCodec(options),
  };
}

/** The dialect of people and of every language: one line for one line, in order. */
export function lines(): Dialect {
  return { name: 'lines', ordered: true, matches: () => 'yes', open: (options) => new PlainCodec(options) };
}

function framed(head: string, text: string): string {
  if (!text.includes('\n')) return `${head} ${text}\n`;
  return `${head}\\ ${text.replace(/[\\\n]/g, (c) => (c === '\n' ? '\\n' : '\\\\'))}\n`;
}

function reason(text: string): MicroError | undefined {
  const [, code, outcome, retry, message] = REASON.exec(text) ?? [];
  if (code === undefined) return undefined;
  return new MicroError(Object.hasOwn(ERRORS, code) ? code as ErrorCode : 'PROTOCOL_ERROR',
    message ?? '', { outcome: OUTCOMES[outcome as keyof typeof OUTCOMES],
      retryAfterMs: retry === undefined ? undefined : Number(retry) });
}

function decoded(field: string | undefined): string | undefined {
  if (field === undefined) return undefined;
  try {
    return decodeURIComponent(field);
  } catch {
    return field;
  }
}

// ------------------------------------------------------------------------------ Writing and timing

/**
 * All writes of one tick in one; the first of them early, so that both sides' cores work at once
 * (flushing once a tick only halves the rate at 1,000 in flight).
 */
export class Outbox {
  readonly #duplex: Duplex;
  #text = '';
  #early = 512;
  #scheduled = false;

  constructor(duplex: Duplex) {
    this.#duplex = duplex;
  }

  push(data: Body): void {
    if (typeof data !== 'string') {
      this.flush();
      this.#duplex.write(data);
      return;
    }
    this.#text += data;
    if (this.#text.length >= this.#early) {
      this.#early = Math.min(this.#early * 2, 16_384);
      this.flush();
    }
    if (!this.#scheduled) {
      this.#scheduled = true;
      process.nextTick(Outbox.#tick, this);
    }
  }

  static #tick(outbox: Outbox): void {
    outbox.#scheduled = false;
    outbox.#early = 512;
    outbox.flush();
  }

  flush(): void {
    const text = this.#text;
    if (text === '') return;
    this.#text = '';
    if (!this.#duplex.writable) return;
    const ascii = Buffer.byteLength(text) === text.length; // latin1 is copied, utf8 is encoded
    this.#duplex.write(text, ascii ? 'latin1' : 'utf8');
  }
}

/** One unref'd timer for many deadlines: a timer a call costs a third of the rate. */
export class Alarm {
  readonly #walk: (now: number) => number;
  #due = Infinity;
  #timer: NodeJS.Timeout | undefined;

  /** @param walk Ends what is overdue and returns when to be called again. */
  constructor(walk: (now: number) => number) {
    this.#walk = walk;
  }

  at(due: number): void {
    if (due >= this.#due) return;
    this.#due = due;
    clearTimeout(this.#timer);
    const ms = Math.min(Math.max(Math.ceil(due - performance.now()), 1), 0x7fff_ffff);
    this.#timer = setTimeout(() => {
      this.#due = Infinity;
      this.at(this.#walk(performance.now()));
    }, ms).unref();
  }

  stop(): void {
    clearTimeout(this.#timer);
  }
}

// ---------------------------------------------------------------------------------- Tcp and ipc

const DIALLED_BY_NET: ReadonlySet<string> = new Set(['tcp', 'ipc']);
const NET = {
  dial: (address: Address, { signal, reader }: DialOptions) => new Promise<Duplex>((resolve, reject) => {
    const { host, port, path } = address;
    const socket = connect({
      ...(path === undefined ? { host, port: port ?? 0 } : { path }), noDelay: true, signal,
      onread: { buffer: () => CHUNK, callback: (bytes: number) => {
        reader.receive(CHUNK.subarray(0, bytes));
        return true;
      } },
    } as NetConnectOpts);
    socket.once('error', reject);
    socket.once('connect', () => {
      // A port that nobody holds, in the range of outgoing ones, may be dialled from itself.
      if (port !== undefined && socket.localPort === port && socket.localAddress === socket.remoteAddress) {
        socket.destroy(new Error('nobody listens there'));
        return;
      }
      socket.off('error', reject);
      resolve(socket);
    });
  }),
};
/** All clients read into one buffer: what is kept of it is copied. */
const CHUNK = Buffer.allocUnsafeSlow(64 * 1024);

/** Loads a transport beyond tcp and ipc; the specifier is computed, so that it may be missing. */
export async function loadTransport(scheme: string): Promise<Transport> {
  const file = `./transports/${scheme}${extname(import.meta.url)}`;
  try {
    return ((await import(file)) as { transport: Transport }).transport;
  } catch (cause) {
    throw new MicroError('BAD_ADDRESS', `Cannot use ${scheme}://: expected "lib/${file.slice(2)}" beside ` +
      `"${basename(import.meta.url)}". Copy it there`, { cause });
  }
}

// ----------------------------------------------------------------------------------- Small checks

export function exceeds(text: string, maxBytes: number): boolean {
  return text.length * 3 > maxBytes && Buffer.byteLength(text) > maxBytes;
}

export function wellFormed(text: string): boolean {
  return (text as string & { isWellFormed(): boolean }).isWellFormed();
}

/** A value as messages show it: on one line, cut, with nothing that could steer a terminal. */
export function quoted(value: unknown): string {
  const text = typeof value === 'string' ? JSON.stringify(value.slice(0, 200))
    : typeof value === 'object' && value !== null ? 'an object' : String(value).slice(0, 200);
  return text.replace(/[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}]/gu, (letter) =>
    `\\u${letter.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

/** What may stand in one line: no line break, no control character, 4,096 characters at most. */
export function oneLine(text: string): string {
  const flat = text.slice(0, 4096).replace(/[\p{Cc}\p{Zl}\p{Zp}]+/gu, ' ');
  return wellFormed(flat) ? flat : Buffer.from(flat).toString();
}

export function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

export function positive<K extends string>(options: { readonly [k in K]?: number }, name: K, standard: number): number {
  const value: unknown = options[name] ?? standard;
  if (typeof value !== 'number') throw new TypeError(`Cannot use ${name} ${quoted(value)}: expected a number`);
  if (!(value > 0)) throw new RangeError(`Cannot use ${name} ${value}: expected more than 0`);
  return value;
}

/** A token that is named but empty or missing must not mean that none is wanted. */
export function checkToken(options: { token?: string }): void {
  if (!('token' in options)) return;
  if (typeof options.token === 'string' && options.token !== '') return;
  throw new TypeError(`Cannot use token ${quoted(options.token)}: expected a secret. Leave it out if none is wanted`);
}

function checkCall(options: CallOptions): void {
  positive(options, 'timeoutMs', 1);
  const { id, signal } = options;
  if (id !== undefined && (typeof id !== 'string' || !/^.{1,128}$/.test(encodeURIComponent(id)))) {
    throw new TypeError(`Cannot use id ${quoted(id)}: expected 1 to 128 characters`);
  }
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    throw new TypeError(`Cannot use signal ${quoted(signal)}: expected an AbortSignal`);
  }
}

export const logToStderr: Log = (level, text) => {
  if (level !== 'info') process.stderr.write(`portcall: ${oneLine(text)}\n`);
};

// ------------------------------------------------------------------- The look-up in ports.json

export interface Address { url: string; scheme: string; host?: string; port?: number; path?: string }
type Table = Readonly<Record<string, unknown>>;
export type Ports = string | Table; // the path of a ports file, or an object in its stead
type Warn = (text: string) => void;
type Parsed = Address & { fault?: never } | { [K in keyof Address]?: never } & { fault: string };
const MAX_PATH_BYTES = 107; // a Unix socket's: sun_path holds 108, the last of them NUL
const NUMBER = /^-?\d+(\.\d+)?$/;
const JSON_STRING = /^"(?:[^"\\\0-\x1f]|\\(?:["\\/bfnrt]|u[\da-fA-F]{4}))*"$/;
const JSON_PLAIN = /^(?:-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)$/;

/** Where a key leads. A port number, its digits or a URL in place of a key needs no file. */
export function resolveAddress(key: string | number, ports?: Ports, warn?: Warn): Address {
  const name = String(key);
  const isDirect = typeof key === 'number' || NUMBER.test(name) || name.includes('://');
  const { file, table } = isDirect ? { table: { [name]: key } } : readPorts(ports, name);
  const where = file === undefined ? `address ${quoted(key)}` : `${quoted(key)} in ${quoted(file)}`;
  const known = Object.keys(table).filter((other) => // `portcall: {…}` is the CLI's own section
    other !== 'portcall' || typeof table[other] !== 'object');
  if (!known.includes(name)) {
    const hint = suggest(name, known);
    throw new MicroError('UNKNOWN_SERVICE', `Cannot find service ${where}: ${hint}`);
  }
  const found = parseAddress(table[name]);
  const twin = found.url === undefined || found.port === 0 ? undefined // 0: each gets its own
    : known.find((other) => other !== name && parseAddress(table[other]).url === found.url);
  if (found.url === undefined || twin !== undefined) {
    const code = isDirect ? 'BAD_ADDRESS' : 'BAD_PORTS_FILE';
    throw new MicroError(code, `Cannot read ${where}: ${found.fault ??
      `${quoted(twin)} has ${found.url} too, expected an address for each. Change one`}`);
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
  const code = cause?.code;
  const is = code === 'ENOENT' ? 'no such file' : code === 'EISDIR' ? 'it is a folder' : code;
  const sought = `looked in ${quoted(process.cwd())}${given === undefined ? ' and above' : ''}`;
  const fault = is === undefined ? findJsonFault(text) : `${is}, ${sought}. ` +
    'Make it, set PORTCALL_PORTS, or give an address such as 5467';
  const task = key === undefined ? 'read' : `find service ${quoted(key)} in`;
  throw new MicroError('BAD_PORTS_FILE', `Cannot ${task} ${quoted(file)}: ${fault}`, { cause });
}

/** Reads a port number, its digits, or a URL; what isn't tcp or ipc is left to its transport. */
function parseAddress(value: unknown): Parsed {
  const given = typeof value === 'string' || typeof value === 'number' ? String(value) : '';
  const url = NUMBER.test(given) ? `tcp://127.0.0.1:${given}` : given;
  const form = /^([a-z][\w+.-]*):\/\/(([^@/?#]*@)?(\[[^\]]*\]|[^:/?#]*)(?::([^/?#]*))?(.*))$/is;
  const [, name = '', rest = '', user, host = '', digits = '', path = ''] = form.exec(url) ?? [];
  const scheme = name.toLowerCase();
  const fault = `it is ${quoted(value)}, expected a port, tcp://host:port or ipc:///path`;
  if (/\p{Cc}/u.test(url)) return { fault: 'it has a control character, expected none' };
  if (scheme === '') return { fault };
  if (scheme === 'ipc') {
    const bytes = Buffer.byteLength(rest);
    if (bytes <= MAX_PATH_BYTES) return rest[0] === '/' ? { url, scheme, path: rest } : { fault };
    return { fault: `path has ${bytes} bytes, expected at most ${MAX_PATH_BYTES}` };
  }
  const port = NUMBER.test(digits) ? Number(digits) : NaN;
  if (port > 65_535) return { fault: `port is ${digits}, expected at most 65535` };
  if (port < 0 || port % 1 > 0) return { fault: `port is ${digits}, expected a whole number from 0` };
  const bare = host.replace(/^\[(.*)\]$/, '$1'); // as node:net takes IPv6
  if (scheme !== 'tcp') return { url, scheme, host: bare, path, ...(port >= 0 && { port }) };
  const isHost = bare === host ? /^[\p{L}\p{N}._-]+$/u.test(host) : isIPv6(bare);
  if (!isHost || Number.isNaN(port) || user !== undefined || path.length > 1) return { fault };
  return { url: `tcp://${host.toLowerCase()}:${port}`, scheme, host: bare, port };
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
  const list = known.slice(0, 12).map((name) => /^[\w.-]{1,64}$/.test(name) ? name : quoted(name));
  return (near === undefined ? 'no such key. Known: ' : `did you mean ${quoted(near)}? Known: `) +
    `${list.join(', ') || 'none'}${known.length > 12 ? ', …' : ''}`;
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
  const before = text.slice(0, tokens[next]?.index).split('\n');
  const is = next < tokens.length ? quoted(tokens[next]![0]) : 'the end';
  return `line ${before.length}, column ${before.at(-1)!.length + 1} is ${is}, expected ${expected}`;
}
