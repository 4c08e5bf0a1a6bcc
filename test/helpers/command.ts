/** The command line as a process of its own, made plain JavaScript before: `portcall send K TEXT`. */
import { spawn, type ChildProcess, type SpawnOptions } from 'node:child_process';
import { join } from 'node:path';
import { within } from './deadline.ts';
import { builtProgram } from './programs_built.ts';

export interface Ended { code: number | null; stdout: string; stderr: string }

export interface CommandOptions extends Pick<SpawnOptions, 'cwd' | 'uid' | 'gid'> {
  env?: NodeJS.ProcessEnv;
  /** What it reads from stdin. */
  input?: string;
  /** Commands that start node; they must exec it. */
  wrapper?: readonly string[];
}

const WAIT_MS = 20_000;
const CLI = '../../../lib/cli.js'; // from the tests' programs
const alive = new Set<ChildProcess>();
process.on('exit', () => { for (const child of alive) child.kill('SIGKILL'); });

export class Command {
  readonly process: ChildProcess;
  /** Resolves when it has ended and all that it said is here. */
  readonly ended: Promise<Ended>;
  stdout = '';
  stderr = '';
  readonly #name: string;
  #heard = (): void => {};

  constructor(args: readonly string[], { env, input = '', wrapper = [], ...options }: CommandOptions = {}) {
    const [program = '', ...words] = [...wrapper, process.execPath, join(builtProgram(''), CLI), ...args];
    const child = spawn(program, words, { ...options, stdio: 'pipe',
      env: { ...process.env, NODE_OPTIONS: '', VITEST: undefined, PORTCALL_PORTS: undefined, ...env } });
    this.process = child;
    this.#name = JSON.stringify(args.join(' ').slice(0, 100));
    alive.add(child);
    child.stdin.on('error', () => {}).end(input); // it may end before it has read all
    child.stdout.setEncoding('utf8').on('data', (text: string) => { this.stdout += text; this.#heard(); });
    child.stderr.setEncoding('utf8').on('data', (text: string) => { this.stderr += text; this.#heard(); });
    this.ended = new Promise((resolve) => {
      const over = (code: number | null): void => {
        alive.delete(child);
        resolve({ code, stdout: this.stdout, stderr: this.stderr });
        this.#heard();
      };
      child.once('close', over).once('error', (error) => { this.stderr += error.message; over(null); });
    });
  }

  /** Resolves with the match, once stdout has one. */
  async said(pattern: RegExp): Promise<RegExpExecArray> {
    const matched = new Promise<RegExpExecArray>((resolve, reject) => {
      this.#heard = () => {
        const match = pattern.exec(this.stdout);
        if (match !== null) resolve(match);
        else if (!alive.has(this.process)) reject(new Error(`${this.#name} ended with ${this.process.exitCode}`));
      };
    });
    this.#heard();
    return within(WAIT_MS, matched, `${pattern} of ${this.#name}`).catch((error: Error) => {
      error.message += `; it said ${JSON.stringify([this.stdout, this.stderr])}`;
      throw error;
    });
  }

  async kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<Ended> {
    this.process.kill(signal);
    return within(WAIT_MS, this.ended, `the end of ${this.#name}`);
  }
}

/** Runs one to its end. */
export async function run(args: readonly string[], options?: CommandOptions): Promise<Ended> {
  const command = new Command(args, options);
  try {
    return await within(WAIT_MS, command.ended, `the end of ${JSON.stringify(args)}`);
  } finally {
    await command.kill();
  }
}

/** Starts `serve`, does `task` once it listens (with where, as it says), and ends it. */
export async function serving<T>(args: readonly string[], options: CommandOptions,
  task: (url: string, command: Command) => Promise<T>): Promise<T> {
  const command = new Command(['serve', ...args], options);
  try {
    const [, url = ''] = await command.said(/^listening on (\S+) /);
    return await task(url, command);
  } finally {
    await command.kill();
  }
}
