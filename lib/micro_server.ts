/**
 * portcall's server: `new MicroServer((message) => reply(message), 'LIFE_GEN')` makes a function a
 * service on a named port. Copy it together with `micro_client.ts`. PROTOCOL.md tells the wire.
 *
 * In this order: options and limits; the server; one connection, from its first byte to its last;
 * one request; the commands of the kit; binding.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { lookup } from 'node:dns/promises';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import * as fs from 'node:fs/promises';
import { createServer, isIPv4, type AddressInfo, type Socket } from 'node:net';
import { basename } from 'node:path';
import type { Duplex } from 'node:stream';
import { setImmediate as turn } from 'node:timers/promises';
import {
  Alarm, MicroError, Outbox, checkToken, exceeds, frames, lines, logToStderr, oneLine, positive, quoted,
  loadTransport, resolveAddress, textOf, wellFormed,
  type Address, type Body, type Codec, type Control, type Dialect, type ErrorCode, type Kind, type Log,
  type Message, type Ports, type Sink, type Tag, type Value,
} from './micro_client.ts';

/** Past a limit: what PROTOCOL.md "Limits" says. Every one is an option, and is counted in `stats()`. */
export const DEFAULT_LIMITS = {
  /** Longest message and reply, in bytes of UTF-8 after unescaping. */
  maxMessageBytes: 1024 * 1024,
  /** What is read of a connection before its token is settled. */
  maxUnauthorizedBytes: 8 * 1024,
  /** How long a message may stay unfinished, while it comes at under 1 KiB/s. */
  partialTimeoutMs: 30_000,
  /** Requests of one connection in the callback; 4,096 more, or 1 MiB, are held. */
  maxInFlight: 256,
  /** Bytes that wait for a slow reader, and how long not one of them may be taken. */
  maxOutputBytes: 16 * 1024 * 1024,
  outputTimeoutMs: 10_000,
  /** At most the system's limit of open files less 64, at least 8. */
  maxConnections: 1024,
  /** Unreadable messages on one connection. */
  maxProtocolErrors: 20,
  /** Messages that one connection gets handled before the others have their turn. */
  maxLinesPerTick: 256,
  callbackTimeoutMs: 30_000,
  /** What `stop()` gives the requests in flight. */
  drainMs: 10_000,
};
export type Limits = typeof DEFAULT_LIMITS;

export interface ServerOptions extends Partial<Limits> {
  ports?: Ports;
  /** Where to bind, if not where clients dial: `0.0.0.0`. Wants a token, or `insecure`. */
  host?: string;
  /** What a client must say first. */
  token?: string;
  /** Beyond loopback without a token. */
  insecure?: boolean;
  /** To be told apart on the same port, beside lines and frames. */
  dialects?: readonly Dialect[];
  /** Keeps this many replies by message id, so that a message sent twice runs once. Default 0. */
  dedupe?: number;
  log?: Log;
}

/** Who asks. One per connection, or per client of a router behind it. */
export interface Client {
  readonly id: string;
  readonly address: string;
  readonly dialect: string;
  readonly loopback: boolean;
  readonly identity?: string;
  /** Aborted when it is gone. */
  readonly signal: AbortSignal;
  /** For the service to remember things in. */
  readonly state: Map<unknown, unknown>;
}

export interface Context {
  /** Aborted on the deadline, a cancel, or the loss of the connection. */
  readonly signal: AbortSignal;
  /** When the caller stops waiting, in milliseconds since 1970. */
  readonly deadline: number;
  readonly parts: readonly Uint8Array[] | undefined;
  readonly client: Client;
  /** Closes the connection once this reply is delivered. */
  close(): void;
  /** Stops the server once this reply is delivered. */
  stopServer(): void;
}

export type Callback = (message: string, context: Context) => Value | Promise<Value>;

export interface Contract {
  summary: string;
  messages: Readonly<Record<string, { example: string; reply: string }>>;
}

export interface Service {
  callback: Callback;
  dialects?: readonly Dialect[];
  contract?: Contract;
  /** At a client's first byte. */
  connected?(client: Client): void;
  disconnected?(client: Client): void;
  /** Closes what the service opened; called when the server has stopped. */
  stop?(): Promise<void>;
}

export interface Stats {
  requests: number;
  errors: number;
  connections: number;
  inFlight: number;
  bytes: { in: number; out: number };
  latencyMs: { count: number; mean: number; p50: number; p99: number; max: number };
  /** How often each limit was met. */
  limits: Partial<Record<keyof Limits, number>>;
}

export interface ServeOptions {
  /** Who dialled: default `accepted`. */
  side?: 'accepted' | 'dialled';
  /** Default: told by the first bytes. */
  dialect?: Dialect;
  hello?: Readonly<Record<string, string>>;
}

export class MicroServer {
  readonly #key: string | number;
  readonly #options: ServerOptions;
  readonly #hub: Hub;
  #listener: Listener | undefined;
  #starting: Promise<Address> | undefined;
  #stopping: Promise<void> | undefined;

  /** @throws {TypeError | RangeError} Wrong options. What is wrong with the address, `startListening` tells. */
  constructor(service: Callback | Service, key: string | number, options: ServerOptions = {}) {
    const { callback, ...rest } = typeof service === 'function' ? { callback: service } : service;
    if (typeof callback !== 'function') {
      throw new TypeError(`Cannot serve ${quoted(callback)}: expected a function (message) => reply`);
    }
    checkToken(options);
    const limits = { ...DEFAULT_LIMITS };
    for (const name of Object.keys(limits) as (keyof Limits)[]) {
      limits[name] = positive(options, name, DEFAULT_LIMITS[name]);
    }
    this.#key = key;
    this.#options = options;
    this.#hub = new Hub(typeof service === 'function' ? { callback } : service, limits, options,
      () => void this.stop());
    void rest;
  }

  /** Where it listens, if it does. */
  get address(): Address | undefined {
    return this.#listener?.address;
  }

  /**
   * Binds and serves. Port 0 gives a free one.
   *
   * @throws {MicroError} `PORT_IN_USE`, `BAD_ADDRESS`, `UNKNOWN_SERVICE`, `BAD_PORTS_FILE`.
   */
  startListening(): Promise<Address> {
    this.#starting ??= this.#start().catch((error: unknown) => {
      this.#starting = undefined;
      throw error;
    });
    return this.#starting;
  }

  /** Stops accepting, answers what is in flight (until `graceMs`, default `drainMs`), closes. */
  stop({ graceMs }: { graceMs?: number } = {}): Promise<void> {
    this.#stopping ??= this.#stop(graceMs ?? this.#hub.limits.drainMs).finally(() => {
      this.#stopping = undefined;
      this.#starting = undefined;
    });
    return this.#stopping;
  }

  /** Serves one connected duplex, whoever dialled it: what a worker and a transport build on. */
  serve(duplex: Duplex, options: ServeOptions = {}): void {
    new Connection(this.#hub, duplex, options);
  }

  stats(): Stats {
    return this.#hub.stats();
  }

  async #start(): Promise<Address> {
    await this.#stopping;
    const { ports, host, token, insecure } = this.#options;
    const hub = this.#hub;
    const address = { ...resolveAddress(this.#key, ports, (text) => hub.log('warn', text)) };
    if (host !== undefined && address.scheme === 'tcp') {
      address.host = host;
      address.url = `tcp://${host.includes(':') ? `[${host}]` : host}:${address.port}`;
    }
    if (address.scheme === 'tcp' && token === undefined && !(await isLoopback(address.host ?? ''))) {
      const risk = 'anybody on the network could call it';
      if (insecure !== true) {
        throw new MicroError('BAD_ADDRESS', `Cannot listen on ${address.url}: ${risk}, expected a ` +
          'token. Give it one, bind to 127.0.0.1, or set insecure');
      }
      hub.log('warn', `Listening on ${address.url} without a token: ${risk}`);
    }
    hub.draining = false;
    hub.limits.maxConnections = Math.min(positive(this.#options, 'maxConnections',
      DEFAULT_LIMITS.maxConnections), Math.max(8, openFilesLimit() - 64));
    this.#listener = await this.#bind(address);
    return this.#listener.address;
  }

  async #bind(address: Address): Promise<Listener> {
    const { hub } = { hub: this.#hub };
    const listen = address.scheme === 'tcp' ? listenTcp : (await loadTransport(address.scheme)).listen;
    if (listen === undefined) {
      throw new MicroError('BAD_ADDRESS', `Cannot listen on ${address.url}: it can only be dialled`);
    }
    try {
      return await listen(address, this.#options, (duplex, how) => hub.accept(duplex, how),
        (error) => hub.log('error', `Cannot accept a connection: ${error.message}`));
    } catch (cause) {
      if (cause instanceof MicroError) throw cause;
      const isInUse = (cause as NodeJS.ErrnoException).code === 'EADDRINUSE';
      const why = !isInUse ? textOf(cause)
        : `${await findHolder(address)} holds it`;
      throw new MicroError(isInUse ? 'PORT_IN_USE' : 'BAD_ADDRESS', `Cannot listen on ${address.url}: ${why}. ` +
        `${isInUse ? 'Stop it' : 'Mend it'}, or give ${this.#key} another address`, { cause });
    }
  }

  async #stop(graceMs: number): Promise<void> {
    await this.#starting?.catch(() => {});
    const listener = this.#listener;
    this.#listener = undefined;
    await Promise.all([listener?.close(), this.#hub.drain(graceMs)]);
    await this.#hub.service.stop?.();
  }
}

const watched = new Set<MicroServer>();

/**
 * Drains the server on SIGTERM and SIGINT, then ends the process with 0; a second SIGINT ends it at
 * once with 130. A library installs no handler by itself: call this in the program.
 *
 * @returns Takes the handlers away again.
 */
export function stopOnSignals(server: MicroServer): () => void {
  if (watched.size === 0) for (const name of SIGNALS) process.on(name, onSignal);
  watched.add(server);
  return () => {
    watched.delete(server);
    if (watched.size === 0) for (const name of SIGNALS) process.off(name, onSignal);
  };
}

const SIGNALS = ['SIGTERM', 'SIGINT'] as const;
let interrupted = false;

function onSignal(name: NodeJS.Signals): void {
  if (name === 'SIGINT' && interrupted) process.exit(130);
  if (interrupted) return;
  interrupted = true;
  void Promise.allSettled([...watched].map((server) => server.stop())).then((ends) => {
    const failed = ends.find((end) => end.status === 'rejected');
    if (failed !== undefined) logToStderr('error', textOf(failed.reason));
    process.exit(failed === undefined ? 0 : 1);
  });
}

// ------------------------------------------------------------------------ What connections share

/** How long a refused peer, and one at the end of a drain, may take to close its side. */
const LINGER_MS = { refused: 1_000, drained: 150 };
/** A refusal waits this long for the first bytes that tell its dialect; so many wait at a time. */
const REFUSAL_WAIT_MS = 1_000;
const MAX_REFUSALS_WAITING = 32;
/** Held requests and undelivered output of one connection past which it is not read. */
const MAX_HELD = { messages: 4096, bytes: 1024 * 1024 };
/** How far a stream may be ahead of its reader. */
const WINDOW = { parts: 256, bytes: 1024 * 1024 };
const PAUSED_PING_MS = 200;

class Hub {
  readonly service: Service;
  readonly limits: Limits;
  readonly dialects: readonly Dialect[];
  readonly log: Log;
  readonly alarm = new Alarm((now) => this.#walk(now));
  readonly connections = new Set<Connection>();
  readonly latency = new Latency();
  readonly replies: Map<string, unknown> | undefined;
  readonly dedupe: number;
  readonly stopServer: () => void;
  readonly #digest: Buffer | undefined;
  readonly #limitsMet: Partial<Record<keyof Limits, number>> = {};
  draining = false;
  requests = 0;
  errors = 0;
  bytesIn = 0;
  bytesOut = 0;
  refusing = 0;
  lastId = 0;
  #emptied = (): void => {};

  constructor(service: Service, limits: Limits, options: ServerOptions, stopServer: () => void) {
    this.service = service;
    this.limits = limits;
    this.log = options.log ?? logToStderr;
    this.dialects = [...options.dialects ?? service.dialects ?? [], frames()];
    this.dedupe = options.dedupe ?? 0;
    if (this.dedupe > 0) this.replies = new Map();
    if (options.token !== undefined) this.#digest = digest(options.token);
    this.stopServer = stopServer;
  }

  get wantsToken(): boolean {
    return this.#digest !== undefined;
  }

  /** Digests are of one length, so that the time tells nothing of the secret. */
  isToken(secret: string | undefined): boolean {
    return this.#digest === undefined || timingSafeEqual(digest(secret ?? ''), this.#digest);
  }

  met(limit: keyof Limits): void {
    this.#limitsMet[limit] = (this.#limitsMet[limit] ?? 0) + 1;
  }

  accept(duplex: Duplex, how: ServeOptions = {}): void {
    const isFull = this.connections.size - this.refusing >= this.limits.maxConnections;
    if (isFull) this.met('maxConnections');
    new Connection(this, duplex, how, isFull ? new MicroError('SERVER_BUSY',
      `Cannot serve more than ${this.limits.maxConnections} connections`, { retryAfterMs: 200 }) : undefined);
  }

  async drain(graceMs: number): Promise<void> {
    this.draining = true;
    const empty = new Promise<void>((resolve) => { this.#emptied = resolve; });
    for (const connection of this.connections) connection.drain();
    const timer = setTimeout(() => {
      for (const connection of this.connections) connection.cutOff();
    }, graceMs);
    if (this.connections.size > 0) await empty;
    clearTimeout(timer);
    this.alarm.stop();
  }

  removed(connection: Connection): void {
    this.connections.delete(connection);
    if (this.connections.size === 0) this.#emptied();
  }

  /** Calls what the service gave; whatever it does, the server goes on. */
  fenced(what: string, task: () => unknown): void {
    try {
      const done = task();
      if (done instanceof Promise) done.catch((error) => this.log('error', `${what}: ${textOf(error)}`));
    } catch (error) {
      this.log('error', `${what}: ${textOf(error)}`);
    }
  }

  stats(): Stats {
    let inFlight = 0;
    for (const connection of this.connections) inFlight += connection.inFlight;
    return {
      requests: this.requests, errors: this.errors, connections: this.connections.size, inFlight,
      bytes: { in: this.bytesIn, out: this.bytesOut }, latencyMs: this.latency.summary(),
      limits: { ...this.#limitsMet },
    };
  }

  #walk(now: number): number {
    let next = Infinity;
    for (const connection of this.connections) next = Math.min(next, connection.look(now));
    return next;
  }
}

/** How long replies took: counts by a quarter of each power of two of microseconds. */
class Latency {
  readonly #counts = new Uint32Array(128);
  #count = 0;
  #sumMs = 0;
  #maxMs = 0;

  record(ms: number, times: number): void {
    const bucket = Math.min(127, Math.max(0, Math.floor(4 * Math.log2(ms * 1000 + 1))));
    this.#counts[bucket]! += times;
    this.#count += times;
    this.#sumMs += ms * times;
    if (ms > this.#maxMs) this.#maxMs = ms;
  }

  summary(): Stats['latencyMs'] {
    const at = (share: number): number => {
      let left = this.#count * share;
      const bucket = this.#counts.findIndex((count) => (left -= count) <= 0);
      return this.#count === 0 ? 0 : Math.min(this.#maxMs, (2 ** ((bucket + 1) / 4) - 1) / 1000);
    };
    return { count: this.#count, mean: this.#count === 0 ? 0 : this.#sumMs / this.#count,
      p50: at(0.5), p99: at(0.99), max: this.#maxMs };
  }
}

// --------------------------------------------------------------------------------- One connection

/**
 * `open` answers what comes; `ending` answers what it has, takes no more and closes; `lingering` has
 * sent its FIN and drops what it reads until the peer's; `closed` is gone.
 */
type State = 'open' | 'ending' | 'lingering' | 'closed';

/** From first byte to last: told by the bytes, requests dispatched, replies put in order, limits kept. */
class Connection implements Sink {
  readonly hub: Hub;
  readonly #duplex: Duplex;
  readonly #outbox: Outbox;
  readonly #how: ServeOptions;
  readonly #refusal: MicroError | undefined;
  #state: State = 'open';
  #head: Buffer | undefined; // first bytes that may still become one dialect or another
  #codec: Codec | undefined;
  #dialect: Dialect | undefined;
  #authorized: boolean;
  #client: ClientRecord | undefined;
  #forwarded: Map<string, ClientRecord> | undefined; // clients of the router at the other end
  #timeoutMs = Infinity; // of a request that names none
  #requests: Map<Tag, Request> | undefined; // in the callback
  #order: Request[] | undefined; // of an ordered dialect: those whose turn has not come
  #held: Message[] | undefined; // not dispatched yet
  #heldFrom = 0;
  #heldBytes = 0;
  #turn = 0; // messages that may still be handled in this tick
  #pumping = false;
  #paused = false;
  #errors = 0;
  #bytesIn = 0;
  #now = performance.now(); // of the last chunk
  #partialSince = 0;
  #partialBytes = 0;
  #lingerUntil = Infinity;
  #handled = 0; // messages since the chunk began

  constructor(hub: Hub, duplex: Duplex, how: ServeOptions, refusal?: MicroError) {
    this.hub = hub;
    this.#duplex = duplex;
    this.#outbox = new Outbox(duplex);
    this.#how = how;
    this.#refusal = refusal;
    this.#authorized = !hub.wantsToken || how.side === 'dialled';
    hub.connections.add(this);
    duplex.on('data', (chunk: Buffer) => this.#receive(chunk));
    duplex.on('end', () => this.#ended());
    duplex.on('drain', () => this.#drained());
    duplex.on('error', () => this.#lost());
    duplex.on('close', () => this.#closed());
    if (how.dialect !== undefined) this.#open(how.dialect);
    if (refusal === undefined) return;
    if (++hub.refusing > MAX_REFUSALS_WAITING) this.close(refusal);
    else hub.alarm.at(this.#now + REFUSAL_WAIT_MS);
  }

  get inFlight(): number {
    return this.#requests?.size ?? 0;
  }

  get client(): ClientRecord {
    return this.#client ??= new ClientRecord(`${++this.hub.lastId}`, this.#duplex, this.#dialect?.name ?? '');
  }

  // Bytes in.

  #receive(chunk: Buffer): void {
    if (this.#state === 'lingering' || this.#state === 'closed') return;
    this.#now = performance.now();
    this.hub.bytesIn += chunk.length;
    if (this.#bytesIn === 0) this.#greet();
    this.#bytesIn += chunk.length;
    if (!this.#authorized && this.#bytesIn > this.hub.limits.maxUnauthorizedBytes) {
      this.hub.met('maxUnauthorizedBytes');
      return this.close(new MicroError('MESSAGE_TOO_LARGE', `Cannot read over ` +
        `${this.hub.limits.maxUnauthorizedBytes} bytes before the token. Send it first`));
    }
    const bytes = this.#codec === undefined ? this.#sniff(chunk, false) : chunk;
    if (bytes === undefined) return;
    if (this.#held === undefined) this.#turn = this.hub.limits.maxLinesPerTick;
    this.#codec?.receive(bytes, this);
    if (this.#handled > 0) {
      this.hub.latency.record(performance.now() - this.#now, this.#handled);
    }
    this.#watchPartial(this.#codec?.heldBytes ?? 0);
    this.#handled = 0;
    this.#throttle();
  }

  #greet(): void {
    const { connected } = this.hub.service;
    if (connected !== undefined && this.#refusal === undefined) {
      this.hub.fenced('connected', () => connected.call(this.hub.service, this.client));
    }
  }

  /** Tells the dialect by the first bytes; gives them back once it is known. */
  #sniff(chunk: Buffer, isAll: boolean): Buffer | undefined {
    const head = this.#head === undefined ? chunk : Buffer.concat([this.#head, chunk]);
    let found: Dialect | undefined;
    let isOpen = false;
    for (const dialect of this.hub.dialects) {
      const answer = dialect.matches(head);
      if (answer === 'more' && !isAll) isOpen = true;
      if (answer !== 'yes') continue;
      found = dialect;
      break;
    }
    if (isOpen) {
      this.#head = Buffer.from(head); // the chunk may be the reader's own buffer
      this.#watchPartial(head.length);
      return undefined;
    }
    this.#head = undefined;
    const first = head[0] ?? 0;
    if (found === undefined && (first === 0xff || (first < 0x20 && !TEXT_CONTROLS.has(first)))) {
      this.close(new MicroError('PROTOCOL_ERROR', first === 0x16
        ? 'Cannot read TLS: this port speaks in the open. Dial it without TLS'
        : `Cannot read what begins with byte 0x${first.toString(16).padStart(2, '0')}: expected text, ` +
          `or ${this.hub.dialects.map(({ name }) => name).join(', ')}`));
      return undefined;
    }
    this.#open(found ?? lines());
    return head;
  }

  #open(dialect: Dialect): void {
    const { limits, dedupe } = this.hub;
    const { side = 'accepted', hello } = this.#how;
    this.#dialect = dialect;
    this.#codec = dialect.open({ side, role: 'server', maxMessageBytes: limits.maxMessageBytes,
      hello: { max: String(limits.maxMessageBytes), ...(dedupe > 0 && { dedupe: String(dedupe) }), ...hello } });
    if (dialect.ordered) this.#order = [];
    this.#codec.start?.(this);
  }

  /** The peer's FIN: a half-close. What it asked is still answered. */
  #ended(): void {
    if (this.#state !== 'open') return;
    if (this.#head !== undefined) {
      const head = this.#sniff(EMPTY, true);
      if (head !== undefined) this.#codec?.receive(head, this);
    }
    this.#codec?.end?.(this);
    const isAlive = this.inFlight > 0 ? this.#codec?.control?.('ping', 0) : undefined;
    if (isAlive !== undefined) this.write(isAlive); // a reset comes back where nobody is left
    this.#finish();
  }

  // What the codec tells.

  hello(fields: Readonly<Record<string, string>>): void {
    if (!this.#admit(fields['token'])) return;
    const ms = Number(fields['timeout']);
    if (ms > 0) this.#timeoutMs = ms;
  }

  message(message: Message): void {
    if ((this.#state !== 'open' && this.#state !== 'ending') || !this.#admit()) return;
    if (this.#held === undefined && this.#turn > 0 && !this.#isFull()) return this.#dispatch(message);
    this.#held ??= [];
    this.#held.push(message);
    this.#heldBytes += message.text.length;
    this.#pumpSoon();
  }

  response(): void {
    this.error('PROTOCOL_ERROR', 'Cannot take a reply: this side asks nothing');
  }

  control(word: Control, argument: number | string, count: number): void {
    if (word === 'cancel') this.#cancel(argument as number);
    else if (word === 'credit') this.#requests?.get(argument as number)?.credit(count);
    else if (word === 'gone') this.#gone(argument as string);
    else if (word === 'goodbye') this.#abortAll('the client said goodbye');
  }

  command(line: string, tag: Tag): void {
    const [name = '', ...words] = line.slice(1).split(' ');
    if (name === 'token' && this.hub.wantsToken && this.#refusal === undefined) {
      if (this.#admit(words.join(' '))) this.#say(tag, 'ok');
      return;
    }
    if (!this.#admit()) return;
    const reply = Object.hasOwn(COMMANDS, name) ? COMMANDS[name]?.(this.hub) : undefined;
    if (reply !== undefined) this.#say(tag, reply);
    else this.error('BAD_MESSAGE', `Cannot run ${quoted(line.slice(0, 40))}: expected one of ` +
      `${Object.keys(COMMANDS).map((word) => `$${word}`).join(' ')}, or $$ before a text with $`, tag);
  }

  error(code: ErrorCode, text: string, tag?: Tag): void {
    if (this.#state === 'lingering' || this.#state === 'closed') return;
    this.hub.errors++;
    const error = new MicroError(code, text);
    if (code === 'MESSAGE_TOO_LARGE') this.hub.met('maxMessageBytes');
    if (!this.#authorized || ++this.#errors > this.hub.limits.maxProtocolErrors) {
      if (this.#authorized) this.hub.met('maxProtocolErrors');
      return this.close(this.#authorized ? new MicroError('PROTOCOL_ERROR',
        `Cannot go on after ${this.hub.limits.maxProtocolErrors} errors: ${text}`) : error);
    }
    if (tag === undefined || this.#requests?.has(tag)) return this.#encode('notice', error);
    this.#inTurn(new Request(this, { tag, text: '' }, 0), 'error', error);
  }

  write(bytes: Body): void {
    this.#outbox.push(bytes);
  }

  /** Refuses lingeringly: what the peer still sends is read and dropped, so that it reads ours. */
  close(last?: MicroError | Body): void {
    if (this.#state === 'lingering' || this.#state === 'closed') return;
    if (last instanceof MicroError) {
      this.hub.errors++;
      this.write((this.#codec ?? lines().open(LINES)).encode('goodbye', last));
    } else if (last !== undefined) this.write(last);
    this.#abortAll('the connection was refused');
    this.#linger(LINGER_MS.refused);
  }

  /** Whether the peer may ask at all. If not, it is told and the connection ends. */
  #admit(token?: string): boolean {
    if (this.#refusal !== undefined) this.close(this.#refusal);
    else if (!this.#authorized && token !== undefined && this.hub.isToken(token)) this.#authorized = true;
    else if (!this.#authorized) {
      this.close(new MicroError('UNAUTHORIZED', token === undefined
        ? 'Cannot serve without a token. Send `$token SECRET` first, or set the client\'s option'
        : 'Cannot serve with this token. Ask who runs the server for the right one'));
    }
    return this.#authorized && this.#refusal === undefined;
  }

  // Requests.

  #isFull(): boolean {
    return this.inFlight >= this.hub.limits.maxInFlight ||
      this.#duplex.writableLength > this.hub.limits.maxOutputBytes / 4;
  }

  #dispatch(message: Message): void {
    this.#turn--;
    const { hub } = this;
    if (hub.draining) {
      return this.#inTurn(new Request(this, message, 0), 'error', new MicroError('SERVER_BUSY',
        'Cannot take it: the server stops'));
    }
    if (this.#requests?.has(message.tag)) {
      return this.error('PROTOCOL_ERROR', `Cannot take slot ${String(message.tag)} twice`, message.tag);
    }
    hub.requests++;
    const limitMs = Math.min(message.timeoutMs ?? this.#timeoutMs, hub.limits.callbackTimeoutMs);
    const request = new Request(this, message, limitMs);
    let value: unknown;
    try {
      value = message.id === undefined || hub.replies === undefined
        ? hub.service.callback(message.text, request) : this.#once(message.id, hub.replies, request);
    } catch (error) {
      return this.#failed(request, error);
    }
    if (typeof value === 'string') {
      this.#handled++;
      return this.#reply(request, value);
    }
    request.dueAt = this.#now + limitMs;
    hub.alarm.at(request.dueAt);
    (this.#requests ??= new Map()).set(message.tag, request);
    this.#order?.push(request);
    void this.#answer(request, value);
  }

  /** The same id gets the same reply, and runs once. */
  #once(id: string, replies: Map<string, unknown>, request: Request): unknown {
    if (replies.has(id)) return replies.get(id);
    const value = this.hub.service.callback(request.message.text, request);
    replies.set(id, value);
    if (replies.size > this.hub.dedupe) replies.delete(replies.keys().next().value as string);
    return value;
  }

  async #answer(request: Request, promised: unknown): Promise<void> {
    try {
      const value = (await promised) as Value | undefined;
      if (request.isSettled) return;
      if (typeof value === 'string') this.#reply(request, value);
      else if (value === null) this.#reply(request, '');
      else if (typeof value === 'object' && Symbol.asyncIterator in value) {
        await this.#stream(request, value[Symbol.asyncIterator]());
      } else if (typeof value === 'object' && 'parts' in value && Array.isArray(value.parts)) {
        if (this.#dialect?.multipart !== true) throw new Error('its reply has parts, which this dialect has not');
        this.#inTurn(request, 'reply', value.parts as readonly Body[]);
      } else {
        throw new Error(`the service answered with ${value === undefined ? 'nothing' : `a ${typeof value}`}, ` +
          'expected a string');
      }
    } catch (error) {
      this.#failed(request, error);
    }
  }

  #reply(request: Request, text: string): void {
    const { maxMessageBytes } = this.hub.limits;
    if (!wellFormed(text)) {
      this.#failed(request, new Error('the reply has half a surrogate pair, which UTF-8 can\'t carry'));
    } else if (exceeds(text, maxMessageBytes)) {
      this.hub.met('maxMessageBytes');
      this.#failed(request, new MicroError('MESSAGE_TOO_LARGE', `Cannot send a reply of over ` +
        `${maxMessageBytes} bytes. Page it, stream it, or raise maxMessageBytes`, { outcome: 'failed' }));
    } else this.#inTurn(request, 'reply', text);
  }

  #failed(request: Request, error: unknown): void {
    if (request.isSettled) return;
    this.hub.errors++;
    this.#inTurn(request, 'error', error instanceof MicroError ? error
      : new MicroError('CALLBACK_FAILED', textOf(error).slice(0, 4096) || 'the service failed', { cause: error }));
  }

  /** Parts as the reader takes them: by credit where the dialect has it, else as the socket drains. */
  async #stream(request: Request, iterator: AsyncIterator<string>): Promise<void> {
    request.iterator = iterator;
    for (;;) {
      request.dueAt = Infinity; // the reader's time is not the callback's
      while (!request.isSettled && !this.#hasRoom(request)) await request.woken();
      if (request.isSettled) return;
      request.dueAt = performance.now() + request.limitMs;
      this.hub.alarm.at(request.dueAt);
      const { done, value } = await iterator.next();
      if (request.isSettled) return;
      if (done === true) break;
      if (typeof value !== 'string' || !wellFormed(value)) throw new Error('a part is no proper string');
      if (exceeds(value, this.hub.limits.maxMessageBytes)) throw new Error('a part is over maxMessageBytes');
      request.sent(value);
      this.#encode('part', value, request.message.tag);
    }
    request.iterator = undefined;
    this.#inTurn(request, 'end', '');
  }

  #hasRoom(request: Request): boolean {
    const isTurn = this.#order === undefined || this.#order[0] === request;
    return isTurn && this.#duplex.writableLength < WINDOW.bytes && (this.#order !== undefined ||
      (request.aheadParts < WINDOW.parts && request.aheadBytes < WINDOW.bytes));
  }

  /** Settles a request, once. Where the dialect is ordered, its bytes wait for their turn. */
  #inTurn(request: Request, kind: Kind, body: string | readonly Body[] | MicroError): void {
    if (request.isSettled) return;
    const { tag, oneWay } = request.message;
    const isPending = this.#requests?.delete(tag) === true;
    request.settle();
    if (isPending) this.hub.latency.record(performance.now() - request.since, 1);
    const order = this.#order;
    if (oneWay !== true) {
      if (order === undefined || order.length === 0) this.#encode(kind, body, tag);
      else {
        if (!isPending) order.push(request);
        request.last = [kind, body];
        while (order[0]?.last !== undefined) {
          const { last, message } = order.shift() as Request;
          this.#encode(...(last as [Kind, string]), message.tag);
        }
        order[0]?.wake();
      }
    }
    if (request.then !== undefined) this.#delivered(request.then);
    if (this.#held !== undefined) this.#pumpSoon();
    else if (this.#state === 'ending') this.#finish();
  }

  #say(tag: Tag, text: string): void {
    this.#inTurn(new Request(this, { tag, text: '' }, 0), 'reply', text);
  }

  #encode(kind: Kind, body: string | readonly Body[] | MicroError, tag?: Tag): void {
    if (this.#duplex.writableLength > this.hub.limits.maxOutputBytes) { // one reply may be longer
      this.hub.met('maxOutputBytes');
      return void this.#duplex.destroy();
    }
    const bytes = this.#codec?.encode(kind, body, tag) ?? '';
    this.hub.bytesOut += bytes.length;
    this.#outbox.push(bytes);
  }

  /** `close()` and `stopServer()` act once the reply has been handed over. */
  #delivered(then: 'close' | 'stopServer'): void {
    if (then === 'stopServer') this.hub.stopServer();
    else this.#finish();
  }

  #cancel(tag: number): void {
    const aborted = new MicroError('ABORTED', 'the caller gave up');
    const request = this.#requests?.get(tag);
    if (request !== undefined) {
      request.abort(aborted);
      return this.#inTurn(request, 'error', aborted);
    }
    const index = this.#held?.findIndex((message, i) => i >= this.#heldFrom && message.tag === tag) ?? -1;
    if (index < 0) return; // its reply is under way
    const [message] = this.#held?.splice(index, 1) ?? [];
    if (message !== undefined) this.#inTurn(new Request(this, message, 0), 'error', aborted);
  }

  #abortAll(why: string): void {
    for (const request of this.#requests?.values() ?? []) {
      request.abort(new MicroError('CONNECTION_LOST', why));
      request.settle();
    }
    this.#requests = undefined;
    this.#held = undefined;
    if (this.#order !== undefined) this.#order = [];
  }

  forwarded(id: string): ClientRecord {
    const known = this.#forwarded ??= new Map<string, ClientRecord>();
    let client = known.get(id);
    if (client === undefined) {
      client = new ClientRecord(`${this.client.id}/${id}`, undefined, this.#dialect?.name ?? '');
      known.set(id, client);
      if (known.size > MAX_HELD.messages) this.#gone(known.keys().next().value as string);
    }
    return client;
  }

  #gone(id: string): void {
    this.#forwarded?.get(id)?.leave();
    this.#forwarded?.delete(id);
  }

  // Turns and room.

  #pumpSoon(): void {
    if (this.#pumping) return;
    this.#pumping = true;
    setImmediate(() => this.#pump());
  }

  /** Handles held messages, as many as are one connection's turn. */
  #pump(): void {
    this.#pumping = false;
    const held = this.#held;
    if (held === undefined) return;
    this.#now = performance.now();
    this.#turn = this.hub.limits.maxLinesPerTick;
    while (this.#heldFrom < held.length && this.#turn > 0 && !this.#isFull() && this.#held === held) {
      const message = held[this.#heldFrom++] as Message;
      this.#heldBytes -= message.text.length;
      this.#dispatch(message);
    }
    if (this.#handled > 0) this.hub.latency.record(performance.now() - this.#now, this.#handled);
    this.#handled = 0;
    if (this.#held !== held) return;
    if (this.#heldFrom === held.length) {
      this.#held = undefined;
      this.#heldFrom = this.#heldBytes = 0;
      if (this.#state === 'ending') this.#finish();
    } else {
      if (this.#heldFrom > 1024) this.#held = held.slice(this.#heldFrom), this.#heldFrom = 0;
      if (!this.#isFull()) this.#pumpSoon();
    }
    this.#throttle();
  }

  /** Stops reading where too much waits; goes on when it is less. */
  #throttle(): void {
    const waiting = (this.#held?.length ?? 0) - this.#heldFrom;
    const isFull = waiting > MAX_HELD.messages || this.#heldBytes > MAX_HELD.bytes ||
      (waiting > 0 && this.#duplex.writableLength > this.hub.limits.maxOutputBytes / 4);
    if (this.#duplex.writableNeedDrain) this.#watchOutput();
    if (isFull === this.#paused) return;
    this.#paused = isFull;
    if (!isFull) return void this.#duplex.resume();
    this.hub.met('maxInFlight');
    this.#duplex.pause();
    this.hub.alarm.at(this.#now + PAUSED_PING_MS);
  }

  /** A socket's own timer knows of bytes that the system took within one large write. */
  #watchOutput(): void {
    (this.#duplex as Partial<Socket>).setTimeout?.(this.hub.limits.outputTimeoutMs, this.#stalled);
  }

  readonly #stalled = (): void => {
    if (this.#duplex.writableLength === 0) return;
    this.hub.met('outputTimeoutMs');
    this.#duplex.destroy();
  };

  #drained(): void {
    (this.#duplex as Partial<Socket>).setTimeout?.(0, this.#stalled);
    for (const request of this.#requests?.values() ?? []) request.wake();
    if (this.#held !== undefined) this.#pumpSoon();
    this.#throttle();
  }

  #watchPartial(heldBytes: number): void {
    if (heldBytes === 0) this.#partialSince = 0;
    else if (this.#partialSince === 0 || heldBytes < this.#partialBytes) {
      this.#partialSince = this.#now;
      this.hub.alarm.at(this.#now + this.hub.limits.partialTimeoutMs);
    }
    this.#partialBytes = heldBytes;
  }

  /** Ends what is overdue; tells when to look again. */
  look(now: number): number {
    const { limits } = this.hub;
    let next = Infinity;
    for (const request of this.#requests?.values() ?? []) {
      if (request.dueAt > now) next = Math.min(next, request.dueAt);
      else {
        const error = new MicroError('TIMEOUT', `Cannot answer within ${Math.round(request.limitMs)} ms: ` +
          'the service still works on it', { outcome: 'maybe done' });
        this.hub.met('callbackTimeoutMs');
        request.abort(error);
        this.#failed(request, error);
      }
    }
    if (this.#partialSince > 0) {
      const seconds = (now - this.#partialSince) / 1000;
      const due = this.#partialSince + Math.max(limits.partialTimeoutMs, this.#partialBytes / 1.024);
      if (due > now) next = Math.min(next, due);
      else {
        this.hub.met('partialTimeoutMs');
        this.close(new MicroError('TIMEOUT', `Cannot wait longer for the rest of a message: it has ` +
          `${this.#partialBytes} bytes after ${Math.round(seconds)} s`, { outcome: 'refused' }));
      }
    }
    if (this.#refusal !== undefined && this.#state === 'open') this.close(this.#refusal);
    if (this.#lingerUntil <= now && this.#duplex.writableLength === 0) this.#duplex.destroy();
    else next = Math.min(next, Math.max(this.#lingerUntil, now + 50));
    if (this.#paused) {
      const ping = this.#codec?.control?.('ping', 0);
      if (ping !== undefined && !this.#duplex.writableNeedDrain) this.write(ping);
      next = Math.min(next, now + PAUSED_PING_MS);
    }
    return next;
  }

  // The end.

  /** Takes no more, answers what it has, then closes. */
  #finish(): void {
    if (this.#state === 'lingering' || this.#state === 'closed') return;
    this.#state = 'ending';
    if (this.inFlight > 0 || this.#held !== undefined || (this.#order?.length ?? 0) > 0) return;
    this.#linger(LINGER_MS.drained);
  }

  drain(): void {
    const draining = this.#codec?.control?.('draining');
    if (draining !== undefined && this.#state === 'open') this.write(draining);
    this.#finish();
  }

  /** The end of a drain: what is still in flight is answered with an error. */
  cutOff(): void {
    for (const request of this.#requests?.values() ?? []) {
      const error = new MicroError('TIMEOUT', 'Cannot finish: the server stopped', { outcome: 'maybe done' });
      request.abort(error);
      this.#failed(request, error);
    }
    this.#held = undefined;
    this.#linger(LINGER_MS.drained);
    setTimeout(() => this.#duplex.destroy(), 2 * LINGER_MS.drained);
  }

  #linger(ms: number): void {
    if (this.#state === 'lingering' || this.#state === 'closed') return;
    this.#state = 'lingering';
    this.#partialSince = 0;
    this.#outbox.flush();
    this.#duplex.end();
    this.#watchOutput();
    this.#duplex.resume();
    this.#lingerUntil = performance.now() + ms;
    this.hub.alarm.at(this.#lingerUntil);
  }

  #lost(): void {
    this.#abortAll('the connection was lost');
  }

  #closed(): void {
    if (this.#state === 'closed') return;
    this.#state = 'closed';
    this.#lost();
    if (this.#refusal !== undefined) this.hub.refusing--;
    for (const client of this.#forwarded?.values() ?? []) client.leave();
    this.#client?.leave();
    const { disconnected } = this.hub.service;
    if (disconnected !== undefined && this.#bytesIn > 0 && this.#refusal === undefined) {
      this.hub.fenced('disconnected', () => disconnected.call(this.hub.service, this.client));
    }
    this.hub.removed(this);
  }
}

const EMPTY = Buffer.alloc(0);
const TEXT_CONTROLS = new Set([9, 10, 13]);
const LINES = { side: 'accepted', role: 'server', maxMessageBytes: 1 } as const;

class ClientRecord implements Client {
  readonly id: string;
  readonly address: string;
  readonly dialect: string;
  readonly loopback: boolean;
  readonly #gone = new AbortController();
  #state: Map<unknown, unknown> | undefined;

  /** @param duplex Absent for a client behind a router, which never counts as loopback. */
  constructor(id: string, duplex: Duplex | undefined, dialect: string) {
    const { remoteAddress, remotePort } = (duplex ?? {}) as Partial<Socket>;
    this.id = id;
    this.dialect = dialect;
    this.address = remoteAddress === undefined ? '' : `${remoteAddress}:${remotePort}`;
    this.loopback = duplex !== undefined && (remoteAddress === undefined || LOOPBACK.test(remoteAddress));
  }

  get signal(): AbortSignal {
    return this.#gone.signal;
  }

  get state(): Map<unknown, unknown> {
    return this.#state ??= new Map();
  }

  leave(): void {
    this.#gone.abort();
  }
}

/** One request and its context. Plain fields: one is made a message. */
class Request implements Context {
  readonly connection: Connection;
  readonly message: Message;
  readonly limitMs: number;
  readonly since: number;
  dueAt = Infinity;
  isSettled = false;
  iterator: AsyncIterator<string> | undefined = undefined;
  last: [Kind, string | readonly Body[] | MicroError] | undefined = undefined;
  then: 'close' | 'stopServer' | undefined = undefined;
  controller: AbortController | undefined = undefined;
  ahead: number[] | undefined = undefined; // sizes of the parts that the reader has not taken
  aheadBytes = 0;
  resume: (() => void) | undefined = undefined;

  constructor(connection: Connection, message: Message, limitMs: number) {
    this.connection = connection;
    this.message = message;
    this.limitMs = limitMs;
    this.since = performance.now();
  }

  get signal(): AbortSignal {
    return (this.controller ??= new AbortController()).signal;
  }

  get deadline(): number {
    return Date.now() + this.limitMs - (performance.now() - this.since);
  }

  get parts(): readonly Uint8Array[] | undefined {
    return this.message.parts;
  }

  get client(): Client {
    const { client } = this.message;
    return client === undefined ? this.connection.client : this.connection.forwarded(client);
  }

  close(): void {
    this.then ??= 'close';
  }

  stopServer(): void {
    this.then = 'stopServer';
  }

  get aheadParts(): number {
    return this.ahead?.length ?? 0;
  }

  sent(part: string): void {
    (this.ahead ??= []).push(part.length);
    this.aheadBytes += part.length;
  }

  credit(parts: number): void {
    for (const bytes of this.ahead?.splice(0, parts) ?? []) this.aheadBytes -= bytes;
    this.wake();
  }

  woken(): Promise<void> {
    return new Promise((resolve) => { this.resume = resolve; });
  }

  wake(): void {
    this.resume?.();
  }

  abort(reason: Error): void {
    (this.controller ??= new AbortController()).abort(reason);
  }

  settle(): void {
    this.isSettled = true;
    this.wake();
    const { iterator } = this;
    if (iterator !== undefined) this.connection.hub.fenced('return', () => iterator.return?.());
  }
}

// ----------------------------------------------------------------------------- Lines to the server

const VERSION = '0.1.0';
const COMMANDS: Readonly<Record<string, (hub: Hub) => string>> = {
  ping: () => 'pong',
  help: ({ service }) => oneLine(`${service.contract?.summary ?? 'A portcall service.'} ` +
    `Send a line, get a line.${Object.values(service.contract?.messages ?? {})
      .map(({ example }) => ` Try: ${example}.`).join('')} For the server: $ping $help $info $stats`),
  info: ({ service, dialects, limits }) => JSON.stringify({ name: 'portcall', version: VERSION,
    summary: service.contract?.summary, dialects: ['lines', ...dialects.map(({ name }) => name)], limits }),
  stats: (hub) => JSON.stringify(hub.stats()),
};

// ------------------------------------------------------------------------------------------ Binding

const LOOPBACK = /^(?:127\.|::1$|::ffff:127\.)/;

async function isLoopback(host: string): Promise<boolean> {
  if (LOOPBACK.test(host)) return true;
  const found = await lookup(host, { all: true }).catch(() => []);
  return found.length > 0 && found.every(({ address }) => LOOPBACK.test(address));
}

function openFilesLimit(): number {
  try {
    const [, soft] = /^Max open files +(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8')) ?? [];
    return Number(soft ?? Infinity);
  } catch {
    return Infinity; // no Linux: the limit can't be read
  }
}

function digest(secret: string): Buffer {
  return createHash('sha256').update(secret).digest();
}

export interface Listener { readonly address: Address; close(): Promise<void> }

async function listenTcp(address: Address, _options: object, onSocket: (socket: Socket) => void,
  onError: (error: Error) => void): Promise<Listener> {
  const server = createServer({ allowHalfOpen: true, noDelay: true }, onSocket);
  await once(server.listen({ host: address.host, port: address.port, backlog: 1024 }), 'listening');
  server.on('error', onError);
  const { address: host, port } = server.address() as AddressInfo;
  return {
    address: { url: `tcp://${host.includes(':') ? `[${host}]` : host}:${port}`, scheme: 'tcp', host, port },
    async close() {
      for (let turns = 0; turns < 2; turns++) await turn(); // takes in who waits: closing resets them
      server.close(); // closes the socket at once; only its callback waits for connections
    },
  };
}

/** Who listens there, as far as Linux tells: `pid 4121 (node)`. Port 0 stands for a Unix socket. */
async function findHolder({ host = '', port = 0 }: Address): Promise<string> {
  const signal = AbortSignal.timeout(500);
  const hexHost = host === '::1' ? '01000000' : !isIPv4(host) || host === '0.0.0.0' ? ''
    : Buffer.from(host.split('.').reverse().map(Number)).toString('hex');
  const hexPort = port.toString(16).padStart(4, '0');
  const row = `: (?:0+|\\w*${hexHost}):${hexPort} \\S+ 0A \\S+ \\S+ \\S+ +\\d+ +\\d+ (\\d+)`;
  const tables = await Promise.all(['/proc/net/tcp', '/proc/net/tcp6'].map((table) =>
    fs.readFile(table, { encoding: 'latin1', signal }).catch(() => '')));
  const rows = tables.join('').matchAll(new RegExp(row, 'gi'));
  const sockets = new Set([...rows].map(([, inode]) => `socket:[${inode}]`));
  for (const pid of sockets.size > 0 ? await fs.readdir('/proc') : []) {
    if (signal.aborted) break;
    const fds = await fs.readdir(`/proc/${pid}/fd`).catch(() => []); // others' are not shown
    const links = fds.map((fd) => fs.readlink(`/proc/${pid}/fd/${fd}`).catch(() => ''));
    if (!(await Promise.all(links)).some((link) => sockets.has(link))) continue;
    const program = basename(await fs.readlink(`/proc/${pid}/exe`).catch(() => ''));
    return `pid ${pid} (${/^[\w.+-]+/.exec(program)?.[0] ?? '?'})`;
  }
  return 'another process';
}
