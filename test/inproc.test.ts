/** What is inproc's own: names, threads that meet, and a loop of calls that leaves others their turn. */
import { once } from 'node:events';
import { afterEach, describe, expect, it } from 'vitest';
import { MicroClient } from '../lib/micro_client.ts';
import { MicroServer, type Callback } from '../lib/micro_server.ts';
import { Child } from './helpers/child.ts';
import { within } from './helpers/deadline.ts';
import { startThread } from './helpers/thread.ts';

const open: (() => unknown)[] = [];
afterEach(async () => { for (const end of open.splice(0).reverse()) await end(); });

async function serve(address: string, callback: Callback = (message) => message, options = {}): Promise<MicroServer> {
  const server = new MicroServer(callback, address, options);
  open.push(() => server.stop());
  await server.startListening();
  return server;
}
function clientOf(address: string, options = {}): MicroClient {
  const client = new MicroClient(address, options);
  open.push(() => client.close());
  return client;
}

describe('a name', () => {
  it.each(['inproc://a', 'inproc://A', 'inproc://a/b?c#d', 'inproc://naïve ☃', 'inproc://a:5467'])('%s', async (address) => {
    const server = await serve(address, () => address);
    expect(server.address).toEqual({ url: address, scheme: 'inproc', path: address.slice(9) });
    expect(await clientOf(address).sendMessage('x')).toBe(address);
  });
  it('of another case is another', async () => {
    await serve('inproc://name', () => 'small');
    await serve('inproc://NAME', () => 'large');
    expect(await clientOf('inproc://NAME').sendMessage('x')).toBe('large');
  });
  it('that is missing is told to both', async () => {
    const said = { code: 'BAD_ADDRESS', message: expect.stringContaining('expected inproc://name') };
    await expect(new MicroServer(() => '', 'inproc://').startListening()).rejects.toMatchObject(said);
    await expect(clientOf('inproc://').sendMessage('x')).rejects.toMatchObject(said);
  });
  it('of two that start at once, one gets it', async () => {
    const servers = [1, 2, 3].map(() => new MicroServer(() => 'x', 'inproc://contended'));
    const starts = await Promise.allSettled(servers.map((server) => server.startListening()));
    open.push(() => Promise.all(servers.map((server) => server.stop())));
    expect(starts.filter(({ status }) => status === 'fulfilled').length).toBe(1);
  });
});

it('a client counts as loopback', async () => {
  const seen: unknown[] = [];
  await serve('inproc://near', (message, { client: { loopback, address } }) => { seen.push([loopback, address]); return message; });
  await clientOf('inproc://near').sendMessage('x');
  expect(seen).toEqual([[true, '']]);
});

it('a token is asked for as anywhere', async () => {
  await serve('inproc://sealed', (message) => message, { token: 'secret' });
  expect(await clientOf('inproc://sealed', { token: 'secret' }).sendMessage('x')).toBe('x');
  await expect(clientOf('inproc://sealed').sendMessage('x')).rejects.toMatchObject({ code: 'UNAUTHORIZED' });
});

it('a loop of calls leaves timers and sockets their turn', async () => {
  await serve('inproc://busy');
  const tcp = new MicroServer((message) => message, 0);
  open.push(() => tcp.stop());
  const other = clientOf((await tcp.startListening()).url);
  const client = clientOf('inproc://busy');
  let [ticks, replies, isOver] = [0, 0, false];
  const timer = setInterval(() => { ticks++; }, 5);
  const asking = (async () => { while (!isOver) { await other.sendMessage('x'); replies++; } })();
  for (const end = performance.now() + 300; performance.now() < end;) await client.sendMessage('x');
  isOver = true;
  await asking;
  clearInterval(timer);
  expect(ticks).toBeGreaterThan(20);
  expect(replies).toBeGreaterThan(100);
});

it('two threads meet whose main thread came later, and a name goes with its thread', async () => {
  const child = new Child('inproc_threads.ts', {});
  try {
    await child.ready();
    expect(await child.ask('ask', 'inproc://one')).toBe('hello');
    expect(await child.ask('askFromThread', 'inproc://one')).toBe('hello');
    await child.ask('end');
    expect(await child.ask('ask', 'inproc://one')).toBe('CONNECTION_REFUSED, not sent');
  } finally {
    await child.kill();
  }
});

it('a thread that gives up a name can take it again at once', async () => {
  const thread = startThread('thread_restarts.ts', { address: 'inproc://again', rounds: 50 });
  try {
    const [said] = await within(10_000, once(thread, 'message'), 'the end of 50 rounds') as [string];
    expect(said).toBe('50 rounds');
  } finally {
    await thread.terminate();
  }
});
