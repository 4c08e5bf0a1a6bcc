/** Group B: connections that break while something is under way. */
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { afterAll, describe, expect } from 'vitest';
import { MicroClient } from '../../lib/micro_client.ts';
import { MicroServer } from '../../lib/micro_server.ts';
import { Caller } from '../helpers/caller.ts';
import { check, History } from '../helpers/checker.ts';
import { until, within } from '../helpers/deadline.ts';
import { sized } from '../helpers/dialects.ts';
import { ended, range, tally, type Ended } from '../helpers/ended.ts';
import { fault } from '../helpers/faults.ts';
import { freePort } from '../helpers/free_port.ts';
import { MIB } from '../helpers/monitor.ts';
import { Proxy, type Way } from '../helpers/proxy.ts';
import { seeded } from '../helpers/random.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { running } from '../helpers/running.ts';
import { ServerProcess } from '../helpers/server_process.ts';
import { stillServes } from '../helpers/still_serves.ts';
import { Stopwatch } from '../helpers/stopwatch.ts';
import { watched } from '../helpers/watched.ts';

const quiet = () => {};
const folder = mkdtempSync(join(tmpdir(), 'portcall-loss-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
/** More than the system's buffers of a connection hold, so that what comes behind it stays in the client. */
const FILLERS = { count: 32, text: 'x'.repeat(MIB) };

/** A reply of many packets, 500 ms after its order, and that order. */
const WHOLE = { text: 'whole '.repeat(50_000), order: JSON.stringify({ waitMs: 500, reply: 'whole ', times: 50_000 }) };

async function askSlow(server: ServerProcess, bytes: string): Promise<string> {
  const began = performance.now();
  const answer = await RawClient.with(server.port, (client) => client.ask(bytes));
  expect(performance.now() - began).toBeGreaterThan(490);
  return answer;
}

describe('a peer that half-closes', () => {
  fault('B02', '500 ms callback, half-close at once; lines, frames', () =>
    watched({ callback: 'obey' }, async (server) => {
      const { text, order } = WHOLE;
      const ask = (bytes: string) => askSlow(server, bytes);
      const asLines = ask(`${order}\n`);
      const cutOff = ask(order); // a last line without its line end counts
      const several = ask(`${order}\nsecond\nthird\n`);
      const asFrames = ask(`\x01portcall/1 timeout=5000\n7 ${order}\n8 second\n`);
      expect(await asLines).toBe(`${text}\n`);
      expect(await cutOff).toBe(`${text}\n`);
      expect(await several).toBe(`${text}\nsecond\nthird\n`);
      const frames = (await asFrames).split('\n');
      expect(frames[0]).toMatch(/^\x01portcall\/1 /);
      expect(frames.slice(1).filter((frame) => !frame.startsWith('ping '))).toEqual(['8 second', `7 ${text}`, '']);
      await stillServes(server, { ask: 'm' });
    }));

  fault('B02', '500 ms callback, half-close at once; raw, sized header', () =>
    watched({ callback: 'obey', dialects: ['raw', 'sized'] }, async (server) => {
      const { text, order } = WHOLE;
      const ask = (bytes: string) => askSlow(server, bytes);
      const answers = await Promise.all([ask(order), ask(sized(order)), ask(sized(order) + sized('second'))]);
      expect(answers).toEqual([text, sized(text), sized(text) + sized('second')]);
      await stillServes(server, { ask: 'm' });
    }));
});

describe('a server that goes away', () => {
  for (const end of ['FIN', 'RST'] as const) {
    fault('B03', `server's ${end} with 100 pending`, async () => {
      const peer = await Peer.start();
      const client = new MicroClient(peer.port, { log: quiet });
      const pending = range(100).map((index) => ended(client.sendMessage(`pending ${index}`)));
      const socket = await peer.reads('99 pending 99\n'); // and reads no more from here on
      const fillers = range(FILLERS.count).map(() => ended(client.sendMessage(FILLERS.text)));
      const queued = range(100).map((index) => ended(client.sendMessage(`queued ${index}`)));
      await turn();
      peer.stopListening();
      const gone = new Stopwatch();
      if (end === 'FIN') socket.end();
      else socket.resetAndDestroy();
      const calls = await within(2_000, Promise.all([...pending, ...queued, ...fillers]), 'the end of all calls');
      expect(gone.ownMs).toBeLessThan(100);
      expect(tally(calls.slice(0, 100))).toEqual({ 'CONNECTION_LOST, maybe done': 100 });
      expect(Object.keys(tally(calls.slice(100, 200)))).toEqual([expect.stringMatching(/^CONNECTION_\w+, not sent$/)]);
      socket.resume(); // what else the client had handed over
      if (!socket.closed) await within(2_000, once(socket, 'close'), 'the close');
      expect(peer.said).not.toContain('queued');
      await client.close();
    });
  }

  fault('B04', 'server kill -9 with 100 pending and 100 queued', async () => {
    const record = join(folder, 'B04');
    const setUp = { callback: 'slow:60000', record, address: await freePort() } as const;
    const server = await ServerProcess.start(setUp);
    const client = new MicroClient(server.port, { log: quiet });
    const history = new History();
    const ends = new Map<string, Ended>();
    const call = async (name: string, text = name) => {
      await history.call(name, async () => {
        const end = await ended(client.sendMessage(text));
        ends.set(name, end);
        if (end.error !== undefined) throw end.error;
      });
    };
    try {
      const pending = range(100).map((index) => call(`pending ${index}`));
      await until(() => server.recorded().length === 100, 5_000, 'the run of all that is pending');
      server.process.kill('SIGSTOP');
      const fillers = range(FILLERS.count).map(() => ended(client.sendMessage(FILLERS.text)));
      const queued = range(100).map((index) => call(`queued ${index}`));
      await turn();
      await server.kill();
      const killed = new Stopwatch();
      await within(2_000, Promise.all([...pending, ...queued, ...fillers]), 'the end of all calls');
      expect(killed.ownMs).toBeLessThan(100);
      const endsOf = (kind: string) => [...ends].filter(([name]) => name.startsWith(kind)).map(([, end]) => end);
      expect(tally(endsOf('pending'))).toEqual({ 'CONNECTION_LOST, maybe done': 100 });
      expect(Object.keys(tally(endsOf('queued')))).toEqual([expect.stringMatching(/^CONNECTION_\w+, not sent$/)]);
      check(history, server.recorded());
    } finally {
      await server.kill();
    }
    await ServerProcess.with({ ...setUp, callback: 'echo' }, async (again) => {
      expect(await client.sendMessage('right again')).toBe('right again');
      await stillServes(again);
    });
    await client.close();
  });
});

describe('work whose caller is gone', () => {
  fault('B17', 'callback answers after deadline, cancel, or the client\'s close(), reset or kill', () =>
    watched({ callback: 'obey', watchAborts: true }, async (server) => {
      const late = (reply: string) => JSON.stringify({ waitMs: 400, reply });
      /** Waits for the signal of that message; expects it within 100 ms of `from`. */
      const expectAborted = async (name: string, from: number) => {
        const watch = new Stopwatch(server.pid);
        const found = () => server.vitals().then(({ aborts }) => aborts.find(({ message }) => message === late(name)));
        const { at } = await until(found, 2_000, `the abort of ${name}`);
        expect(at - from - watch.waitedMs, `${name}: milliseconds to the abort`).toBeLessThan(100);
        expect(at - from, `${name}: milliseconds to the abort`).toBeGreaterThanOrEqual(-5);
      };
      const proxy = await Proxy.start(server.port);
      const client = new MicroClient(proxy.port, { log: quiet });
      await client.ping();

      const deadline = Date.now() + 150;
      expect(await ended(client.sendMessage(late('deadline'), { timeoutMs: 150 })))
        .toMatchObject({ error: { code: 'TIMEOUT', outcome: 'maybe done' } });
      await expectAborted('deadline', deadline);

      const abort = new AbortController();
      const cancelled = ended(client.sendMessage(late('cancel'), { signal: abort.signal }));
      await running(server, 2);
      abort.abort();
      await expectAborted('cancel', Date.now());
      expect(await cancelled).toMatchObject({ error: { code: 'ABORTED' } });
      const others = range(50).map((index) => client.sendMessage(`other ${index}`));
      expect(await Promise.all(others), 'nobody gets a late reply').toEqual(range(50).map((index) => `other ${index}`));
      await running(server, 0); // both have answered, late
      expect(await client.sendMessage('next')).toBe('next');
      expect(proxy.connections, 'the connection is usable').toBe(1);

      const closed = ended(client.sendMessage(late('close')));
      await running(server, 1);
      await Promise.all([client.close(), expectAborted('close', Date.now())]);
      expect(await closed).toMatchObject({ error: { code: 'CLOSED', outcome: 'maybe done' } });
      await running(server, 0);
      await proxy.close();

      for (const [name, hello] of [['reset, frames', '\x01portcall/1\n1 '], ['reset, lines', '']] as const) {
        const raw = await RawClient.connect(server.port);
        await raw.write(`${hello}${late(name)}\n`);
        await running(server, 1);
        raw.reset();
        await expectAborted(name, Date.now());
        await running(server, 0);
      }

      await Caller.with({ key: server.port }, async (caller) => {
        caller.call({ text: late('kill') }).catch(quiet);
        await running(server, 1);
        const killed = Date.now();
        await caller.kill();
        await expectAborted('kill', killed);
      });
      await running(server, 0);
      await stillServes(server, { ask: 'm' });
    }));
});

describe('a bad line between client and server', () => {
  fault('B21', 'proxy: slices of 1–7 bytes; 10 KiB/s', () =>
    watched({}, async (server) => {
      const random = seeded();
      const through = async (proxy: Proxy, name: string) => {
        const client = new MicroClient(proxy.port, { timeoutMs: 20_000 });
        const calls = range(1_000).map((index) => client.sendMessage(`${name} ☃ ${index}`));
        const replies = await within(20_000, Promise.all(calls), `1,000 replies, ${name}`);
        expect(replies).toEqual(range(1_000).map((index) => `${name} ☃ ${index}`));
        await client.close();
        await proxy.close();
      };
      const slices = { sliceBytes: () => random.between(1, 7) };
      const slow = { bytesPerSecond: 10 * 1024 };
      await Promise.all([
        through(await Proxy.start(server.port, slices), 's'),
        through(await Proxy.start(server.port, slow), 't'),
        through(await Proxy.start(server.port, { ...slices, ...slow }), 'u'),
      ]);
    }));

  const LOST = 'CONNECTION_LOST, maybe done';
  const UNSENT = 'CONNECTION_REFUSED, not sent';
  for (const retry of [false, true]) {
    fault('B22', `proxy resets at every byte offset of 3 requests, each way (frames${retry ? ', retry' : ''})`, () => {
      const record = join(folder, `B22 ${retry}`);
      return watched({ record }, async (server) => {
        const history = new History();
        const all: Ended[] = [];
        await atEveryOffset(server, async (title, port) => {
          const client = new MicroClient(port, { timeoutMs: 3_000, log: quiet, retry });
          await Promise.all(range(3).map(async (index) => {
            const text = `${title} ${index}`;
            history.invoke(text);
            const end = await ended(client.sendMessage(text));
            const { outcome } = end.error ?? {};
            history.end(text, outcome === undefined ? 'ok' : outcome === 'maybe done' ? 'unknown' : 'fail');
            if (outcome === undefined) expect(end.reply, text).toBe(text);
            all.push(end);
          }));
          await client.close();
        });
        check(history, server.recorded());
        const { reply = 0, [LOST]: lost = 0, [UNSENT]: unsent = 0 } = tally(all);
        expect(reply + lost + unsent, JSON.stringify(tally(all))).toBe(all.length);
        if (retry) expect(unsent).toBe(0);
        expect(reply, 'not all are lost').toBeGreaterThan(50);
        expect(lost, 'not all arrive').toBeGreaterThan(50);
      });
    });
  }

  fault('B22', 'proxy resets at every byte offset of 3 requests, each way (lines)', () => {
    const record = join(folder, 'B22 lines');
    return watched({ record }, async (server) => {
      const acknowledged: string[] = [];
      await atEveryOffset(server, async (title, port) => {
        const texts = range(3).map((index) => `${title} ${index}`);
        const client = await RawClient.connect(port).catch((error: NodeJS.ErrnoException) => {
          expect(error.code, 'reset before a byte').toBe('ECONNRESET');
        });
        if (client === undefined) return;
        try {
          await client.write(`${texts.join('\n')}\n`);
          for (const text of texts) {
            const reply = await client.readLine().catch(() => undefined);
            // Node tells a reset right behind data as the end.
            if (reply === undefined) return void await within(1_000, client.ended, `the reset of "${title}"`);
            expect(reply).toBe(text);
            acknowledged.push(text);
          }
        } finally {
          client.socket.destroy();
        }
      });
      const done = server.recorded();
      expect(new Set(done).size, 'nothing twice').toBe(done.length);
      expect(acknowledged.filter((text) => !done.includes(text))).toEqual([]);
      expect(acknowledged.length, 'not all are lost').toBeGreaterThan(20);
    });
  });

  /** Asks once unharmed, then once for each offset at which the first connection is reset. */
  async function atEveryOffset(server: ServerProcess, ask: (title: string, port: number) => Promise<void>) {
    const round = async (title: string, resetAt?: { way: Way; bytes: number }) => {
      const proxy = await Proxy.start(server.port, resetAt === undefined ? {} : { resetAt, resets: 1 });
      await within(4_000, ask(title, proxy.port), `the end of the calls of "${title}"`);
      await proxy.close();
      return proxy.carried;
    };
    const carried = await round('all 000'); // titles are of one length
    expect(carried.up + carried.down).toBeGreaterThan(50);
    for (const way of ['up', 'down'] as const) {
      for (const bytes of range(carried[way])) {
        await round(`${way.padStart(4)}${String(bytes).padStart(3, '0')}`, { way, bytes });
      }
    }
    await stillServes(server);
  }
});

describe('a key whose line moves', () => {
  fault('B23', 'key moved in ports.json between reconnects; file broken meanwhile', async () => {
    const ports = join(folder, 'ports.json');
    const move = (port: number) => writeFileSync(ports, JSON.stringify({ MOVING: port }));
    const serve = async (name: string, port: number) => {
      const server = new MicroServer(() => name, port, { log: quiet });
      await server.startListening();
      return server;
    };
    const [first, second, third] = [await freePort(), await freePort(), await freePort()];
    const log: string[] = [];
    const one = await serve('one', first);
    let two = await serve('two', second);
    const three = await serve('three', third);
    move(first);
    const client = new MicroClient('MOVING',
      { ports, timeoutMs: 2_000, log: (level, text) => log.push(`${level} ${text}`) });
    expect(await client.sendMessage('who')).toBe('one');
    move(second);
    expect(await client.sendMessage('who'), 'no reconnect, no change').toBe('one');
    await one.stop();
    expect(await client.sendMessage('who')).toBe('two');

    expect(log).toEqual([]);
    for (const broken of ['{ "MOVING": ', '{}', '{ "MOVING": 70000 }']) {
      writeFileSync(ports, broken);
      await two.stop();
      two = await serve('two', second);
      expect(await client.sendMessage('who'), `the old address, with ${broken} in the file`).toBe('two');
      expect(log.pop(), broken).toMatch(/^warn .*ports\.json.*/);
    }
    rmSync(ports);
    await two.stop();
    expect(await ended(client.sendMessage('who'))).toMatchObject({ error: { code: 'CONNECTION_REFUSED' } });
    move(third);
    expect(await client.sendMessage('who')).toBe('three');
    await client.close();
    await three.stop();
  });
});

/** A server that reads up to some words, and then nothing until it is told to. */
class Peer {
  said = '';
  #isThere = false;
  readonly #server = createServer({ allowHalfOpen: true });
  readonly #accepted = once(this.#server, 'connection') as Promise<[Socket]>;

  static async start(): Promise<Peer> {
    const peer = new Peer();
    await once(peer.#server.listen(0, '127.0.0.1'), 'listening');
    return peer;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** Greets a frames client and resolves when its words are there, the socket paused. */
  async reads(words: string): Promise<Socket> {
    const [socket] = await within(2_000, this.#accepted, 'a connection');
    socket.on('error', quiet);
    socket.write('\x01portcall/1\n');
    const read = new Promise<void>((resolve) => {
      socket.setEncoding('utf8').on('data', (text: string) => {
        this.said += text;
        if (this.#isThere || !this.said.includes(words)) return;
        this.#isThere = true;
        socket.pause();
        resolve();
      });
    });
    await within(2_000, read, JSON.stringify(words));
    return socket;
  }

  stopListening(): void {
    this.#server.close();
  }
}
