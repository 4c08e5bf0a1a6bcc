/**
 * `node router_node.js JSON`: a router, a worker, a server or a relay as a process of its own, which
 * tells its parent where it is. Ends with its parent.
 */
import { once } from 'node:events';
import { appendFileSync } from 'node:fs';
import { connect, createServer, type AddressInfo } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { MicroServer, type Callback } from '../../../lib/micro_server.ts';
import { MicroRouter, type RouterOptions } from '../../../lib/router.ts';
import { threaded } from '../../../lib/threads.ts';
import { MicroWorker } from '../../../lib/worker.ts';

export interface NodeSetUp {
  kind: 'router' | 'worker' | 'server' | 'relay';
  router?: Partial<RouterOptions>;
  back?: number; // of the router, for a worker; of the server, for a relay
  waitMs?: number; // before each reply
  record?: string; // a file that gets each message, as a line of JSON, before it is answered
  threads?: number; // of a server that keeps them busy
}

const { kind, router, back = 0, waitMs, record, threads } = JSON.parse(process.argv[2] ?? '') as NodeSetUp;
const answer: Callback = (message) => {
  if (record !== undefined) appendFileSync(record, `${JSON.stringify(message)}\n`);
  return waitMs === undefined ? message : pause(waitMs, message);
};

async function start(): Promise<{ port: number; back?: number }> {
  if (kind === 'router') {
    const bound = await new MicroRouter({ front: 0, back: 0, log: () => {}, ...router }).startListening();
    return { port: bound.front.port ?? 0, back: bound.back.port ?? 0 };
  }
  if (kind === 'worker') {
    await new MicroWorker(answer, back, { log: () => {} }).start();
    return { port: back };
  }
  if (kind === 'relay') return { port: await relay(back) };
  const file = new URL('router_spin.js', import.meta.url);
  const service = threads === undefined ? answer : await threaded(file, { threads });
  return { port: (await new MicroServer(service, 0).startListening()).port ?? 0 };
}

/** The least that could stand between a client and a server: hands on bytes, whatever they say. */
async function relay(to: number): Promise<number> {
  const server = createServer({ noDelay: true }, (near) => {
    const far = connect({ host: '127.0.0.1', port: to, noDelay: true });
    near.pipe(far).pipe(near);
    for (const socket of [near, far]) socket.on('error', () => { near.destroy(); far.destroy(); });
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  return (server.address() as AddressInfo).port;
}

process.once('disconnect', () => process.exit());
process.send?.(await start());
