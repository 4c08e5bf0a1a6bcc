/** Programs run as processes of their own, asked over Node's IPC channel: one question, one answer. */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';

/** What a child can be asked, by name. */
export type Commands = Record<string, (argument: never) => unknown>;

export interface StartOptions {
  core?: number | undefined; // pinned there; on any core if left out
  flags?: readonly string[]; // for node itself
  env?: Record<string, string>;
}

const ANSWER_TIMEOUT_MS = 60_000;

export class Child<C extends Commands> {
  readonly #process: ChildProcess;
  readonly #name: string;

  constructor(program: string[], name: string, { core, flags = [], env = {} }: StartOptions) {
    const [command, ...words] = pinned([process.execPath, ...flags, ...program], core);
    this.#name = name;
    this.#process = spawn(command, words, {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      env: { ...process.env, ...env },
    });
  }

  /** Resolves with the answer; rejects if the command failed, the child ended, or time is up. */
  ask<K extends keyof C & string>(
    command: K, argument: Parameters<C[K]>[0],
  ): Promise<Awaited<ReturnType<C[K]>>> {
    const child = this.#process;
    return new Promise((resolve, reject) => {
      const settle = (problem: string | undefined, value?: unknown) => {
        clearTimeout(timer);
        child.off('message', onMessage).off('exit', onExit).off('error', onError);
        if (problem === undefined) resolve(value as Awaited<ReturnType<C[K]>>);
        else reject(new Error(`Cannot ${command} in the ${this.#name}: ${problem}`));
      };
      const onMessage = (answer: Answer) => settle(answer.error, answer.value);
      const onExit = (code: number | null, signal: string | null) =>
        settle(`it ended with ${signal ?? code}`);
      const onError = (error: Error) => settle(error.message);
      const late = () => settle(`no answer in ${ANSWER_TIMEOUT_MS} ms`);
      const timer = setTimeout(late, ANSWER_TIMEOUT_MS);
      child.on('message', onMessage).on('exit', onExit).on('error', onError);
      if (child.exitCode === null && child.signalCode === null) child.send({ command, argument });
      else onExit(child.exitCode, child.signalCode);
    });
  }

  async stop(): Promise<void> {
    const child = this.#process;
    if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
    child.kill('SIGKILL'); // by the pid that was started here: taskset has become node
    await once(child, 'exit');
  }
}

interface Question { command: string; argument: never }
interface Answer { value?: unknown; error?: string }

/** The child's half: answers what it is asked until whoever asks is gone. */
export function answer(commands: Commands): void {
  const reply = (message: Answer) => process.send?.(message);
  process.on('message', async ({ command, argument }: Question) => {
    try {
      reply({ value: await commands[command]?.(argument) });
    } catch (error) {
      reply({ error: error instanceof Error ? error.stack ?? error.message : String(error) });
    }
  });
  process.once('disconnect', () => process.exit());
}

/** Runs a program to its end and tells how long that took, in milliseconds. */
export function timeToEnd(words: readonly string[], core: number | undefined): number {
  const [command, ...rest] = pinned([process.execPath, ...words], core);
  const startedAt = performance.now();
  const { status, signal } = spawnSync(command, rest, { stdio: ['ignore', 'inherit', 'inherit'] });
  const elapsedMs = performance.now() - startedAt;
  if (status !== 0) {
    throw new Error(`Cannot time "${words.join(' ')}": it ended with ${signal ?? status}`);
  }
  return elapsedMs;
}

/** Whether a process can be pinned to each of these cores. */
export function canPin(...cores: number[]): boolean {
  return cores.every((core) => spawnSync('taskset', ['-c', String(core), 'true']).status === 0);
}

function pinned(words: [string, ...string[]], core: number | undefined): [string, ...string[]] {
  return core === undefined ? words : ['taskset', '-c', String(core), ...words];
}
