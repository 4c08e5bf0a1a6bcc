/**
 * A ZeroMQ framework's clients, servers, routers, workers and heartbeats, as its documentation tells them, each with
 * ours at the other end.
 */
import { once } from 'node:events';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { zmtp } from '../../lib/dialects/zmtp.ts';
import { zmtpEvents } from '../../lib/dialects/zmtp_events.ts';
import { EventClient, Events } from '../../lib/events.ts';
import { HeartbeatPort, type Node } from '../../lib/heartbeat_port.ts';
import { MicroClient, type MicroError } from '../../lib/micro_client.ts';
import { MicroServer } from '../../lib/micro_server.ts';
import type { WorkerStats } from '../../lib/pool.ts';
import { MicroRouter } from '../../lib/router.ts';
import { MicroWorker } from '../../lib/worker.ts';
import { pause, until, within } from '../helpers/deadline.ts';
import { NO_PYZMQ, Program } from '../helpers/pyzmq.ts';

const WAIT_MS = 10_000;
const open: (() => unknown)[] = [];
beforeEach((ctx) => { if (NO_PYZMQ !== undefined) ctx.skip(NO_PYZMQ); });
afterEach(async () => { for (const end of open.splice(0).reverse()) await end(); });

async function start<T>(...words: string[]): Promise<{ program: Program; told: T }> {
  const program = new Program('framework.py', ...words);
  open.push(() => program.end());
  const told = words[0] === 'client' ? {} : JSON.parse(await program.line(`the first line of ${words[0]}`));
  return { program, told: told as T };
}

/** The framework's client: sends an event, resolves with the parts that it gets. */
async function clientOf(port: number): Promise<(event: string, data: unknown) => Promise<string[]>> {
  const { program } = await start('client', String(port));
  return async (event, data) => {
    program.write(JSON.stringify([event, data]));
    const { parts, error } = JSON.parse(await program.line('a response', WAIT_MS)) as { parts?: string[]; error?: string };
    if (parts === undefined) throw new Error(`Cannot get a response: ${error}`);
    return parts;
  };
}

function eventClient(port: number): EventClient {
  const client = new EventClient(port, { dialect: zmtpEvents() });
  open.push(() => client.close());
  return client;
}

const TEXTS = ['Hello World!', '', 'naïve ☃ 😀', 'a\nb\r\n\0', 'x'.repeat(100_000), '["a",1]'];

describe('its client', () => {
  it('gets an event back from our server, under the same name', async () => {
    const events = new Events().on('message', (data) => ({ got: data })).on('nothing', () => {});
    const server = new MicroServer(events.callback, 0, { dialects: [zmtp()] });
    open.push(() => server.stop());
    const send = await clientOf((await server.startListening()).port as number);
    for (const text of TEXTS) {
      const [empty, name, json = ''] = await send('message', { content: text });
      expect([empty, name, JSON.parse(json)]).toEqual(['', 'message', { got: { content: text } }]);
    }
    expect(await send('nothing', null)).toEqual(['', 'nothing', 'null']);
  });
  it('gets our error as text, not as silence', async () => {
    const server = new MicroServer(new Events().callback, 0, { dialects: [zmtp()] });
    open.push(() => server.stop());
    const send = await clientOf((await server.startListening()).port as number);
    expect(await send('foo', 1)).toEqual(['', 'ERR BAD_MESSAGE Cannot handle event "foo": expected one of none']);
  });
});

describe.each([
  ['its server', async () => (await start<{ port: number }>('server')).told.port],
  ['its router and its workers', async () => {
    const { told: { front, back } } = await start<{ front: number; back: number }>('router');
    await Promise.all([1, 2].map(() => start('worker', String(back))));
    return front;
  }],
])('our client and %s', (_name, serve) => {
  it('an event gets its reply, each its own', async () => {
    const client = eventClient(await serve());
    for (const text of TEXTS) expect(await client.sendEvent('add', { text })).toEqual({ event: 'add', data: { text } });
    const all = Array.from({ length: 100 }, (_, at) => at);
    expect(await Promise.all(all.map((at) => client.sendEvent('count', at)))).toEqual(all.map((data) => ({ event: 'count', data })));
  });
  it('a plain text crosses as the event message, and comes back as text', async () => {
    const client = eventClient(await serve());
    for (const text of TEXTS.slice(0, -1)) expect(await client.sendMessage(text)).toBe(`Processed: ${text}`);
  });
});

async function startRouter(): Promise<{ front: number; back: number; workers(): WorkerStats[] }> {
  const router = new MicroRouter({ front: 0, back: 0, log: () => {}, dialects: [zmtpEvents()],
    heartbeat: { intervalMs: 200, timeoutMs: 600, maxMissed: 1 } });
  open.push(() => router.stop({ graceMs: 0 }));
  const { front, back } = await router.startListening();
  return { front: front.port as number, back: back.port as number, workers: () => router.stats().workers };
}

describe('through our router', () => {
  it('its client gets events answered by our workers', async () => {
    const { front, back } = await startRouter();
    const events = new Events().on('message', (data) => ({ got: data }));
    const worker = new MicroWorker(events.callback, back);
    open.push(() => worker.stop({ graceMs: 0 }));
    await worker.start();
    const send = await clientOf(front);
    for (const text of TEXTS) {
      const [empty, name, json = ''] = await send('message', { content: text });
      expect([empty, name, JSON.parse(json)]).toEqual(['', 'message', { got: { content: text } }]);
    }
    expect((await send('foo', 1))[1]).toMatch(/^ERR BAD_MESSAGE Cannot handle event "foo"/);
  });
  it('its workers answer its clients and ours, of whatever dialect, and stay while they idle', async () => {
    const { front, back, workers } = await startRouter();
    await Promise.all([1, 2].map(() => start('worker', String(back))));
    await until(() => workers().filter(({ state }) => state === 'joined').length === 2, WAIT_MS, 'two workers');
    const send = await clientOf(front);
    const [ours, lines] = [new EventClient(front), new MicroClient(front)];
    open.push(() => ours.close(), () => lines.close());
    for (const text of TEXTS) {
      expect(await send('add', text)).toEqual(['', 'add', expect.any(String)]);
      expect(await ours.sendEvent('add', { text })).toEqual({ event: 'add', data: { text } });
    }
    for (const text of TEXTS.slice(0, -1)) expect(await lines.sendMessage(text)).toBe(`Processed: ${text}`);
    const all = Array.from({ length: 300 }, (_, at) => at);
    expect(await Promise.all(all.map((at) => ours.sendEvent('count', at)))).toEqual(all.map((data) => ({ event: 'count', data })));
    await pause(1_200); // a silent one is out by then
    expect(workers().map(({ state }) => state)).toEqual(['joined', 'joined']);
    expect(workers().every(({ sent }) => sent > 100)).toBe(true);
  });
  it('its worker is killed: its call is lost, the other goes on', async () => {
    const { front, back, workers } = await startRouter();
    const { program } = await start<object>('worker', String(back));
    await until(() => workers().length === 1, WAIT_MS, 'a worker');
    const ours = new EventClient(front);
    open.push(() => ours.close());
    const call = ours.sendEvent('sleep', 5).then(() => undefined, (error: MicroError) => error);
    await until(() => workers()[0]?.inFlight === 1, WAIT_MS, 'that it has the call');
    await program.end();
    expect(await call).toMatchObject({ code: 'CONNECTION_LOST', outcome: 'maybe done' });
    await start('worker', String(back));
    expect(await ours.sendEvent('add', 1)).toEqual({ event: 'add', data: 1 });
  });
});

describe('its heartbeats', () => {
  it('are heard by our port, and so is their end', async () => {
    const heartbeats = new HeartbeatPort(0, { intervalMs: 100, timeoutMs: 500, maxMissed: 1, log() {} });
    open.push(() => heartbeats.stop());
    const port = String((await heartbeats.startListening()).port);
    const lost: string[] = [];
    heartbeats.on('lost', ({ nodeId }) => lost.push(nodeId));
    const joined = once(heartbeats, 'joined') as Promise<[Node]>;
    const { program, told } = await start<{ session_id: string }>('heartbeats', port, 'node-1', '100');
    const [node] = await within(WAIT_MS, joined, 'the node');
    expect(node).toMatchObject({ nodeId: 'node-1', sessionId: told.session_id, nodeType: 'WORKER', missedCount: 0 });
    await pause(1_000); // longer than a silent node is waited for
    expect([lost, heartbeats.nodes.length]).toEqual([[], 1]);
    await program.end();
    await until(() => lost.length === 1, WAIT_MS, 'that its end was noticed');
    const restarted = once(heartbeats, 'joined');
    heartbeats.once('restarted', (again) => heartbeats.emit('joined', again));
    await start('heartbeats', port, 'node-1', '100');
    await within(WAIT_MS, restarted, 'its return');
  });
});

it('a router wants a token: the framework, which has none, is not let in', async () => {
  const router = new MicroRouter({ front: 0, back: 0, log: () => {}, token: 'secret' });
  open.push(() => router.stop({ graceMs: 0 }));
  const { back } = await router.startListening();
  const { program } = await start('worker', String(back.port));
  await pause(300); // it would have joined by then: others do within 50 ms
  expect(router.stats().workers).toEqual([]);
  await program.end();
});
