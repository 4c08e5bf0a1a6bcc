/** Programs of `programs/` as threads of this process. */
import { Worker } from 'node:worker_threads';

const EXTENSION = /\.\w+$/.exec(import.meta.url)?.[0] ?? '.ts';

/** Starts one; its `workerData` is the argument. */
export function startThread(program: string, workerData: unknown): Worker {
  const name = program.replace(/\.ts$/, EXTENSION);
  const start = `import(${JSON.stringify(new URL(`./programs/${name}`, import.meta.url).href)})`;
  const code = EXTENSION === '.ts' ? `${registered()}.then(() => ${start})` : start;
  return new Worker(code, { eval: true, workerData, execArgv: [] });
}

/** Node 20 takes no flag for tsx in a thread. */
const registered = (): string =>
  `import(${JSON.stringify(import.meta.resolve('tsx/esm/api'))}).then(({ register }) => register())`;
