/** Group B: what takes its time, side by side: waiting costs no processor. */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type AddressInfo, type Socket } from 'node:net';
import { describe, expect } from 'vitest';
import { MicroClient } from '../../lib/micro_client.ts';
import { MicroServer } from '../../lib/micro_server.ts';
import { Caller, type Called } from '../helpers/caller.ts';
import { Child } from '../helpers/child.ts';
import { pause, until, within } from '../helpers/deadline.ts';
import { ended, range, tally, type Ended } from '../helpers/ended.ts';
import { fault } from '../helpers/faults.ts';
import { freePort } from '../helpers/free_port.ts';
import { MIB } from '../helpers/monitor.ts';
import { Network } from '../helpers/network.ts';
import { Proxy } from '../helpers/proxy.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { running } from '../helpers/running.ts';
import { ServerProcess } from '../helpers/server_process.ts';
import { Stopwatch } from '../helpers/stopwatch.ts';
import { watched } from '../helpers/watched.ts';

const quiet = () => {};
const noNetwork = Network.missing();

describe.concurrent('stop()', () => {
  for (const graceMs of [undefined, 1_000]) {
    fault('B06', `stop with a callback that never ends, grace ${graceMs === undefined ? 'default' : '1 s'}`, async () =>
      watched({ callback: 'obey', address: await freePort() }, async (server, monitor) => {
        const graceOrDefaultMs = graceMs ?? 10_000;
        const [client, alone] = [new MicroClient(server.port), new MicroClient(server.port)];
        const never = JSON.stringify({ waitMs: 60_000 });
        const late = (index: number) => JSON.stringify({ waitMs: 700, reply: `late ${index}` });
        const endless = [client, alone].map((each) => ended(each.sendMessage(never, { timeoutMs: 30_000 })));
        const replies = range(20).map((index) => client.sendMessage(late(index)));
        const [good, bad] = [await RawClient.connect(server.port), await RawClient.connect(server.port)];
        await good.write(`${late(0)}\n${late(1)}\n`);
        await bad.write(`${late(2)}\n${never}\n`);
        await running(server, 26);
        await monitor.suspended(async () => {
          const watch = new Stopwatch(server.pid);
          const stopped = server.stop(graceMs === undefined ? undefined : { graceMs });
          expect(await within(2_000, Promise.all(replies), '20 replies'))
            .toEqual(range(20).map((index) => `late ${index}`));
          expect((await good.readToFin()).toString()).toBe('late 0\nlate 1\n');
          await within(graceOrDefaultMs + 1_000, stopped, 'the end of stop()');
          expect(watch.ownMs).toBeLessThan(graceOrDefaultMs + 500);
          expect(watch.ms).toBeGreaterThan(graceOrDefaultMs - 50);
          expect(tally(await within(500, Promise.all(endless), 'the two calls'))).toEqual({ 'TIMEOUT, maybe done': 2 });
          expect((await bad.readToFin()).toString()).toMatch(/^late 2\nERR TIMEOUT [^\n]+\n$/);
          await server.start();
          for (const raw of [good, bad]) raw.socket.destroy();
          for (const each of [client, alone]) await each.close();
        });
      }, { mayStayOpen: true }));
  }
});

describe.concurrent('a cable', () => {
  // 3 s is when the kernel sends a lost packet for the fifth time: half a second more, and it would wait till 6.2 s.
  const WAYS = [
    { way: 'pulled out', downMs: 3_000, cut: (network: Network, isCut: boolean) => network.pluggedIn(!isCut) },
    { way: 'lost in silence', downMs: 3_500, cut: (network: Network, isCut: boolean) => network.forwards(!isCut) },
  ];
  for (const { way, downMs, cut } of WAYS) {
    fault.unless(noNetwork, 'B13', `link down 3 s (network namespace), then up; down for good (${way})`, () =>
      Network.with((network) => cutOff(network, downMs, (isCut) => cut(network, isCut))));
  }

  async function cutOff(network: Network, downMs: number, cut: (isCut: boolean) => void): Promise<void> {
    const key = `tcp://${network.addressThere}:5467`;
    const server = await ServerProcess.start({ address: key, options: { insecure: true } }, { wrapper: network.there });
    const caller = await Caller.start({ key, clients: 5 }, { wrapper: network.here });
    try {
      const steady = (seconds: number, options: object) => caller.call({ text: 'm', times: seconds * 10, everyMs: 100,
        options: { timeoutMs: 500, ...options } }, 30_000);
      expect(tally(await steady(1, {}))).toEqual({ reply: 50 });
      const calls = Promise.all([steady(6.5, {}), steady(6.5, { retry: true })]);
      await pause(500);
      cut(true);
      const down = Date.now();
      await pause(downMs);
      cut(false);
      const up = Date.now();
      for (const ends of await calls) {
        expectInTime(ends, 500);
        const between = (from: number, to: number) => ends.filter(({ began }) => began >= from && began < to);
        expect(between(down + 50, up - 600).filter(({ reply }) => reply !== undefined)).toEqual([]);
        expect(between(down + 50, up - 600).length).toBeGreaterThan(50);
        expect(Object.keys(tally(between(up + 2_000, Infinity))), 'right again 2 s after up').toEqual(['reply']);
        expect(between(up + 2_000, Infinity).length).toBeGreaterThan(10);
      }
      cut(true);
      const forGood = await Promise.all([steady(1, {}), steady(1, { retry: true }),
        caller.call({ text: 'm', times: 2, options: { timeoutMs: 2_500, retry: true } })]);
      for (const [index, ends] of forGood.entries()) {
        expectInTime(ends, index === 2 ? 2_500 : 500);
        expect(ends.filter(({ reply }) => reply !== undefined)).toEqual([]);
      }
      expect(server.isAlive && caller.isAlive).toBe(true);
    } finally {
      await Promise.all([server.kill(), caller.kill()]);
    }
  }

  /** At the deadline, or before it where it is known not to have been sent. */
  function expectInTime(ends: readonly Called[], deadlineMs: number) {
    for (const end of ends) {
      const { ms, ownMs, reply, outcome } = end;
      expect(ownMs, JSON.stringify(end)).toBeLessThan(deadlineMs + 250);
      if (reply === undefined && outcome !== 'not sent') expect(ms, JSON.stringify(end)).toBeGreaterThanOrEqual(deadlineMs - 25); // it counts from the start of a tick
    }
  }
});

describe.concurrent('a long reply to a slow reader', () => {
  fault('B16', '8 MiB reply, then stop() or FIN at once, reader 4 MiB/s', async () => {
    const unit = range(257).map((index) => `${index * 7919} naïve ☃ `).join('').slice(0, 4096);
    const order = JSON.stringify({ reply: unit, times: Math.ceil((8 * MIB) / Buffer.byteLength(unit)) });
    const expected = hash(unit.repeat(JSON.parse(order).times));
    const maxMessageBytes = 9 * MIB;
    const slowly = async (way: (server: ServerProcess, proxy: Proxy) => Promise<string>) =>
      ServerProcess.with({ callback: 'obey', options: { maxMessageBytes } }, async (server) => {
        const proxy = await Proxy.start(server.port, { bytesPerSecond: 4 * MIB });
        const began = performance.now();
        const text = await way(server, proxy);
        expect(performance.now() - began, 'it was slow').toBeGreaterThan(1_500);
        expect(hash(text)).toBe(expected);
        await proxy.close();
      });
    const stopped = (serving: (server: ServerProcess, proxy: Proxy) => Promise<string>) =>
      slowly(async (server, proxy) => {
        const reply = serving(server, proxy);
        await until(() => proxy.carried.down > 100_000, 2_000, 'the begin of the reply');
        await server.stop();
        return within(5_000, reply, 'the reply');
      });
    const asFrames = async (_: ServerProcess, { port }: Proxy) => {
      const client = new MicroClient(port, { maxMessageBytes, timeoutMs: 10_000 });
      const reply = await client.sendMessage(order);
      await client.close();
      return reply;
    };
    const asLines = (_: ServerProcess, { port }: Proxy) => RawClient.with(port, async (client) => {
      await client.write(`${order}\n`);
      return (await client.readToFin(10_000)).toString().slice(0, -1);
    });
    const finAtOnce = (_: ServerProcess, { port }: Proxy) =>
      RawClient.with(port, async (client) => (await client.ask(`${order}\n`, 10_000)).slice(0, -1));
    await Promise.all([stopped(asFrames), stopped(asLines), slowly(finAtOnce)]);
  });
});

describe.concurrent('a connection that is never taken', () => {
  fault.unless(noNetwork, 'B11', 'SYN dropped', () => Network.with(async (network) => {
    await Caller.with({ key: `tcp://${network.addressLost}:5467` }, async (caller) => {
      const [plain, retried, late] = await Promise.all([
        caller.call({ text: 'm', times: 10, options: { timeoutMs: 500 } }),
        caller.call({ text: 'm', times: 10, options: { timeoutMs: 500, retry: true } }),
        caller.call({ text: 'm', times: 10, options: { timeoutMs: 2_600 } }),
      ]);
      for (const ends of [plain, retried, late]) expect(tally(ends)).toEqual({ 'CONNECT_TIMEOUT, not sent': 10 });
      expectAtDeadline([...plain, ...retried], 500);
      expectAtDeadline(late, 2_600);
    }, { wrapper: network.here });
  }));

  fault('B11', 'full backlog', async () => {
    const listener = new Child('listener.ts', { backlog: 1 });
    const fillers: Socket[] = [];
    try {
      const { port } = await listener.ready<{ port: number }>();
      listener.process.kill('SIGSTOP');
      await until(async () => { // connects until the system takes no more
        const filler = await RawClient.connect(port, 200).catch(quiet);
        if (filler !== undefined) fillers.push(filler.socket);
        return filler === undefined;
      }, 5_000, 'a full backlog');
      const client = new MicroClient(port, { log: quiet });
      const ends = await Promise.all(range(20).map((index) =>
        ended(client.sendMessage('m', { timeoutMs: 500, retry: index % 2 === 0 }))));
      expect(tally(ends)).toEqual({ 'CONNECT_TIMEOUT, not sent': 20 });
      expectAtDeadline(ends, 500);
      await client.close();
    } finally {
      for (const filler of fillers) filler.destroy();
      await listener.kill();
    }
  });

  fault('B11', 'accepts and is silent', async () => {
    const server = createServer(quiet).listen(0, '127.0.0.1');
    const accepted: Socket[] = [];
    server.on('connection', (socket) => accepted.push(socket.on('error', quiet).resume()));
    await once(server, 'listening');
    const client = new MicroClient((server.address() as AddressInfo).port, { log: quiet });
    const ends = await Promise.all(range(20).map((index) =>
      ended(client.sendMessage('m', { timeoutMs: 500, retry: index % 2 === 0 }))));
    expect(tally(ends)).toEqual({ 'TIMEOUT, maybe done': 20 });
    expectAtDeadline(ends, 500);
    await within(1_500, client.close(), 'close() with a silent peer');
    for (const socket of accepted) socket.destroy();
    server.close();
  });
});

describe.concurrent('a server that stands still', () => {
  fault('B12', 'server SIGSTOPped, 100 calls of 500 ms, SIGCONT at 2 s', () =>
    watched({}, async (server, monitor) => {
      const client = new MicroClient(server.port, { timeoutMs: 500, log: quiet });
      expect(await client.sendMessage('before')).toBe('before');
      await monitor.suspended(async () => {
        server.process.kill('SIGSTOP');
        const stopped = performance.now();
        try {
          const calls: Promise<Ended>[] = [];
          for (const ms of [0, 300, 600, 900, 1_200]) {
            await pause(stopped + ms - performance.now());
            calls.push(...range(20).map((index) => ended(client.sendMessage(`lost ${index}`))));
          }
          const ends = await within(2_000, Promise.all(calls), 'the end of 100 calls');
          expect(tally(ends)).toEqual({ 'TIMEOUT, maybe done': 100 });
          expectAtDeadline(ends, 500);
          await pause(stopped + 2_000 - performance.now());
        } finally {
          server.process.kill('SIGCONT');
        }
        expect(await ended(client.sendMessage('after'))).toMatchObject({ reply: 'after' });
        await server.hasRead();
      });
      expect(await client.sendMessage('and on')).toBe('and on');
      await client.close();
    }));
});

describe.concurrent('a server that is not there yet', () => {
  fault('B24', 'call 2 s before the server starts, deadline 5 s', async () => {
    const port = await freePort();
    const clients = range(20).map(() => new MicroClient(port, { timeoutMs: 5_000, log: quiet }));
    const began = performance.now();
    const patient = clients.map(async (client) => {
      const end = await ended(client.sendMessage('m', { retry: true }));
      return { ...end, at: performance.now() };
    });
    const hasty = await Promise.all(clients.map((client) => ended(client.sendMessage('m'))));
    expect(tally(hasty)).toEqual({ 'CONNECTION_REFUSED, not sent': 20 });
    for (const { ownMs } of hasty) expect(ownMs).toBeLessThan(100);
    await pause(began + 2_000 - performance.now());
    const server = new MicroServer((message) => message, port, { log: quiet });
    await server.startListening();
    const bound = performance.now();
    const ends = await within(4_000, Promise.all(patient), 'the replies');
    expect(tally(ends)).toEqual({ reply: 20 });
    for (const { at } of ends) expect(at - bound).toBeLessThan(1_000);
    await Promise.all(clients.map((client) => client.close()));
    await server.stop();
  });
});

function expectAtDeadline(ends: readonly { ms: number; ownMs: number }[], deadlineMs: number) {
  for (const { ms, ownMs } of ends) {
    expect(ms).toBeGreaterThanOrEqual(deadlineMs - 50); // counted from a little later than the client does
    expect(ownMs).toBeLessThan(deadlineMs + 250);
  }
}

function hash(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}
