/** What every transport owes to what is built on it: the same cases for each. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import type { Duplex } from 'node:stream';
import { afterAll, afterEach, describe, expect, it } from 'vitest';
import { MicroClient, MicroError, loadTransport, type ClientOptions } from '../lib/micro_client.ts';
import { MicroServer, type ServerOptions } from '../lib/micro_server.ts';
import { pause, until, within } from './helpers/deadline.ts';
import { range } from './helpers/ended.ts';
import { builtProgram } from './helpers/programs_built.ts';
import { dial, subjects, untold, type Served } from './helpers/transports.ts';

const WAIT_MS = 10_000;
const MIB = 1024 * 1024;
const TEXTS = ['hello', '', ' ', 'naïve ☃ 😀', 'a\nb\r\n\0', '\\n', 'x'.repeat(70_000)];
const clients: MicroClient[] = [];
const ends: Duplex[] = [];
const served = new Map<Served, boolean>();
afterEach(async () => {
  await Promise.all(clients.splice(0).map((client) => client.close()));
  for (const end of ends.splice(0)) end.on('error', () => {}).destroy();
  await Promise.all([...served].map(([one, isKilled]) => isKilled || one.stop()));
  served.clear();
});

function clientOf(address: string, options: ClientOptions = {}): MicroClient {
  const client = new MicroClient(address, { timeoutMs: WAIT_MS, ...options });
  clients.push(client);
  return client;
}

/** Rejects with a `MicroError`, or the test fails. */
async function failed(call: Promise<unknown>): Promise<MicroError> {
  const error = await within(WAIT_MS, call.then(() => undefined, (reason: unknown) => reason), 'a failure');
  expect(error).toBeInstanceOf(MicroError);
  return error as MicroError;
}

/** All that comes up to the other side's FIN. */
async function readAll(duplex: Duplex): Promise<string> {
  const chunks: Buffer[] = [];
  duplex.on('data', (chunk: Buffer) => chunks.push(Buffer.from(chunk)));
  await within(WAIT_MS, once(duplex, 'end'), 'the end of what is read');
  return Buffer.concat(chunks).toString();
}

for (const subject of subjects()) {
  describe(subject.name, () => {
    const serve = async (options: ServerOptions = {}): Promise<Served & { url: string }> => {
      const one = await subject.serve(await subject.address(), options);
      served.set(one, false);
      return Object.assign(one, { url: one.address.url });
    };
    let common: Promise<Served & { url: string }> | undefined; // where nothing happens to the server
    const shared = () => common ??= subject.address().then((address) => subject.serve(address))
      .then((one) => Object.assign(one, { url: one.address.url }));
    afterAll(async () => { await (await common)?.stop(); });
    const open = async (one: Served): Promise<Duplex> => {
      const end = await dial(one.address);
      ends.push(end);
      return end;
    };

    it('carries calls, whatever their text', async () => {
      const client = clientOf((await shared()).url);
      for (const text of TEXTS) expect(await client.sendMessage(text)).toBe(text);
      expect(await client.ping()).toBeGreaterThan(0);
    });

    it('carries 1,000 in flight, each to its caller', async () => {
      const client = clientOf((await shared()).url);
      const texts = range(1_000).map((at) => `${at} ${'x'.repeat(at % 50)}`);
      expect(await Promise.all(texts.map((text) => client.sendMessage(text)))).toEqual(texts);
    });

    it('carries a text of 1 MiB, and several at once', async () => {
      const client = clientOf((await shared()).url);
      const texts = range(4).map((at) => String(at).repeat(MIB));
      expect(await client.sendMessage('☃'.repeat(MIB / 3))).toBe('☃'.repeat(MIB / 3));
      const replies = await Promise.all(texts.map((text) => client.sendMessage(text)));
      expect(replies.map((reply, at) => reply === texts[at])).toEqual([true, true, true, true]);
    });

    it('carries a stream, in order', async () => {
      const client = clientOf((await shared()).url);
      const seen: number[] = [];
      for await (const part of client.streamMessage('stream 2000 10')) seen.push(parseInt(part, 10));
      expect(seen).toEqual(range(2_000));
    });

    it('answers who half-closed, then closes too', async () => {
      const end = await open(await shared());
      end.end('wait 50\nlast line');
      expect(await readAll(end)).toBe('wait 50\nlast line\n');
      if (!end.closed) await within(WAIT_MS, once(end, 'close'), 'the close');
    });

    it('a server that stops answers what it has, and takes no more', async () => {
      const one = await serve();
      const client = clientOf(one.url);
      await client.sendMessage('warm');
      const call = client.sendMessage('wait 200');
      await client.ping(); // it is there
      served.set(one, true);
      await Promise.all([one.stop(), expect(call).resolves.toBe('wait 200')]);
      const { code, outcome } = await failed(client.sendMessage('late'));
      expect([code, outcome]).toEqual(['CONNECTION_REFUSED', 'not sent']);
    });

    it('a name that was given up can be taken again', async () => {
      const address = await subject.address();
      for (const round of range(3)) {
        const one = await subject.serve(address);
        expect(await clientOf(address).sendMessage(`${round}`)).toBe(`${round}`);
        await one.stop();
      }
    });

    it('a client that closes ends its calls and its connection', async () => {
      const one = await shared();
      const client = clientOf(one.url);
      const call = failed(client.sendMessage('never'));
      await client.ping();
      await within(WAIT_MS, client.close(), 'the close');
      expect((await call).code).toBe('CLOSED');
      const other = await open(one);
      await until(async () => await connectionsSeen(other) === 1, 2_000, 'that the server has one connection');
    });

    it('a server that is killed in a call: lost, maybe done, and at once', async () => {
      const one = await subject.killable(await subject.address());
      served.set(one, true);
      const client = clientOf(one.address.url);
      const call = failed(client.sendMessage('never'));
      await client.ping();
      const began = performance.now();
      await one.kill();
      const { code, outcome } = await call;
      expect([code, outcome]).toEqual(['CONNECTION_LOST', 'maybe done']);
      expect(performance.now() - began).toBeLessThan(2_000);
      const next = await failed(client.sendMessage('late'));
      expect([next.code, next.outcome]).toEqual(['CONNECTION_REFUSED', 'not sent']);
    });

    it('a client that breaks off aborts its call', async () => {
      const one = await shared();
      const end = await open(one);
      end.write('\x01portcall/1\n0 never\n');
      await within(WAIT_MS, once(end, 'data'), 'the hello');
      const other = await open(one);
      const inFlight = async (): Promise<number> => {
        other.write('$stats\n');
        const [chunk] = await within(WAIT_MS, once(other, 'data'), 'stats') as [Buffer];
        return (JSON.parse(String(chunk)) as { inFlight: number }).inFlight;
      };
      expect(await inFlight()).toBe(1);
      end.destroy();
      await until(async () => await inFlight() === 0, 2_000, 'that nothing is in flight');
    });

    it('nobody there: refused, with a cause, and with retry as soon as somebody is', async () => {
      const address = await subject.address();
      const { code, outcome, cause, message } = await failed(clientOf(address).sendMessage('hello'));
      expect([code, outcome]).toEqual(['CONNECTION_REFUSED', 'not sent']);
      expect(cause).toBeInstanceOf(Error);
      expect(message).toContain(address);
      const call = clientOf(address).sendMessage('hello', { retry: true });
      await pause(100);
      served.set(await subject.serve(address), false);
      expect(await call).toBe('hello');
    });

    it('an address that is in use: the second is told so, the first serves on', async () => {
      const one = await shared();
      const second = await failed(subject.serve(one.url));
      expect([second.code, second.outcome]).toEqual(['PORT_IN_USE', 'not sent']);
      const here = await failed(new MicroServer((message) => message, one.url).startListening());
      expect(here.code).toBe('PORT_IN_USE');
      expect(await clientOf(one.url).sendMessage('still here')).toBe('still here');
    });

    it('a reader that pauses holds up the stream it reads, and nobody else', async () => {
      const one = await serve({ outputTimeoutMs: 60_000 });
      const other = clientOf(one.url);
      const before = Number(await other.sendMessage('produced'));
      const asked = async () => Number(await other.sendMessage('produced')) - before;
      const end = await open(one);
      end.pause();
      end.write('stream 1000 65536\n'); // 62.5 MiB
      let [last, quietSince] = [-1, performance.now()];
      await until(async () => {
        const now = await asked();
        if (now !== last) quietSince = performance.now();
        last = now;
        return now > 0 && performance.now() - quietSince > 100;
      }, WAIT_MS, 'that the stream waits');
      expect(last).toBeLessThan(400); // some 6 MiB are the system's, of a socket
      let bytes = 0;
      end.on('data', (chunk: Buffer) => { bytes += chunk.length; });
      end.resume();
      await until(() => bytes === 1_000 * 65_537 + 1, WAIT_MS, 'the whole stream');
      expect(await asked()).toBe(1_000);
    });

    it('a reader that takes nothing for outputTimeoutMs is closed', async () => {
      const one = await serve({ outputTimeoutMs: 200 });
      const end = await open(one);
      end.pause();
      end.write('stream 1000 65536\n');
      const other = await open(one);
      await until(async () => await connectionsSeen(other) === 1, 5_000, 'that the server gave it up');
    });

    it('an idle client keeps no process alive', async () => {
      const address = subject.idle === 'elsewhere' ? (await shared()).url : await subject.address();
      const child = spawn(process.execPath, [builtProgram('idle_client.ts'), address, subject.idle],
        { stdio: ['ignore', 'pipe', 'inherit'], env: { ...process.env, NODE_OPTIONS: '' } });
      try {
        const [[code], [said]] = await within(WAIT_MS,
          Promise.all([once(child, 'exit'), once(child.stdout, 'data')]), 'the end of an idle client');
        expect([code, String(said)]).toEqual([0, 'once\n']);
      } finally {
        child.kill('SIGKILL');
      }
    });
  });
}

/** How many connections the server at the other end of this one has. */
async function connectionsSeen(end: Duplex): Promise<number> {
  end.write('$stats\n');
  const [chunk] = await within(WAIT_MS, once(end, 'data'), 'stats') as [Buffer];
  return (JSON.parse(String(chunk)) as { connections: number }).connections;
}

describe('each file of lib/transports', () => {
  it('exports its transport, under its own name', async () => {
    for (const name of ['ipc', 'inproc', ...untold()]) {
      const { listen, dial: open } = await loadTransport(name);
      expect([typeof listen, typeof open], name).toContain('function');
    }
  });
  for (const name of untold()) it.skip(`${name} (skipped: test/helpers/transports.ts tells no address for it)`);
});
