/** Takes a name and gives it up, over and over, in a thread of its own. */
import { parentPort, workerData } from 'node:worker_threads';
import { MicroServer } from '../../../lib/micro_server.ts';

const { address, rounds } = workerData as { address: string; rounds: number };
const server = new MicroServer((message) => message, address);
let done = 0;
try {
  for (; done < rounds; done++) {
    await server.startListening();
    await server.stop();
  }
  parentPort?.postMessage(`${done} rounds`);
} catch (error) {
  parentPort?.postMessage(`round ${done}: ${(error as Error).message}`);
}
