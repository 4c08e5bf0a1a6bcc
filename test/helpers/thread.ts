/** Programs of `programs/` as threads of this process. */
import { Worker } from 'node:worker_threads';

const REGISTER = JSON.stringify(import.meta.resolve('tsx/esm/api')); // Node 20 takes no flag for it in a thread

/** Starts one; its `workerData` is the argument. */
export function startThread(program: string, workerData: unknown): Worker {
  const file = JSON.stringify(new URL(`./programs/${program}`, import.meta.url).href);
  const code = `import(${REGISTER}).then(({ register }) => { register(); return import(${file}); })`;
  return new Worker(code, { eval: true, workerData, execArgv: [] });
}
