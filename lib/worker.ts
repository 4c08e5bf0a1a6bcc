/**
 * A worker: a server that dials. `new MicroWorker((message) => reply(message), 'BACK')` joins the
 * router at that address and answers what it is sent, until the router goes; then it dials again.
 */
import { randomUUID } from 'node:crypto';
import { connect } from 'node:net';
import type { Duplex } from 'node:stream';
import { Heartbeat, type HeartbeatOptions } from './heartbeat.ts';
import { loadService } from './load_service.ts';
import {
  MicroError, frames, loadTransport, logToStderr, now, positive, quoted, resolveAddress, textOf,
} from './micro_client.ts';
import type { Address, Codec, Dialect, ErrorCode, Log, Sink, Transport } from './micro_client.ts';
import { MicroServer } from './micro_server.ts';
import type { Callback, ServerOptions, Service, Stats } from './micro_server.ts';
import { threaded } from './threads.ts';

type Unused = 'host' | 'insecure' | 'dialects' | 'maxConnections'; // of who never listens
export interface WorkerOptions extends Omit<ServerOptions, Unused> {
  id?: string; // what the router knows it by, of all its workers; default: one by chance
  heartbeat?: HeartbeatOptions; // by which it judges the router
  threads?: number; // that run the callback, which must be a file's then; default: this one alone
  connectTimeoutMs?: number; // for a dial; default 5,000
}

export class MicroWorker {
  /** What the router knows it by. */
  readonly id: string;
  readonly #service: Callback | Service | URL | string;
  readonly #back: string | number;
  readonly #options: WorkerOptions;
  #membership: Membership | undefined; #stopping: Promise<void> | undefined;

  /**
   * @param service A callback, a service, or a file that has either as its default export.
   * @param back The router's back: a key of ports.json, a port, or an address.
   * @throws {TypeError | RangeError} Wrong options. A wrong address is told by `start`.
   */
  constructor(
    service: Callback | Service | URL | string, back: string | number, options: WorkerOptions = {},
  ) {
    const { id = randomUUID(), threads } = options;
    if (threads !== undefined && !isFile(service)) {
      throw new TypeError(`Cannot run ${quoted(service)} in threads: ` +
        'expected a file, since functions can\'t cross');
    }
    if (typeof id !== 'string' || !/^.{1,128}$/u.test(id)) {
      throw new TypeError(`Cannot use id ${quoted(id)}: expected 1 to 128 letters`);
    }
    // Made only to tell what is wrong with them.
    new MicroServer(isFile(service) ? () => null : service, back, options);
    new Heartbeat(options.heartbeat);
    positive(options, 'connectTimeoutMs', CONNECT_TIMEOUT_MS);
    this.id = id;
    this.#service = service;
    this.#back = back;
    this.#options = options;
  }

  /**
   * Dials until it has joined, and again whenever the router goes; resolves with the router's address.
   * A router that is not there yet is waited for, up to `stop()`.
   * @throws {MicroError} `BAD_ADDRESS`, `UNKNOWN_SERVICE`, `BAD_PORTS_FILE`, `UNAUTHORIZED`,
   *   `PROTOCOL_ERROR`: it will never join so. `CLOSED`: it was stopped before.
   */
  async start(): Promise<Address> {
    await this.#stopping;
    const membership = this.#membership ??=
      new Membership(this.#service, this.#back, { ...this.#options, id: this.id });
    try {
      return await membership.joined;
    } catch (error) {
      // What it opened is closed, so that it may be started again.
      if (this.#membership === membership) await this.stop({ graceMs: 0 });
      throw error;
    }
  }

  /** Takes no more, answers what it has (for `graceMs`, by default `drainMs`), leaves the router. */
  stop(options: { graceMs?: number } = {}): Promise<void> {
    const membership = this.#membership;
    this.#membership = undefined;
    if (membership !== undefined) this.#stopping = membership.stop(options);
    return this.#stopping ?? Promise.resolve();
  }

  /** Of what it answers; nothing before it was started. */
  stats(): Stats | undefined { return this.#membership?.stats(); }
}

const CONNECT_TIMEOUT_MS = 5_000;
/** What another try will not mend: a start fails with it. */
const FATAL: ReadonlySet<ErrorCode> = new Set([
  'BAD_ADDRESS', 'UNKNOWN_SERVICE', 'BAD_PORTS_FILE', 'UNAUTHORIZED', 'PROTOCOL_ERROR',
]);
const isFile = (service: unknown): service is URL | string =>
  typeof service === 'string' || service instanceof URL;

/** One connection to the router. */
interface Link {
  readonly duplex: Duplex; readonly address: Address;
  hasJoined: boolean; isClosed: boolean;
  end: Error | undefined; // why it ended, where the router or the system said so
  ping: () => void;
}

/** From a start to its stop: one connection at a time. */
class Membership {
  readonly joined: Promise<Address>;
  readonly #service: Callback | Service | URL | string;
  readonly #back: string | number;
  readonly #options: WorkerOptions & { id: string }; readonly #log: Log;
  readonly #heartbeat: Heartbeat<Link>; readonly #ticks: NodeJS.Timeout;
  #server: MicroServer | undefined;
  #joins!: (address: Address) => void; #fails!: (error: unknown) => void;
  #address: Address | undefined; #link: Link | undefined;
  #isOver = false; #hasJoined = false;
  #failures = 0; #told = ''; // in a row; and what was said of the last
  #redial: NodeJS.Timeout | undefined;
  readonly #opened: Promise<void>;

  constructor(service: Callback | Service | URL | string, back: string | number,
    options: WorkerOptions & { id: string }) {
    this.#service = service;
    this.#back = back;
    this.#options = options;
    this.#log = options.log ?? logToStderr;
    this.#heartbeat = new Heartbeat(options.heartbeat);
    this.#ticks = setInterval(() => this.#beat(), this.#heartbeat.intervalMs).unref();
    this.joined = new Promise((resolve, reject) => { this.#joins = resolve; this.#fails = reject; });
    this.#opened = this.#open().catch((error: unknown) => this.#giveUp(error));
  }

  stats(): Stats | undefined { return this.#server?.stats(); }

  /** Dials no more. */
  #leave(): void {
    this.#isOver = true;
    clearTimeout(this.#redial);
  }

  async stop(options: { graceMs?: number }): Promise<void> {
    this.#leave();
    this.#fails(new MicroError('CLOSED', `Cannot join ${quoted(this.#back)}: the worker was stopped`));
    this.joined.catch(() => {}); // who waits is told; nobody has to
    await this.#opened; // what it started is stopped below
    if (this.#link?.hasJoined === false) this.#link.duplex.destroy();
    await this.#server?.stop(options);
    clearInterval(this.#ticks);
  }

  async #open(): Promise<void> {
    const { threads } = this.#options;
    let service = this.#service;
    if (isFile(service)) {
      const { log } = this.#options;
      service = await (threads === undefined ? loadService(service)
        : threaded(service, { threads, ...(log !== undefined && { log }) }));
    }
    this.#server = new Answering(service, this.#back, this.#options, () => this.#leave());
    await this.#dial();
  }

  /** Nothing can come of it. */
  #giveUp(error: unknown): void {
    this.#isOver = true;
    clearInterval(this.#ticks);
    this.#fails(error);
  }

  /** @throws {MicroError} The address is wrong, at the first dial; later ones stay with the old one. */
  async #dial(): Promise<void> {
    const { ports, connectTimeoutMs = CONNECT_TIMEOUT_MS } = this.#options;
    try {
      this.#address = resolveAddress(this.#back, ports); // read again at each dial
    } catch (error) {
      if (this.#address === undefined) throw error;
      this.#tell(`${textOf(error)}; staying with ${this.#address.url}`);
    }
    const address = this.#address;
    const transport = /^(?:tcp|ipc)$/.test(address.scheme) ? NET : await loadTransport(address.scheme);
    if (transport.dial === undefined) {
      const why = 'it can only be listened on, expected what can be dialled';
      throw new MicroError('BAD_ADDRESS', `Cannot dial ${address.url}: ${why}`);
    }
    if (this.#isOver) return;
    const ready = () => { clearTimeout(late); this.#serve(link); };
    const duplex = transport.dial(address, { options: this.#options, ready, receive: () => {} });
    const link: Link = { duplex, address, hasJoined: false, isClosed: false, end: undefined, ping: () => {} };
    this.#link = link;
    const onLate = () => link.duplex.destroy(new Error(`no connection within ${connectTimeoutMs} ms`));
    const late = setTimeout(onLate, connectTimeoutMs);
    link.duplex.on('error', (error) => { link.end ??= error; });
    link.duplex.once('close', () => { clearTimeout(late); this.#closed(link); });
  }

  #serve(link: Link): void {
    const { id, token } = this.#options;
    const hello = { role: 'worker', node: id, ...(token !== undefined && { token }) };
    link.duplex.on('data', () => this.#heartbeat.heard(link));
    this.#heartbeat.heard(link);
    const dialect = attentive(link, () => this.#greeted(link));
    this.#server?.serve(link.duplex, { side: 'dialled', hello, dialect });
  }

  /** The router has taken it, as far as it said by now. */
  #greeted(link: Link): void {
    if (link.hasJoined || this.#isOver) return;
    link.hasJoined = true;
    this.#hasJoined = true;
    this.#failures = 0;
    this.#told = '';
    this.#log('info', `Joined ${link.address.url} as worker ${quoted(this.#options.id)}`);
    this.#joins(link.address);
  }

  #closed(link: Link): void {
    link.isClosed = true;
    this.#heartbeat.leave(link);
    if (this.#isOver) return;
    const { address: { url }, end } = link;
    if (end instanceof MicroError && FATAL.has(end.code) && !this.#hasJoined) return this.#giveUp(end);
    this.#retry(`Cannot ${link.hasJoined ? 'stay with' : 'join'} the router at ${url}: ` +
      `${end === undefined ? 'it closed the connection' : textOf(end)}. It is dialled again`,
    end instanceof MicroError ? end.retryAfterMs : undefined);
  }

  /** Full jitter, 50 ms doubling to 900, as clients do: not all meet a router that comes back at once. */
  #retry(why: string, afterMs = 0): void {
    this.#tell(why);
    const backOffMs = Math.random() * Math.min(900, 50 * 2 ** Math.min(this.#failures++, 5));
    this.#redial = setTimeout(() => {
      this.#dial().catch((error: unknown) => { if (!this.#isOver) this.#retry(textOf(error)); });
    }, afterMs + backOffMs);
  }

  /** Once, as long as it stays the same. */
  #tell(text: string): void {
    if (text !== this.#told) this.#log('warn', text);
    this.#told = text;
  }

  #beat(): void {
    const why = `nothing came of it for ${this.#heartbeat.outAfterMs} ms`;
    for (const link of this.#heartbeat.tick(now())) link.duplex.destroy(new Error(why));
    if (this.#link?.isClosed === false) this.#link.ping();
  }
}

/** What answers. A callback may stop it too: then the worker leaves. */
class Answering extends MicroServer {
  readonly #left: () => void;
  constructor(
    service: Callback | Service, back: string | number, options: ServerOptions, left: () => void,
  ) {
    super(service, back, options);
    this.#left = left;
  }
  override stop(options?: { graceMs?: number }): Promise<void> {
    this.#left();
    return super.stop(options);
  }
}

/** Frames, with an ear for what a server doesn't tell: that it was greeted, and why it ended. */
function attentive(link: Link, greeted: () => void): Dialect {
  const plain = frames();
  return { ...plain, open(options): Codec {
    const codec = plain.open(options);
    let connection: Sink | undefined;
    let isGreeted = false;
    const ear: Sink = {
      hello: (fields) => { isGreeted = true; connection?.hello?.(fields); },
      message: (message) => connection?.message(message),
      response: (...told) => connection?.response(...told),
      control: (...told) => connection?.control?.(...told),
      error: (...told) => connection?.error(...told),
      write: (bytes) => connection?.write(bytes),
      close: (last) => {
        if (last instanceof MicroError) link.end = last;
        isGreeted = false;
        connection?.close(last);
      },
    };
    return {
      get heldBytes() { return codec.heldBytes; },
      start(sink) {
        connection = sink;
        link.ping = () => { if (isGreeted) sink.write(codec.control?.('ping', 0) ?? ''); };
        codec.start?.(sink);
      },
      receive(chunk) {
        codec.receive(chunk, ear);
        if (isGreeted) greeted(); // and not refused in the same breath
      },
      request: (message) => codec.request(message),
      encode: (...told) => codec.encode(...told),
      control: (...told) => codec.control?.(...told),
    };
  } };
}

/** Half-open, unlike a client's: what was asked before the router's FIN is still answered. */
const NET: Transport = {
  dial({ host, port, path }, { ready }) {
    const where = path ? { path } : { host, port: port ?? 0 };
    const socket = connect({ ...where, noDelay: true, allowHalfOpen: true });
    return socket.once('connect', () => {
      // A free port in the range of outgoing ones may be dialled from itself, and connects.
      const { localPort, localAddress, remoteAddress } = socket;
      const isSelf = path === undefined && localPort === port && localAddress === remoteAddress;
      if (isSelf) socket.destroy(new Error('nobody listens there')); else ready();
    });
  },
};
