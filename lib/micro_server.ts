/**
 * portcall's server: `new MicroServer((message) => reply(message), 'LIFE_GEN')` makes a function a service on a named
 * port. Copy it together with `micro_client.ts`. PROTOCOL.md tells the wire. In this order: options; the server; what
 * connections share; one connection, from its first byte to its last; one request; lines; binding.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { lookup } from 'node:dns/promises';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer, Socket, type AddressInfo } from 'node:net';
import { Duplex } from 'node:stream';
import { setImmediate as turn } from 'node:timers/promises';
import {
  Alarm, LineCodec, MicroError, Outbox, checkSetUp, errorText, exceeds, frames, isWellFormed, loadBeside, loadDialect,
  loadTransport, logToStderr, now, oneLine, poll, positive, publish, quoted, resolveAddress, textOf,
  type Address, type Body, type Codec, type Control, type Dialect, type ErrorCode, type Kind, type Log, type Message,
  type Ports, type Sink, type Tag, type Transport, type Value,
} from './micro_client.ts';

/** Each is an option of this name, with this default; `stats()` counts how often it was met. */
export const DEFAULT_LIMITS = {
  maxMessageBytes: 1024 * 1024, // of a message or reply, in UTF-8 after unescaping: `MESSAGE_TOO_LARGE`
  maxUnauthorizedBytes: 8 * 1024, // read before the token is settled: closed
  partialTimeoutMs: 30_000, // for a token, or the rest of a message, or longer while 1 KiB/s arrives: closed
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
  ports?: Ports; log?: Log;
  host?: string; // where to bind, if not where clients dial; beyond loopback wants a token, or `insecure`
  token?: string; insecure?: boolean; // what a client must say first; that none is wanted beyond loopback
  dialects?: readonly Dialect[]; // to be told apart on the same port, beside lines and frames
  dedupe?: number; // keeps so many replies by message id, so that a message sent twice runs once; default 0
}
/** Who asks: one a connection, or one a client of the router at its other end. */
export interface Client {
  readonly id: string; readonly address: string; readonly dialect: string; readonly loopback: boolean;
  readonly identity?: string; readonly signal: AbortSignal; // aborted when it is gone
  readonly state: Map<unknown, unknown>; // for the service to remember things in
}
export interface Context {
  readonly signal: AbortSignal; // aborted on the deadline, a cancel, or the loss of the connection
  readonly deadline: number; // when the caller stops waiting, in milliseconds since 1970
  readonly parts: readonly Uint8Array[] | undefined; readonly client: Client;
  close(): void; stopServer(): void; // once this reply is delivered: the connection, the server
}
export type Callback = (message: string, context: Context) => Value | Later | Promise<Value>;
export interface Settling { resolve(value: Value): void; reject(error: unknown): void } // the latter: with anything
/** What a callback may return in place of a promise, for less: `lib/later.ts`. */
export abstract class Later { abstract tell(whom: Settling): void }
export interface Service {
  callback: Callback;
  dialects?: readonly Dialect[];
  contract?: { summary: string; messages: Readonly<Record<string, { example: string; reply: string }>> };
  connected?(client: Client): void; disconnected?(client: Client): void; // before it asks; when it is gone
  stop?(): Promise<void>; // closes what the service opened, when the server has stopped
}
export interface Stats {
  requests: number; errors: number; connections: number; inFlight: number; bytes: { in: number; out: number };
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
  readonly #hub: Hub;
  #listener: Listener | undefined;
  #starting: Promise<Address> | undefined; #stopping: Promise<void> | undefined;
  /** @throws {TypeError | RangeError} Wrong options. A wrong address is told by `startListening`. */
  constructor(service: Callback | Service, key: string | number, options: ServerOptions = {}) {
    const whole = typeof service === 'function' ? { callback: service } : service;
    const wrong = `Cannot serve ${quoted(whole)}: expected a function (message, context) => reply`;
    if (typeof whole?.callback !== 'function') throw new TypeError(wrong);
    checkSetUp(key, options); this.#key = key;
    this.#hub = new Hub(whole, options, () => void this.stop());
  }
  /** Where it listens, if it does. */
  get address(): Address | undefined { return this.#listener?.address; }
  /** Binds and serves; resolves with where, so that port 0 tells the port it got.
   * @throws {MicroError} `PORT_IN_USE`, `BAD_ADDRESS`, `UNKNOWN_SERVICE`, `BAD_PORTS_FILE`. */
  startListening(): Promise<Address> {
    return this.#starting ??= this.#start().catch((error: unknown) => { this.#starting = undefined; throw error; });
  }
  /** Stops accepting, answers what is in flight (for `graceMs`, by default `drainMs`), closes. */
  stop({ graceMs = this.#hub.limits.drainMs }: { graceMs?: number } = {}): Promise<void> {
    const start = this.#starting;
    if (start === undefined && this.#stopping !== undefined) return this.#stopping;
    this.#starting = undefined;
    const end = this.#stop(graceMs, start).finally(() => { if (this.#stopping === end) this.#stopping = undefined; });
    return this.#stopping = end;
  }
  /** Serves one connected duplex, whoever dialled it: what a worker and a transport build on. */
  serve(duplex: Duplex, options: ServeOptions = {}): void { new Connection(this.#hub, duplex, options); }
  stats(): Stats { return this.#hub.stats(); }
  async #start(): Promise<Address> {
    await this.#stopping;
    const { log, options: { ports, host, token, insecure } } = this.#hub;
    const address = { ...resolveAddress(this.#key, ports, (text) => log('warn', text)) };
    const isTcp = address.scheme === 'tcp';
    if (isTcp && host !== undefined) Object.assign(address, { host, url: urlOf(host, address.port) });
    const isOpen = isTcp && token === undefined && !(await isLoopback(address.host ?? ''));
    const risk = `on ${address.url} without a token: anybody on the network could call it`;
    if (isOpen && insecure !== true) throw new MicroError('BAD_ADDRESS',
      `Cannot listen ${risk}, expected one. Bind to 127.0.0.1, or set insecure`);
    if (isOpen) log('warn', `Listening ${risk}`);
    this.#hub.isDraining = false; this.#listener = await this.#bind(address);
    publish('listening', () => ({ key: this.#key, url: this.#listener?.address.url }));
    return this.#listener.address;
  }
  async #bind(address: Address): Promise<Listener> {
    const hub = this.#hub;
    try {
      const named = address.dialect === undefined ? undefined : await loadDialect(address.dialect);
      const isUsual = named === undefined || hub.usual.some(({ name }) => name === named.name);
      hub.dialects = isUsual ? hub.usual : [named, ...hub.usual];
      const listen = address.scheme === 'tcp' ? listenTcp : (await loadTransport(address.scheme)).listen;
      if (listen === undefined) throw new Error('it can only be dialled');
      return await listen(address, hub.options, (duplex: Duplex, how?: ServeOptions) => hub.accept(duplex, how),
        (error) => hub.log('error', `Cannot accept a connection: ${error.message}`));
    } catch (cause) {
      if (cause instanceof MicroError) throw cause;
      const isInUse = (cause as NodeJS.ErrnoException).code === 'EADDRINUSE';
      const why = isInUse ? `${await findHolder(address)} holds it. Stop it` : `${textOf(cause)}. Mend it`;
      throw new MicroError(isInUse ? 'PORT_IN_USE' : 'BAD_ADDRESS',
        `Cannot listen on ${address.url}: ${why}, or give ${this.#key} another address`, { cause });
    }
  }
  async #stop(graceMs: number, starting: Promise<Address> | undefined): Promise<void> {
    await starting?.catch(NOTHING_TO_DO);
    for (let turns = 0; turns < 2; turns++) await turn(); // takes in who waits: closing resets them
    await this.#listener?.close(); this.#listener = undefined;
    for (let turns = 0; turns < 2; turns++) await turn(); // reads what the last of them said
    await this.#hub.drain(graceMs);
    await this.#hub.service.stop?.();
  }
}
const watched = new Set<{ stop(): Promise<void> }>();
const SIGNALS = ['SIGTERM', 'SIGINT'] as const; let isInterrupted = false;
/**
 * Drains the server on SIGTERM and SIGINT, then ends the process with 0; a second SIGINT ends it at once with 130. A
 * library installs no handler by itself: call this in the program. What it returns takes it back.
 */
export function stopOnSignals(server: { stop(): Promise<void> }): () => void {
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
const LINGER_MS = { refused: 1_000, draining: 50, drained: 100 }; // for a peer to close its side
const REFUSAL_WAIT = { ms: 1_000, connections: 32 }; // for the bytes that tell its dialect; so many wait at a time
const MAX_HELD = { messages: 4096, bytes: 1024 * 1024 }; // requests of a connection that wait undispatched
const WINDOW = { parts: 256, bytes: 1024 * 1024 }; // how far a stream may be ahead of its reader
const PAUSED_PING_MS = 200;
const EMPTY = Buffer.alloc(0), NOTHING_TO_DO = (): void => {}, NONE: Request[] = [];
const AS_TOLD: ServeOptions = {}; // by the first bytes
class Hub {
  readonly service: Service; readonly options: ServerOptions; readonly log: Log; readonly stopServer: () => void;
  readonly limits: Limits = { ...DEFAULT_LIMITS };
  readonly usual: readonly Dialect[]; dialects: readonly Dialect[]; // the latter: with that which the address names
  readonly connections = new Set<Connection>();
  readonly alarm = new Alarm((at) =>
    [...this.connections].reduce((next, connection) => Math.min(next, connection.look(at)), Infinity));
  readonly latency = new Latency();
  readonly running = new Map<string, unknown>(); readonly replies = new Map<string, unknown>(); // by message id
  readonly oldest = this.replies.keys(); // kept: a new iterator passes all that were deleted
  readonly counts = { requests: 0, errors: 0, bytes: { in: 0, out: 0 } };
  readonly #met: Stats['limits'] = {};
  now = now(); // when the chunk or the turn began that is being handled
  clients = 0; refusing = 0; // so far; connections that wait to be told why not
  isDraining = false; onEmpty = NOTHING_TO_DO;
  constructor(service: Service, options: ServerOptions, stopServer: () => void) {
    const { limits } = this;
    for (const name of Object.keys(limits) as (keyof Limits)[]) limits[name] = positive(options, name, limits[name]);
    limits.maxConnections = Math.min(limits.maxConnections, Math.max(8, openFilesLimit() - 64));
    this.service = service; this.options = options; this.stopServer = stopServer;
    this.log = (level, text) => (options.log ?? logToStderr)(level, oneLine(text));
    this.dialects = this.usual = [...options.dialects ?? service.dialects ?? [], frames(), lines()];
  }
  met(limit: keyof Limits): void { this.#met[limit] = (this.#met[limit] ?? 0) + 1; }
  accept(duplex: Duplex, how?: ServeOptions): void {
    const { maxConnections } = this.limits;
    const isFull = this.connections.size - this.refusing >= maxConnections;
    if (isFull) this.met('maxConnections');
    new Connection(this, duplex, how, isFull ? new MicroError('SERVER_BUSY',
      `Cannot serve more than ${maxConnections} connections`, { retryAfterMs: 200 }) : undefined);
    if (how === undefined && duplex instanceof Socket) duplex.push = Connection.push; // it is nobody else's
  }
  async drain(graceMs: number): Promise<void> {
    this.isDraining = true;
    for (const connection of this.connections) connection.drain();
    const cut = setTimeout(() => { for (const one of this.connections) one.cutOff(); }, Math.min(graceMs, 0x7fff_ffff));
    if (this.connections.size > 0) await new Promise<void>((resolve) => { this.onEmpty = resolve; });
    clearTimeout(cut); this.alarm.stop();
  }
  /** Calls what the service gave; whatever it does, the server goes on. */
  fenced(what: string, task: () => unknown): void {
    const onError = (error: unknown) => this.log('error', `The service's ${what} failed: ${textOf(error)}`);
    try { Promise.resolve(task()).catch(onError); } catch (error) { onError(error); }
  }
  stats(): Stats {
    const inFlight = [...this.connections].reduce((sum, connection) => sum + connection.inFlight, 0);
    return { ...structuredClone(this.counts), connections: this.connections.size, inFlight,
      latencyMs: this.latency.summary(), limits: { ...this.#met } };
  }
}
/** How long replies took, counted by quarters of each power of two of microseconds. */
class Latency {
  readonly #counts = new Array<number>(128).fill(0); readonly #all = { count: 0, mean: 0, max: 0 };
  record(ms: number, times: number): void {
    const bucket = Math.min(127, Math.floor(4 * Math.log2(ms * 1000 + 1)));
    this.#counts[bucket] = (this.#counts[bucket] ?? 0) + times;
    this.#all.count += times;
    this.#all.mean += (ms - this.#all.mean) * times / this.#all.count;
    this.#all.max = Math.max(this.#all.max, ms);
  }
  summary(): Stats['latencyMs'] {
    const at = (share: number): number => {
      let left = this.#all.count * share;
      const bucket = this.#counts.findIndex((count) => (left -= count) <= 0);
      return Math.min(this.#all.max, (2 ** ((bucket + 1) / 4) - 1) / 1000);
    };
    return { ...this.#all, p50: at(0.5), p99: at(0.99) };
  }
}
// ------------------------------------------------------------------------------------------------- One connection
type Answer = readonly [kind: Kind, body: string | readonly Body[] | MicroError];
interface Held extends Message { answer?: Answer } // where it is known already: an error, a command's reply
const OWNER = Symbol('connection');
type Owned = Duplex & { [OWNER]: Connection };
class Connection implements Sink {
  readonly hub: Hub; readonly #duplex: Duplex; readonly #outbox: Outbox;
  readonly #how: ServeOptions; readonly #refusal: MicroError | undefined;
  /** `ending` answers what it has, then closes. `over` has sent its FIN or is gone: what is read is dropped. */
  #state: 'open' | 'ending' | 'over' = 'open';
  #head: Buffer | undefined; // first bytes that may still become one dialect or another
  #dialect: Dialect | undefined; #codec: Codec | undefined;
  #client: OwnClient | undefined; #forwarded: Map<string, OwnClient> | undefined; // behind it, if it is a router
  /** In the callback; of an ordered dialect in order, also whose turn has not come. No Map: its dead tables are kept
   * alive by older ones, with what stood in them, and made a fifth of the work the garbage collector's. */
  #requests: Request[] | undefined;
  #held: Held[] | undefined; // not dispatched yet
  #timeoutMs: number | undefined; // of a request that names none
  #turn = 0; // messages that may still be handled in this tick
  #handled = 0; // of them, answered at once
  #partialBytes = 0; #partialSince = 0; // of an unfinished message
  #unauthorizedBytes = 0; #errors = 0; #silence: NodeJS.Timeout | undefined; // of the peer, that its codec waits for
  #isAuthorized: boolean;
  #isMet = false; #isPumping = false; // the service was told of the client; a turn is due
  #isPaused = false; #isFlooded = false; // is not read; does not read
  constructor(hub: Hub, duplex: Duplex, how: ServeOptions = AS_TOLD, refusal?: MicroError) {
    this.hub = hub; this.#duplex = duplex; this.#how = how; this.#refusal = refusal;
    this.#outbox = new Outbox(duplex, this);
    this.#isAuthorized = how.side === 'dialled' || hub.options.token === undefined;
    hub.connections.add(this);
    (duplex as Owned)[OWNER] = this;
    duplex.on('data', Connection.#onData).on('end', Connection.#onEnd);
    duplex.on('error', NOTHING_TO_DO).on('close', Connection.#onClose); // which follows each error
    if (how.dialect !== undefined) this.#open(how.dialect);
    if (!this.#isAuthorized) { hub.now = now(); this.#rest(); } // a token is waited for as the rest of a message is
    if (refusal === undefined) return;
    if (++hub.refusing > REFUSAL_WAIT.connections) this.close(refusal);
    else setTimeout(() => this.close(refusal), REFUSAL_WAIT.ms).unref();
  }
  // Closures would be kept by each connection: 0.3 KiB of them.
  static #onData(this: Owned, chunk: Buffer): void { this[OWNER].#receive(chunk); }
  /** Where a socket puts what it read: 5 % more over 100 connections than by way of its queue and the event. */
  static push(this: Duplex, chunk: Buffer | null): boolean {
    const owner = (this as Owned)[OWNER];
    if (chunk === null || owner.#isPaused || this.readableLength > 0) return Duplex.prototype.push.call(this, chunk);
    owner.#receive(chunk); return true;
  }
  static #onEnd(this: Owned): void { this[OWNER].#ended(); }
  static #onClose(this: Owned): void { this[OWNER].#closed(); }
  #find(tag: Tag): Request | undefined {
    for (const one of this.#requests ?? NONE) if (one.message.tag === tag) return one;
    return undefined;
  }
  get inFlight(): number { return this.#requests?.length ?? 0; }
  // Bytes in.
  #receive(chunk: Buffer, isAll = false): void {
    if (this.#state === 'over') return;
    const { limits: { maxLinesPerTick, maxUnauthorizedBytes: most }, counts } = this.hub;
    counts.bytes.in += chunk.length;
    this.hub.now = now(); poll.came(this.hub.now);
    if (this.#held === undefined) this.#turn = maxLinesPerTick;
    const bytes = this.#codec === undefined ? this.#sniff(chunk, isAll) : chunk;
    const isFirst = this.#outbox.hold();
    if (bytes !== undefined) this.#codec?.receive(bytes, this);
    if (isFirst) this.#outbox.release();
    if (!this.#isAuthorized && (this.#unauthorizedBytes += chunk.length) > most) this.#endAt('maxUnauthorizedBytes',
      'MESSAGE_TOO_LARGE', `Cannot read over ${most} bytes before the token. Send it first`);
    if (this.#codec?.idleMs !== undefined) this.#awaitSilence(this.#codec);
    this.#rest();
  }
  /** The codec decides once the peer, not this side, was silent: with nothing left unread, and not while paused. */
  #awaitSilence(codec: Codec): void {
    const ms = codec.idleMs?.();
    const timer = ms === undefined ? undefined : setTimeout(() => setImmediate(() => {
      if (this.#silence !== timer || this.#state !== 'open') return;
      if (this.#isPaused) return this.#awaitSilence(codec);
      this.hub.now = now();
      codec.idle?.(this);
      this.#rest();
    }), ms).unref();
    clearTimeout(this.#silence); this.#silence = timer;
  }
  /** Tells the dialect by the first bytes; gives them back once it is known. */
  #sniff(chunk: Buffer, isAll: boolean): Buffer | undefined {
    const { dialects } = this.hub, head = this.#head === undefined ? chunk : Buffer.concat([this.#head, chunk]);
    const answers = dialects.map((dialect) => dialect.matches(head));
    this.#head = !isAll && answers.includes('more') ? Buffer.from(head) : undefined; // a copy: the chunk is lent
    if (this.#head !== undefined) return undefined;
    const dialect = dialects[answers.indexOf('yes')];
    if (dialect !== undefined) this.#open(dialect);
    else this.close(new MicroError('PROTOCOL_ERROR', `Cannot read what begins with 0x${head.toString('hex', 0, 1)}` +
      `${head[0] === 0x16 ? ', as TLS does' : ''}: expected one of ${dialects.map(({ name }) => name).join(', ')}`));
    return dialect && head;
  }
  #open(dialect: Dialect): void {
    const { limits: { maxMessageBytes }, options: { dedupe = 0 }, service: { callback } } = this.hub;
    const hello = { max: String(maxMessageBytes), ...(dedupe > 0 && { dedupe: String(dedupe) }), ...this.#how.hello };
    this.#dialect = dialect;
    this.#codec = dialect.open({ side: this.#how.side ?? 'accepted', role: 'server', maxMessageBytes, hello,
      lines: () => new PlainCodec(maxMessageBytes), readsParts: callback.length > 1 }); // takes the context
    this.#codec.start?.(this);
  }
  /** The peer's FIN: a half-close. What it asked is still answered. */
  #ended(): void {
    if (this.#state !== 'open') return;
    if (this.#head !== undefined) this.#receive(EMPTY, true);
    this.#codec?.end?.(this);
    this.finish();
    this.#rest();
    this.#ping(); // a reset comes back where nobody is left,
    setTimeout(() => this.#ping(), 30).unref(); // and is seen when it is written to again
  }
  // What the codec tells.
  hello({ token, timeout, identity }: Readonly<Record<string, string>>): void {
    if (this.#admits(token) && Number(timeout) > 0) this.#timeoutMs = Number(timeout);
    if (identity !== undefined) this.client().identity = identity;
  }
  message(message: Held): void {
    if (this.#state === 'over' || !this.#admits()) return;
    if (this.#held === undefined && this.#turn > 0 && !this.#isFull()) this.#dispatch(message);
    else (this.#held ??= []).push(message);
  }
  response(): void { this.error('PROTOCOL_ERROR', 'Cannot take a reply: this side asks nothing'); }
  control(word: Control, argument: Tag | string, count: number): void {
    if (word === 'cancel') this.#cancel(argument as Tag);
    else if (word === 'credit') this.#find(argument as Tag)?.credit(count);
    else if (word === 'gone') this.#gone(argument as string);
    else if (word === 'goodbye') this.#abortAll('the client said goodbye');
  }
  command(line: string, tag: Tag): void {
    const [name = '', ...words] = line.slice(1).split(' ');
    if (!this.#admits(name === 'token' ? words.join(' ') : undefined)) return;
    const reply = name === 'token' ? 'ok' : Object.hasOwn(COMMANDS, name) ? COMMANDS[name]?.(this.hub) : undefined;
    if (reply !== undefined) return this.message({ tag, text: '', answer: ['reply', reply] });
    this.error('BAD_MESSAGE', `Cannot run ${quoted(line.slice(0, 40))}: expected ` +
      `${Object.keys(COMMANDS).map((word) => `$${word}`).join(', ')}, or $$ for a text that begins with $`, tag);
  }
  error(code: ErrorCode, text: string, tag?: Tag): void {
    if (this.#state === 'over' || !this.#admits()) return;
    const most = this.hub.limits.maxProtocolErrors, error = new MicroError(code, text);
    const why = `Cannot go on after ${most} errors: ${text}`;
    if (code === 'MESSAGE_TOO_LARGE') this.hub.met('maxMessageBytes');
    if (++this.#errors > most) this.#endAt('maxProtocolErrors', 'PROTOCOL_ERROR', why);
    else if (tag === undefined || this.#find(tag)) this.#encode('notice', error);
    else this.message({ tag, text: '', answer: ['error', error] });
  }
  write(bytes: Body): void { this.#outbox.push(bytes); }
  /** Refuses lingeringly: what the peer still sends is read and dropped, so that it can read why. */
  close(last: MicroError | Body = ''): void {
    if (this.#state === 'over') return;
    this.#abortAll('the connection was refused');
    if (last !== '') publish('rejected', () => ({ client: this.client(), last }));
    if (last instanceof MicroError) this.#encode('goodbye', last); else this.write(last);
    this.#linger(LINGER_MS.refused);
  }
  #endAt(limit: keyof Limits, code: ErrorCode, text: string): void {
    const outcome = this.inFlight > 0 ? 'maybe done' : 'refused'; this.hub.met(limit); // the former: it ends those too
    this.close(new MicroError(code, text, { outcome }));
  }
  /** Whether the peer may ask at all: then the service meets it. If not, it is told and the connection ends. */
  #admits(token?: string): boolean {
    this.#partialBytes = 0; if (this.#isMet) return true; // what is held from here on is another message
    if (!this.#isAuthorized && token !== undefined) this.#isAuthorized = isSame(token, this.hub.options.token);
    this.#isMet = this.#isAuthorized && this.#refusal === undefined && this.#state !== 'over';
    if (this.#isMet) publish('accepted', () => ({ client: this.client() }));
    if (this.#isMet) this.hub.fenced('connected', () => this.hub.service.connected?.(this.client()));
    else this.close(this.#refusal ?? new MicroError('UNAUTHORIZED', token === undefined
      ? 'Cannot serve without a token. Send `$token SECRET` first, or set the client\'s option'
      : 'Cannot serve with this token. Ask who runs the server for the right one'));
    return this.#isMet;
  }
  // Requests.
  #isFull(): boolean {
    const { maxInFlight, maxOutputBytes } = this.hub.limits;
    return this.inFlight >= maxInFlight || this.#duplex.writableLength > maxOutputBytes / 4;
  }
  #dispatch(message: Held): void {
    const { hub } = this; this.#turn--;
    if (message.answer !== undefined) return this.#answer(new Request(this, message, 0, hub.now), ...message.answer);
    const { tag, text, id, timeoutMs = this.#timeoutMs ?? Infinity } = message;
    if (this.#find(tag)) return this.error('PROTOCOL_ERROR', `Cannot take slot ${String(tag)} twice`, tag);
    const request = new Request(this, message, Math.min(timeoutMs, hub.limits.callbackTimeoutMs), hub.now);
    if (hub.isDraining) return this.failed(request, stopped());
    hub.counts.requests++; let value: unknown;
    try {
      value = id === undefined || !hub.options.dedupe ? hub.service.callback(text, request)
        : this.#once(id, request, hub.options.dedupe);
    } catch (error) { return this.failed(request, error); }
    if (typeof value !== 'string') return this.#await(request, value);
    this.#handled++;
    this.#reply(request, value);
  }
  /** The same id gets the same reply, and runs once. What still runs is not forgotten for newer ones. */
  #once(id: string, request: Request, maxReplies: number): unknown {
    const { oldest, replies, running, service } = this.hub;
    const known = replies.get(id) ?? running.get(id);
    if (known !== undefined) return typeof known === 'string' ? known : again(known);
    let value: unknown;
    try { value = service.callback(request.message.text, request); } catch (error) { value = Promise.reject(error); }
    const reply = typeof value === 'string' ? value : Promise.resolve(value);
    const keep = () => {
      running.delete(id); replies.set(id, reply);
      if (replies.size > maxReplies) replies.delete(oldest.next().value as string);
    };
    if (typeof reply === 'string') keep(); else { running.set(id, reply); reply.then(keep, keep); }
    return reply;
  }
  #await(request: Request, value: unknown): void {
    this.hub.alarm.at(request.dueAt = this.hub.now + request.limitMs);
    (this.#requests ??= []).push(request);
    try { // a proxy may throw when it is asked
      if (value instanceof Later) value.tell(request);
      else Promise.resolve(value).then((one) => request.resolve(one as Value), (error) => request.reject(error));
    } catch (error) { this.failed(request, error); }
  }
  take(request: Request, value: Value | undefined): void {
    try {
      if (typeof value === 'string' || value === null) return this.#reply(request, value ?? '');
      const onError = (error: unknown) => this.failed(request, error);
      if (isStream(value)) return void this.#stream(request, value[Symbol.asyncIterator]()).catch(onError);
      const what = value === undefined ? 'nothing' : typeof value;
      if (!Array.isArray(value?.parts)) throw new Error(`it answered with ${what}, expected a string`);
      if (this.#dialect?.multipart !== true) throw new Error('it answered in parts, which this dialect has not');
      this.#answer(request, 'reply', value.parts as readonly Body[]);
    } catch (error) { this.failed(request, error); }
  }
  #reply(request: Request, text: string): void {
    const { maxMessageBytes } = this.hub.limits;
    if (!isWellFormed(text)) return this.failed(request, new Error('its reply has half a surrogate pair'));
    if (!exceeds(text, maxMessageBytes)) return this.#answer(request, 'reply', text);
    this.hub.met('maxMessageBytes');
    this.failed(request, new MicroError('MESSAGE_TOO_LARGE', `Cannot send a reply of over ${maxMessageBytes} bytes. ` +
      'Page it, stream it, or raise maxMessageBytes', { outcome: 'failed' }));
  }
  failed(request: Request, error: unknown): void {
    let failure = new MicroError('CALLBACK_FAILED', textOf(error) || 'the service failed', { cause: error });
    try { if (error instanceof MicroError) failure = error; } catch { /* a proxy may throw when it is asked */ }
    this.#answer(request, 'error', failure);
  }
  /** Parts as the reader takes them: by its credit where the dialect has that, else as the socket drains. */
  async #stream(request: Request, iterator: AsyncIterator<unknown>): Promise<void> {
    const { limits: { maxMessageBytes: most }, alarm } = this.hub;
    const isOrdered = this.#dialect?.ordered === true;
    const ahead: number[] = []; let aheadBytes = 0; // lengths of the parts that the reader has not taken
    const hasRoom = () => this.#duplex.writableLength < WINDOW.bytes && (isOrdered
      ? this.#requests?.[0] === request : ahead.length < WINDOW.parts && aheadBytes < WINDOW.bytes);
    request.credit = (parts) => { for (const length of ahead.splice(0, parts)) aheadBytes -= length; request.wake(); };
    request.leave = () => this.hub.fenced('stream', () => iterator.return?.());
    for (;;) {
      request.dueAt = Infinity; // the reader's time is not the service's
      while (!request.isSettled && !hasRoom()) await new Promise<void>((wake) => { request.wake = wake; });
      if (request.isSettled) return request.leave(); // perhaps settled before it could be left
      alarm.at(request.dueAt = now() + request.limitMs);
      const { done, value } = await iterator.next();
      if (request.isSettled) return;
      if (done === true) break;
      const isFit = typeof value === 'string' && isWellFormed(value) && !exceeds(value, most);
      if (!isFit) throw new Error('a part of its stream is no string, or too long');
      if (!isOrdered) ahead.push(value.length);
      aheadBytes += value.length;
      this.#encode('part', value, request.message);
    }
    request.leave = NOTHING_TO_DO;
    this.#answer(request, 'end', '');
  }
  /** Answers a request, once. Where the dialect is ordered, the bytes wait for their turn. */
  #answer(request: Request, kind: Kind, body: Answer[1]): void {
    if (request.isSettled) return;
    request.settle();
    const requests = this.#requests ?? NONE, at = requests.indexOf(request);
    if (at !== -1) {
      if (!this.#outbox.isScheduled) { this.hub.now = now(); this.#outbox.gather(); } // once a tick
      this.hub.latency.record(this.hub.now - request.since, 1);
    }
    if (requests.length === 0 || this.#dialect?.ordered !== true) {
      if (at !== -1) { requests[at] = requests.at(-1)!; requests.pop(); }
      this.#encode(kind, body, request.message);
    } else {
      request.answer = [kind, body];
      if (at === -1) requests.push(request);
      for (let first; (first = requests[0]) !== undefined;) {
        if (first.answer === undefined) { first.wake(); break; }
        requests.shift(); this.#encode(...first.answer, first.message);
      }
    }
    if (request.next === 'stopServer') this.hub.stopServer();
    const isLeft = request.next === 'close' && request.message.client === undefined;
    if (isLeft || this.#state === 'ending') this.finish();
    if (this.#held !== undefined) this.#pumpSoon();
  }
  #encode(kind: Kind, body: Answer[1], message?: Message): void {
    if (message?.oneWay === true) return;
    if (this.#duplex.writableLength > this.hub.limits.maxOutputBytes) return this.#cut('maxOutputBytes'); // one passes
    if (body instanceof MicroError) this.hub.counts.errors++;
    const bytes = (this.#codec ?? new PlainCodec(1)).encode(kind, body, message?.tag);
    this.hub.counts.bytes.out += bytes.length;
    this.write(bytes);
  }
  #cut(limit: keyof Limits): void { this.hub.met(limit); this.#duplex.destroy(); }
  #cancel(tag: Tag): void {
    const request = this.#find(tag), held = this.#held?.find((message) => message.tag === tag);
    const error = new MicroError('ABORTED', 'the caller gave up', { outcome: request ? 'maybe done' : 'refused' });
    if (request !== undefined) this.failed(request, request.abort(error));
    else if (held !== undefined) held.answer ??= ['error', error];
  }
  #timeOut(request: Request, why: string): void {
    if (request.isSettled) return; this.hub.met('callbackTimeoutMs');
    this.failed(request, request.abort(new MicroError('TIMEOUT', `${why}: the service still works on it`)));
  }
  #abortAll(why: string): void {
    for (const request of [...this.#requests ?? NONE]) {
      const isKept = request.message.id !== undefined && this.hub.options.dedupe; // its reply has a use still
      if (!isKept) request.abort(new MicroError('CONNECTION_LOST', why));
      request.settle();
    }
    this.#requests = this.#held = undefined;
  }
  client(id?: string): OwnClient {
    const near = this.#how.side === 'dialled' ? undefined : this.#duplex; // who was dialled speaks for others
    const own = this.#client ??= newClient(`${++this.hub.clients}`, this.#dialect?.name ?? '', near);
    if (id === undefined) return own;
    const known = this.#forwarded ??= new Map();
    let client = known.get(id);
    if (client === undefined) known.set(id, client = newClient(`${own.id}/${id}`, own.dialect));
    if (known.size > MAX_HELD.messages) this.#gone(known.keys().next().value as string);
    return client;
  }
  #gone(id: string): void { this.#forwarded?.get(id)?.leave(); this.#forwarded?.delete(id); }
  // Turns and room.
  #pumpSoon(): void { if (!this.#isPumping) setImmediate(() => this.#pump()); this.#isPumping = true; }
  /** Handles held messages, as many as are one connection's turn. */
  #pump(): void {
    const held = this.#held ?? []; let at = 0;
    this.#isPumping = false; this.hub.now = now(); this.#turn = this.hub.limits.maxLinesPerTick;
    while (at < held.length && this.#held === held && this.#turn > 0 && !this.#isFull()) this.#dispatch(held[at++]!);
    held.splice(0, at);
    if (held.length === 0) this.#held = undefined;
    this.#rest();
  }
  /** Behind each chunk, each turn and each drain: what goes on by itself, and whether it is read on. */
  #rest(): void {
    const { limits: { partialTimeoutMs, maxOutputBytes }, latency, alarm } = this.hub;
    const bytes = Math.max(this.#codec?.heldBytes ?? this.#head?.length ?? 0, this.#isAuthorized ? 0 : 1);
    if (this.#handled > 0) latency.record(now() - this.hub.now, this.#handled);
    this.#handled = 0;
    if (bytes > 0 && (this.#partialBytes === 0 || (this.#isAuthorized && bytes < this.#partialBytes))) {
      this.#partialSince = this.hub.now;
      alarm.at(this.hub.now + partialTimeoutMs);
    }
    this.#partialBytes = bytes;
    if (this.#held !== undefined && !this.#isFull()) this.#pumpSoon();
    else if (this.#state === 'ending') this.finish();
    const isPaused = this.#held !== undefined && (this.#held.length > MAX_HELD.messages ||
      this.#held.reduce((sum, { text }) => sum + text.length, 0) > MAX_HELD.bytes ||
      this.#duplex.writableLength > maxOutputBytes / 4);
    if (isPaused === this.#isPaused) return;
    this.#isPaused = isPaused;
    if (!isPaused) return void this.#duplex.resume();
    this.hub.met('maxInFlight'); this.#duplex.pause();
    alarm.at(this.hub.now + PAUSED_PING_MS);
  }
  /** The peer reads slowly. A socket's own timer sees what the system takes of one large write. */
  flooded(): void {
    if (this.#isFlooded) return; this.#isFlooded = true;
    const socket = this.#duplex as Duplex & Partial<Pick<Socket, 'setTimeout'>>;
    const most = this.hub.limits.outputTimeoutMs, step = most / 8; let since = 0, last = 0;
    const onQuiet = () => { // nothing was taken for a step: Node tells after one or two; in a row, since the first
      const at = now(); since = at - last > 1.5 * step ? at - step : since; last = at;
      const isStalled = socket.writableLength > 0 && at - since > most - step / 2;
      if (isStalled) this.#cut('outputTimeoutMs'); else socket.setTimeout?.(step, onQuiet);
    };
    socket.setTimeout?.(step, onQuiet);
    socket.once('drain', () => {
      this.#isFlooded = false; socket.setTimeout?.(0, onQuiet);
      for (const request of [...this.#requests ?? NONE]) request.wake();
      this.#rest();
    });
  }
  /** Ends what is overdue; tells when to look again. */
  look(at: number): number {
    const bytes = this.#state === 'open' ? this.#partialBytes : 0;
    let next = bytes === 0 ? Infinity : this.#partialSince + Math.max(this.hub.limits.partialTimeoutMs, bytes / 1.024);
    if (next <= at) this.#endAt('partialTimeoutMs', 'TIMEOUT', `Cannot wait longer than ${
      Math.round(at - this.#partialSince)} ms for ${this.#isAuthorized ? 'the rest of a message' : 'a token'}`);
    for (const request of [...this.#requests ?? NONE]) {
      if (request.dueAt <= at) this.#timeOut(request, `Cannot answer within ${Math.round(request.limitMs)} ms`);
      else next = Math.min(next, request.dueAt);
    }
    if (this.#isPaused) this.#ping(); // for the peer's are not read
    return this.#isPaused ? Math.min(next, at + PAUSED_PING_MS) : next;
  }
  #ping(): void {
    const ping = this.inFlight > 0 && !this.#duplex.writableNeedDrain ? this.#codec?.control?.('ping', 0) : undefined;
    if (ping !== undefined) this.write(ping);
  }
  // The end.
  /** Takes no more, answers what it has, then closes. */
  finish(): void {
    if (this.#state === 'over') return;
    this.#state = 'ending';
    if (this.inFlight > 0 || this.#held !== undefined) return;
    // All that was taken is answered: what else was sent is not read any more, and so has not run.
    const isTold = this.hub.isDraining && this.#codec?.control?.('draining') !== undefined;
    if (isTold) this.write(this.#codec!.encode('goodbye', stopped()));
    this.#linger(LINGER_MS.drained);
  }
  drain(): void {
    const draining = this.#codec?.control?.('draining');
    if (draining === undefined || this.#state !== 'open') return this.finish();
    this.write(draining);
    setTimeout(() => this.finish(), LINGER_MS.draining); // what the peer asked before it read that is refused
  }
  /** The end of a drain: what is still in flight is answered with an error. */
  cutOff(): void {
    for (const one of [...this.#requests ?? NONE]) this.#timeOut(one, 'Cannot finish before the server stops');
    this.#held = undefined; this.finish();
    setTimeout(() => this.#duplex.destroy(), 2 * LINGER_MS.drained);
  }
  #linger(ms: number): void {
    if (this.#state === 'over') return;
    this.#state = 'over'; this.#outbox.flush(); this.#duplex.end();
    this.flooded(); this.#duplex.resume();
    setTimeout(() => this.#duplex.end(() => this.#duplex.destroy()), ms).unref(); // once all is written
  }
  #closed(): void {
    const { hub } = this; this.#state = 'over'; this.#abortAll('the connection was lost');
    if (this.#refusal !== undefined) hub.refusing--;
    for (const id of this.#forwarded?.keys() ?? []) this.#gone(id);
    this.#client?.leave();
    if (this.#isMet) publish('disconnected', () => ({ client: this.client() }));
    if (this.#isMet) hub.fenced('disconnected', () => hub.service.disconnected?.(this.client()));
    if (hub.connections.delete(this) && hub.connections.size === 0) hub.onEmpty();
  }
}
interface OwnClient extends Client { identity?: string; leave(): void }
/** Without a duplex it is behind a router, and never counts as loopback; a Unix socket does. */
function newClient(id: string, dialect: string, duplex?: Duplex): OwnClient {
  const { remoteAddress: host, remotePort } = (duplex ?? {}) as Partial<Socket>;
  const gone = new AbortController();
  return { id, dialect, address: host === undefined ? '' : `${host}:${remotePort}`, state: new Map(),
    loopback: duplex !== undefined && (host === undefined || LOOPBACK.test(host)),
    signal: gone.signal, leave: () => gone.abort() };
}
/** One request and its context. Plain fields: one is made a message. */
export class Request implements Context, Settling {
  readonly connection: Connection; readonly message: Message; readonly limitMs: number; readonly since: number;
  dueAt = Infinity; isSettled = false; answer: Answer | undefined = undefined;
  next: 'close' | 'stopServer' | undefined = undefined; // once it is answered; closes no router's connection
  wake = NOTHING_TO_DO; leave = NOTHING_TO_DO; // of a stream: goes on if it may; returns its iterator
  credit: (parts: number) => void = NOTHING_TO_DO;
  controller: AbortController | undefined = undefined; onward: { left(): void } | undefined = undefined; // at a router
  constructor(connection: Connection, message: Message, limitMs: number, since: number) {
    this.connection = connection; this.message = message; this.limitMs = limitMs; this.since = since;
  }
  get signal(): AbortSignal { return (this.controller ??= new AbortController()).signal; }
  get deadline(): number { return Date.now() + this.limitMs - (now() - this.since); }
  get parts(): readonly Uint8Array[] | undefined { return this.message.parts; }
  get client(): Client { return this.connection.client(this.message.client); }
  resolve(value: Value): void { this.connection.take(this, value); }
  reject(error: unknown): void { this.connection.failed(this, error); }
  close(): void { this.next ??= 'close'; }
  stopServer(): void { this.next = 'stopServer'; }
  abort(reason: MicroError): MicroError { (this.controller ??= new AbortController()).abort(reason); return reason; }
  settle(): void {
    this.isSettled = true; this.dueAt = Infinity; // though its turn may not have come
    this.wake(); this.leave(); this.onward?.left();
  }
}
// ---------------------------------------------------------------------------------------------------------- Lines
/** What a browser, a proxy or an SSH client says first: none of it may reach a callback. RFC 9110, 5.6.2: a token. */
const FOREIGN = /^(?:[!#$%&'*+.^_`|~\w-]+ \S+ (?:HTTP|RTSP|SIP)\/\d(?:\.\d)?[ \t]*$|Host[ \t]*:|SSH-\d)/i;
const UNREAD = /^[!#$%&'*+.^_`|~\w-]+ (?:\/|\w+:\/\/)/; // a request line that is too long, or not UTF-8
const REFUSED = 'This port speaks portcall, not HTTP: nothing was run. Use nc, or a MicroClient\n';
const HTTP_REFUSAL = 'HTTP/1.1 400 Bad Request\r\nServer: portcall\r\nContent-Type: text/plain\r\n' +
  `Content-Length: ${REFUSED.length}\r\nConnection: close\r\n\r\n${REFUSED}`;
/** The dialect of people and of every language: one line for one line, in order. Begins with anything but control. */
export function lines(): Dialect {
  return { name: 'lines', ordered: true, open: ({ maxMessageBytes }) => new PlainCodec(maxMessageBytes),
    matches: ([first = 0]) => (first === 0xff || (first < 32 && ![9, 10, 13].includes(first)) ? 'no' : 'yes') };
}
class PlainCodec extends LineCodec {
  #next = 0;
  #hasBegun = false; // a message came, so that no foreign protocol can
  request({ text }: Message): string { return `${text}\n`; }
  encode(kind: Kind, body: Body | readonly Body[] | MicroError): string {
    if (kind === 'end') return '\n';
    if (body instanceof MicroError) return `${errorText(body)}\n`;
    const text = body as string;
    if (kind === 'part' && text === '') return '\\e\n';
    return `${text.includes('\n') ? text.replaceAll('\n', '\\n') : text}\n`;
  }
  /** A last line without its LF counts when the peer half-closes. */
  end(sink: Sink): void { if (this.heldBytes > 0) this.receive(Buffer.from('\n'), sink); }
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
  protected bad(code: ErrorCode, why: string, head: string, sink: Sink): void {
    if (!this.#hasBegun && UNREAD.test(head)) sink.close(HTTP_REFUSAL); else sink.error(code, why, this.#next++);
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
const LOOPBACK = /^(?:(?:::ffff:)?127(?:\.\d+){3}|::1)$/; // no name that begins so
async function isLoopback(host: string): Promise<boolean> {
  const found = LOOPBACK.test(host) ? [{ address: host }] : await lookup(host, { all: true }).catch(() => []);
  return found.length > 0 && found.every(({ address }) => LOOPBACK.test(address));
}
const listenTcp: NonNullable<Transport['listen']> = async (address, _options, onSocket, onError) => {
  const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => onSocket(socket));
  await once(server.listen({ host: address.host, port: address.port, backlog: 1024 }), 'listening');
  server.on('error', onError);
  const { address: host, port } = server.address() as AddressInfo;
  return { address: { url: urlOf(host, port), scheme: 'tcp', host, port },
    async close() { server.close(); } }; // the socket at once; only its callback waits for connections
};
/** Who holds a port, where the file that finds it out is there too. */
const findHolder = (address: Address): Promise<string> =>
  (loadBeside('port_holder') as Promise<{ findHolder(address: Address): Promise<string> }>)
    .then((found) => found.findHolder(address)).catch(() => 'another process');
function openFilesLimit(): number {
  try { return Number(/^Max open files +(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1] ?? Infinity); }
  catch { return Infinity; } // no Linux: the system doesn't tell
}
const urlOf = (host: string, port = 0): string => `tcp://${host.includes(':') ? `[${host}]` : host}:${port}`;
const isStream = (value: unknown): value is AsyncIterable<unknown> =>
  typeof value === 'object' && value !== null && Symbol.asyncIterator in value;
async function again(kept: unknown): Promise<unknown> {
  if (isStream(await kept)) throw new Error('its reply was a stream, which is not kept for a second ask');
  return kept;
}
const stopped = () => new MicroError('SERVER_BUSY', 'Cannot take it: the server stops');
const digest = (secret: string): Buffer => createHash('sha256').update(secret).digest();
/** Digests are of one length, so that the time taken tells nothing. */
const isSame = (secret: string, other = ''): boolean => timingSafeEqual(digest(secret), digest(other));
