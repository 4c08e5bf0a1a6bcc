/** Group G: workers that die, freeze, come back, are slow, are missing, or share a name. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect } from 'vitest';
import { MicroClient } from '../../lib/micro_client.ts';
import type { Callback } from '../../lib/micro_server.ts';
import { MicroWorker } from '../../lib/worker.ts';
import { check, History } from '../helpers/checker.ts';
import { pause, until, within } from '../helpers/deadline.ts';
import { ended, range, tally } from '../helpers/ended.ts';
import { fault, FULL } from '../helpers/faults.ts';
import { freePort } from '../helpers/free_port.ts';
import type { Monitor } from '../helpers/monitor.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { ServerProcess, type ServerSetUp } from '../helpers/server_process.ts';
import { watched } from '../helpers/watched.ts';

const folder = mkdtempSync(join(tmpdir(), 'portcall-router-'));
afterAll(() => rmSync(folder, { recursive: true }));
const PING = { ask: '$ping', reply: 'pong', mayStayOpen: true }; // workers and clients come and go meanwhile
const HEARTBEAT = { intervalMs: 100, timeoutMs: 300, maxMissed: 2 };
const OUT_MS = 500;
const echo: Callback = (message) => message;
const slow = (ms: number): Callback => async (message) => { await pause(ms); return message; };

/** A router under the monitor, and what ends with it. */
function routing(options: NonNullable<ServerSetUp['router']> & { set?: ServerSetUp['options'] },
  task: (net: Net, monitor: Monitor) => Promise<void>): Promise<void> {
  const { set, ...router } = options;
  return watched({ router, ...(set !== undefined && { options: set }) }, async (server, monitor) => {
    const net = new Net(server);
    try {
      await task(net, monitor);
    } finally {
      await net.end();
    }
  }, PING);
}

class Net {
  readonly router: ServerProcess;
  readonly #workers: ServerProcess[] = [];
  readonly #joined: MicroWorker[] = [];
  readonly #clients: MicroClient[] = [];
  constructor(router: ServerProcess) { this.router = router; }
  async worker(setUp: Partial<ServerSetUp> & { id?: string } = {}): Promise<ServerProcess> {
    const { id = `w${this.#workers.length}`, ...rest } = setUp;
    const worker = await ServerProcess.start({ ...rest, worker: { back: this.router.back, id, heartbeat: HEARTBEAT } });
    this.#workers.push(worker);
    return worker;
  }
  /** One that is never killed needs no process of its own. */
  async join(callback: Callback, id: string): Promise<void> {
    const worker = new MicroWorker(callback, this.router.back, { id, heartbeat: HEARTBEAT, log: () => {} });
    this.#joined.push(worker);
    await worker.start();
  }
  dial(timeoutMs = 5_000): MicroClient {
    const client = new MicroClient(this.router.port, { timeoutMs, log: () => {} });
    this.#clients.push(client);
    return client;
  }
  async state(id: string): Promise<string | undefined> {
    return (await this.router.routerStats()).workers.find((worker) => worker.id === id)?.state;
  }
  async has(count: number): Promise<void> {
    const are = async () => (await this.router.routerStats()).workers.length === count;
    await until(are, 5_000, `that ${count} workers are there`);
  }
  async inFlight(id: string, count: number): Promise<void> {
    await until(async () => (await this.router.routerStats()).workers
      .some((worker) => worker.id === id && worker.inFlight === count), 5_000, `that ${id} has ${count}`);
  }
  async end(): Promise<void> {
    await Promise.all(this.#clients.map((client) => client.close()));
    await Promise.all([...this.#joined.map((one) => one.stop({ graceMs: 0 })), ...this.#workers.map((one) => one.kill())]);
  }
}

describe('workers that go', () => {
  fault('G01', 'worker kill -9 with 10 sent, 10 queued', () =>
    routing({ maxInFlight: 10 }, async (net) => {
      const first = join(folder, 'first');
      const doomed = await net.worker({ callback: 'never', record: first });
      const history = new History();
      const client = net.dial();
      const ends: Promise<unknown>[] = [];
      const calls = range(20).map((index) => {
        const call = ended(client.sendMessage(`event ${index}`));
        ends.push(history.call(`event ${index}`, async () => {
          const { error } = await call;
          if (error !== undefined) throw error;
        }));
        return call;
      });
      await until(async () => (await net.router.routerStats()).queued === 10, 5_000, 'that 10 wait');
      await until(() => doomed.recorded().length === 10, 5_000, 'that 10 run');
      await doomed.kill();
      const second: string[] = [];
      await net.join((message) => { second.push(message); return message; }, 'second');
      const all = await within(6_000, Promise.all(calls), 'the end of all calls');
      await Promise.all(ends);
      expect(tally(all.slice(0, 10))).toEqual({ 'CONNECTION_LOST, maybe done': 10 });
      expect(all.slice(10).map(({ reply }) => reply)).toEqual(range(10).map((index) => `event ${index + 10}`));
      const journal = readFileSync(first, 'utf8').trim().split('\n').map((line) => JSON.parse(line) as string);
      check(history, [...journal, ...second]);
    }));

  fault('G02', 'worker SIGSTOPped', () =>
    routing({ heartbeat: HEARTBEAT, strategy: 'round_robin' }, async (net) => {
      const frozen = await net.worker({ callback: 'slow:50', id: 'w0' });
      await net.join(echo, 'w1');
      const client = net.dial();
      const pending = range(20).map(() => ended(client.sendMessage('x')));
      await net.inFlight('w0', 10);
      const began = performance.now();
      frozen.process.kill('SIGSTOP');
      const ends = await within(3_000, Promise.all(pending), 'the end of all calls');
      expect(performance.now() - began).toBeGreaterThan(OUT_MS - 2 * HEARTBEAT.intervalMs);
      expect(performance.now() - began).toBeLessThan(OUT_MS + 2 * HEARTBEAT.intervalMs + 150);
      expect(tally(ends)).toEqual({ reply: 10, 'CONNECTION_LOST, maybe done': 10 });
      expect(await net.state('w0')).toBe('out');
      const others = await Promise.all(range(50).map((index) => ended(client.sendMessage(`new ${index}`))));
      expect(others.map(({ reply }) => reply)).toEqual(range(50).map((index) => `new ${index}`));
      frozen.process.kill('SIGCONT');
      await until(async () => await net.state('w0') === 'joined', 3_000, 'that it joins again');
      const after = await Promise.all(range(50).map((index) => client.sendMessage(`after ${index}`)));
      expect(after).toEqual(range(50).map((index) => `after ${index}`));
      expect((await frozen.vitals()).runs).toBeGreaterThan(10);
    }));
  fault('G03', 'that worker resumed with its replies', () =>
    routing({ heartbeat: HEARTBEAT }, async (net) => {
      const worker = await net.worker({ callback: 'slow:100' });
      const client = net.dial(10_000);
      for (let round = 0; round < (FULL ? 3 : 1); round++) {
        const lost = range(30).map((index) => ended(client.sendMessage(`lost ${round} ${index}`)));
        await net.inFlight('w0', 30);
        worker.process.kill('SIGSTOP');
        expect(tally(await Promise.all(lost))).toEqual({ 'CONNECTION_LOST, maybe done': 30 });
        const waiting = range(30).map((index) => client.sendMessage(`next ${round} ${index}`));
        worker.process.kill('SIGCONT');
        expect(await Promise.all(waiting)).toEqual(range(30).map((index) => `next ${round} ${index}`));
      }
    }));

  fault('G07', 'router kill -9, restarted', async () => {
    const router = { front: await freePort(), back: await freePort(), heartbeat: HEARTBEAT };
    let server = await ServerProcess.start({ router });
    const net = new Net(server);
    try {
      const worker = await net.worker({ callback: 'slow:300' });
      const client = net.dial();
      const pending = range(20).map(() => ended(client.sendMessage('x')));
      await net.inFlight('w0', 20);
      await server.kill();
      expect(tally(await Promise.all(pending))).toEqual({ 'CONNECTION_LOST, maybe done': 20 });
      server = await ServerProcess.start({ router });
      const back = performance.now();
      expect(await client.sendMessage('again', { retry: true })).toBe('again');
      expect(performance.now() - back).toBeLessThan(5_000);
      expect(worker.isAlive).toBe(true);
    } finally {
      await net.end();
      await server.kill();
    }
  });
});

describe('workers that are not there, or slow', () => {
  fault('G04', 'no worker; one joins at 1 s', () =>
    routing({ maxQueued: 5 }, async (net) => {
      const client = net.dial(4_000);
      const waiting = range(4).map((index) => client.sendMessage(`${index}`));
      const late = ended(client.sendMessage('late', { timeoutMs: 500 }));
      await until(async () => (await net.router.routerStats()).queued === 5, 2_000, 'a full queue');
      const refused = await ended(client.sendMessage('sixth'));
      expect(refused.error).toMatchObject({ code: 'SERVER_BUSY', outcome: 'refused', retryAfterMs: 200 });
      expect(refused.ownMs).toBeLessThan(100);
      const { error, ms } = await late;
      expect(error).toMatchObject({ code: 'NO_WORKER', outcome: 'refused' });
      expect(ms).toBeGreaterThan(440);
      expect(ms).toBeLessThan(500);
      await pause(500);
      await net.join(echo, 'w0');
      expect(await Promise.all(waiting)).toEqual(range(4).map(String));
    }));

  fault('G05', 'one worker 10× slower', () =>
    routing({ strategy: 'least_busy' }, async (net) => {
      const client = net.dial();
      const p99 = async () => {
        const all = await Promise.all(range(16).map(async () => {
          const times: number[] = [];
          for (let count = 0; count < (FULL ? 40 : 15); count++) times.push((await ended(client.sendMessage('x'))).ownMs);
          return times;
        }));
        return all.flat().sort((a, b) => a - b);
      };
      for (const id of ['w0', 'w1', 'w2']) await net.join(slow(10), id);
      await p99();
      const before = await p99();
      await net.join(slow(100), 'slow');
      const sent = async () => Object.fromEntries((await net.router.routerStats()).workers.map((one) => [one.id, one.sent]));
      const counts = await sent();
      const times = await p99();
      const share = (((await sent()).slow ?? NaN) - (counts.slow ?? NaN)) / times.length;
      expect(share).toBeGreaterThan(0);
      expect(share).toBeLessThan(0.2);
      const others = times.filter((ms) => ms < 60); // the slow one's take 100
      const at99 = (list: number[]) => list[Math.floor(list.length * 0.99)] ?? NaN;
      expect(at99(others)).toBeLessThan(2 * at99(before));
    }));

  fault('G06', 'frozen client behind the router', () =>
    routing({ set: { outputTimeoutMs: FULL ? 10_000 : 1_000 } }, async (net) => {
      await net.worker({ callback: 'obey' });
      const client = net.dial();
      await RawClient.with(net.router.port, async (frozen) => {
        frozen.socket.pause();
        const order = JSON.stringify({ reply: 'x'.repeat(1_000), times: 100 });
        frozen.socket.write(`${order}\n`.repeat(120));
        const before = net.router.rssBytes();
        let slowest = 0;
        const isCut = () => frozen.socket.destroyed || frozen.socket.readableEnded;
        const end = performance.now() + (FULL ? 12_000 : 3_000);
        while (!isCut() && performance.now() < end) {
          const { reply, ownMs } = await ended(client.sendMessage('other'));
          expect(reply).toBe('other');
          slowest = Math.max(slowest, ownMs);
        }
        expect(slowest).toBeLessThan(250);
        expect(net.router.rssBytes() - before).toBeLessThan(64 * 1024 * 1024);
        const { limits } = (await net.router.routerStats()).front;
        expect((limits.outputTimeoutMs ?? 0) + (limits.maxOutputBytes ?? 0)).toBe(1);
      });
    }));
});

describe('the wall clock', () => {
  fault('G12', 'wall clock ±1 h', () =>
    routing({ heartbeat: HEARTBEAT }, async (net) => {
      await net.join(slow(20), 'w0');
      const client = net.dial();
      const { sent = 0 } = (await net.router.routerStats()).workers[0] ?? {};
      const plain = Date.now;
      try {
        for (const hours of [1, -1, 0]) {
          Date.now = () => plain() + hours * 3_600_000; // of the worker and the client
          await net.router.ask('clock', hours * 3_600_000);
          for (const end = performance.now() + 2 * OUT_MS; performance.now() < end;) {
            expect(await client.sendMessage('on')).toBe('on');
          }
          expect(await net.state('w0')).toBe('joined');
        }
      } finally {
        Date.now = plain;
      }
      expect((await net.router.routerStats()).workers[0]?.sent).toBeGreaterThan(sent + 50);
    }));
});

describe('workers and peers that misbehave', () => {
  const hello = (id: string) => `\x01portcall/1 role=worker node=${id}\n`;

  fault('G08', 'reply with a wrong or forged routing id', () =>
    routing({}, (net) => RawClient.with(net.router.back, async (liar) => {
      await liar.write(hello('liar'));
      await liar.readLine();
      const client = net.dial();
      const [one, two] = [client.sendMessage('one'), client.sendMessage('two')];
      const slots = [await liar.readLine(), await liar.readLine()].map((line) => line.split(/[@#~ ]/)[0]);
      await liar.write(`7 forged\n99 forged\n999999999 forged\n7! CALLBACK_FAILED f: forged\n7+ forged\n`);
      await liar.write(`${slots[1]} re two\n${slots[1]} twice\n${slots[0]} re one\n`);
      expect(await Promise.all([one, two])).toEqual(['re one', 're two']);
      await until(() => net.router.stderr.split('no request has slot').length > 5, 2_000, 'that all is logged');
      const next = client.sendMessage('next');
      await liar.write(`${(await liar.readLine()).split(/[@#~ ]/)[0]} re next\n`);
      expect(await next).toBe('re next');
    })));

  fault('G09', 'two workers, same id: the second is refused while the first answers', () =>
    routing({ heartbeat: HEARTBEAT }, async (net) => {
      const record = join(folder, 'same');
      const first = await net.worker({ id: 'same', callback: 'echo', record });
      await RawClient.with(net.router.back, async (second) => {
        await second.write(hello('same'));
        await second.readLine();
        expect(await second.readLine()).toMatch(/^goodbye SERVER_BUSY r 1000: .*"same".*Give each an id/);
        await within(2_000, second.ended, 'the end');
      });
      const client = net.dial();
      const texts = range(100).map((index) => `event ${index}`);
      expect(await Promise.all(texts.map((text) => client.sendMessage(text)))).toEqual(texts);
      expect(first.recorded()).toEqual(texts);
      first.process.kill('SIGSTOP');
      await until(async () => await net.state('same') === 'out', 3_000, 'that it is out');
      await net.join(echo, 'same');
      expect(await net.state('same')).toBe('joined');
      expect(await client.sendMessage('replaced')).toBe('replaced');
    }));

  fault('G10', '100,000 pings from one peer', () =>
    routing({ heartbeat: HEARTBEAT }, async (net) => {
      await net.join(echo, 'w0');
      const client = net.dial();
      const flood = async (port: number, greeting: string) => RawClient.with(port, async (peer) => {
        await peer.write(greeting);
        await peer.write('ping 7\n'.repeat(FULL ? 100_000 : 50_000));
        await until(() => peer.bytesRead >= 7 * (FULL ? 100_000 : 50_000), 10_000, 'all pongs');
      });
      let isOver = false;
      const times: number[] = [];
      const polite = (async () => {
        while (!isOver) {
          times.push((await ended(client.sendMessage('polite'))).ownMs);
          await pause(5);
        }
      })();
      await flood(net.router.port, '\x01portcall/1\n');
      await flood(net.router.back, hello('flood'));
      isOver = true;
      await polite;
      times.sort((a, b) => a - b);
      expect(times[Math.floor(times.length * 0.99)]).toBeLessThan(100);
    }));

  fault('G11', 'heartbeats dropped, data flows', () =>
    routing({ heartbeat: HEARTBEAT }, (net) => RawClient.with(net.router.back, async (deaf) => {
      await deaf.write(hello('deaf'));
      await deaf.readLine();
      const client = net.dial();
      const end = performance.now() + (FULL ? 10_000 : 1_200);
      for (let count = 0; performance.now() < end; count++) {
        const call = client.sendMessage(`${count}`);
        let line = await deaf.readLine();
        while (line.startsWith('ping ')) line = await deaf.readLine(); // no answer
        await deaf.write(`${line.split(/[@#~ ]/)[0]} ${count}\n`);
        expect(await call).toBe(`${count}`);
        await pause(50);
      }
      expect((await net.router.routerStats()).workers).toMatchObject([{ id: 'deaf', state: 'joined' }]);
      await until(async () => await net.state('deaf') === 'out', 2_000, 'that it is out, now that nothing flows');
    })));
});
