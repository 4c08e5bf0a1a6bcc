/** Calls once, in a thread of its own, and tells what came. */
import { parentPort, workerData } from 'node:worker_threads';
import { MicroClient } from '../../../lib/micro_client.ts';

const { address } = workerData as { address: string };
const call = new MicroClient(address).sendMessage('hello');
parentPort?.postMessage(await call.catch((error: Error) => error.message));
