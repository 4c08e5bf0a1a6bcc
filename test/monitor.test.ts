/** Monitor events: each is told once, by whom it happens to, and to nobody where nobody asks. */
import { channel } from 'node:diagnostics_channel';
import { on, once } from 'node:events';
import { readFileSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import { MicroClient, publish } from '../lib/micro_client.ts';
import { MicroServer } from '../lib/micro_server.ts';
import { MONITOR_EVENTS, Monitor, type MonitorEvent } from '../lib/monitor.ts';
import { until, within } from './helpers/deadline.ts';
import { freePort } from './helpers/free_port.ts';
import { RawClient } from './helpers/raw_client.ts';

const WAIT_MS = 5_000;
const open: (() => unknown)[] = [];
afterEach(async () => { for (const end of open.splice(0).reverse()) await end(); });

function monitor(options?: { maxWaiting: number }): { monitor: Monitor; seen: MonitorEvent[] } {
  const made = new Monitor(options);
  const seen: MonitorEvent[] = [];
  made.on('any', (event) => seen.push(event));
  open.push(() => made.close());
  return { monitor: made, seen };
}
async function serve(address: string | number = 0, options = {}): Promise<{ server: MicroServer; port: number; url: string }> {
  const server = new MicroServer((message) => message, address, options);
  open.push(() => server.stop());
  const { port, url } = await server.startListening();
  return { server, port: port as number, url };
}
function clientOf(key: string | number): MicroClient {
  const client = new MicroClient(key);
  open.push(() => client.close());
  return client;
}
const names = (seen: readonly MonitorEvent[]): string[] => seen.map(({ event }) => event);

describe('a Monitor', () => {
  it('hears a server and a client from their start to their end', async () => {
    const { seen } = monitor();
    const before = Date.now();
    const { server, port, url } = await serve();
    const client = clientOf(port);
    await client.sendMessage('one');
    await client.sendMessage('two');
    await client.close();
    await until(() => seen.length === 5, WAIT_MS, 'that five events came');
    expect(names(seen).sort()).toEqual(['accepted', 'connected', 'disconnected', 'disconnected', 'listening']);
    expect(names(seen)[0]).toBe('listening');
    expect(seen[0]).toMatchObject({ key: 0, url });
    expect(seen.find(({ event }) => event === 'connected')).toMatchObject({ key: port, url });
    expect(seen.find(({ event }) => event === 'accepted')?.client).toMatchObject({ loopback: true, dialect: 'frames' });
    for (const { at } of seen) expect(at).toBeGreaterThanOrEqual(before);
    await server.stop();
  });
  it('hears of a call that is tried again', async () => {
    const { seen } = monitor();
    const port = await freePort();
    const call = clientOf(port).sendMessage('hello', { retry: true });
    await until(() => names(seen).includes('retried'), WAIT_MS, 'that it was tried again');
    await serve(port);
    expect(await call).toBe('hello');
    expect(seen[0]).toMatchObject({ event: 'retried', key: port, code: 'CONNECTION_REFUSED' });
    expect(seen[0]?.waitMs).toBeGreaterThan(0);
  });
  it.each([
    ['a token that is wrong', '$token wrong\n', 'UNAUTHORIZED'],
    ['bytes of no dialect', '\x16\x03\x01', 'PROTOCOL_ERROR'],
    ['an HTTP request', 'GET / HTTP/1.1\r\n', 'PROTOCOL_ERROR'],
  ])('hears of a client refused for %s', async (_why, bytes, code) => {
    const { monitor: heard } = monitor();
    const { port } = await serve(0, { token: 'right' });
    const rejected = once(heard, 'rejected') as Promise<[MonitorEvent]>;
    await RawClient.with(port, (client) => client.ask(bytes));
    const [{ client, code: told }] = await within(WAIT_MS, rejected, 'the event');
    expect(told).toBe(code);
    expect(client?.loopback).toBe(true);
  });
  it('hears of workers, as a router tells', () => {
    const { seen } = monitor();
    publish('worker_joined', () => ({ worker: 'w1' }));
    publish('worker_lost', () => ({ worker: 'w1' }));
    expect(seen).toMatchObject([{ event: 'worker_joined', worker: 'w1' }, { event: 'worker_lost', worker: 'w1' }]);
  });
  it('hears nothing once it is closed, and leaves no listener', async () => {
    const { monitor: heard, seen } = monitor();
    for (const name of Object.keys(MONITOR_EVENTS)) expect(channel(`portcall:${name}`).hasSubscribers).toBe(true);
    heard.close();
    for (const name of Object.keys(MONITOR_EVENTS)) expect(channel(`portcall:${name}`).hasSubscribers).toBe(false);
    await serve();
    expect(seen).toEqual([]);
  });
  it('a listener that throws harms no service', async () => {
    const { monitor: heard } = monitor();
    const thrown: unknown[] = [];
    const onUncaught = process.listeners('uncaughtException');
    process.removeAllListeners('uncaughtException').on('uncaughtException', (error) => thrown.push(error));
    open.push(() => { process.removeAllListeners('uncaughtException'); for (const one of onUncaught) process.on('uncaughtException', one); });
    heard.on('accepted', () => { throw new Error('listener'); });
    const { port } = await serve();
    expect(await clientOf(port).sendMessage('hello')).toBe('hello');
    expect(thrown.map(String)).toEqual(['Error: listener']);
  });
});

describe('as an async iterator', () => {
  it('yields what comes, and ends when it is closed', async () => {
    const { monitor: heard } = monitor();
    const loop = (async () => { const all = []; for await (const { event } of heard) all.push(event); return all; })();
    const { server } = await serve();
    await server.stop();
    heard.close();
    expect(await within(WAIT_MS, loop, 'the end of the loop')).toEqual(['listening']);
  });
  it('a slow loop misses the oldest, which is counted', async () => {
    const { monitor: heard } = monitor({ maxWaiting: 10 });
    const loop = heard[Symbol.asyncIterator]();
    const first = loop.next();
    for (let at = 0; at < 100; at++) publish('worker_joined', () => ({ worker: `${at}` }));
    expect((await first).value).toMatchObject({ worker: '90' });
    expect(heard.missed).toBe(90);
    await loop.return();
    expect(heard.listenerCount('any')).toBe(1);
  });
  it('events.on yields one kind', async () => {
    const { monitor: heard } = monitor();
    const events = on(heard, 'listening');
    const { url } = await serve();
    const { value } = await within(WAIT_MS, events.next(), 'an event') as { value: [MonitorEvent] };
    expect(value[0].url).toBe(url);
    await events.return?.();
  });
});

it('each event is published by some file of lib, under this name', () => {
  const text = ['micro_client', 'micro_server'].map((file) => readFileSync(new URL(`../lib/${file}.ts`, import.meta.url), 'utf8')).join('');
  const published = new Set([...text.matchAll(/publish\('(\w+)'/g)].map(([, name]) => name));
  expect([...published].sort()).toEqual(Object.keys(MONITOR_EVENTS).filter((name) => !name.startsWith('worker_')).sort());
});
