/** ZMTP against libzmq itself, by pyzmq: its sockets as clients of ours, ours as a client of theirs. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { MicroClient } from '../../lib/micro_client.ts';
import { MicroServer, type Callback, type Client, type Service, type ServerOptions } from '../../lib/micro_server.ts';
import { zmtp } from '../../lib/dialects/zmtp.ts';
import { createEcho } from '../../services/echo.ts';
import { until, within } from '../helpers/deadline.ts';
import { FULL } from '../helpers/faults.ts';
import { freePort } from '../helpers/free_port.ts';
import { NO_PYZMQ, PyZmq, withPyServer, type PySocket, type SocketOptions } from '../helpers/pyzmq.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { stillServes } from '../helpers/still_serves.ts';

const MIB = 1024 * 1024;
let zmq: PyZmq;
const servers = new Set<MicroServer>();
const opened: PySocket[] = [];

beforeAll(async () => { if (NO_PYZMQ === undefined) zmq = await PyZmq.start(); });
beforeEach((ctx) => { if (NO_PYZMQ !== undefined) ctx.skip(NO_PYZMQ); });
afterEach(async () => {
  for (const socket of opened.splice(0)) await socket.close();
  await Promise.all([...servers].map((server) => server.stop({ graceMs: 0 })));
  servers.clear();
});
afterAll(async () => { await zmq?.end(); });

async function serve(service: Callback | Service = createEcho(), options: ServerOptions = {}): Promise<number> {
  const server = new MicroServer(service, 0, { dialects: [zmtp()], log() {}, ...options });
  servers.add(server);
  return (await server.startListening()).port as number;
}

async function connect(kind: string, port: number, options: SocketOptions = {}): Promise<PySocket> {
  const socket = await zmq.socket(kind, { connect: `tcp://127.0.0.1:${port}`, ...options });
  opened.push(socket);
  return socket;
}

const texts = (messages: readonly Buffer[][]): string[][] => messages.map((parts) => parts.map(String));
const range = (count: number): number[] => Array.from({ length: count }, (_, at) => at);
const TEXTS = ['hello', '', ' ', 'naïve ☃ 😀', 'a\nb\r\n\0', '$ping', 'ERR TIMEOUT', 'x'.repeat(127), 'x'.repeat(128),
  'é'.repeat(127), 'x'.repeat(255), 'x'.repeat(256), 'x'.repeat(65_536)];

describe('a REQ', () => {
  it('gets what it sends: strings', async () => {
    const req = await connect('REQ', await serve((message) => message));
    for (const text of TEXTS) expect(await req.call(text)).toEqual([text]);
  });
  it('gets what it sends: several parts, empty ones and bytes', async () => {
    const req = await connect('REQ', await serve());
    for (const parts of [['a', 'b'], ['', ''], ['a', '', 'c'], ['', 'a', ''], range(1_000).map(String)]) {
      expect(await req.call(...parts)).toEqual(parts);
    }
    await req.send([Buffer.of(0xff, 0), Buffer.of(0x80)]);
    expect(await req.receive()).toEqual([[Buffer.of(0xff, 0), Buffer.of(0x80)]]);
  });
  it('gets what it sends: 1 MiB, and 100 MiB where the limit is raised', async () => {
    await (await connect('REQ', await serve())).bounce(MIB, { times: 5 });
    const port = await serve(createEcho(), { maxMessageBytes: 100 * MIB, maxOutputBytes: 128 * MIB });
    await (await connect('REQ', port)).bounce(100 * MIB, { times: FULL ? 5 : 1 });
  });
  it('correlates its requests, and may give one up for another', async () => {
    const answer: Callback = (message) => (message === 'never' ? new Promise<string>(() => {}) : message);
    const req = await connect('REQ', await serve(answer), { options: { REQ_CORRELATE: 1, REQ_RELAXED: 1 } });
    for (const at of range(300)) expect(await req.call(String(at))).toEqual([String(at)]);
    await req.send(['never']);
    expect(await req.call('again')).toEqual(['again']);
  });
  it('asks a server that comes back on its port', async () => {
    const port = await freePort();
    const start = async (): Promise<MicroServer> => {
      const server = new MicroServer((message) => message, port, { dialects: [zmtp()] });
      await server.startListening();
      return server;
    };
    let server = await start();
    const req = await connect('REQ', port, { options: { RECONNECT_IVL: 20 } });
    for (const at of range(3)) {
      expect(await req.call(`${at}`)).toEqual([`${at}`]);
      await server.stop();
      server = await start();
    }
    servers.add(server);
    expect(await req.call('still')).toEqual(['still']);
  });
  it('gets an error as its reply, whatever is wrong', async () => {
    const port = await serve((message) => {
      if (message === 'throw') throw new Error('it threw');
      if (message === 'never') return new Promise<string>(() => {});
      return message === 'nothing' ? null : message === 'bad' ? { parts: [1 as unknown as string] } : message.repeat(200);
    }, { callbackTimeoutMs: 200, maxMessageBytes: 1_000 });
    const req = await connect('REQ', port);
    expect(await req.call('throw')).toEqual(['ERR CALLBACK_FAILED it threw']);
    expect(await req.call('never')).toEqual([expect.stringMatching(/^ERR TIMEOUT /)]);
    expect(await req.call('nothing')).toEqual(['']);
    expect(await req.call('bad')).toEqual([expect.stringMatching(/^ERR CALLBACK_FAILED a part /)]);
    expect(await req.call('long reply')).toEqual([expect.stringMatching(/^ERR MESSAGE_TOO_LARGE /)]);
    expect(await req.call(Buffer.of(0xff))).toEqual([expect.stringMatching(/^ERR BAD_MESSAGE /)]);
    expect(await req.call('x'.repeat(1_001))).toEqual([expect.stringMatching(/^ERR MESSAGE_TOO_LARGE /)]);
    expect(await req.call('a')).toEqual(['a'.repeat(200)]); // on a connection of its own accord
    expect(await req.call('x'.repeat(10 * MIB))).toEqual([expect.stringMatching(/^ERR MESSAGE_TOO_LARGE /)]);
    expect(await req.call('b')).toEqual(['b'.repeat(200)]);
  });
  it('hears that a server is full, or wants a token', async () => {
    const port = await serve(createEcho(), { maxConnections: 1 });
    await RawClient.with(port, async (first) => {
      await first.write('a\n');
      expect(await first.readLine()).toBe('a');
      const busy = await connect('REQ', port);
      expect(await busy.call('a')).toEqual(['ERR SERVER_BUSY retry after 200 ms']);
    });
    const guarded = await connect('REQ', await serve(createEcho(), { token: 'secret' }));
    expect(await guarded.call('a')).toEqual([expect.stringMatching(/^ERR UNAUTHORIZED /)]);
  });
  it('gets a stream as one message, and an error in its stead where it is too long', async () => {
    async function* count(to: number): AsyncGenerator<string> {
      for (let at = 0; at < to; at++) yield String(at);
    }
    let ended = 0;
    async function* endless(): AsyncGenerator<string> {
      try { for (;;) yield 'x'.repeat(1_000); } finally { ended++; }
    }
    const req = await connect('REQ', await serve((message) => (message === 'endless' ? endless() : count(Number(message)))));
    expect(await req.call('3')).toEqual(['0', '1', '2']);
    expect(await req.call('0')).toEqual(['']);
    expect(await req.call('1024')).toEqual(range(1_024).map(String));
    expect(await req.call('1025')).toEqual([expect.stringMatching(/^ERR MESSAGE_TOO_LARGE /)]);
    expect(await req.call('endless')).toEqual([expect.stringMatching(/^ERR MESSAGE_TOO_LARGE /)]);
    await until(() => ended > 0, 2_000, 'that the stream was ended');
  });
});

describe('a DEALER', () => {
  it('gets back its envelope, whatever it is', async () => {
    const dealer = await connect('DEALER', await serve());
    for (const parts of [['a'], ['', 'a'], ['id', '', 'a'], ['one', 'two', '', 'a', 'b'], [''], ['a', ''], ['a', 'b'],
      ['', ''], ['i'.repeat(255), '', 'a'], ['', 'HEARTBEAT', '{"node":1}']]) {
      expect(await dealer.call(...parts)).toEqual(parts);
    }
  });
  it('has 1,000 requests under way, and each is answered', async () => {
    const dealer = await connect('DEALER', await serve((message) =>
      (Number(message) % 3 === 0 ? Promise.resolve(`re ${message}`) : `re ${message}`)));
    await dealer.send(...range(1_000).map((at) => [`id ${at}`, '', String(at)]));
    const replies = texts(await dealer.receive(1_000));
    expect(new Set(replies.map(String))).toEqual(new Set(range(1_000).map((at) => `id ${at},,re ${at}`)));
  });
  it('gets replies as they come, not in the order of its requests', async () => {
    let free = (_: string): void => {};
    const slow = new Promise<string>((resolve) => { free = resolve; });
    const dealer = await connect('DEALER', await serve((message) => (message === 'slow' ? slow : message)));
    await dealer.send(['1', '', 'slow'], ['2', '', 'fast']);
    expect(await dealer.text()).toEqual(['2', '', 'fast']);
    free('done');
    expect(await dealer.text()).toEqual(['1', '', 'done']);
  });
  it('of which there are 50, at once', async () => {
    const seen = new Set<string>();
    const port = await serve({ callback: (message, { client }) => { seen.add(client.id); return message; } });
    const all = await Promise.all(range(50).map(() => connect('DEALER', port)));
    for (const [at, dealer] of all.entries()) await dealer.send(['', `a ${at}`], ['', `b ${at}`]);
    for (const [at, dealer] of all.entries()) {
      expect(texts(await dealer.receive(2))).toEqual([['', `a ${at}`], ['', `b ${at}`]]);
    }
    expect(seen.size).toBe(50);
  });
  it('may have an identity', async () => {
    const told: (string | undefined)[] = [];
    const gone: Client[] = [];
    const port = await serve({ disconnected: (client) => { gone.push(client); }, callback(message, { client }) {
      told.push(client.identity);
      return message;
    } });
    for (const identity of ['me', 'naïve', '']) {
      const dealer = await connect('DEALER', port, identity === '' ? {} : { options: { ROUTING_ID: identity } });
      expect(await dealer.call('a')).toEqual(['a']);
    }
    expect(told).toEqual(['me', 'naïve', undefined]);
    for (const socket of opened.splice(0)) await socket.close();
    await until(() => gone.length === 3, 5_000, 'that three left');
    expect(gone.map(({ identity }) => identity).sort()).toEqual(['me', 'naïve', undefined]);
  });
  it('beats, and its connection lives on, while its requests are not read too', async () => {
    let connections = 0;
    const port = await serve({ connected: () => { connections++; }, callback: (message) =>
      new Promise((resolve) => { setTimeout(resolve, message === 'slow' ? 1_000 : 0, message); }) }, { maxInFlight: 1 });
    const dealer = await connect('DEALER', port,
      { options: { HEARTBEAT_IVL: 50, HEARTBEAT_TIMEOUT: 400, HEARTBEAT_TTL: 400 } });
    expect(await dealer.call('a')).toEqual(['a']);
    await zmq.ask('sleep', { ms: 1_000 });
    expect(await dealer.call('b')).toEqual(['b']);
    const fillers = range(4_200).map(() => ['f']); // more than are held: the server reads no more
    await dealer.send(['slow'], ...fillers);
    expect(await dealer.text()).toEqual(['slow']);
    expect((await dealer.receive(fillers.length)).length).toBe(fillers.length);
    expect(connections).toBe(1);
  });
  it('is a ROUTER or a REP that dials: then ours is a DEALER to it', async () => {
    const port = await serve((message) => message);
    expect(await (await connect('ROUTER', port, { options: { PROBE_ROUTER: 0 }, watch: true })).failure(300)).toBeNull();
    expect(await (await connect('REP', port, { watch: true })).failure(300)).toBeNull();
    await stillServes({ port });
  });
});

describe('libzmq is refused, hears it, and good clients are served', () => {
  const PROTOCOL = 'HANDSHAKE_FAILED_PROTOCOL';
  it.each(['PUB', 'SUB', 'PUSH', 'PULL', 'PAIR', 'XPUB', 'XSUB'])('a %s', async (kind) => {
    const runs: string[] = [];
    const port = await serve((message) => { runs.push(message); return message; });
    const socket = await connect(kind, port, { watch: true });
    await until(() => [...servers][0]?.stats().connections === 0, 5_000, 'that it is closed');
    await socket.failure(0);
    expect(runs).toEqual([]);
    expect(await (await connect('REQ', port)).call('a')).toEqual(['a']);
  });
  it.each([['PLAIN', { PLAIN_USERNAME: 'me', PLAIN_PASSWORD: 'secret' }], ['CURVE', {}]])('mechanism %s', async (name, given) => {
    const port = await serve();
    const keys = await zmq.ask<string[] | null>('curve_keys', {});
    if (name === 'CURVE' && keys === null) return; // this libzmq has none
    const [own = '', secret = ''] = keys ?? [];
    const options = name === 'PLAIN' ? given : { CURVE_PUBLICKEY: own, CURVE_SECRETKEY: secret, CURVE_SERVERKEY: own };
    const socket = await connect('REQ', port, { options, watch: true });
    expect(await socket.failure(5_000)).toMatchObject({ event: PROTOCOL });
    expect([...servers][0]?.stats().requests).toBe(0);
    expect(await (await connect('REQ', port)).call('a')).toEqual(['a']);
    await stillServes({ port });
  });
});

describe('a MicroClient', () => {
  const withClient = async <T>(port: number, task: (client: MicroClient) => Promise<T>): Promise<T> => {
    const client = new MicroClient(port, { dialect: zmtp(), log() {} });
    try {
      return await within(20_000, task(client), 'the calls');
    } finally {
      await client.close();
    }
  };
  it('asks a REP', () => withPyServer('rep', (port) => withClient(port, async (client) => {
    for (const text of TEXTS.slice(0, -1)) expect(await client.sendMessage(text)).toBe(text.toUpperCase());
    const replies = await Promise.all(range(1_000).map((at) => client.sendMessage(`a ${at}`)));
    expect(replies).toEqual(range(1_000).map((at) => `A ${at}`));
    expect(await client.sendMessage('parts')).toBe('one\n\nthree');
    const parts: string[] = [];
    for await (const part of client.streamMessage('parts')) parts.push(part);
    expect(parts).toEqual(['one', '', 'three']);
    await expect(client.sendMessage('binary')).rejects.toMatchObject({ code: 'PROTOCOL_ERROR', outcome: 'maybe done' });
    expect(await client.ping()).toBeGreaterThan(0);
    expect(await client.sendMessage('x'.repeat(MIB))).toBe('X'.repeat(MIB));
  })));
  it.each(['router', 'broker'] as const)('asks a ROUTER: %s', (kind) => withPyServer(kind, (port) =>
    withClient(port, async (client) => {
      const replies = await Promise.all(range(20).map((at) => client.sendMessage(`a ${at}`)));
      expect(replies).toEqual(range(20).map((at) => `A ${at}`));
      expect(await client.ping()).toBeGreaterThan(0);
    })));
  it('asks one of ours over ZMTP, errors and streams included', async () => {
    async function* count(): AsyncGenerator<string> { yield* ['1', '2', '3']; }
    const port = await serve((message) => {
      if (message === 'throw') throw new Error('it threw');
      return message === 'count' ? count() : message;
    });
    await withClient(port, async (client) => {
      const replies = await Promise.all(range(1_000).map((at) => client.sendMessage(`a ${at}`)));
      expect(replies).toEqual(range(1_000).map((at) => `a ${at}`));
      await expect(client.sendMessage('throw')).rejects.toMatchObject({ code: 'CALLBACK_FAILED', message: 'it threw' });
      expect(await client.sendMessage('count')).toBe('1\n2\n3');
    });
  });
  it('says what it meets where no ZMTP is', async () => {
    const plain = new MicroServer((message) => message, 0);
    servers.add(plain);
    const { port } = await plain.startListening();
    await withClient(port as number, async (client) => {
      await expect(client.sendMessage('a')).rejects.toMatchObject({ code: 'PROTOCOL_ERROR' });
    });
  });
});
