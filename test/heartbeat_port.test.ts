/** The heartbeat port: it hears nodes, judges them by silence alone, and answers nothing. */
import { once } from 'node:events';
import { afterEach, describe, expect, it } from 'vitest';
import { HeartbeatPort, type HeartbeatPortOptions, type Node } from '../lib/heartbeat_port.ts';
import { MicroClient } from '../lib/micro_client.ts';
import { pause, until, within } from './helpers/deadline.ts';
import { RawClient } from './helpers/raw_client.ts';
import { greetingOf, message, messagesOf } from './helpers/zmtp_wire.ts';

const WAIT_MS = 5_000;
const QUICK: HeartbeatPortOptions = { intervalMs: 50, timeoutMs: 150, maxMissed: 1 }; // out after 200 ms
const open: (() => unknown)[] = [];
afterEach(async () => { for (const end of open.splice(0).reverse()) await end(); });

async function listen(options: HeartbeatPortOptions = QUICK) {
  const said: string[] = [];
  const heartbeats = new HeartbeatPort(0, { log: (_level, text) => said.push(text), ...options });
  const seen: string[] = [];
  for (const event of ['joined', 'restarted', 'lost', 'double'] as const) {
    heartbeats.on(event, ({ nodeId, sessionId }) => seen.push(`${event} ${nodeId} ${sessionId}`));
  }
  open.push(() => heartbeats.stop());
  const { port } = await heartbeats.startListening();
  return { heartbeats, port: port as number, seen, said };
}
async function dealer(port: number): Promise<RawClient> {
  const client = await RawClient.connect(port);
  open.push(() => client.socket.destroy());
  await client.write(greetingOf('DEALER'));
  return client;
}
const beat = (node: string, session: string, more = {}): Buffer => message('', 'heartbeat', JSON.stringify({
  node_id: node, session_id: session, node_type: 'WORKER', last_heartbeat: 1.5, missed_count: 2, ...more }));

describe('HeartbeatPort', () => {
  it('hears a node: joined, alive while it beats, lost when it is silent, and back', async () => {
    const { heartbeats, port, seen } = await listen();
    const node = await dealer(port);
    const joined = once(heartbeats, 'joined') as Promise<[Node]>;
    await node.write(beat('a', 's'));
    const [{ address, ...told }] = await within(WAIT_MS, joined, 'a node');
    expect(told).toEqual({ nodeId: 'a', sessionId: 's', nodeType: 'WORKER', missedCount: 2 });
    expect(address).toMatch(/^127\.0\.0\.1:\d+$/);
    for (let count = 0; count < 12; count++) {
      await pause(50);
      await node.write(beat('a', 's'));
    }
    expect(seen).toEqual(['joined a s']);
    const silentSince = performance.now();
    await within(WAIT_MS, once(heartbeats, 'lost'), 'its loss');
    expect(performance.now() - silentSince).toBeGreaterThan(140); // 200, an interval either way
    expect(heartbeats.nodes).toEqual([]);
    await node.write(beat('a', 's'));
    await until(() => seen.length === 3, WAIT_MS, 'that it is back');
    expect(seen).toEqual(['joined a s', 'lost a s', 'joined a s']);
  });
  it('answers nothing, whatever comes', async () => {
    const { port, seen, said } = await listen();
    const node = await dealer(port);
    for (const bad of [message('', 'heartbeat', '{'), message('', 'other', '{}'), message('', 'heartbeat'),
      message('', 'heartbeat', '{}'), message('', 'heartbeat', 'null'), message('x'), beat('x'.repeat(129), 's'),
      message('', 'heartbeat', Buffer.of(0xff)), beat('a', 's')]) await node.write(bad);
    await until(() => seen.length === 1, WAIT_MS, 'that the good one was heard');
    node.fin();
    const answers = messagesOf((await node.readToFin()).subarray(64));
    expect(answers.filter(([name]) => name !== '/READY')).toEqual([]);
    expect(said.length).toBe(1); // of a connection
    expect(said[0]).toMatch(/^Of the heartbeats of 127\.0\.0\.1:\d+: Cannot read /);
  });
  it('any traffic of a node counts', async () => {
    const { heartbeats, port, seen } = await listen();
    await (await dealer(port)).write(beat('a', 's'));
    await until(() => seen.length === 1, WAIT_MS, 'a node');
    for (let count = 0; count < 12; count++) {
      await pause(50);
      heartbeats.heard('a');
      heartbeats.heard('nobody');
    }
    expect(seen).toEqual(['joined a s']);
    expect(heartbeats.nodes.length).toBe(1);
  });
  it('tells a restart from two nodes of one id', async () => {
    const { port, seen, said } = await listen();
    const [first, second] = [await dealer(port), await dealer(port)];
    const heard = (count: number) => until(() => seen.length === count, WAIT_MS, `event ${count}`);
    await first.write(beat('a', '1'));
    await heard(1);
    await second.write(beat('a', '2'));
    await heard(2);
    await first.write(Buffer.concat([beat('a', '1'), beat('a', '1')]));
    await heard(4);
    expect(seen).toEqual(['joined a 1', 'restarted a 2', 'double a 1', 'double a 1']);
    expect(said.filter((text) => /another of its id began later/.test(text)).length).toBe(1);
  });
  it('knows maxNodes at most', async () => {
    const { heartbeats, port, said } = await listen({ ...QUICK, timeoutMs: 5_000, maxNodes: 3 });
    const node = await dealer(port);
    for (const id of ['a', 'b', 'c', 'd', 'a']) await node.write(beat(id, 's'));
    await until(() => said.length > 0, WAIT_MS, 'that it was told');
    expect(heartbeats.nodes.map(({ nodeId }) => nodeId)).toEqual(['a', 'b', 'c']);
    expect(said[0]).toMatch(/Cannot hear node "d": 3 are known already/);
  });
  it('takes the same as one text, of a MicroClient', async () => {
    const { port, seen } = await listen();
    const client = new MicroClient(port);
    open.push(() => client.close());
    expect(await client.sendMessage('["heartbeat",{"node_id":"a","session_id":"s"}]')).toBe('');
    await expect(client.sendMessage('["heartbeat",{"node_id":7}]')).rejects.toMatchObject({ code: 'BAD_MESSAGE' });
    expect(seen).toEqual(['joined a s']);
  });
});
