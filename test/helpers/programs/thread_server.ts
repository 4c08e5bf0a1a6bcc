/** A MicroServer in a thread of its own: see `../transports.ts`, which starts and stops it. */
import { parentPort, workerData } from 'node:worker_threads';
import { MicroServer, type ServerOptions } from '../../../lib/micro_server.ts';
import { obey } from '../obey.ts';

const { address, options } = workerData as { address: string; options: ServerOptions };
const server = new MicroServer(obey, address, options);
const tell = async (task: Promise<unknown>): Promise<void> => {
  const answer = await task.then((value) => ({ value }),
    ({ code, message, outcome }: Record<string, unknown>) => ({ error: { code, message, outcome } }));
  parentPort?.postMessage(answer);
};
parentPort?.on('message', () => void tell(server.stop()));
await tell(server.startListening());
