/** Group B: servers that come back. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect } from 'vitest';
import { MicroClient } from '../../lib/micro_client.ts';
import { Caller } from '../helpers/caller.ts';
import { check, History } from '../helpers/checker.ts';
import { Child } from '../helpers/child.ts';
import { pause, until, within } from '../helpers/deadline.ts';
import { range, tally } from '../helpers/ended.ts';
import { fault, FULL } from '../helpers/faults.ts';
import { freePort } from '../helpers/free_port.ts';
import { Load } from '../helpers/load.ts';
import { seeded } from '../helpers/random.ts';
import { ServerProcess } from '../helpers/server_process.ts';
import { stillServes } from '../helpers/still_serves.ts';
import { Stopwatch } from '../helpers/stopwatch.ts';

const folder = mkdtempSync(join(tmpdir(), 'portcall-restart-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const quiet = () => {};

describe('a server restarted under load', () => {
  fault('B14', 'server restarted ×50 under load, client retries (stop and start)', async () => {
    const setUp = { callback: 'slow:2', record: join(folder, 'stops'), address: await freePort() } as const;
    await ServerProcess.with(setUp, async (server) => {
      const { history, load, close, settle } = begin(server.port);
      for (let left = 50; left > 0; left--) {
        await load.progress(100);
        await server.stop();
        await server.start();
      }
      await settle(server);
      expect([...history.with('unknown')], 'a drain answers all that it took').toEqual([]);
      await stillServes(server);
      await close();
    });
  });

  fault('B14', 'server restarted ×50 under load, client retries (kill -9)', async () => {
    const random = seeded();
    const setUp = { callback: 'slow:2', record: join(folder, 'kills'), address: await freePort() } as const;
    let server = await ServerProcess.start(setUp);
    const { history, load, close, settle } = begin(server.port);
    try {
      for (let left = FULL ? 50 : 8; left > 0; left--) {
        const next = await ServerProcess.start({ ...setUp, listen: false });
        await load.progress(random.between(50, 150));
        await server.kill();
        server = next;
        await server.start();
      }
      await settle(server);
      expect(history.with('unknown').size, 'something was in flight').toBeGreaterThan(0);
      await stillServes(server);
      await close();
    } finally {
      await server.kill();
    }
  });

  function begin(port: number) {
    const clients = range(4).map(() => new MicroClient(port, { retry: true, log: quiet }));
    const history = new History();
    const load = new Load({ clients, history, name: 'm', inFlight: 32, timeoutMs: 10_000 });
    const close = () => Promise.all(clients.map((client) => client.close()));
    /** Once more under load, then the checker's verdict. */
    const settle = async (server: ServerProcess) => {
      await load.progress(100);
      await load.stop();
      expect(load.faults).toEqual([]);
      check(history, server.recorded());
      expect([...history.with('fail')], 'nothing not sent is lost').toEqual([]);
    };
    return { history, load, close, settle };
  }
});

describe('a server that comes back to many', () => {
  const DOWN_MS = 3_000;
  const STALLED_MS = 100;
  const TRIES = 7;

  fault('B15', '1,000 clients lose the server for 3 s', async () => {
    const address = await freePort();
    let server = new Child('arrivals.ts', { address });
    const caller = await Caller.start({ key: address, clients: 1_000, options: { timeoutMs: 20_000 } });
    try {
      await server.ready();
      expect(tally(await caller.call({ text: 'before' }))).toEqual({ reply: 1_000 });
      const next = new Child('arrivals.ts', { address, listen: false });
      await next.ready();
      const killed = await server.kill().then(() => performance.now());
      server = next;
      const watch = new Stopwatch(caller.pid, next.pid);
      const calls = caller.call({ text: 'after', options: { retry: true } }, 25_000);
      calls.catch(quiet);
      await pause(killed + DOWN_MS - performance.now());
      // By then each has drawn all its chances, unless there was no core for them.
      await until(async () => await caller.ask<number>('fewestTries') >= TRIES, 10_000, `that each tried ${TRIES} times`);
      const bound = await server.ask<number>('start');
      const ends = await within(20_000, calls, '1,000 replies');
      expect(tally(ends)).toEqual({ reply: 1_000 });
      const lastServed = Math.max(...ends.map(({ ended }) => ended));
      expect(lastServed - bound, 'milliseconds until all are served').toBeLessThan(10_000);
      const arrivals = (await server.ask<number[]>('arrivals')).sort((a, b) => a - b);
      expect(arrivals).toHaveLength(1_000);
      const meant = (await caller.ask<number[][]>('waits')).map(meantArrival);
      expect(meant.filter((at) => at >= DOWN_MS)).toHaveLength(1_000);
      expect(mostAtATime(meant), 'the most of 1,000 connects that are meant for the same 100 ms').toBeLessThanOrEqual(150);
      const span = `${arrivals[0]! - bound} to ${arrivals.at(-1)! - bound} ms after the start`;
      if (watch.waitedMs > STALLED_MS) return; // then they came when there was a core for them
      expect(mostAtATime(arrivals), `the most of 1,000 connects in 100 ms, ${span}`).toBeLessThanOrEqual(150);
    } finally {
      await Promise.all([server.kill(), caller.kill()]);
    }
  }, { timeoutMs: 60_000, retry: 1 }); // chance puts more than 150 into one window in one try of 200

  /** When a client that waited so long before each try comes after the server's start, where nothing else takes time. */
  function meantArrival(waits: readonly number[]): number {
    let at = 0;
    for (let tries = 0; at < DOWN_MS; tries++) at += waits[tries] ?? waits.at(-1) ?? NaN;
    return at;
  }

  function mostAtATime(arrivals: readonly number[]): number {
    return Math.max(...arrivals.map((from) => arrivals.filter((at) => at >= from && at < from + 100).length));
  }
});
