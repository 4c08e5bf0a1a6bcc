/** A worker: joining, leaving, coming back; and callbacks in threads. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join as path } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, describe, expect, it, onTestFinished } from 'vitest';
import { MicroClient } from '../lib/micro_client.ts';
import { MicroServer, type Service } from '../lib/micro_server.ts';
import { MicroRouter } from '../lib/router.ts';
import { threaded, type ThreadOptions } from '../lib/threads.ts';
import { MicroWorker } from '../lib/worker.ts';
import { pause, until, within } from './helpers/deadline.ts';
import { ended, range, tally } from './helpers/ended.ts';
import { freePort } from './helpers/free_port.ts';
import { failure, routed } from './helpers/routed.ts';

const folder = mkdtempSync(path(tmpdir(), 'portcall-worker-'));
afterAll(() => rmSync(folder, { recursive: true }));
const quiet = () => {};

/** A file with this text; what it exports is the callback. */
function file(name: string, text: string): string {
  writeFileSync(path(folder, name), text);
  return path(folder, name);
}

describe('MicroWorker', () => {
  it('waits for a router that is not there yet, and comes back to one that was gone', async () => {
    const [front, back] = [await freePort(), await freePort()];
    const worker = new MicroWorker((message) => message, back, { log: quiet });
    onTestFinished(() => worker.stop());
    const started = worker.start();
    await pause(100);
    for (let round = 0; round < 2; round++) {
      const router = new MicroRouter({ front, back, log: quiet });
      await router.startListening();
      await within(5_000, started, 'that the worker joins');
      const client = new MicroClient(front);
      expect(await client.sendMessage('hello', { timeoutMs: 5_000 })).toBe('hello');
      await client.close();
      await router.stop();
    }
  });
  it('answers what it has before it leaves, and tells the service that it stopped', async () => {
    const { join, dial, joined } = await routed();
    let stopped = 0;
    const service: Service = { callback: async (message) => { await pause(200); return message; },
      stop: async () => { stopped++; } };
    const worker = await join(service);
    const calls = range(20).map((index) => dial().sendMessage(`${index}`));
    await until(() => worker.stats()?.inFlight === 20, 2_000, 'that all run');
    await Promise.all([worker.stop(), worker.stop()]);
    expect(stopped).toBe(1);
    expect(await Promise.all(calls)).toEqual(range(20).map(String));
    await joined(0);
    await worker.start();
    await joined(1);
  });
  it('can be stopped before it was started, before it has joined, and twice', async () => {
    const worker = new MicroWorker((message) => message, await freePort(), { log: quiet });
    await worker.stop();
    const started = failure(worker.start());
    await worker.stop();
    await worker.stop();
    expect(await started).toMatchObject({ code: 'CLOSED' });
  });
  it('stops for good where its callback says so; what closes a connection closes not the router\'s', async () => {
    const { join, dial, joined, log } = await routed();
    await join((message, context) => {
      if (message === 'close') context.close();
      if (message === 'stop') context.stopServer();
      return message;
    });
    const client = dial();
    expect(await client.sendMessage('close')).toBe('close');
    await pause(50);
    expect(log.filter((line) => /connection ended|closed the connection/.test(line))).toEqual([]);
    expect(await client.sendMessage('stop')).toBe('stop');
    await joined(0);
    await pause(300);
    await joined(0);
  });
  it('redials a router that is silent, which it judges by heartbeats', async () => {
    const silent = createServer((socket) => {
      socket.on('error', quiet);
      socket.write('\x01portcall/1\n');
    }).listen(0, '127.0.0.1');
    onTestFinished(() => void silent.close());
    await until(() => silent.listening, 2_000, 'that it listens');
    const log: string[] = [];
    const worker = new MicroWorker((message) => message, (silent.address() as AddressInfo).port, {
      log: (_level, text) => void log.push(text), heartbeat: { intervalMs: 50, timeoutMs: 100 } });
    onTestFinished(() => worker.stop());
    await worker.start();
    await until(() => log.filter((line) => line.startsWith('Joined')).length > 1, 3_000, 'that it dials again');
    expect(log.find((line) => line.startsWith('Cannot stay'))).toContain('nothing came of it for 150 ms');
  });
  it('takes nobody for local, whoever its router speaks for', async () => {
    const asked = new Promise<string>((resolve) => {
      const server = createServer((socket) => {
        let said = '';
        socket.on('error', quiet).on('data', (chunk) => { said += chunk; if (said.includes('0 ')) resolve(said); });
        socket.write('\x01portcall/1\n0 text\n');
      }).listen(0, '127.0.0.1', () => void worker(server));
      onTestFinished(() => void server.close());
    });
    const worker = async (server: Server) => {
      const member = new MicroWorker((_message, { client }) => `${client.loopback}`,
        (server.address() as AddressInfo).port, { log: quiet });
      onTestFinished(() => member.stop({ graceMs: 0 }));
      await member.start();
    };
    expect(await within(2_000, asked, 'a reply')).toMatch(/^\x01portcall\/1 .*role=worker.*\n0 false\n/);
  });
  it('does not dial itself where nobody listens', async () => {
    const log: string[] = [];
    const port = await freePort();
    const worker = new MicroWorker((message) => message, port, { log: (_level, text) => void log.push(text) });
    void failure(worker.start());
    await until(() => log.length > 0, 2_000, 'that it tells of it');
    await worker.stop();
    expect(log[0]).toMatch(new RegExp(`^Cannot join the router at tcp://127.0.0.1:${port}: .*ECONNREFUSED`));
  });
  it.each<[string | number, object, string]>([['NOWHERE', { ports: { HERE: 1 } }, 'UNKNOWN_SERVICE'],
    ['nosuch://x', {}, 'BAD_ADDRESS'], ['tcp://127.0.0.1:70000', {}, 'BAD_ADDRESS']])(
    'fails to start at %s', async (back, options, code) => {
      const worker = new MicroWorker((message) => message, back, { log: quiet, ...options });
      expect(await failure(worker.start())).toMatchObject({ code, outcome: 'not sent' });
      await worker.stop();
    });
  it.each<[unknown, object, unknown]>([[5, {}, TypeError], [{}, {}, TypeError], [quiet, { threads: 2 }, TypeError],
    [quiet, { id: '' }, TypeError], [quiet, { id: 'x'.repeat(129) }, TypeError], [quiet, { token: '' }, TypeError],
    [quiet, { heartbeat: { maxMissed: 0 } }, RangeError], [quiet, { maxInFlight: 0 }, RangeError]])(
    'refuses %o with %o', (service, options, kind) => {
      expect(() => new MicroWorker(service as never, 1, options)).toThrow(kind as never);
    });
  it('joins over a Unix socket', async () => {
    const back = `ipc://${path(folder, 'back.sock')}`;
    const { dial, router } = await routed({ back });
    const worker = new MicroWorker((message) => message, back, { log: quiet });
    onTestFinished(() => worker.stop());
    expect(await worker.start()).toMatchObject({ scheme: 'ipc' });
    expect(await dial().sendMessage('near')).toBe('near');
    expect(router.stats().workers).toMatchObject([{ id: worker.id, state: 'joined', sent: 1 }]);
  });
  it('serves a file, by its path or its URL', async () => {
    const { join, dial } = await routed();
    const name = file('upper.mjs', 'export default (message) => message.toUpperCase();');
    for (const service of [name, pathToFileURL(name)]) {
      const worker = await join(service as never);
      expect(await dial().sendMessage('a')).toBe('A');
      await worker.stop();
    }
    const worker = new MicroWorker(path(folder, 'none.mjs'), 1, { log: quiet });
    await expect(worker.start()).rejects.toThrow('there is no such file');
  });
  it('runs a file in threads', async () => {
    const { join, dial } = await routed();
    const name = file('who.mjs', 'import { threadId } from "node:worker_threads";\n' +
      'export default () => new Promise((done) => setTimeout(done, 50, String(threadId)));');
    await join(name as never, { threads: 2 });
    const client = dial();
    const ids = await Promise.all(range(8).map(() => client.sendMessage('')));
    expect(new Set(ids).size).toBe(2);
    expect(ids).not.toContain('0');
  });
});

const WORK = `
import { threadId } from 'node:worker_threads';
export function createWork({ greeting }) {
  return { contract: { summary: greeting, messages: {} }, callback: async (message, { signal, client, deadline }) => {
    const [word, ms] = message.split(' ');
    if (word === 'die') process.exit(1);
    if (word === 'throw') throw new Error('oh');
    if (word === 'block') for (const end = Date.now() + Number(ms ?? 1e9); Date.now() < end;);
    if (word === 'wait') await new Promise((done) => signal.addEventListener('abort', done));
    if (word === 'stream') return (async function* () { for (let part = 0; part < ms; part++) yield String(part); })();
    return word === 'who' ? [threadId, client.id, client.loopback, deadline > Date.now()].join() : greeting + message;
  } };
}`;

describe('threaded', () => {
  async function serve(options: Partial<ThreadOptions> = {}) {
    const log: string[] = [];
    const name = file('work.mjs', WORK);
    const service = await threaded(name, { threads: 2, options: { greeting: 're ' },
      log: (_level, text) => void log.push(text), ...options });
    const server = new MicroServer(service, 0, { log: quiet });
    const { port = 0 } = await server.startListening();
    const client = new MicroClient(port, { timeoutMs: 5_000 });
    onTestFinished(async () => {
      await client.close();
      await server.stop({ graceMs: 0 });
    });
    return { client, service, log };
  }
  it('answers as the callback would, errors, streams and contract included', async () => {
    const { client, service } = await serve();
    expect(service.contract?.summary).toBe('re ');
    expect(await client.sendMessage('naïve ☃\n')).toBe('re naïve ☃\n');
    expect(await failure(client.sendMessage('throw'))).toMatchObject({ code: 'CALLBACK_FAILED', outcome: 'failed' });
    expect(await client.sendMessage('stream 600')).toBe(range(600).join('\n'));
    expect(await client.sendMessage('who')).toMatch(/^[1-9]\d*,[\d/]+,false,true$/);
    expect(await client.sendMessage('x'.repeat(1_000_000))).toHaveLength(1_000_003);
  });
  it('aborts what nobody waits for, and the thread goes on', async () => {
    const { client } = await serve({ threads: 1 });
    expect(await failure(client.sendMessage('wait', { timeoutMs: 100 }))).toMatchObject({ code: 'TIMEOUT' });
    expect(await client.sendMessage('on')).toBe('re on');
  });
  it('replaces a thread that dies; what it had not begun, another does', async () => {
    const { client, log } = await serve();
    for (let round = 0; round < 3; round++) {
      const calls = range(40).map((index) => ended(client.sendMessage(index === 7 ? 'die' : `block 2`)));
      expect(tally(await Promise.all(calls))).toEqual({ reply: 39, 'CONNECTION_LOST, maybe done': 1 });
    }
    expect(log).toEqual([]);
  });
  it.each([1, 2])('of %i, replaces a thread that blocks for good: that request alone fails', async (threads) => {
    const { client } = await serve({ threads, blockedMs: 200 });
    const calls = range(20).map((index) =>
      ended(client.sendMessage(index === 3 ? 'block' : 'x', { timeoutMs: index === 3 ? 400 : 5_000 })));
    const ends = await Promise.all(calls);
    expect(tally(ends)).toEqual({ reply: 19, 'TIMEOUT, maybe done': 1 });
    if (threads === 2) expect(Math.max(...ends.filter(({ reply }) => reply).map(({ ms }) => ms))).toBeLessThan(2_000);
  });
  it('lets a thread work as long as somebody waits', async () => {
    const { client } = await serve({ threads: 1, blockedMs: 100 });
    const calls = [client.sendMessage('block 700'), client.sendMessage('next')];
    expect(await Promise.all(calls)).toEqual(['re block 700', 're next']);
  });
  it('tells what is wrong with the file, and leaves no thread behind', async () => {
    const start = (text: string) => threaded(file('broken.mjs', text), { threads: 2, log: quiet });
    await expect(start('export default 5')).rejects.toThrow('no default export that is a callback');
    await expect(start('throw new Error("no way")')).rejects.toThrow('no way');
    await expect(threaded('none.mjs', { threads: 1 })).rejects.toThrow('there is no such file');
    await expect(threaded('none.mjs', { threads: 0 })).rejects.toThrow(RangeError);
  });
});
