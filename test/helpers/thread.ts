/** Programs of `programs/` as threads of this process. */
import { Worker } from 'node:worker_threads';
import { builtProgram } from './programs_built.ts';

/** Starts one; its `workerData` is the argument. */
export function startThread(program: string, workerData: unknown): Worker {
  return new Worker(builtProgram(program), { workerData, execArgv: [] });
}
