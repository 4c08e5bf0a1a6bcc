/** Faults that the system itself returns, or kills at a system call: by strace, where there is one. */
import { execFileSync } from 'node:child_process';
import type { ChildOptions } from './child.ts';

/** Why a case can't be had here; undefined if it can. */
export const noStrace = reason();

function reason(): string | undefined {
  try {
    execFileSync('strace', ['-qq', '-o', '/dev/null', '-e', 'trace=none', 'true'], { stdio: 'ignore' });
    return undefined;
  } catch {
    return 'needs strace, and the right to trace';
  }
}

interface Trace {
  /** What is done to which calls, as strace's `-e inject` words it: `fdatasync:error=EIO:when=3`. */
  inject?: string | readonly string[];
  /** The calls that are looked at: those that touch one of these files, by name or descriptor. */
  paths?: readonly string[];
  /** Gets a line a call. */
  output?: string;
  calls?: string;
  /** How many threads do file calls; strace counts `when` for each by itself. Default 1. */
  threads?: number;
}

/**
 * Starts a {@link Child} under strace. The tracer stands aside (`-D`), so that the child's pid is its
 * own.
 */
export function traced(
  { inject = [], paths = [], output = '/dev/null', calls = '%file,%desc', threads = 1 }: Trace,
): ChildOptions {
  const wrapper = ['strace', '-f', '-D', '-qq', '-s', '16', '-o', output, '-e', `trace=${calls}`, '-e', 'signal=none',
    ...[inject].flat().flatMap((one) => ['-e', `inject=${one}`]), ...paths.flatMap((path) => ['-P', path])];
  return { wrapper, env: { UV_THREADPOOL_SIZE: String(threads) } };
}
