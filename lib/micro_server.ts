/**
 * portcall's server: `new MicroServer((message) => reply(message), 'LIFE_GEN')` makes a function a service on a named
 * port. Copy it together with `micro_client.ts`. PROTOCOL.md tells the wire. In this order: options; the server; what
 * connections share; one connection, from its first byte to its last; one request; lines; binding.
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
  Alarm, LineCodec, MicroError, Outbox, checkSetUp, exceeds, frames, isWellFormed, loadTransport, logToStderr, now,
  oneLine, positive, quoted, resolveAddress, textOf,
  type Address, type Body, type Codec, type CodecOptions, type Control, type Dialect, type ErrorCode, type Kind,
  type Log, type Message, type Ports, type Sink, type Tag, type Value,
} from './micro_client.ts';

/** Each is an option of this name, with this default; `stats()` counts how often it was met. */
export const DEFAULT_LIMITS = {
  maxMessageBytes: 1024 * 1024, // of a message or reply, in UTF-8 after unescaping: `MESSAGE_TOO_LARGE`
  maxUnauthorizedBytes: 8 * 1024, // read before the token is settled: closed
  partialTimeoutMs: 30_000, // for the rest of a message, or longer while 1 KiB/s arrives: closed
  maxInFlight: 256, // requests of a connection in the callback: 4,096 more, or 1 MiB, are held, then it isn't read
  maxOutputBytes: 16 * 1024 * 1024, // waiting for a slow reader: closed
  outputTimeoutMs: 10_000, // in which a slow reader takes nothing: closed
  maxConnections: 1024, // at most `ulimit -n` − 64, at least 8: `SERVER_BUSY`
  maxProtocolErrors: 20, // on a connection: closed
  maxLinesPerTick: 256, // of a connection: the rest after the others' turn
  callbackTimeoutMs: 30_000, // to a reply or a stream's next part: `TIMEOUT`, signal aborted
  drainMs: 10_000, // for what is in flight at `stop()`: `TIMEOUT`, closed
};
export type Limits = typeof DEFAULT_LIMITS;

export interface ServerOptions extends Partial<Limits> {
  ports?: Ports;
  host?: string; // where to bind, if not where clients dial; beyond loopback wants a token, or `insecure`
  token?: string; // what a client must say first
  insecure?: boolean;
  dialects?: readonly Dialect[]; // to be told apart on the same port, beside lines and frames
  dedupe?: number; // keeps so many replies by message id, so that a message sent twice runs once; default 0
  log?: Log;
}

/** Who asks: one a connection, or one a client of the router at its other end. */
export interface Client {
  readonly id: string;
  readonly address: string;
  readonly dialect: string;
  readonly loopback: boolean;
  readonly identity?: string;
  readonly signal: AbortSignal; // aborted when it is gone
  readonly state: Map<unknown, unknown>; // for the service to remember things in
}

export interface Context {
  readonly signal: AbortSignal; // aborted on the deadline, a cancel, or the loss of the connection
  readonly deadline: number; // when the caller stops waiting, in milliseconds since 1970
  readonly parts: readonly Uint8Array[] | undefined;
  readonly client: Client;
  close(): void; // closes the connection once this reply is delivered
  stopServer(): void; // likewise
}

export type Callback = (message: string, context: Context) => Value | Promise<Value>;

export interface Service {
  callback: Callback;
  dialects?: readonly Dialect[];
  contract?: { summary: string; messages: Readonly<Record<string, { example: string; reply: string }>> };
  connected?(client: Client): void; // at a client's first byte
  disconnected?(client: Client): void;
  stop?(): Promise<void>; // closes what the service opened, when the server has stopped
}

export interface Stats {
  requests: number;
  errors: number;
  connections: number;
  inFlight: number;
  bytes: { in: number; out: number };
  latencyMs: { count: number; mean: number; p50: number; p99: number; max: number };
  limits: Partial<Record<keyof Limits, number>>; // how often each was met
}

export interface ServeOptions {
  side?: 'accepted' | 'dialled'; // who dialled; default accepted
  dialect?: Dialect; // default: told by the first bytes
  hello?: Readonly<Record<string, string>>;
}

/** Makes a function, or a whole service, answer on a named port. */
export class MicroServer {
  readonly #key: string | number;
  readonly #options: ServerOptions;
  readonly #hub: Hub;
  #listener: Listener | undefined;
  #starting: Promise<Address> | undefined;
  #stopping: Promise<void> | undefined;

  /** @throws {TypeError | RangeError} Wrong options. A wrong address is told by `startListening`. */
  constructor(service: Callback | Service, key: string | number, options: ServerOptions = {}) {
    const whole = typeof service === 'function' ? { callback: service } : service;
    if (typeof whole?.callback !== 'function') {
      throw new TypeError(`Cannot serve ${quoted(whole)}: expected a function (message, context) => reply`);
    }
    checkSetUp(key, options);
    this.#key = key;
    this.#options = options;
    this.#hub = new Hub(whole, options, () => void this.stop());
  }

  /** Where it listens, if it does. */
  get address(): Address | undefined {
    return this.#listener?.address;
  }

  /**
   * Binds and serves; resolves with where, so that port 0 tells the port it got.
   *
   * @throws {MicroError} `PORT_IN_USE`, `BAD_ADDRESS`, `UNKNOWN_SERVICE`, `BAD_PORTS_FILE`.
   */
  startListening(): Promise<Address> {
    return this.#starting ??= this.#start().catch((error: unknown) => {
      this.#starting = undefined;
      throw error;
    });
  }

  /** Stops accepting, answers what is in flight (for `graceMs`, by default `drainMs`), closes. */
  stop({ graceMs = this.#hub.limits.drainMs }: { graceMs?: number } = {}): Promise<void> {
    const starting = this.#starting;
    this.#starting = undefined;
    return this.#stopping ??= this.#stop(graceMs, starting).finally(() => { this.#stopping = undefined; });
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
    const address = { ...resolveAddress(this.#key, ports, (text) => this.#hub.log('warn', text)) };
    if (host !== undefined && address.scheme === 'tcp') Object.assign(address, { host, url: urlOf(host, address.port) });
    if (address.scheme === 'tcp' && token === undefined && !(await isLoopback(address.host ?? ''))) {
      const risk = `on ${address.url} without a token: anybody on the network could call it`;
      if (insecure !== true) {
        throw new MicroError('BAD_ADDRESS', `Cannot listen ${risk}, expected one. Bind to 127.0.0.1, or set insecure`);
      }
      this.#hub.log('warn', `Listening ${risk}`);
    }
    this.#hub.isDraining = false;
    this.#listener = await this.#bind(address);
    return this.#listener.address;
  }

  async #bind(address: Address): Promise<Listener> {
    try {
      const listen = address.scheme === 'tcp' ? listenTcp : (await loadTransport(address.scheme)).listen;
      if (listen === undefined) throw new Error('it can only be dialled');
      return await listen(address, this.#options, (duplex: Duplex, how?: ServeOptions) => this.#hub.accept(duplex, how),
        (error) => this.#hub.log('error', `Cannot accept a connection: ${error.message}`));
    } catch (cause) {
      if (cause instanceof MicroError) throw cause;
      const isInUse = (cause as NodeJS.ErrnoException).code === 'EADDRINUSE';
      const why = isInUse ? `${await findHolder(address)} holds it. Stop it` : `${textOf(cause)}. Mend it`;
      throw new MicroError(isInUse ? 'PORT_IN_USE' : 'BAD_ADDRESS',
        `Cannot listen on ${address.url}: ${why}, or give ${this.#key} another address`, { cause });
    }
  }

  async #stop(graceMs: number, starting: Promise<Address> | undefined): Promise<void> {
    await starting?.catch(() => {});
    const listener = this.#listener;
    this.#listener = undefined;
    await listener?.close();
    for (let turns = 0; turns < 2; turns++) await turn(); // reads what the last of them said
    await this.#hub.drain(graceMs);
    await this.#hub.service.stop?.();
  }
}

const watched = new Set<MicroServer>();
const SIGNALS = ['SIGTERM', 'SIGINT'] as const;
let isInterrupted = false;

/**
 * Drains the server on SIGTERM and SIGINT, then ends the process with 0; a second SIGINT ends it at once with 130. A
 * library installs no handler by itself: call this in the program.
 *
 * @returns Takes it back.
 */
export function stopOnSignals(server: MicroServer): () => void {
  if (watched.size === 0) for (const name of SIGNALS) process.on(name, onSignal);
  watched.add(server);
  return () => {
    watched.delete(server);
    if (watched.size === 0) for (const name of SIGNALS) process.off(name, onSignal);
  };
}

async function onSignal(name: NodeJS.Signals): Promise<void> {
  if (isInterrupted) return name === 'SIGINT' ? process.exit(130) : undefined;
  isInterrupted = true;
  const ends = await Promise.allSettled([...watched].map((server) => server.stop()));
  for (const end of ends) if (end.status === 'rejected') logToStderr('error', textOf(end.reason));
  process.exit(ends.every((end) => end.status === 'fulfilled') ? 0 : 1);
}

// ----------------------------------------------------------------------------------------- What connections share

/** How long a refused peer may take to close its side, and one whose server stops. */
const LINGER_MS = { refused: 1_000, drained: 100 };
/** A refusal waits so long for the bytes that tell its dialect, and so many do at a time. */
const REFUSAL_WAIT = { ms: 1_000, connections: 32 };
/** Requests of a connection that wait undispatched. */
const MAX_HELD = { messages: 4096, bytes: 1024 * 1024 };
/** How far a stream may be ahead of its reader. */
const WINDOW = { parts: 256, bytes: 1024 * 1024 };
const PAUSED_PING_MS = 200;

class Hub {
  readonly service: Service;
  readonly limits: Limits;
  readonly dialects: readonly Dialect[];
  readonly log: Log;
  readonly stopServer: () => void;
  readonly alarm = new Alarm((at) => Math.min(Infinity, ...[...this.connections].map((one) => one.look(at))));
  readonly connections = new Set<Connection>();
  readonly latency = new Latency();
  readonly replies = new Map<string, unknown>(); // by message id
  readonly maxReplies: number;
  readonly streams = new WeakSet<object>(); // that were read: a second reader would get their rest
  readonly counts = { requests: 0, errors: 0, bytesIn: 0, bytesOut: 0, clients: 0, refusing: 0 };
  readonly #met: Stats['limits'] = {};
  readonly #token: Buffer | undefined;
  isDraining = false;
  #onEmpty = (): void => {};

  constructor(service: Service, options: ServerOptions, stopServer: () => void) {
    this.limits = { ...DEFAULT_LIMITS };
    for (const name of Object.keys(this.limits) as (keyof Limits)[]) {
      this.limits[name] = positive(options, name, DEFAULT_LIMITS[name]);
    }
    this.limits.maxConnections = Math.min(this.limits.maxConnections, Math.max(8, openFilesLimit() - 64));
    this.service = service;
    this.log = options.log ?? logToStderr;
    this.dialects = [...options.dialects ?? service.dialects ?? [], frames(), lines()];
    this.maxReplies = options.dedupe ?? 0;
    this.#token = options.token === undefined ? undefined : digest(options.token);
    this.stopServer = stopServer;
  }

  /** Digests are of one length, so that the time taken tells nothing. Without a token, everything is right. */
  isToken(secret: string | undefined): boolean {
    return this.#token === undefined || (secret !== undefined && timingSafeEqual(digest(secret), this.#token));
  }

  met(limit: keyof Limits): void {
    this.#met[limit] = (this.#met[limit] ?? 0) + 1;
  }

  accept(duplex: Duplex, how: ServeOptions = {}): void {
    const isFull = this.connections.size - this.counts.refusing >= this.limits.maxConnections;
    if (isFull) this.met('maxConnections');
    new Connection(this, duplex, how, isFull ? new MicroError('SERVER_BUSY',
      `Cannot serve more than ${this.limits.maxConnections} connections`, { retryAfterMs: 200 }) : undefined);
  }

  async drain(graceMs: number): Promise<void> {
    this.isDraining = true;
    const isEmpty = new Promise<void>((resolve) => { this.#onEmpty = resolve; });
    for (const connection of this.connections) connection.drain();
    const timer = setTimeout(() => { for (const connection of this.connections) connection.cutOff(); }, graceMs);
    if (this.connections.size > 0) await isEmpty;
    clearTimeout(timer);
    this.alarm.stop();
  }

  removed(connection: Connection): void {
    this.connections.delete(connection);
    if (this.connections.size === 0) this.#onEmpty();
  }

  /** Calls what the service gave; whatever it does, the server goes on. */
  fenced(what: string, task: () => unknown): void {
    const onError = (error: unknown) => this.log('error', `The service's ${what} failed: ${textOf(error)}`);
    try { Promise.resolve(task()).catch(onError); } catch (error) { onError(error); }
  }

  stats(): Stats {
    const { requests, errors, bytesIn, bytesOut } = this.counts;
    const inFlight = [...this.connections].reduce((sum, connection) => sum + connection.inFlight, 0);
    return { requests, errors, connections: this.connections.size, inFlight, bytes: { in: bytesIn, out: bytesOut },
      latencyMs: this.latency.summary(), limits: { ...this.#met } };
  }
}

/** How long replies took, counted by quarters of each power of two of microseconds. */
class Latency {
  readonly #counts = new Array<number>(128).fill(0);
  #count = 0;
  #sumMs = 0;
  #maxMs = 0;

  record(ms: number, times: number): void {
    const bucket = Math.min(127, Math.floor(4 * Math.log2(ms * 1000 + 1)));
    this.#counts[bucket] = (this.#counts[bucket] ?? 0) + times;
    this.#count += times;
    this.#sumMs += ms * times;
    this.#maxMs = Math.max(this.#maxMs, ms);
  }

  summary(): Stats['latencyMs'] {
    const at = (share: number): number => {
      let left = this.#count * share;
      const bucket = this.#counts.findIndex((count) => (left -= count) <= 0);
      return Math.min(this.#maxMs, (2 ** ((bucket + 1) / 4) - 1) / 1000);
    };
    return { count: this.#count, mean: this.#sumMs / (this.#count || 1), p50: at(0.5), p99: at(0.99), max: this.#maxMs };
  }
}

// ------------------------------------------------------------------------------------------------- One connection

type Answer = readonly [kind: Kind, body: string | readonly Body[] | MicroError];
interface Held extends Message { answer?: Answer } // where it is known already: an error, a command's reply

/**
 * `open` answers what comes; `ending` answers what it has, then closes; `lingering` has sent its FIN and drops what it
 * reads until the peer's; `closed` is gone.
 */
type State = 'open' | 'ending' | 'lingering' | 'closed';

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
  #isAuthorized: boolean;
  #client: ClientRecord | undefined;
  #forwarded: Map<string, ClientRecord> | undefined; // clients of the router at the other end
  #timeoutMs = Infinity; // of a request that names none
  #requests: Map<Tag, Request> | undefined; // in the callback
  #order: Request[] | undefined; // of an ordered dialect: those whose turn to be answered has not come
  #held: Held[] | undefined; // not dispatched yet, from #heldFrom on
  #heldFrom = 0;
  #heldBytes = 0;
  #turn = 0; // messages that may still be handled in this tick
  #isPumping = false;
  #isPaused = false; // is not read
  #isFlooded = false; // does not read
  #errors = 0;
  #bytesIn = 0;
  #isMet = false; // the service was told of the client
  #now = now(); // of the last chunk
  #partialSince = 0; // an unfinished message of #partialBytes
  #partialBytes = 0;
  #lingerUntil = Infinity;
  #handled = 0; // messages answered at once, since the chunk began

  constructor(hub: Hub, duplex: Duplex, how: ServeOptions, refusal?: MicroError) {
    this.hub = hub;
    this.#duplex = duplex;
    this.#outbox = new Outbox(duplex, this);
    this.#how = how;
    this.#refusal = refusal;
    this.#isAuthorized = how.side === 'dialled' || hub.isToken(undefined);
    hub.connections.add(this);
    duplex.on('data', (chunk: Buffer) => this.#receive(chunk));
    duplex.on('end', () => this.#ended());
    duplex.on('error', NOTHING_TO_DO); // a close follows
    duplex.on('close', () => this.#closed());
    if (how.dialect !== undefined) this.#open(how.dialect);
    if (refusal === undefined) return;
    if (++hub.counts.refusing > REFUSAL_WAIT.connections) this.close(refusal);
    else hub.alarm.at(this.#now + REFUSAL_WAIT.ms);
  }

  get inFlight(): number {
    return this.#requests?.size ?? 0;
  }

  // Bytes in.

  #receive(chunk: Buffer): void {
    if (this.#state === 'lingering' || this.#state === 'closed') return;
    const { hub } = this;
    this.#now = now();
    hub.counts.bytesIn += chunk.length;
    this.#bytesIn += chunk.length;
    const bytes = this.#codec === undefined ? this.#sniff(chunk, false) : chunk;
    if (bytes === undefined) return;
    if (!this.#isMet && this.#refusal === undefined) {
      this.#isMet = true;
      if (hub.service.connected !== undefined) hub.fenced('connected', () => hub.service.connected?.(this.client()));
    }
    if (this.#held === undefined) this.#turn = hub.limits.maxLinesPerTick;
    this.#codec?.receive(bytes, this);
    if (!this.#isAuthorized && this.#bytesIn > hub.limits.maxUnauthorizedBytes) {
      hub.met('maxUnauthorizedBytes');
      this.close(new MicroError('MESSAGE_TOO_LARGE',
        `Cannot read over ${hub.limits.maxUnauthorizedBytes} bytes before the token. Send it first`));
    }
    this.#recordHandled();
    this.#watchPartial(this.#codec?.heldBytes ?? 0);
    this.#throttle();
  }

  /** Tells the dialect by the first bytes; gives them back once it is known. */
  #sniff(chunk: Buffer, isAll: boolean): Buffer | undefined {
    const head = this.#head === undefined ? chunk : Buffer.concat([this.#head, chunk]);
    const answers = this.hub.dialects.map((dialect) => dialect.matches(head));
    if (!isAll && answers.includes('more')) {
      this.#head = Buffer.from(head); // the chunk may be its reader's own buffer
      this.#watchPartial(head.length);
      return undefined;
    }
    this.#head = undefined;
    const dialect = this.hub.dialects[answers.indexOf('yes')];
    if (dialect !== undefined) this.#open(dialect);
    else {
      const [first = 0, second] = head;
      const what = first === 0x16 && second === 3 ? 'TLS' : `what begins with byte 0x${first.toString(16).padStart(2, '0')}`;
      this.close(new MicroError('PROTOCOL_ERROR', `Cannot read ${what}: expected one of ` +
        `${this.hub.dialects.map(({ name }) => name).join(', ')}, in the open`));
    }
    return dialect && head;
  }

  #open(dialect: Dialect): void {
    const { limits: { maxMessageBytes }, maxReplies } = this.hub;
    const { side = 'accepted', hello } = this.#how;
    this.#dialect = dialect;
    if (dialect.ordered) this.#order = [];
    this.#codec = dialect.open({ side, role: 'server', maxMessageBytes,
      hello: { max: String(maxMessageBytes), ...(maxReplies > 0 && { dedupe: String(maxReplies) }), ...hello } });
    this.#codec.start?.(this);
  }

  /** The peer's FIN: a half-close. What it asked is still answered. */
  #ended(): void {
    if (this.#state !== 'open') return;
    const head = this.#head && this.#sniff(EMPTY, true);
    if (head !== undefined) this.#codec?.receive(head, this);
    this.#codec?.end?.(this);
    this.#finish();
    this.#ping(); // a reset comes back where nobody is left,
    setTimeout(() => this.#ping(), 30).unref(); // and is seen when it is written to again
  }

  // What the codec tells.

  hello(fields: Readonly<Record<string, string>>): void {
    if (!this.#admits(fields['token'])) return;
    const ms = Number(fields['timeout']);
    if (ms > 0) this.#timeoutMs = ms;
  }

  message(message: Held): void {
    if ((this.#state !== 'open' && this.#state !== 'ending') || !this.#admits()) return;
    if (this.#held === undefined && this.#turn > 0 && !this.#isFull()) return this.#dispatch(message);
    (this.#held ??= []).push(message);
    this.#heldBytes += message.text.length;
    this.#pumpSoon();
  }

  response(): void {
    this.error('PROTOCOL_ERROR', 'Cannot take a reply: this side asks nothing');
  }

  control(word: Control, argument: Tag | string, count: number): void {
    if (word === 'cancel') this.#cancel(argument as Tag);
    else if (word === 'credit') this.#requests?.get(argument as Tag)?.credit(count);
    else if (word === 'gone') this.#gone(argument as string);
    else if (word === 'goodbye') this.#abortAll('the client said goodbye');
  }

  command(line: string, tag: Tag): void {
    const [name = '', ...words] = line.slice(1).split(' ');
    const isToken = name === 'token' && this.#refusal === undefined;
    if (!this.#admits(isToken ? words.join(' ') : undefined)) return;
    const reply = isToken ? 'ok' : Object.hasOwn(COMMANDS, name) ? COMMANDS[name]?.(this.hub) : undefined;
    if (reply !== undefined) this.message({ tag, text: '', answer: ['reply', reply] });
    else {
      this.error('BAD_MESSAGE', `Cannot run ${quoted(line.slice(0, 40))}: expected ` +
        `${Object.keys(COMMANDS).map((word) => `$${word}`).join(', ')}, or $$ for a text that begins with $`, tag);
    }
  }

  error(code: ErrorCode, text: string, tag?: Tag): void {
    if (this.#state === 'lingering' || this.#state === 'closed' || !this.#admits()) return;
    const { hub } = this;
    if (code === 'MESSAGE_TOO_LARGE') hub.met('maxMessageBytes');
    const error = new MicroError(code, text);
    if (++this.#errors > hub.limits.maxProtocolErrors) {
      hub.met('maxProtocolErrors');
      return this.close(new MicroError('PROTOCOL_ERROR', `Cannot go on after ${hub.limits.maxProtocolErrors} errors: ${text}`));
    }
    hub.counts.errors++;
    if (tag === undefined || this.#requests?.has(tag)) this.#encode('notice', error);
    else this.message({ tag, text: '', answer: ['error', error] });
  }

  write(bytes: Body): void {
    this.#outbox.push(bytes);
  }

  /** Refuses lingeringly: what the peer still sends is read and dropped, so that it can read why. */
  close(last?: MicroError | Body): void {
    if (this.#state === 'lingering' || this.#state === 'closed') return;
    if (last instanceof MicroError) this.hub.counts.errors++;
    this.#abortAll('the connection was refused');
    if (last !== undefined) {
      this.write(last instanceof MicroError ? (this.#codec ?? new PlainCodec(1)).encode('goodbye', last) : last);
    }
    this.#linger(LINGER_MS.refused);
  }

  /** Whether the peer may ask at all. If not, it is told and the connection ends. */
  #admits(token?: string): boolean {
    if (this.#refusal !== undefined) this.close(this.#refusal);
    else if (!this.#isAuthorized && token !== undefined && this.hub.isToken(token)) this.#isAuthorized = true;
    else if (!this.#isAuthorized) {
      this.close(new MicroError('UNAUTHORIZED', token === undefined
        ? 'Cannot serve without a token. Send `$token SECRET` first, or set the client\'s option'
        : 'Cannot serve with this token. Ask who runs the server for the right one'));
    }
    return this.#isAuthorized && this.#refusal === undefined;
  }

  // Requests.

  #isFull(): boolean {
    const { maxInFlight, maxOutputBytes } = this.hub.limits;
    return this.inFlight >= maxInFlight || (this.#order?.length ?? 0) >= maxInFlight ||
      this.#duplex.writableLength > maxOutputBytes / 4;
  }

  #dispatch(message: Held): void {
    this.#turn--;
    const { hub } = this;
    if (message.answer !== undefined) return this.#answer(new Request(this, message, 0), ...message.answer);
    if (hub.isDraining) {
      return this.#answer(new Request(this, message, 0), 'error', new MicroError('SERVER_BUSY', 'Cannot take it: the server stops'));
    }
    if (this.#requests?.has(message.tag)) {
      return this.error('PROTOCOL_ERROR', `Cannot take slot ${String(message.tag)} twice`, message.tag);
    }
    hub.counts.requests++;
    const limitMs = Math.min(message.timeoutMs ?? this.#timeoutMs, hub.limits.callbackTimeoutMs);
    const request = new Request(this, message, limitMs);
    let value: unknown;
    try {
      value = message.id === undefined || hub.maxReplies === 0 ? hub.service.callback(message.text, request)
        : this.#once(message.id, request);
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
    void this.#settle(request, value);
  }

  /** The same id gets the same reply, and runs once. */
  #once(id: string, request: Request): unknown {
    const { replies, maxReplies, service } = this.hub;
    if (replies.has(id)) return replies.get(id);
    let value: unknown;
    try { value = service.callback(request.message.text, request); } catch (error) { value = Promise.reject(error); }
    replies.set(id, value);
    if (replies.size > maxReplies) replies.delete(replies.keys().next().value as string);
    return value;
  }

  async #settle(request: Request, promised: unknown): Promise<void> {
    try {
      const value = (await promised) as Value | undefined;
      if (typeof value === 'string' || value === null) return this.#reply(request, value ?? '');
      if (typeof value === 'object' && Symbol.asyncIterator in value) {
        if (this.hub.streams.has(value)) throw new Error('its reply was a stream, which is not kept for a second ask');
        this.hub.streams.add(value);
        return await this.#stream(request, value[Symbol.asyncIterator]());
      }
      if (typeof value !== 'object' || !Array.isArray(value.parts)) {
        throw new Error(`it answered with ${value === undefined ? 'nothing' : typeof value}, expected a string`);
      }
      if (this.#dialect?.multipart !== true) throw new Error('it answered in parts, which this dialect has not');
      this.#answer(request, 'reply', value.parts as readonly Body[]);
    } catch (error) {
      this.#failed(request, error);
    }
  }

  #reply(request: Request, text: string): void {
    const { maxMessageBytes } = this.hub.limits;
    if (!isWellFormed(text)) return this.#failed(request, new Error('its reply has half a surrogate pair'));
    if (!exceeds(text, maxMessageBytes)) return this.#answer(request, 'reply', text);
    this.hub.met('maxMessageBytes');
    this.#failed(request, new MicroError('MESSAGE_TOO_LARGE', `Cannot send a reply of over ${maxMessageBytes} bytes. ` +
      'Page it, stream it, or raise maxMessageBytes', { outcome: 'failed' }));
  }

  #failed(request: Request, error: unknown): void {
    if (request.isSettled) return;
    this.hub.counts.errors++;
    this.#answer(request, 'error', error instanceof MicroError ? error
      : new MicroError('CALLBACK_FAILED', textOf(error) || 'the service failed', { cause: error }));
  }

  /** Parts as the reader takes them: by its credit where the dialect has that, else as the socket drains. */
  async #stream(request: Request, iterator: AsyncIterator<unknown>): Promise<void> {
    request.iterator = iterator;
    request.ahead = [];
    for (;;) {
      request.dueAt = Infinity; // the reader's time is not the service's
      while (!request.isSettled && !this.#hasRoom(request)) await new Promise<void>((wake) => { request.wake = wake; });
      if (request.isSettled) return iterator.return?.() && undefined;
      request.dueAt = now() + request.limitMs;
      this.hub.alarm.at(request.dueAt);
      const { done, value } = await iterator.next();
      if (request.isSettled) return;
      if (done === true) break;
      const isFit = typeof value === 'string' && isWellFormed(value) && !exceeds(value, this.hub.limits.maxMessageBytes);
      if (!isFit) throw new Error('a part of its stream is no string, or too long');
      request.ahead.push(value.length);
      request.aheadBytes += value.length;
      this.#encode('part', value, request.message.tag);
    }
    request.iterator = undefined;
    this.#answer(request, 'end', '');
  }

  #hasRoom({ ahead, aheadBytes, message }: Request): boolean {
    if (this.#duplex.writableLength >= WINDOW.bytes) return false;
    if (this.#order !== undefined) return this.#order[0]?.message === message;
    return ahead.length < WINDOW.parts && aheadBytes < WINDOW.bytes;
  }

  /** Answers a request, once. Where the dialect is ordered, the bytes wait for their turn. */
  #answer(request: Request, ...answer: Answer): void {
    if (request.isSettled) return;
    const { tag, oneWay } = request.message;
    const wasPending = this.#requests?.delete(tag) === true;
    request.settle();
    if (wasPending) this.hub.latency.record(now() - request.since, 1);
    const order = this.#order;
    if (order === undefined || (order.length === 0 && !wasPending)) {
      if (oneWay !== true) this.#encode(...answer, tag);
    } else {
      if (!wasPending) order.push(request);
      request.answer = answer;
      for (let [first] = order; first?.answer !== undefined; [first] = order) {
        if (first.message.oneWay !== true) this.#encode(...first.answer, first.message.tag);
        order.shift();
      }
      order[0]?.wake();
    }
    if (request.next === 'stopServer') this.hub.stopServer();
    if (request.next === 'close') this.#finish();
    else if (this.#held !== undefined) this.#pumpSoon();
    else if (this.#state === 'ending') this.#finish();
  }

  #encode(kind: Kind, body: string | readonly Body[] | MicroError, tag?: Tag): void {
    if (this.#duplex.writableLength > this.hub.limits.maxOutputBytes) { // before it: one reply may be longer
      this.hub.met('maxOutputBytes');
      return void this.#duplex.destroy();
    }
    const bytes = this.#codec?.encode(kind, body, tag) ?? '';
    this.hub.counts.bytesOut += bytes.length;
    this.#outbox.push(bytes);
  }

  #cancel(tag: Tag): void {
    const aborted = new MicroError('ABORTED', 'the caller gave up');
    const request = this.#requests?.get(tag);
    request?.abort(aborted);
    if (request !== undefined) return this.#answer(request, 'error', aborted);
    const held = this.#held?.find((message, index) => index >= this.#heldFrom && message.tag === tag);
    if (held !== undefined) held.answer ??= ['error', new MicroError('ABORTED', aborted.message, { outcome: 'refused' })];
  }

  #abortAll(why: string): void {
    for (const request of this.#requests?.values() ?? []) {
      request.abort(new MicroError('CONNECTION_LOST', why));
      request.settle();
    }
    this.#requests = this.#held = undefined;
    if (this.#order !== undefined) this.#order = [];
  }

  client(id?: string): ClientRecord {
    const own = this.#client ??= new ClientRecord(`${++this.hub.counts.clients}`, this.#dialect?.name ?? '', this.#duplex);
    if (id === undefined) return own;
    const known = this.#forwarded ??= new Map();
    const client = known.get(id) ?? new ClientRecord(`${own.id}/${id}`, own.dialect);
    known.set(id, client);
    if (known.size > MAX_HELD.messages) this.#gone(known.keys().next().value as string);
    return client;
  }

  #gone(id: string): void {
    this.#forwarded?.get(id)?.leave();
    this.#forwarded?.delete(id);
  }

  // Turns and room.

  #pumpSoon(): void {
    if (this.#isPumping) return;
    this.#isPumping = true;
    setImmediate(() => this.#pump());
  }

  /** Handles held messages, as many as are one connection's turn. */
  #pump(): void {
    this.#isPumping = false;
    this.#now = now();
    this.#turn = this.hub.limits.maxLinesPerTick;
    while (this.#held !== undefined && this.#turn > 0 && !this.#isFull()) {
      const message = this.#held[this.#heldFrom++] as Held;
      this.#heldBytes -= message.text.length;
      if (this.#heldFrom === this.#held.length) {
        this.#held = undefined;
        this.#heldFrom = this.#heldBytes = 0;
      }
      this.#dispatch(message);
    }
    this.#recordHandled();
    if (this.#heldFrom > 1024) this.#held?.splice(0, this.#heldFrom), this.#heldFrom = 0;
    if (this.#held !== undefined && !this.#isFull()) this.#pumpSoon();
    else if (this.#held === undefined && this.#state === 'ending') this.#finish();
    this.#throttle();
  }

  #recordHandled(): void {
    if (this.#handled > 0) this.hub.latency.record(now() - this.#now, this.#handled);
    this.#handled = 0;
  }

  /** Stops reading where too much waits; goes on when it is less. */
  #throttle(): void {
    const isFull = this.#held !== undefined && (this.#held.length - this.#heldFrom > MAX_HELD.messages ||
      this.#heldBytes > MAX_HELD.bytes || this.#duplex.writableLength > this.hub.limits.maxOutputBytes / 4);
    if (isFull === this.#isPaused) return;
    this.#isPaused = isFull;
    if (!isFull) return void this.#duplex.resume();
    this.hub.met('maxInFlight');
    this.#duplex.pause();
    this.hub.alarm.at(this.#now + PAUSED_PING_MS);
  }

  /** The peer reads more slowly than it is written to. */
  flooded(): void {
    if (this.#isFlooded) return;
    this.#isFlooded = true;
    this.#watchOutput();
    this.#duplex.once('drain', () => {
      this.#isFlooded = false;
      (this.#duplex as Partial<Socket>).setTimeout?.(0);
      for (const request of this.#requests?.values() ?? []) request.wake();
      if (this.#held !== undefined) this.#pumpSoon();
      this.#throttle();
    });
  }

  /** A socket's own timer sees what the system takes of one large write. */
  #watchOutput(): void {
    (this.#duplex as Partial<Socket>).setTimeout?.(this.hub.limits.outputTimeoutMs, () => {
      if (this.#duplex.writableLength === 0) return;
      this.hub.met('outputTimeoutMs');
      this.#duplex.destroy();
    });
  }

  #watchPartial(bytes: number): void {
    if (bytes > 0 && (this.#partialBytes === 0 || bytes < this.#partialBytes)) {
      this.#partialSince = this.#now;
      this.hub.alarm.at(this.#now + this.hub.limits.partialTimeoutMs);
    }
    this.#partialBytes = bytes;
  }

  /** Ends what is overdue; tells when to look again. */
  look(at: number): number {
    const { limits } = this.hub;
    let next = Infinity;
    for (const request of this.#requests?.values() ?? []) {
      if (request.dueAt <= at) this.#timeOut(request, `Cannot answer within ${Math.round(request.limitMs)} ms`);
      else next = Math.min(next, request.dueAt);
    }
    const bytes = this.#partialBytes;
    if (bytes > 0 && this.#state === 'open') {
      const due = this.#partialSince + Math.max(limits.partialTimeoutMs, bytes / 1.024);
      if (due > at) next = Math.min(next, due);
      else {
        this.hub.met('partialTimeoutMs');
        this.close(new MicroError('TIMEOUT', `Cannot wait longer for the rest of a message: ${bytes} bytes came in ` +
          `${Math.round(at - this.#partialSince)} ms`, { outcome: 'refused' }));
      }
    }
    if (this.#refusal !== undefined && this.#state === 'open') this.close(this.#refusal);
    if (this.#lingerUntil > at) next = Math.min(next, this.#lingerUntil);
    else if (this.#duplex.writableLength === 0) this.#duplex.destroy();
    else next = Math.min(next, at + 50);
    if (!this.#isPaused) return next;
    this.#ping(); // for the peer's are not read
    return Math.min(next, at + PAUSED_PING_MS);
  }

  #ping(): void {
    const ping = this.inFlight > 0 && !this.#duplex.writableNeedDrain ? this.#codec?.control?.('ping', 0) : undefined;
    if (ping !== undefined) this.write(ping);
  }

  #timeOut(request: Request, why: string): void {
    const error = new MicroError('TIMEOUT', `${why}: the service still works on it`);
    this.hub.met('callbackTimeoutMs');
    request.abort(error);
    this.#failed(request, error);
  }

  // The end.

  /** Takes no more, answers what it has, then closes. */
  #finish(): void {
    if (this.#state === 'lingering' || this.#state === 'closed') return;
    this.#state = 'ending';
    if (this.inFlight === 0 && this.#held === undefined && !this.#order?.length) this.#linger(LINGER_MS.drained);
  }

  drain(): void {
    const draining = this.#state === 'open' ? this.#codec?.control?.('draining') : undefined;
    if (draining !== undefined) this.write(draining);
    this.#finish();
  }

  /** The end of a drain: what is still in flight is answered with an error. */
  cutOff(): void {
    for (const request of this.#requests?.values() ?? []) this.#timeOut(request, 'Cannot finish before the server stops');
    this.#held = undefined;
    this.#linger(LINGER_MS.drained);
    setTimeout(() => this.#duplex.destroy(), 2 * LINGER_MS.drained);
  }

  #linger(ms: number): void {
    if (this.#state === 'lingering' || this.#state === 'closed') return;
    this.#state = 'lingering';
    this.#outbox.flush();
    this.#duplex.end();
    this.#watchOutput();
    this.#duplex.resume();
    this.#lingerUntil = now() + ms;
    this.hub.alarm.at(this.#lingerUntil);
  }

  #closed(): void {
    this.#state = 'closed';
    const { hub } = this;
    this.#abortAll('the connection was lost');
    if (this.#refusal !== undefined) hub.counts.refusing--;
    for (const id of this.#forwarded?.keys() ?? []) this.#gone(id);
    this.#client?.leave();
    if (this.#isMet && hub.service.disconnected !== undefined) {
      hub.fenced('disconnected', () => hub.service.disconnected?.(this.client()));
    }
    hub.removed(this);
  }
}

class ClientRecord implements Client {
  readonly id: string;
  readonly address: string;
  readonly dialect: string;
  readonly loopback: boolean;
  readonly state = new Map<unknown, unknown>();
  readonly #gone = new AbortController();

  /** Without a duplex it is behind a router, and never counts as loopback; a Unix socket does. */
  constructor(id: string, dialect: string, duplex?: Duplex) {
    const { remoteAddress, remotePort } = (duplex ?? {}) as Partial<Socket>;
    this.id = id;
    this.dialect = dialect;
    this.address = remoteAddress === undefined ? '' : `${remoteAddress}:${remotePort}`;
    this.loopback = duplex !== undefined && (remoteAddress === undefined || LOOPBACK.test(remoteAddress));
  }

  get signal(): AbortSignal {
    return this.#gone.signal;
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
  readonly since = now();
  dueAt = Infinity;
  isSettled = false;
  answer: Answer | undefined = undefined;
  next: 'close' | 'stopServer' | undefined = undefined; // once it is answered
  iterator: AsyncIterator<unknown> | undefined = undefined;
  ahead: number[] = NOTHING; // lengths of the parts that the reader has not taken
  aheadBytes = 0;
  wake = NOTHING_TO_DO;
  controller: AbortController | undefined = undefined;

  constructor(connection: Connection, message: Message, limitMs: number) {
    this.connection = connection;
    this.message = message;
    this.limitMs = limitMs;
  }

  get signal(): AbortSignal {
    return (this.controller ??= new AbortController()).signal;
  }

  get deadline(): number {
    return Date.now() + this.limitMs - (now() - this.since);
  }

  get parts(): readonly Uint8Array[] | undefined {
    return this.message.parts;
  }

  get client(): Client {
    return this.connection.client(this.message.client);
  }

  close(): void {
    this.next ??= 'close';
  }

  stopServer(): void {
    this.next = 'stopServer';
  }

  credit(parts: number): void {
    for (const length of this.ahead.splice(0, parts)) this.aheadBytes -= length;
    this.wake();
  }

  abort(reason: Error): void {
    (this.controller ??= new AbortController()).abort(reason);
  }

  settle(): void {
    this.isSettled = true;
    this.wake();
    const { iterator } = this;
    if (iterator?.return !== undefined) this.connection.hub.fenced('stream', () => iterator.return?.());
  }
}

// ---------------------------------------------------------------------------------------------------------- Lines

const EMPTY = Buffer.alloc(0);
const NOTHING: number[] = [];
const NOTHING_TO_DO = (): void => {};
/** What a browser, a proxy or an SSH client says first: none of it may reach a callback. RFC 9110, 5.6.2: a token. */
const FOREIGN = /^(?:[!#$%&'*+.^_`|~\w-]+ \S+ (?:HTTP|RTSP|SIP)\/\d(?:\.\d)?[ \t]*$|Host[ \t]*:|SSH-\d)/i;
const REFUSED = 'This port speaks portcall, not HTTP: nothing was run. Use nc, or a MicroClient\n';
const HTTP_REFUSAL = 'HTTP/1.1 400 Bad Request\r\nServer: portcall\r\nContent-Type: text/plain\r\n' +
  `Content-Length: ${REFUSED.length}\r\nConnection: close\r\n\r\n${REFUSED}`;

/** The dialect of people and of every language: one line for one line, in order. Begins with anything but control. */
export function lines(): Dialect {
  const open = ({ maxMessageBytes }: CodecOptions) => new PlainCodec(maxMessageBytes);
  return { name: 'lines', ordered: true, open, matches([first = 0]) {
    return first === 0xff || (first < 0x20 && first !== 9 && first !== 10 && first !== 13) ? 'no' : 'yes';
  } };
}

class PlainCodec extends LineCodec {
  #next = 0;
  #hasBegun = false; // a message came, so that no foreign protocol can

  request({ text }: Message): string {
    return `${text}\n`;
  }

  encode(kind: Kind, body: Body | readonly Body[] | MicroError): string {
    if (kind === 'end') return '\n';
    if (body instanceof MicroError) {
      return `ERR ${body.code} ${body.retryAfterMs === undefined ? oneLine(body.message) : `retry after ${body.retryAfterMs} ms`}\n`;
    }
    if (kind === 'part' && body === '') return '\\e\n';
    return `${(body as string).includes('\n') ? (body as string).replaceAll('\n', '\\n') : body as string}\n`;
  }

  /** A last line without its LF counts when the peer half-closes. */
  end(sink: Sink): void {
    if (this.heldBytes > 0) this.receive(Buffer.from('\n'), sink);
  }

  protected line(text: string, start: number, end: number, sink: Sink): void {
    let line = text.slice(start, end > start && text.charCodeAt(end - 1) === 13 ? end - 1 : end);
    if (line === '') return;
    if (!this.#hasBegun && FOREIGN.test(line)) return sink.close(HTTP_REFUSAL);
    if (line.charCodeAt(0) === 36) { // $
      if (line.charCodeAt(1) !== 36) return sink.command?.(line, this.#next++);
      line = line.slice(1);
    }
    if (exceeds(line, this.max)) return this.tooLarge(line, sink);
    this.#hasBegun = true;
    sink.message({ tag: this.#next++, text: line, timeoutMs: undefined, id: undefined, client: undefined });
  }

  protected bad(code: ErrorCode, why: string, _head: string, sink: Sink): void {
    sink.error(code, why, this.#next++);
  }
}

const VERSION = '0.1.0';
/** What a line that starts with `$` asks of the server itself. */
const COMMANDS: Readonly<Record<string, (hub: Hub) => string>> = {
  ping: () => 'pong',
  help: ({ service: { contract } }) => oneLine([contract?.summary ?? 'A portcall service: send a line, get a line.',
    ...Object.values(contract?.messages ?? {}).map(({ example }) => `Try: ${example}`),
    'For the server itself: $ping $help $info $stats'].join(' ')),
  info: ({ service, dialects, limits }) => JSON.stringify({ name: 'portcall', version: VERSION,
    summary: service.contract?.summary, dialects: dialects.map(({ name }) => name), limits }),
  stats: (hub) => JSON.stringify(hub.stats()),
};

// -------------------------------------------------------------------------------------------------------- Binding

interface Listener { readonly address: Address; close(): Promise<void> }
const LOOPBACK = /^(?:127\.|::1$|::ffff:127\.)/;

async function isLoopback(host: string): Promise<boolean> {
  if (LOOPBACK.test(host)) return true;
  const found = await lookup(host, { all: true }).catch(() => []);
  return found.length > 0 && found.every(({ address }) => LOOPBACK.test(address));
}

async function listenTcp(address: Address, _options: object, onSocket: (socket: Socket) => void,
  onError: (error: Error) => void): Promise<Listener> {
  const server = createServer({ allowHalfOpen: true, noDelay: true }, onSocket);
  await once(server.listen({ host: address.host, port: address.port, backlog: 1024 }), 'listening');
  server.on('error', onError);
  const { address: host, port } = server.address() as AddressInfo;
  return { address: { url: urlOf(host, port), scheme: 'tcp', host, port }, async close() {
    for (let turns = 0; turns < 2; turns++) await turn(); // takes in who waits: closing resets them
    server.close(); // closes the socket at once; only its callback waits for connections
  } };
}

function urlOf(host: string, port = 0): string {
  return `tcp://${host.includes(':') ? `[${host}]` : host}:${port}`;
}

/** Who listens there, as far as Linux tells: `pid 4121 (node)`. */
async function findHolder({ host = '', port = 0 }: Address): Promise<string> {
  if (port === 0) return 'another process'; // a Unix socket: the system doesn't tell
  const signal = AbortSignal.timeout(1500); // 30 ms on a machine at rest
  const hexHost = host === '::1' ? '01000000' : !isIPv4(host) || host === '0.0.0.0' ? ''
    : Buffer.from(host.split('.').reverse().map(Number)).toString('hex');
  const hexPort = port.toString(16).padStart(4, '0');
  const row = new RegExp(`: (?:0+|\\w*${hexHost}):${hexPort} \\S+ 0A \\S+ \\S+ \\S+ +\\d+ +\\d+ (\\d+)`, 'gi');
  const tables = await Promise.all(['/proc/net/tcp', '/proc/net/tcp6'].map((table) =>
    fs.readFile(table, { encoding: 'latin1', signal }).catch(() => '')));
  const sockets = new Set([...tables.join('').matchAll(row)].map(([, inode]) => `socket:[${inode}]`));
  for (const pid of sockets.size > 0 ? await fs.readdir('/proc') : []) {
    if (signal.aborted) break;
    const fds = await fs.readdir(`/proc/${pid}/fd`).catch(() => []); // others' are not shown
    const links = await Promise.all(fds.map((fd) => fs.readlink(`/proc/${pid}/fd/${fd}`).catch(() => '')));
    if (!links.some((link) => sockets.has(link))) continue;
    const program = basename(await fs.readlink(`/proc/${pid}/exe`).catch(() => ''));
    return `pid ${pid} (${/^[\w.+-]+/.exec(program)?.[0] ?? '?'})`;
  }
  return 'another process';
}

function openFilesLimit(): number {
  try {
    return Number(/^Max open files +(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1] ?? Infinity);
  } catch {
    return Infinity; // no Linux: the system doesn't tell
  }
}

function digest(secret: string): Buffer {
  return createHash('sha256').update(secret).digest();
}
