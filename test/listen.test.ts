import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync, linkSync, lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Worker } from 'node:worker_threads';
import { afterAll, afterEach, describe, expect, it, vi } from 'vitest';
import { MicroClient, MicroError, type Address } from '../lib/micro_client.ts';
import { MicroServer, type ServerOptions } from '../lib/micro_server.ts';
import { until, within } from './helpers/deadline.ts';
import { freePort } from './helpers/free_port.ts';
import { built } from './helpers/programs_built.ts';
import { RawClient } from './helpers/raw_client.ts';

const WAIT_MS = 5_000;
/** For processes and threads that are scripts of their own. */
const SERVER = pathToFileURL(built('lib/micro_server.ts')).href;
vi.setConfig({ testTimeout: 20_000 }); // each wait has a deadline of its own, which tells more
const root = mkdtempSync(join(tmpdir(), 'pc-'));
const servers = new Set<MicroServer>();
const children = new Set<ChildProcess>();
afterEach(async () => {
  for (const child of children) child.kill('SIGKILL');
  children.clear();
  await Promise.all([...servers].map((server) => server.stop({ graceMs: 100 })));
  servers.clear();
});
afterAll(() => rmSync(root, { recursive: true, force: true }));

/** A server with its name as the reply, on an address that is the key LIFE_GEN. */
function serverAt(address: string | number, options: ServerOptions = {}, says = 'hi'): MicroServer {
  const server = new MicroServer(() => says, 'LIFE_GEN', { ports: { LIFE_GEN: address }, ...options });
  servers.add(server);
  return server;
}

async function listen(address: string | number, options: ServerOptions = {}): Promise<[MicroServer, Address]> {
  const server = serverAt(address, options);
  return [server, await within(WAIT_MS, server.startListening(), `listening on ${address}`)];
}

/** `CODE: message`, once it is sure that it is one line with its cause. */
async function failure(start: Promise<unknown>): Promise<string> {
  const error = await start.then(() => undefined, (reason: unknown) => reason);
  expect(error).toBeInstanceOf(MicroError);
  const { code, message, cause, outcome } = error as MicroError;
  expect(message).toMatch(/^Cannot listen [^\p{Cc}]*[^.]$/u);
  if (!message.includes('token')) expect(cause).toBeInstanceOf(Error);
  expect(outcome).toBe('not sent');
  return `${code}: ${message}`;
}

const ask = ({ port, path }: Address): Promise<string> =>
  RawClient.with((path ?? port) as number, (client) => client.ask('a\n'));

/** A program that ends at the latest with this test; resolves with its first line. */
async function child(code: string): Promise<{ child: ChildProcess; line: string }> {
  const started = spawn(process.execPath, ['-e', code], { stdio: ['ignore', 'pipe', 'inherit'] });
  children.add(started);
  const [data] = (await within(WAIT_MS, once(started.stdout, 'data'), 'the first line of a child')) as [Buffer];
  return { child: started, line: String(data).trim() };
}

describe('tcp', () => {
  it('port 0 gives the real port, and clients are told by it', async () => {
    const [server, address] = await listen(0);
    const { port } = address;
    expect(port).toBeGreaterThan(0);
    expect(address).toEqual({ url: `tcp://127.0.0.1:${port}`, scheme: 'tcp', host: '127.0.0.1', port });
    expect(server.address).toEqual(address);
    expect(await ask(address)).toBe('hi\n');
    expect(await new MicroClient(address.url).sendMessage('a')).toBe('hi');
  });
  it('IPv6', async () => {
    const [, address] = await listen('tcp://[::1]:0');
    expect(address.url).toBe(`tcp://[::1]:${address.port}`);
    expect(await new MicroClient(address.url).sendMessage('a')).toBe('hi');
  });
  it('a name is looked up', async () => {
    const [, address] = await listen('tcp://localhost:0');
    expect(address.host).toMatch(/^(127\.0\.0\.1|::1)$/);
    expect(await new MicroClient(address.url).sendMessage('a')).toBe('hi');
  });
  it('any address of 127.0.0.0/8 is loopback', async () => {
    const [, address] = await listen('tcp://127.0.1.1:0');
    expect(address.url).toMatch(/^tcp:\/\/127\.0\.1\.1:/);
    expect(await new MicroClient(address.url).sendMessage('a')).toBe('hi');
  });
  it('starting twice is starting once', async () => {
    const server = serverAt(0);
    const [first, second] = await Promise.all([server.startListening(), server.startListening()]);
    expect(first).toEqual(second);
    expect(await server.startListening()).toEqual(first);
  });
  it.each(['tcp://192.0.2.1:0', 'tcp://no-such-host.invalid:0'])('%s is not of this machine', async (key) => {
    expect(await failure(serverAt(key, { insecure: true, log() {} }).startListening()))
      .toMatch(/^BAD_ADDRESS: Cannot listen on tcp:.*(EADDRNOTAVAIL|no-such-host).*give LIFE_GEN another address$/);
  });
  it('a start that failed may be tried again', async () => {
    const port = await freePort();
    const [blocker] = await listen(port);
    const server = serverAt(port);
    expect(await failure(server.startListening())).toMatch(/^PORT_IN_USE/);
    expect(server.address).toBeUndefined();
    await blocker.stop();
    expect((await server.startListening()).port).toBe(port);
    expect(await ask(server.address as Address)).toBe('hi\n');
  });
});

describe('a port in use', () => {
  it.each(['127.0.0.1', '0.0.0.0', '::', '::1'])('is told with who holds it, on %s', async (host) => {
    const { child: { pid }, line: port } = await child(`const server = require('net').createServer().listen(` +
      `{ port: 0, host: ${JSON.stringify(host)} }, () => console.log(server.address().port))`);
    const url = host === '::1' ? `tcp://[::1]:${port}` : `tcp://127.0.0.1:${port}`;
    expect(await failure(serverAt(url).startListening())).toBe(`PORT_IN_USE: Cannot listen on ${url}: ` +
      `pid ${pid} (node) holds it. Stop it, or give LIFE_GEN another address`);
    if (host !== '127.0.0.1') return;
    const insecure = { insecure: true, log() {} };
    expect(await failure(serverAt(`tcp://0.0.0.0:${port}`, insecure).startListening())).toContain(`pid ${pid} (node)`);
    expect(await failure(serverAt(`tcp://[::]:${port}`, insecure).startListening())).toContain(`pid ${pid} (node)`);
    const [, other] = await listen(`tcp://127.0.0.2:${port}`); // the same number elsewhere is another port
    expect(await failure(serverAt(other.url).startListening())).toContain(`pid ${process.pid} (node)`);
  });
  it('is told where an outgoing connection has it', async () => {
    const [, { port }] = await listen(0);
    await RawClient.with(port as number, async ({ socket }) => {
      expect(await failure(serverAt(socket.localPort as number).startListening())).toMatch(/^PORT_IN_USE: /);
    });
  });
});

describe('who may reach it', () => {
  it.each(['tcp://0.0.0.0:0', 'tcp://[::]:0'])('%s without a token or `insecure` does not start', async (key) => {
    const told = await failure(serverAt(key).startListening());
    expect(told).toMatch(/^BAD_ADDRESS: Cannot listen on tcp:.* without a token: anybody on the network could call it/);
    expect(told).toMatch(/Bind to 127\.0\.0\.1, or set insecure$/);
  });
  it('nor does the option host', async () => {
    expect(await failure(serverAt(0, { host: '0.0.0.0' }).startListening()))
      .toMatch(/^BAD_ADDRESS: .* without a token/);
  });
  it('with `insecure` it does, and warns', async () => {
    const log: string[] = [];
    const [, address] = await listen('tcp://0.0.0.0:0',
      { insecure: true, log: (level, text) => log.push(`${level} ${text}`) });
    expect(log).toEqual([expect.stringMatching(/^warn Listening on tcp:\/\/0\.0\.0\.0:0 without a token/)]);
    expect(address.url).toBe(`tcp://0.0.0.0:${address.port}`);
    expect(await new MicroClient(address.port as number).sendMessage('a')).toBe('hi');
  });
  it('with a token it does, without a warning', async () => {
    const log: string[] = [];
    const [, { port }] = await listen('tcp://0.0.0.0:0',
      { token: 'secret', log: (level, text) => log.push(`${level} ${text}`) });
    expect(log).toEqual([]);
    expect(await new MicroClient(port as number, { token: 'secret' }).sendMessage('a')).toBe('hi');
    const refused = await new MicroClient(port as number).sendMessage('a').catch((error: unknown) => error);
    expect(refused).toMatchObject({ code: 'UNAUTHORIZED', outcome: 'refused' });
  });
  it('`insecure: false` is none', async () => {
    expect(await failure(serverAt('tcp://0.0.0.0:0', { insecure: false }).startListening())).toMatch(/^BAD_ADDRESS/);
  });
  it('the option host binds elsewhere than clients dial', async () => {
    const port = await freePort();
    const ports = { LIFE_GEN: `tcp://127.0.0.1:${port}` };
    const [, address] = await listen(ports.LIFE_GEN, { host: '127.0.0.3' });
    expect(address).toEqual({ url: `tcp://127.0.0.3:${port}`, scheme: 'tcp', host: '127.0.0.3', port });
    const refused = await new MicroClient('LIFE_GEN', { ports }).sendMessage('a').catch((error: unknown) => error);
    expect(refused).toMatchObject({ code: 'CONNECTION_REFUSED' });
    expect(await new MicroClient(address.url).sendMessage('a')).toBe('hi');
  });
  it('the option host may be IPv6', async () => {
    const [, address] = await listen(0, { host: '::1' });
    expect(address.url).toBe(`tcp://[::1]:${address.port}`);
  });
});

describe('stop and start', () => {
  it.each(['tcp', 'ipc'])('a stopped server frees its %s address, and may start there again', async (kind) => {
    const key = kind === 'tcp' ? await freePort() : `ipc://${mkdtempSync(join(root, 'd'))}/s`;
    const [server, address] = await listen(key);
    for (let run = 0; run < 3; run++) {
      expect(await ask(address)).toBe('hi\n');
      expect(await new MicroClient(address.url).sendMessage('a')).toBe('hi');
      await within(WAIT_MS, server.stop(), 'stop');
      expect(server.address).toBeUndefined();
      await expect(RawClient.connect((address.path ?? address.port) as number)).rejects.toMatchObject({
        code: kind === 'tcp' ? 'ECONNREFUSED' : 'ENOENT' });
      expect(await server.startListening()).toEqual(address);
    }
  });
  it('another server may start where one has stopped', async () => {
    const port = await freePort();
    const [first] = await listen(port);
    await first.stop();
    const [, address] = await listen(port);
    expect(await ask(address)).toBe('hi\n');
  });
  it('stop waits for a start under way; a start waits for a stop under way', async () => {
    const server = serverAt(await freePort());
    const starting = server.startListening();
    await server.stop();
    await starting;
    expect(server.address).toBeUndefined();
    await server.startListening();
    const stopping = server.stop();
    await stopping;
    await server.startListening();
    expect(await ask(server.address as Address)).toBe('hi\n');
  });
  it('a start while it stops starts it again', async () => {
    const [server, address] = await listen(await freePort());
    const stopping = server.stop();
    const again = server.startListening();
    await stopping;
    expect(await within(WAIT_MS, again, 'the second start')).toEqual(address);
    expect(server.address).toEqual(address);
    expect(await ask(address)).toBe('hi\n');
  });
  it('stopping twice, or what never started, is no error', async () => {
    const [server] = await listen(0);
    await Promise.all([server.stop(), server.stop()]);
    await server.stop();
    await serverAt(0).stop();
  });
  it.each(['tcp', 'ipc'])('who waits to be accepted at stop is answered, not reset: %s', async (kind) => {
    const folder = mkdtempSync(join(root, 'd'));
    const [server, { port, path }] = await listen(kind === 'tcp' ? 0 : `ipc://${folder}/s`);
    const { child: late } = await child(`
      const socket = require('net').connect(${path === undefined ? `${port}, '127.0.0.1'` : JSON.stringify(path)});
      let got = '';
      socket.on('connect', () => { socket.end('a\\n'); require('fs').writeFileSync('${folder}/connected', ''); });
      socket.on('data', (data) => { got += data; }).on('error', (error) => { got += error.code; });
      socket.on('close', () => console.log('got ' + got));
      console.log('started');`);
    let said = '';
    late.stdout?.on('data', (data) => { said += data; });
    const blocked = new Int32Array(new SharedArrayBuffer(4)); // this thread must not accept meanwhile
    for (let tries = 0; !existsSync(`${folder}/connected`) && tries < 250; tries++) Atomics.wait(blocked, 0, 0, 20);
    expect(existsSync(`${folder}/connected`), 'a child connects within 5 s').toBe(true);
    const ended = once(late, 'close');
    await server.stop();
    await within(WAIT_MS, ended, 'the end of the late client');
    expect(said).toMatch(/^got (hi|ERR SERVER_BUSY .*)\n/);
  });
});

describe('out of descriptors', () => {
  it('it tells so, and goes on when there are some again', async () => {
    const script = `
      import { connect } from 'node:net'; import fs from 'node:fs';
      import { MicroServer } from ${JSON.stringify(SERVER)};
      const told = [];
      const server = new MicroServer((text) => text, 0, { log: (level, text) => told.push(text) });
      const { port } = await server.startListening();
      const held = [];
      try { for (;;) held.push(fs.openSync('/dev/null')); } catch {}
      fs.closeSync(held.pop());
      const ask = () => new Promise((resolve) => {
        const socket = connect(port, '127.0.0.1', () => socket.end('a\\n'));
        let got = '';
        socket.on('data', (data) => { got += data; }).on('error', () => {}).on('close', () => resolve(got));
      });
      const first = await ask();
      for (const fd of held) fs.closeSync(fd);
      const second = await ask();
      console.log(JSON.stringify({ told, first, second }));
      process.exit();`;
    const file = join(root, 'descriptors.mjs');
    writeFileSync(file, script);
    const command = `ulimit -n 64; exec "$0" ${file}`;
    const started = spawn('bash', ['-c', command, process.execPath], { stdio: ['ignore', 'pipe', 'inherit'] });
    children.add(started);
    const said = once(started.stdout, 'data') as Promise<[Buffer]>;
    const [data] = await within(15_000, said, 'what the server without descriptors told');
    const { told, first, second } = JSON.parse(String(data)) as { told: string[]; first: string; second: string };
    expect(second).toBe('a\n');
    expect(first === '' || first === 'a\n', 'dropped or served, never garbled').toBe(true);
    for (const text of told) expect(text).toMatch(/^Cannot accept a connection: /);
  });
});

/** A path that leaves no room for a temporary name of its own beside it. */
function longFolder(): string {
  const folder = mkdtempSync(join(root, 'd'));
  const long = join(folder, 'y'.repeat(102 - folder.length - 1));
  mkdirSync(long);
  return long;
}

const PLACES: [string, () => string][] = [['a short path', () => mkdtempSync(join(root, 'd'))], ['a long path', longFolder]];
describe.each(PLACES)('ipc, %s', (_, place) => {
  it('only the user may connect, and no other file is left', async () => {
    const path = join(place(), 's');
    const umask = process.umask(0);
    try {
      const [server, address] = await listen(`ipc://${path}`);
      expect(address).toEqual({ url: `ipc://${path}`, scheme: 'ipc', path });
      expect(lstatSync(path).isSocket()).toBe(true);
      expect((lstatSync(path).mode & 0o777).toString(8)).toBe('600');
      expect(readdirSync(dirname(path))).toEqual(['s']);
      expect(await ask(address)).toBe('hi\n');
      expect(await new MicroClient(address.url).sendMessage('a')).toBe('hi');
      const before = readdirSync('/proc/self/fd').length;
      await server.stop();
      expect(readdirSync(dirname(path))).toEqual([]);
      await until(() => readdirSync('/proc/self/fd').length < before, WAIT_MS, 'the descriptors of a stopped server');
    } finally {
      process.umask(umask);
    }
  });
  it('a live server there keeps it', async () => {
    const path = join(place(), 's');
    const [, address] = await listen(`ipc://${path}`);
    expect(await failure(serverAt(address.url).startListening())).toBe(`PORT_IN_USE: Cannot listen on ${address.url}: ` +
      'another process holds it. Stop it, or give LIFE_GEN another address');
    expect(await ask(address)).toBe('hi\n');
    expect(readdirSync(dirname(path))).toEqual(['s']);
  });
  it('a dead server\'s socket makes way', async () => {
    const folder = place();
    const { child: server } = await child(`process.chdir(${JSON.stringify(folder)});
      require('net').createServer().listen('s', () => console.log('up'))`);
    const url = `ipc://${join(folder, 's')}`;
    expect(await failure(serverAt(url).startListening())).toMatch(/^PORT_IN_USE/);
    server.kill('SIGKILL');
    await within(WAIT_MS, once(server, 'exit'), 'the end of a killed child');
    expect(existsSync(join(folder, 's'))).toBe(true);
    const [, address] = await listen(url);
    expect(await ask(address)).toBe('hi\n');
  });
  it('a file, a folder and a link to either are left untouched', async () => {
    const folder = place();
    const path = join(folder, 's');
    const other = join(mkdtempSync(join(root, 'd')), 'other');
    writeFileSync(other, 'dear');
    const makers = [() => writeFileSync(path, 'dear'), () => mkdirSync(path), () => symlinkSync(other, path)];
    for (const make of makers) {
      make();
      const before = lstatSync(path).mtimeMs;
      expect(await failure(serverAt(`ipc://${path}`).startListening()))
        .toMatch(/^BAD_ADDRESS: Cannot listen on ipc:.*a file that is no socket is there, left untouched/);
      expect(lstatSync(path).mtimeMs).toBe(before);
      expect(readdirSync(folder)).toEqual(['s']);
      rmSync(path, { recursive: true });
    }
    expect(readFileSync(other, 'utf8')).toBe('dear');
  });
  it('at its stop another\'s file stays', async () => {
    const path = join(place(), 's');
    const [server] = await listen(`ipc://${path}`);
    rmSync(path);
    const [other, address] = await listen(`ipc://${path}`);
    await server.stop();
    expect(await ask(address)).toBe('hi\n');
    rmSync(path);
    writeFileSync(path, 'dear');
    await other.stop();
    expect(readFileSync(path, 'utf8')).toBe('dear');
    expect(statSync(path).size).toBe(4);
  });
  it('of eight at once, one gets it', async () => {
    const path = join(place(), 's');
    const all = await Promise.allSettled(Array.from({ length: 8 }, () => serverAt(`ipc://${path}`).startListening()));
    expect(all.filter(({ status }) => status === 'fulfilled').length).toBe(1);
    const codes = all.flatMap((one) => (one.status === 'rejected' ? [(one.reason as MicroError).code] : []));
    expect(new Set(codes)).toEqual(new Set(['PORT_IN_USE']));
    expect(await ask({ url: '', scheme: 'ipc', path })).toBe('hi\n');
  });
});

describe('ipc', () => {
  it('of eight at once over a dead one, the one that gets it is the one that is reached', async () => {
    const folder = mkdtempSync(join(root, 'd'));
    const path = join(folder, 's');
    for (let run = 0; run < 5; run++) {
      const dead = createServer().listen(`${path}-dead`);
      await once(dead, 'listening');
      linkSync(`${path}-dead`, path);
      dead.close();
      await within(WAIT_MS, once(dead, 'close'), 'the end of a dead server');
      expect(readdirSync(folder)).toEqual(['s']);
      const rivals = Array.from({ length: 8 }, (_, i) => serverAt(`ipc://${path}`, {}, `n${i}`));
      const all = await Promise.allSettled(rivals.map((server) => server.startListening()));
      const winners = all.flatMap(({ status }, i) => (status === 'fulfilled' ? [i] : []));
      const told = all.map((one) => (one.status === 'rejected' ? String(one.reason) : 'won')).join('\n');
      expect(winners.length, `run ${run}: ${told}`).toBe(1);
      expect(await ask({ url: '', scheme: 'ipc', path })).toBe(`n${winners[0]}\n`);
      expect(readdirSync(folder)).toEqual(['s']);
      await Promise.all(rivals.map((server) => server.stop()));
    }
  });
  it('a path of 107 bytes works, one of 108 is refused', async () => {
    const folder = mkdtempSync(join(root, 'd'));
    const path = join(folder, 'z'.repeat(107 - folder.length - 1));
    expect(Buffer.byteLength(path)).toBe(107);
    const [, address] = await listen(`ipc://${path}`);
    expect(await new MicroClient(address.url).sendMessage('a')).toBe('hi');
    const error = await serverAt(`ipc://${path}z`).startListening().catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: 'BAD_PORTS_FILE', outcome: 'not sent' });
    expect((error as Error).message).toContain('path has 108 bytes, expected at most 107');
    expect(readdirSync(folder).length).toBe(1);
  });
  it('a folder that is not there', async () => {
    expect(await failure(serverAt(`ipc://${root}/none/s`).startListening())).toMatch(/^BAD_ADDRESS: .*no such file/);
  });
  it('needs no token: only the user can reach it', async () => {
    const [, address] = await listen(`ipc://${mkdtempSync(join(root, 'd'))}/s`);
    expect(await ask(address)).toBe('hi\n');
  });
  it('its clients are loopback', async () => {
    const seen: unknown[] = [];
    const path = join(mkdtempSync(join(root, 'd')), 's');
    const server = new MicroServer((text, { client }) => { seen.push(client.loopback); return text; }, `ipc://${path}`);
    servers.add(server);
    await ask(await server.startListening());
    expect(seen).toEqual([true]);
  });
  it('a worker thread has no umask, and gets the same mode', async () => {
    const path = join(mkdtempSync(join(root, 'd')), 's');
    const file = join(root, 'thread.mjs');
    writeFileSync(file, `
      import { parentPort } from 'node:worker_threads';
      const { MicroServer } = await import(${JSON.stringify(SERVER)});
      const server = new MicroServer(() => 'thread', 'ipc://${path}');
      await server.startListening();
      parentPort.postMessage('up');`);
    const worker = new Worker(file, { execArgv: [] });
    try {
      const said = Promise.race([once(worker, 'message'), once(worker, 'error')]);
      expect(await within(15_000, said, 'the word of the thread')).toEqual(['up']);
      expect((lstatSync(path).mode & 0o777).toString(8)).toBe('600');
      expect(await ask({ url: '', scheme: 'ipc', path })).toBe('thread\n');
    } finally {
      await worker.terminate();
    }
  });
});
