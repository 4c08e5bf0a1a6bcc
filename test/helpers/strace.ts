/** Kills a process at a system call of its own, by strace(1). */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { until } from './deadline.ts';

export interface Step { call: string; nth: number }

/** Why it can't be done here, if it can't. */
export function noStrace(): string | undefined {
  const { status, stderr, error } = spawnSync('strace', ['-e', 'trace=none', 'true'], { encoding: 'utf8' });
  if (error !== undefined) return 'no strace on this machine';
  return status === 0 ? undefined : `strace can't trace here: ${stderr.trim().split('\n')[0]}`;
}

/** The calls of these names that a process makes during `task`, in their order. */
export async function traced(pid: number, calls: readonly string[], file: string, task: () => Promise<unknown>):
Promise<Step[]> {
  const tracer = await attach(pid, ['-o', file, '-e', `trace=${calls.join()}`]);
  try {
    await task();
  } finally {
    await detach(tracer);
  }
  const counts = new Map<string, number>();
  return [...readFileSync(file, 'utf8').matchAll(/^(?:\d+ +)?(\w+)\(/gm)].map(([, call = '']) => {
    const nth = (counts.get(call) ?? 0) + 1;
    counts.set(call, nth);
    return { call, nth };
  });
}

/** From now on the process is killed on its way into a call. One thread must make all calls of that name. */
export async function killAt(pid: number, { call, nth }: Step): Promise<ChildProcess> {
  return attach(pid, ['-o', '/dev/null', '-e', `trace=${call}`, '-e', `inject=${call}:signal=SIGKILL:when=${nth}`]);
}

async function attach(pid: number, words: readonly string[]): Promise<ChildProcess> {
  const tracer = spawn('strace', ['-f', '-p', String(pid), ...words], { stdio: ['ignore', 'ignore', 'pipe'] });
  let said = '';
  tracer.stderr?.setEncoding('utf8').on('data', (text: string) => { said += text; });
  await until(() => said.includes('attached'), 5_000, 'strace at its place');
  return tracer;
}

async function detach(tracer: ChildProcess): Promise<void> {
  const ended = new Promise((resolve) => { tracer.once('exit', resolve); });
  tracer.kill('SIGINT');
  await ended;
}
