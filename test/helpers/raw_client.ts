/** A socket and nothing else: bytes are written as they are, and read as lines, counts or up to FIN. */
import { connect, type Socket } from 'node:net';
import { within } from './deadline.ts';

const LF = 10;
export const WAIT_MS = 5_000;

export class RawClient {
  readonly socket: Socket;
  /** Resolves at the peer's FIN, with true; with false, if the connection ended otherwise. */
  readonly ended: Promise<boolean>;
  /** Resolves when the connection is gone, with the error that ended it, if there was one. */
  readonly closed: Promise<Error | undefined>;
  bytesRead = 0;
  #pieces: Buffer[] = [];
  #state: 'open' | 'ended' | 'closed' = 'open';
  #error: Error | undefined;
  #wake = (): void => {};

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.on('data', (piece) => {
      this.bytesRead += piece.length;
      this.#pieces.push(piece as Buffer);
      this.#wake();
    });
    this.ended = new Promise((resolve) => {
      socket.on('end', () => { this.#state = 'ended'; this.#wake(); resolve(true); });
      socket.on('close', () => resolve(false));
    });
    this.closed = new Promise((resolve) => {
      socket.on('error', (error) => { this.#error = error; });
      socket.on('close', () => { this.#state = 'closed'; this.#wake(); resolve(this.#error); });
    });
  }

  /** Connects to a port of 127.0.0.1, or to the path of a Unix socket. */
  static async connect(port: number | string, ms = WAIT_MS): Promise<RawClient> {
    const where = typeof port === 'string' ? { path: port } : { host: '127.0.0.1', port };
    const socket = connect({ ...where, allowHalfOpen: true, noDelay: true });
    await within(ms, new Promise((resolve, reject) => {
      socket.once('connect', resolve).once('error', reject);
    }), `a connection to ${port}`).catch((error: unknown) => {
      socket.destroy();
      throw error;
    });
    return new RawClient(socket);
  }

  /** Connects, does `task`, and leaves no socket behind. */
  static async with<T>(port: number | string, task: (client: RawClient) => Promise<T>): Promise<T> {
    const client = await RawClient.connect(port);
    try {
      return await task(client);
    } finally {
      client.socket.destroy();
    }
  }

  /** Resolves when the system has taken the bytes; also when the peer is gone. */
  write(bytes: string | Uint8Array): Promise<void> {
    return new Promise((resolve) => { this.socket.write(bytes, () => resolve()); });
  }

  /** Writes in slices, each in a packet of its own: of `size` bytes, or as `size` says each time. */
  async writeSlices(bytes: string | Uint8Array, size: number | (() => number),
    between?: () => Promise<unknown>): Promise<void> {
    const all = Buffer.from(bytes as Uint8Array);
    for (let at = 0; at < all.length;) {
      const end = at + (typeof size === 'number' ? size : size());
      if (at > 0) await between?.();
      await this.write(all.subarray(at, end));
      at = end;
    }
  }

  /** Half-closes. */
  fin(bytes?: string | Uint8Array): void {
    if (bytes === undefined) this.socket.end();
    else this.socket.end(bytes);
  }

  /** Sends RST: what the system still holds of either side is dropped. */
  reset(): void {
    this.socket.resetAndDestroy();
  }

  /** The next line, without its LF. A line cut off by the end is an error. */
  async readLine(ms = WAIT_MS, what = 'a line'): Promise<string> {
    return (await this.#take((held) => held.indexOf(LF) + 1, ms, what)).subarray(0, -1).toString();
  }

  async readLines(count: number, ms = WAIT_MS, what = `line`): Promise<string[]> {
    const end = performance.now() + ms;
    const lines: string[] = [];
    while (lines.length < count) {
      const named = `${what} ${lines.length + 1} of ${count}`;
      const first = await this.readLine(Math.max(1, end - performance.now()), named);
      lines.push(first);
      const held = this.#held(); // all whole lines at once: one at a time costs a copy each
      let [start, lf] = [0, 0];
      while (lines.length < count && (lf = held.indexOf(LF, start)) !== -1) {
        lines.push(held.toString('utf8', start, lf));
        start = lf + 1;
      }
      this.#pieces = start === held.length ? [] : [held.subarray(start)];
    }
    return lines;
  }

  readBytes(count: number, ms = WAIT_MS, what = `${count} bytes`): Promise<Buffer> {
    return this.#take((held) => (held.length >= count ? count : 0), ms, what);
  }

  /** All that comes up to the peer's FIN. A reset is an error, with the bytes before it in its message. */
  async readToFin(ms = WAIT_MS, what = 'FIN'): Promise<Buffer> {
    const isEnd = await within(ms, this.ended, `${what} (so far: ${this.#sofar()})`)
      .catch((error: unknown) => { throw this.#said(error as Error); });
    if (!isEnd) throw new Error(`Cannot read up to ${what}: ${this.#why()}`);
    const all = this.#held();
    this.#pieces = [];
    return all;
  }

  /** Writes, half-closes, and resolves with all that is answered. */
  async ask(bytes: string | Uint8Array, ms = WAIT_MS): Promise<string> {
    this.fin(bytes);
    return (await this.readToFin(ms, 'the answer and FIN')).toString();
  }

  #held(): Buffer {
    if (this.#pieces.length > 1) this.#pieces = [Buffer.concat(this.#pieces)];
    return this.#pieces[0] ?? Buffer.alloc(0);
  }

  async #take(length: (held: Buffer) => number, ms: number, what: string): Promise<Buffer> {
    const end = performance.now() + ms;
    for (;;) {
      const held = this.#held();
      const bytes = length(held);
      if (bytes > 0) {
        this.#pieces = [held.subarray(bytes)];
        return held.subarray(0, bytes);
      }
      if (this.#state !== 'open') throw new Error(`Cannot read ${what}: ${this.#why()}`);
      const left = Math.max(1, Math.round(end - performance.now()));
      await within(left, new Promise<void>((resolve) => { this.#wake = resolve; }), what)
        .catch((error: unknown) => { throw this.#said(error as Error); });
    }
  }

  #said(error: Error): Error {
    error.message += `; so far: ${this.#sofar()}`;
    return error;
  }

  #sofar(): string {
    const held = this.#held();
    return `${held.length} bytes ${JSON.stringify(held.toString('latin1', 0, 200))}`;
  }

  #why(): string {
    const how = this.#state === 'ended' ? 'the peer sent FIN'
      : `the connection closed (${this.#error?.message ?? 'no error'})`;
    return `${how} after ${this.#sofar()}`;
  }
}
