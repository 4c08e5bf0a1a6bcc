/** The sized header over real connections, both sides of it. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { MicroClient, MicroError } from '../lib/micro_client.ts';
import { sizedHeader } from '../lib/dialects/sized_header.ts';
import { MicroServer, type Callback, type Service, type ServerOptions } from '../lib/micro_server.ts';
import { createLifeGen } from '../services/life_gen.ts';
import { pause } from './helpers/deadline.ts';
import { sized } from './helpers/dialects.ts';
import { FUZZ_SEED, seeded } from './helpers/random.ts';
import { RawClient } from './helpers/raw_client.ts';
import { RawServer } from './helpers/raw_server.ts';
import { stillServes } from './helpers/still_serves.ts';
import { unsized } from './helpers/vectors.ts';

vi.setConfig({ testTimeout: 20_000 });
const MIB = 1024 * 1024;
const servers = new Set<MicroServer>();
const clients = new Set<MicroClient>();
afterEach(async () => {
  await Promise.all([...clients].map((client) => client.close()));
  await Promise.all([...servers].map((server) => server.stop({ graceMs: 0 })));
  clients.clear();
  servers.clear();
});

async function serve(service: Callback | Service, options: ServerOptions = {}): Promise<number> {
  const server = new MicroServer(service, 0, { dialects: [sizedHeader()], log() {}, ...options });
  servers.add(server);
  return (await server.startListening()).port as number;
}
function dial(port: number, options = {}): MicroClient {
  const client = new MicroClient(port, { dialect: sizedHeader(), log() {}, ...options });
  clients.add(client);
  return client;
}
const echo: Callback = (message) => message;

describe('a server', () => {
  it('answers header and text in one write', async () => {
    const port = await serve(echo);
    await RawClient.with(port, async (client) => {
      for (const text of ['hello', 'x'.repeat(500), 'é'.repeat(10_000)]) {
        const chunks: number[] = [];
        const note = (chunk: Buffer): void => { chunks.push(chunk.length); };
        client.socket.on('data', note);
        await client.write(sized(text));
        expect(unsized(await client.readBytes(Buffer.byteLength(sized(text))))).toEqual([text]);
        expect(chunks[0], 'bytes of the first packet').toBeGreaterThan(64);
        client.socket.off('data', note);
      }
    });
  });
  it('&END closes without a reply, once all before it is answered', async () => {
    const port = await serve((message) => pause(100).then(() => message));
    await RawClient.with(port, async (client) => {
      await client.write(sized('a') + sized('b') + sized('&END') + sized('c'));
      expect(unsized(await client.readToFin())).toEqual(['a', 'b']);
    });
    await RawClient.with(port, async (client) => {
      const began = performance.now();
      await client.write(sized('&END'));
      expect(unsized(await client.readToFin())).toEqual([]);
      expect(performance.now() - began).toBeLessThan(1_000);
    });
    await stillServes({ port }, { ask: 'fine' });
  });
  it('a text of the limit passes, one of a byte more is refused before it is kept', async () => {
    const port = await serve(echo);
    await RawClient.with(port, async (client) => {
      const text = 'x'.repeat(MIB);
      void client.write(sized(text));
      expect(unsized(await client.readBytes(64 + MIB))[0] === text).toBe(true);
      await client.write(String(MIB + 1).padEnd(64)); // and nothing of it
      expect((await client.readBytes(100)).toString()).toMatch(/^\d+ +ERR MESSAGE_TOO_LARGE /);
    });
  });
  it('a promise of 1 MiB costs memory only as it comes, and its time is limited', async () => {
    const port = await serve(echo, { partialTimeoutMs: 300 });
    const before = process.memoryUsage().arrayBuffers;
    const dialled = await Promise.all(Array.from({ length: 200 }, () => RawClient.connect(port)));
    await Promise.all(dialled.map((client) => client.write(`${String(MIB).padEnd(64)}x`)));
    const ends = await Promise.all(dialled.map((client) => client.readToFin()));
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(32 * MIB);
    for (const end of ends) expect(unsized(end)).toEqual([expect.stringMatching(/^ERR TIMEOUT /)]);
    for (const { socket } of dialled) socket.destroy();
    await stillServes({ port }, { ask: 'fine' });
  });
  it('errors are messages too: what failed, too many, no token', async () => {
    const port = await serve(() => { throw new Error('it broke'); }, { maxProtocolErrors: 2 });
    await RawClient.with(port, async (client) => {
      const bad = Buffer.concat([Buffer.from('1'.padEnd(64)), Buffer.of(0xff)]);
      await client.write(Buffer.concat([Buffer.from(sized('a')), bad, bad, bad]));
      expect(unsized(await client.readToFin()).map((text) => text.slice(0, 24))).toEqual(['ERR CALLBACK_FAILED it b',
        'ERR BAD_MESSAGE Cannot r', 'ERR BAD_MESSAGE Cannot r', 'ERR PROTOCOL_ERROR Canno']);
    });
    const guarded = await serve(echo, { token: 'secret' });
    const answer = await RawClient.with(guarded, (client) => client.ask(sized('a')));
    expect(unsized(Buffer.from(answer))).toEqual([expect.stringMatching(/^ERR UNAUTHORIZED /)]);
  });
  it('LIFE_GEN speaks it, as the first Python client did', async (ctx) => {
    const port = await serve(createLifeGen({ random: () => 0 }), { dialects: createLifeGen().dialects ?? [] });
    const program = `
import socket
s = socket.create_connection(('127.0.0.1', ${port}))
def send(text):
    body = text.encode('utf-8')
    s.send(str(len(body)).encode('utf-8') + b' ' * (64 - len(str(len(body)))))
    s.send(body)
send('music 2')
length = int(s.recv(64).decode('utf-8'))
print(s.recv(length).decode('utf-8'))
send('&END')
print(s.recv(64))
`;
    const run = promisify(execFile)('python3', ['-c', program], { timeout: 10_000 });
    const { stdout } = await run.catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return ctx.skip('there is no python3');
      throw error;
    });
    const [reply = '', end] = stdout.split('\n');
    expect(JSON.parse(reply)).toHaveLength(2);
    expect(end).toBe("b''");
  });
});

describe('a MicroClient with this dialect', () => {
  it('gets each reply, many at once, whatever is in it', async () => {
    const client = dial(await serve((message) => (message.length % 3 === 0 ? pause(1).then(() => message) : message)));
    const random = seeded();
    const letters = ['a', ' ', '\n', '\0', 'é', '☃', '😀', '5', '&END'];
    const texts = Array.from({ length: 1_000 }, (_, at) =>
      `${at} ${Array.from({ length: random.int(20) }, () => random.pick(letters)).join('')}`);
    expect(await Promise.all(texts.map((text) => client.sendMessage(text))), `FUZZ_SEED=${FUZZ_SEED}`).toEqual(texts);
    expect(await client.sendMessage('')).toBe('');
    expect(await client.sendMessage('x'.repeat(MIB))).toHaveLength(MIB);
  });
  it('gets errors with their codes, and goes on', async () => {
    const client = dial(await serve((message) => {
      if (message === 'fail') throw new Error('it broke');
      if (message === 'busy') throw new MicroError('SERVER_BUSY', 'full', { retryAfterMs: 70 });
      return message === 'long' ? 'x'.repeat(100) : message;
    }, { maxMessageBytes: 50 }));
    await expect(client.sendMessage('fail')).rejects.toMatchObject(
      { code: 'CALLBACK_FAILED', outcome: 'failed', message: 'it broke' });
    await expect(client.sendMessage('busy')).rejects.toMatchObject(
      { code: 'SERVER_BUSY', outcome: 'refused', retryAfterMs: 70 });
    await expect(client.sendMessage('long')).rejects.toMatchObject({ code: 'MESSAGE_TOO_LARGE' });
    await expect(client.sendMessage('y'.repeat(51))).rejects.toMatchObject({ code: 'MESSAGE_TOO_LARGE' });
    expect(await client.sendMessage('fine')).toBe('fine');
  });
  it('a call that times out takes nobody else\'s reply', async () => {
    const client = dial(await serve((message) => pause(message === 'slow' ? 300 : 1).then(() => message)));
    const slow = client.sendMessage('slow', { timeoutMs: 100 });
    const behind = client.sendMessage('behind');
    await expect(slow).rejects.toMatchObject({ code: 'TIMEOUT', outcome: 'maybe done' });
    expect(await client.sendMessage('later')).toBe('later');
    expect(await behind).toBe('behind');
  });
  it('has no ping, and says so', async () => {
    const client = dial(await serve(echo));
    await expect(client.ping()).rejects.toMatchObject({ code: 'PROTOCOL_ERROR' });
    expect(await client.sendMessage('a')).toBe('a');
  });
  it('says &END when it is closed', async () => {
    const got: Buffer[] = [];
    await RawServer.with((socket) => {
      socket.on('data', (bytes: Buffer) => {
        got.push(bytes);
        if (got.length === 1) socket.write(sized('reply'));
      }).on('end', () => socket.end());
    }, async ({ port }) => {
      const client = dial(port);
      expect(await client.sendMessage('a')).toBe('reply');
      await client.close();
    });
    expect(unsized(Buffer.concat(got))).toEqual(['a', '&END']);
  });
  it('fails on what is no such server, and not for long', async () => {
    for (const answer of ['HTTP/1.1 200 OK\r\n\r\n', '5'.padEnd(64), `${'7'.repeat(20).padEnd(64)}x`, '']) {
      await RawServer.with((socket) => socket.resume().end(answer), async ({ port }) => {
        const began = performance.now();
        await expect(dial(port).sendMessage('a', { timeoutMs: 2_000 }), answer).rejects.toBeInstanceOf(MicroError);
        expect(performance.now() - began).toBeLessThan(2_500);
      });
    }
  });
});
