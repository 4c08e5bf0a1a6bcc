/** What must not be taken for silence: heartbeats that are lost while data flows, and a clock that is set. */
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { once } from 'node:events';
import { afterEach, expect, vi } from 'vitest';
import { zmtp } from '../../lib/dialects/zmtp.ts';
import { HeartbeatPort } from '../../lib/heartbeat_port.ts';
import { MicroClient } from '../../lib/micro_client.ts';
import { MicroServer } from '../../lib/micro_server.ts';
import { MicroRouter } from '../../lib/router.ts';
import { MicroWorker } from '../../lib/worker.ts';
import { pause } from '../helpers/deadline.ts';
import { ended } from '../helpers/ended.ts';
import { FULL, fault } from '../helpers/faults.ts';

const QUICK = { intervalMs: 100, timeoutMs: 300, maxMissed: 1 }; // out after 400 ms of silence
const HOUR_MS = 3_600_000;
const open: (() => unknown)[] = [];
afterEach(async () => {
  vi.useRealTimers();
  for (const end of open.splice(0).reverse()) await end();
});

/** Carries lines between workers and a router, except for pings and what answers them. */
async function withoutPings(target: number): Promise<{ port: number; counts: { connections: number; dropped: number } }> {
  const counts = { connections: 0, dropped: 0 };
  const carry = (from: Socket, to: Socket): void => {
    let held = '';
    from.setEncoding('latin1').on('error', () => to.destroy()).on('end', () => to.end());
    from.on('data', (text) => {
      const lines = (held + String(text)).split('\n');
      held = lines.pop() as string;
      const kept = lines.filter((line) => !/^p[io]ng /.test(line));
      counts.dropped += lines.length - kept.length;
      to.write(kept.map((line) => `${line}\n`).join(''), 'latin1');
    });
  };
  const server = createServer((socket) => {
    counts.connections++;
    const onward = connect(target, '127.0.0.1');
    open.push(() => { socket.destroy(); onward.destroy(); });
    carry(socket, onward);
    carry(onward, socket);
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  open.push(() => { server.close(); });
  return { port: (server.address() as AddressInfo).port, counts };
}

async function routed(through?: (back: number) => Promise<number>): Promise<{ router: MicroRouter; client: MicroClient; said: string[] }> {
  const said: string[] = [];
  const log = (level: string, text: string) => { if (level !== 'info') said.push(text); };
  const router = new MicroRouter({ front: 0, back: 0, heartbeat: QUICK, log });
  const { front, back } = await router.startListening();
  open.push(() => router.stop({ graceMs: 0 }));
  const worker = new MicroWorker((message) => (message === 'never' ? new Promise<string>(() => {}) : message),
    await through?.(back.port as number) ?? back.port as number, { heartbeat: QUICK, log });
  open.push(() => worker.stop({ graceMs: 0 }));
  await worker.start();
  const client = new MicroClient(front.port as number);
  open.push(() => client.close());
  return { router, client, said };
}

fault('G11', 'heartbeats dropped, data flows: the worker stays, nobody reconnects', async () => {
  let counts = { connections: 0, dropped: 0 };
  const { router, client, said } = await routed(async (back) => {
    const proxy = await withoutPings(back);
    counts = proxy.counts;
    return proxy.port;
  });
  const end = performance.now() + (FULL ? 10_000 : 2_000);
  let calls = 0;
  for (; performance.now() < end; calls++) {
    expect(await client.sendMessage(`call ${calls}`)).toBe(`call ${calls}`);
    await pause(50);
  }
  expect(counts.dropped).toBeGreaterThan(10);
  expect([counts.connections, said]).toEqual([1, []]);
  expect(router.stats().workers).toMatchObject([{ state: 'joined', sent: calls }]);
});

fault('G11', 'a heartbeat port that is told of other traffic: the node stays', async () => {
  const heartbeats = new HeartbeatPort(0, { ...QUICK, log() {} });
  open.push(() => heartbeats.stop());
  const { port } = await heartbeats.startListening();
  const sender = new MicroClient(port as number);
  await sender.sendMessage('["heartbeat",{"node_id":"a","session_id":"s"}]');
  await sender.close();
  const lost: string[] = [];
  heartbeats.on('lost', ({ nodeId }) => lost.push(nodeId));
  for (const end = performance.now() + (FULL ? 10_000 : 1_500); performance.now() < end; await pause(50)) heartbeats.heard('a');
  expect(lost).toEqual([]);
  await once(heartbeats, 'lost'); // it is judged still
});

fault('G12', 'wall clock ±1 h: no worker and no node is lost, no deadline early or late', async () => {
  const { router, client, said } = await routed();
  const heartbeats = new HeartbeatPort(0, { ...QUICK, log() {} });
  open.push(() => heartbeats.stop());
  const beats = new MicroClient((await heartbeats.startListening()).port as number);
  open.push(() => beats.close());
  const lost: string[] = [];
  heartbeats.on('lost', ({ nodeId }) => lost.push(nodeId));
  const server = new MicroServer(() => new Promise<string>(() => {}), 0, { dialects: [zmtp()], callbackTimeoutMs: 400 });
  open.push(() => server.stop({ graceMs: 0 }));
  const slow = new MicroClient((await server.startListening()).port as number);
  open.push(() => slow.close());
  vi.useFakeTimers({ toFake: ['Date'] });
  for (const jump of [HOUR_MS, -2 * HOUR_MS, HOUR_MS]) {
    const timedOut = ended(client.sendMessage('never', { timeoutMs: 600 }));
    const cutOff = ended(slow.sendMessage('never', { timeoutMs: 5_000 }));
    await client.ping();
    vi.setSystemTime(Date.now() + jump);
    for (const end = performance.now() + 700; performance.now() < end; await pause(50)) {
      await beats.sendMessage('["heartbeat",{"node_id":"a","session_id":"s"}]');
      expect(await client.sendMessage('hello')).toBe('hello');
    }
    const [late, cut] = [await timedOut, await cutOff];
    expect([late.error?.code, cut.error?.code]).toEqual(['TIMEOUT', 'TIMEOUT']);
    expect(late.ms).toBeGreaterThan(590);
    expect(late.ownMs).toBeLessThan(850);
    expect(cut.ms).toBeGreaterThan(390);
    expect(cut.ownMs).toBeLessThan(650);
  }
  expect([lost, said, router.stats().workers.length]).toEqual([[], [], 1]);
});
