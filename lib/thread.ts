/** What runs in each thread of `threads.ts`: a worker whose router is the main thread. */
import { parentPort, workerData, type MessagePort } from 'node:worker_threads';
import { loadService } from './load_service.ts';
import { MicroError, frames } from './micro_client.ts';
import { MicroServer } from './micro_server.ts';
import type { Callback, Request } from './micro_server.ts';
import { PortDuplex } from './port_duplex.ts';
import type { ThreadData } from './threads.ts';

const { file, options, node, claims, limits } = workerData as ThreadData;
const port = parentPort as MessagePort;
const service = await loadService(file, options);

/** The main thread may have taken a request back by now: whoever claims it first has it. */
const callback: Callback = (text, context) => {
  const slot = (context as Request).message.tag as number;
  const isOurs = Atomics.compareExchange(claims, slot, 0, 1) === 0;
  if (isOurs) return service.callback(text, context);
  throw new MicroError('ABORTED', 'Cannot begin it: it was taken back', { outcome: 'refused' });
};

// One request a turn, so that the reply of one leaves before the next may block the thread.
const server = new MicroServer({ callback, stop: async () => service.stop?.() }, node,
  { ...limits, maxLinesPerTick: 1 });
port.postMessage({ contract: service.contract });
const duplex = new PortDuplex(port);
duplex.once('close', () => void server.stop().finally(() => process.exit()));
server.serve(duplex, { side: 'dialled', dialect: frames(), hello: { role: 'worker', node } });
