/** Programs run as processes of their own and asked over Node's IPC channel. Both halves. */
import { spawn, type ChildProcess } from 'node:child_process';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { within } from './deadline.ts';
import { builtProgram } from './programs_built.ts';

export interface ChildOptions {
  /** For node itself: `['--max-old-space-size=64']`. */
  flags?: readonly string[];
  env?: NodeJS.ProcessEnv;
  cwd?: string;
  /** Commands that start node: `['prlimit', '--nofile=64:64']`. They must exec it. */
  wrapper?: readonly string[];
}

interface Exit { code: number | null; signal: NodeJS.Signals | null }
interface Question { id: number; command: string; argument: unknown }
interface Answer { id: number; value?: unknown; error?: string }

const START_MS = 15_000;
const ASK_MS = 10_000;
const alive = new Set<ChildProcess>();
process.on('exit', () => { for (const child of alive) child.kill('SIGKILL'); });

export class Child {
  readonly process: ChildProcess;
  readonly name: string;
  readonly exited: Promise<Exit>;
  stderr = '';
  stdout = '';
  #lastId = 0;
  readonly #waiting = new Map<number, (answer: Answer) => void>();
  #firstLine = (_line: string): void => {};
  readonly #first = new Promise<string>((resolve) => { this.#firstLine = resolve; });

  /** @param program A file in `programs/`. It gets `argument` as JSON in its first argument. */
  constructor(program: string, argument: unknown, { flags = [], env, cwd, wrapper = [] }: ChildOptions = {}) {
    const [command = '', ...words] = [...wrapper, process.execPath, ...flags, builtProgram(program),
      JSON.stringify(argument)];
    this.name = program;
    const child = spawn(command, words, { cwd, stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
      env: { ...process.env, NODE_OPTIONS: '', VITEST: undefined, ...env } });
    this.process = child;
    alive.add(child);
    this.exited = new Promise((resolve) => {
      const over = (code: number | null, signal: NodeJS.Signals | null): void => {
        alive.delete(child);
        const error = `it ended with ${signal ?? code}`;
        for (const settle of this.#waiting.values()) settle({ id: 0, error });
        this.#waiting.clear();
        resolve({ code, signal });
      };
      child.once('exit', over).once('error', (error) => { this.stderr += error.message; over(null, null); });
    });
    child.on('message', (answer: Answer) => {
      this.#waiting.get(answer.id)?.(answer);
      this.#waiting.delete(answer.id);
    });
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      this.stdout += text;
      const end = this.stdout.indexOf('\n');
      if (end !== -1) this.#firstLine(this.stdout.slice(0, end));
    });
    child.stderr?.setEncoding('utf8').on('data', (text: string) => { this.stderr += text; });
  }

  get pid(): number {
    return this.process.pid ?? -1;
  }

  get isAlive(): boolean {
    return this.process.pid !== undefined && this.process.exitCode === null && this.process.signalCode === null;
  }

  /** The JSON of its first line on stdout, which tells that it is ready. Without one it is ended. */
  async ready<T>(): Promise<T> {
    const ended = this.exited.then(({ code, signal }) => {
      throw new Error(`Cannot start ${this.name}: it ended with ${signal ?? code}: ${this.stderr}`);
    });
    const first = Promise.race([this.#first, ended]);
    try {
      return JSON.parse(await within(START_MS, first, `the first line of ${this.name}`)) as T;
    } catch (error) {
      await this.kill();
      throw error;
    }
  }

  /** Resolves with the answer; rejects if the command failed, the process ended, or time is up. */
  async ask<T = unknown>(command: string, argument?: unknown, ms = ASK_MS): Promise<T> {
    const id = ++this.#lastId;
    const problem = (why: string) => new Error(`Cannot ${command} in ${this.name}: ${why}`);
    if (!this.isAlive || !this.process.connected) throw problem(`it has ended. It said: ${this.stderr}`);
    const answered = new Promise<Answer>((resolve) => { this.#waiting.set(id, resolve); });
    this.process.send({ id, command, argument } satisfies Question);
    const { value, error } = await within(ms, answered, `the answer of ${this.name} to "${command}"`);
    if (error !== undefined) throw problem(error);
    return value as T;
  }

  /** Sends a signal to it alone; resolves when it has ended, if `signal` is one that ends. */
  kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<Exit> {
    if (this.isAlive) this.process.kill(signal);
    return this.exited;
  }

  /** It and its channel no longer keep this process alive. */
  unref(): void {
    this.process.unref();
    this.process.channel?.unref();
    for (const stream of [this.process.stdout, this.process.stderr]) (stream as Socket | null)?.unref();
  }

  openFiles(): number {
    return readdirSync(`/proc/${this.pid}/fd`).length;
  }

  /** The most memory that it ever had, or since {@link forgetPeak}. */
  peakRssBytes(): number {
    return 1024 * Number(/^VmHWM:\s+(\d+)/m.exec(readFileSync(`/proc/${this.pid}/status`, 'latin1'))?.[1]);
  }

  rssBytes(): number {
    return 1024 * Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${this.pid}/status`, 'latin1'))?.[1]);
  }

  forgetPeak(): void {
    writeFileSync(`/proc/${this.pid}/clear_refs`, '5');
  }

  /** Processor time that it used, in milliseconds. */
  cpuMs(): number {
    const [, ...fields] = readFileSync(`/proc/${this.pid}/stat`, 'latin1').split(') ');
    const words = (fields.at(-1) ?? '').split(' ');
    return 10 * (Number(words[11]) + Number(words[12])); // utime, stime in ticks of 10 ms
  }
}

/** Does `task` to a child once it has started, and ends it. */
export async function withChild<C extends Child, T>(start: Promise<C>, task: (child: C) => Promise<T>): Promise<T> {
  const child = await start;
  try {
    return await task(child);
  } finally {
    await child.kill();
  }
}

/** The child's half: answers what it is asked, and ends when whoever asks is gone. */
export function answer(commands: Record<string, (argument: never) => unknown>): void {
  process.on('message', async ({ id, command, argument }: Question) => {
    const reply = (message: Answer) => { if (process.connected) process.send?.(message); };
    try {
      const run = commands[command];
      if (run === undefined) throw new Error(`it has no such command, but ${Object.keys(commands).join(', ')}`);
      reply({ id, value: await run(argument as never) });
    } catch (error) {
      reply({ id, error: error instanceof Error ? error.stack ?? error.message : String(error) });
    }
  });
  process.once('disconnect', () => process.exit());
}

/** Tells the parent that this program is ready. */
export function ready(facts: object): void {
  process.stdout.write(`${JSON.stringify(facts)}\n`);
}

/** What a program was given in its first argument. */
export function given<T>(): T {
  return JSON.parse(process.argv[2] ?? 'null') as T;
}
