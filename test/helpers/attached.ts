/** Looks at the system calls of a process that runs already, and kills it at one, by strace(1). */
import { spawn, type ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { until } from './deadline.ts';

export interface Step { call: string; nth: number }

/** The calls of these names that a process makes during `task`, in their order. `file` gets them. */
export async function callsDuring(
  task: () => Promise<unknown>, pid: number, calls: readonly string[], file: string,
): Promise<Step[]> {
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

/**
 * From now on the process is killed on its way into a call. Calls are counted for each thread by
 * itself: one thread must make all of that name.
 *
 * @returns What calls it off.
 */
export async function killAt(pid: number, { call, nth }: Step): Promise<() => Promise<void>> {
  const inject = `inject=${call}:signal=SIGKILL:when=${nth}`;
  const tracer = await attach(pid, ['-o', '/dev/null', '-e', `trace=${call}`, '-e', inject]);
  return () => detach(tracer);
}

async function attach(pid: number, words: readonly string[]): Promise<ChildProcess> {
  const tracer = spawn('strace', ['-f', '-p', String(pid), ...words],
    { stdio: ['ignore', 'ignore', 'pipe'] });
  let said = '';
  tracer.stderr?.setEncoding('utf8').on('data', (text: string) => { said += text; });
  await until(() => said.includes('attached'), 5_000, 'strace at its place');
  return tracer;
}

async function detach(tracer: ChildProcess): Promise<void> {
  if (tracer.exitCode !== null) return;
  const ended = new Promise((resolve) => { tracer.once('exit', resolve); });
  tracer.kill('SIGINT');
  await ended;
}
