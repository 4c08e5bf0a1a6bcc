/** Real ZeroMQ sockets: programs of `test/interop` on a Python that has pyzmq. */
import { spawn, spawnSync, type ChildProcessByStdio } from 'node:child_process';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { within } from './deadline.ts';

const ANSWER_MS = 15_000;
const findPython = (): string | undefined => ['python3', '/usr/bin/python3'].find((python) =>
  spawnSync(python, ['-c', 'import zmq'], { timeout: 10_000, stdio: 'ignore' }).status === 0);
/** A Python that can `import zmq`, if there is one. */
export const PYTHON = findPython();
export const NO_PYZMQ = PYTHON === undefined
  ? 'no python3 here can import zmq: apt-get install python3-zmq' : undefined;

export type Part = string | Uint8Array;
type Bytes = readonly Part[];

/** A program of `test/interop`: its lines, in order. */
export class Program {
  readonly #child: ChildProcessByStdio<Writable, Readable, Readable>;
  readonly #lines;
  #stderr = '';

  constructor(file: string, ...words: string[]) {
    const path = fileURLToPath(new URL(`../interop/${file}`, import.meta.url));
    this.#child = spawn(PYTHON as string, ['-u', path, ...words], { stdio: ['pipe', 'pipe', 'pipe'] });
    this.#child.stderr.setEncoding('utf8').on('data', (text: string) => { this.#stderr += text; });
    this.#child.stdin.on('error', () => {}); // its end is told by the line that never comes
    this.#lines = createInterface(this.#child.stdout)[Symbol.asyncIterator]();
  }

  write(line: string): void { this.#child.stdin.write(`${line}\n`); }

  async line(what: string, ms = ANSWER_MS): Promise<string> {
    const { value, done } = await within(ms, this.#lines.next(), what);
    if (done === true) throw new Error(`Cannot get ${what}: the program has ended. ${this.#stderr}`);
    return value;
  }

  async end(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const gone = new Promise<void>((resolve) => { this.#child.once('exit', () => resolve()); });
    this.#child.kill('SIGKILL');
    await within(ANSWER_MS, gone, 'the end of a Python program');
  }
}

export interface SocketOptions {
  /** As pyzmq names them: `{ HEARTBEAT_IVL: 50 }`. */
  options?: Record<string, number | string>;
  connect?: string;
  bind?: boolean;
  /** So that {@link PySocket.failure} sees what happens. */
  watch?: boolean;
}

/** Sockets of one process of libzmq. */
export class PyZmq {
  readonly #program: Program;
  readonly versions: { zmq: string; pyzmq: string };
  #last: Promise<unknown> = Promise.resolve();

  private constructor(program: Program, versions: { zmq: string; pyzmq: string }) {
    this.#program = program;
    this.versions = versions;
  }

  static async start(): Promise<PyZmq> {
    const program = new Program('sockets.py');
    return new PyZmq(program, JSON.parse(await program.line('the first line of sockets.py')));
  }

  /** One question at a time: the program is not asynchronous. */
  ask<T>(command: string, args: object, ms = ANSWER_MS): Promise<T> {
    const answer = this.#last.catch(() => {}).then(async () => {
      this.#program.write(JSON.stringify([command, args]));
      const { value, error } = JSON.parse(await this.#program.line(`the answer to "${command}"`, ms)) as
        { value: T; error?: string };
      if (error !== undefined) throw new Error(`Cannot ${command}: ${error}`);
      return value;
    });
    this.#last = answer;
    return answer;
  }

  async socket(kind: string, { options = {}, ...rest }: SocketOptions): Promise<PySocket> {
    const { socket, port } = await this.ask<{ socket: number; port: number | null }>('make', { kind, options, ...rest });
    return new PySocket(this, socket, port ?? 0);
  }

  end(): Promise<void> { return this.#program.end(); }
}

export class PySocket {
  readonly #zmq: PyZmq;
  readonly #id: number;
  readonly port: number;

  constructor(zmq: PyZmq, id: number, port: number) {
    this.#zmq = zmq;
    this.#id = id;
    this.port = port;
  }

  send(...messages: Bytes[]): Promise<void> {
    const packed = messages.map((parts) => parts.map((part) => Buffer.from(part as string).toString('base64')));
    return this.#zmq.ask('send', { socket: this.#id, messages: packed });
  }

  async receive(count = 1): Promise<Buffer[][]> {
    const messages = await this.#zmq.ask<string[][]>('receive', { socket: this.#id, count });
    return messages.map((parts) => parts.map((part) => Buffer.from(part, 'base64')));
  }

  /** The next message, its parts as text. */
  async text(): Promise<string[]> {
    const [message = []] = await this.receive();
    return message.map(String);
  }

  async call(...parts: Part[]): Promise<string[]> {
    await this.send(parts);
    return this.text();
  }

  /** Sends so many bytes in one part, and checks that they come back. */
  bounce(size: number, { times = 1, head = [] }: { times?: number; head?: readonly string[] } = {}): Promise<void> {
    const packed = head.map((part) => Buffer.from(part).toString('base64'));
    return this.#zmq.ask('bounce', { socket: this.#id, size, times, head: packed }, 60_000);
  }

  /** The next failed handshake that libzmq tells of; null if none comes. */
  failure(ms: number): Promise<{ event: string; value: number } | null> {
    return this.#zmq.ask('failure', { socket: this.#id, ms });
  }

  close(): Promise<void> { return this.#zmq.ask('close', { socket: this.#id }); }
}

/** Runs `server.py`, does `task` to its port, and ends it. */
export async function withPyServer<T>(kind: 'rep' | 'router' | 'broker', task: (port: number) => Promise<T>): Promise<T> {
  const program = new Program('server.py', kind);
  try {
    return await task(Number(await program.line(`the port of server.py ${kind}`)));
  } finally {
    await program.end();
  }
}
