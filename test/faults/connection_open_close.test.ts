/** Group B: connections that open and close, by either side, in every order. */
import { getEventListeners, once } from 'node:events';
import { createServer } from 'node:net';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { describe, expect } from 'vitest';
import { MicroClient } from '../../lib/micro_client.ts';
import { MicroServer } from '../../lib/micro_server.ts';
import { Child } from '../helpers/child.ts';
import { until, within } from '../helpers/deadline.ts';
import { ended, range, tally } from '../helpers/ended.ts';
import { fault, some } from '../helpers/faults.ts';
import { freePort } from '../helpers/free_port.ts';
import { MIB } from '../helpers/monitor.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { stillServes } from '../helpers/still_serves.ts';
import { Stopwatch } from '../helpers/stopwatch.ts';
import { watched } from '../helpers/watched.ts';

const quiet = () => {};

describe('a connection', () => {
  fault('B01', 'connect and close ×1,000: FIN, RST, with and without a byte', () =>
    watched({}, async (server) => {
      for (const end of ['fin', 'reset'] as const) {
        for (const bytes of ['', 'x']) {
          const visit = async () => {
            const client = await RawClient.connect(server.port);
            if (bytes !== '') await client.write(bytes);
            client[end]();
            await within(5_000, client.closed, `the close after ${end} and ${JSON.stringify(bytes)}`);
          };
          for (let left = 1_000; left > 0; left -= 50) await Promise.all(range(50).map(visit));
        }
      }
      await until(async () => (await server.stats()).connections <= 1, 2_000, 'no connection but the monitor\'s');
      await stillServes(server);
    }));

  fault('B08', 'stop() with 100 idle clients', async () =>
    watched({ address: await freePort() }, async (server, monitor) => {
      const clients = range(40).map(() => new MicroClient(server.port));
      for (const client of clients) expect(await client.sendMessage('hello')).toBe('hello');
      const peers = await Promise.all(range(60).map(() => RawClient.connect(server.port)));
      for (const peer of peers.slice(0, 20)) { // the others never said anything
        await peer.write('hello\n');
        expect(await peer.readLine()).toBe('hello');
      }
      await until(async () => (await server.stats()).connections === 101, 2_000, '100 clients and the monitor');
      for (const peer of peers.slice(0, 50)) void peer.ended.then(() => peer.fin()); // ten keep their side open
      await monitor.suspended(async () => {
        const watch = new Stopwatch(server.pid);
        await server.stop();
        expect(watch.ownMs).toBeLessThan(200);
        for (const peer of peers) expect(await within(200, peer.ended, 'the FIN of the server')).toBe(true);
        for (const peer of peers.slice(0, 50)) {
          expect(await within(200, peer.closed, 'the close'), 'no RST').toBeUndefined();
        }
        expect(await ended((clients[0] as MicroClient).sendMessage('late')))
          .toMatchObject({ error: { code: 'CONNECTION_REFUSED', outcome: 'not sent' } });
        for (const peer of peers) peer.socket.destroy();
        await server.start();
      });
      await Promise.all(clients.map((client) => client.close()));
    }));

  fault('B10', 'nobody listens; 1,000 calls', async () => {
    const port = await freePort();
    const client = new MicroClient('NOBODY', { ports: { NOBODY: port }, log: quiet });
    const ends = await Promise.all(range(1_000).map((index) => ended(client.sendMessage(`m${index}`))));
    for (let left = 10; left > 0; left--) ends.push(await ended(client.sendMessage('one')));
    expect(tally(ends)).toEqual({ 'CONNECTION_REFUSED, not sent': 1_010 });
    expect(Math.max(...ends.map(({ ownMs }) => ownMs))).toBeLessThan(100);
    for (const { error } of ends) {
      expect(error?.message).toContain('"NOBODY"');
      expect(error?.message).toContain(`tcp://127.0.0.1:${port}`);
      expect(error?.cause).toMatchObject({ code: 'ECONNREFUSED' });
    }
    await client.close();
  });

  fault('B18', 'abort before send, queued, in flight, after the reply; ×10,000', () =>
    watched({ callback: 'obey' }, async (server) => {
      const client = new MicroClient(server.port, { maxQueued: 251, log: quiet }); // and a ping
      const port = await freePort(); // nobody is there yet
      const queueing = new MicroClient(port, { maxQueued: 250, retry: true, timeoutMs: 60_000, log: quiet });
      const never = JSON.stringify({ waitMs: 1_000 });
      const phases: Record<string, (signal: AbortSignal, abort: () => void) => Promise<string>> = {
        before: (signal, abort) => { abort(); return client.sendMessage('m', { signal }); },
        queued: (signal) => queueing.sendMessage('m', { signal }),
        'in flight': (signal) => client.sendMessage(never, { signal }),
        after: (signal) => client.sendMessage('m', { signal }),
      };
      const round = async (times: number) => {
        for (const [phase, call] of Object.entries(phases)) {
          const aborts = range(times).map(() => new AbortController());
          let settled = 0;
          const calls = aborts.map((abort) => ended(call(abort.signal, () => abort.abort()).finally(() => settled++)));
          if (phase === 'in flight') await client.ping(); // all are at the server
          if (phase === 'after') await Promise.all(calls);
          for (const abort of aborts) abort.abort();
          const ends = await within(2_000, Promise.all(calls), `the end of calls aborted ${phase}`);
          const outcome = phase === 'in flight' ? 'maybe done' : 'not sent';
          expect(tally(ends), phase).toEqual({ [phase === 'after' ? 'reply' : `ABORTED, ${outcome}`]: times });
          expect(settled, phase).toBe(times);
          if (phase === 'in flight') await client.ping(); // the server has answered every cancel
          for (const { signal } of aborts) expect(getEventListeners(signal, 'abort'), phase).toEqual([]);
        }
      };
      await round(250);
      const before = heapBytes();
      for (let left = 2_500 - 250; left > 0; left -= 250) await round(250);
      expect(heapBytes() - before, 'growth in bytes').toBeLessThan(2 * MIB);
      // Neither client has lost a place to an aborted call.
      const later = new MicroServer((message) => message, port, { log: quiet });
      await later.startListening();
      for (const each of [client, queueing]) {
        const replies = range(250).map((index) => each.sendMessage(`m${index}`));
        expect(await within(5_000, Promise.all(replies), '250 replies')).toEqual(range(250).map((i) => `m${i}`));
        await each.close();
      }
      await later.stop();
    }), { timeoutMs: 40_000 });

  fault('B19', 'close() twice, during a call, before connect; then a call', () =>
    watched({ callback: 'obey' }, async (server) => {
      const closeTwice = (client: MicroClient) =>
        within(500, Promise.all([client.close(), client.close()]), 'the end of close()');
      const expectClosed = async (client: MicroClient) => {
        await within(500, client.close(), 'a third close()');
        const later = await Promise.all([ended(client.sendMessage('later')), ended(client.ping().then(String)),
          ended(client.streamMessage('later')[Symbol.asyncIterator]().next().then(String))]);
        expect(tally(later)).toEqual({ 'CLOSED, not sent': 3 });
      };

      const unused = new MicroClient(server.port);
      await closeTwice(unused);
      await expectClosed(unused);

      const dialling = new MicroClient(server.port);
      const early = range(10).map((index) => ended(dialling.sendMessage(`m${index}`)));
      await closeTwice(dialling);
      expect(tally(await within(100, Promise.all(early), 'the calls'))).toEqual({ 'CLOSED, not sent': 10 });
      await expectClosed(dialling);

      const busy = new MicroClient(server.port);
      await busy.ping();
      const order = (what: object) => JSON.stringify(what);
      const pending = range(10).map((index) => ended(busy.sendMessage(order({ waitMs: 500, reply: `${index}` }))));
      const parts = busy.streamMessage(order({ stream: { parts: 2, everyMs: 500 } }))[Symbol.asyncIterator]();
      const stream = ended(parts.next().then(String));
      await busy.ping(); // all are at the server
      await closeTwice(busy);
      expect(tally(await within(100, Promise.all([...pending, stream]), 'the calls')))
        .toEqual({ 'CLOSED, maybe done': 11 });
      await expectClosed(busy);

      const retrying = new MicroClient(await freePort(), { retry: true });
      const waiting = ended(retrying.sendMessage('m'));
      await new Promise((resolve) => { setImmediate(resolve); });
      await closeTwice(retrying);
      expect(await within(100, waiting, 'the call')).toMatchObject({ error: { code: 'CLOSED', outcome: 'not sent' } });
      await expectClosed(retrying);
      await until(async () => (await server.stats()).connections === 1, 2_000, 'no connection but the monitor\'s');
    }));

  fault('B20', 'stop() twice, before and during start; start again', async () => {
    const port = await freePort();
    const server = new MicroServer((message) => `re ${message}`, port, { log: quiet });
    const soon = <T>(promise: Promise<T>, what: string) => within(1_000, promise, what);
    const expectFree = async (when: string) => {
      const other = createServer().listen(port, '127.0.0.1');
      await soon(once(other, 'listening'), `a free port ${when}`);
      other.close();
      await once(other, 'close');
    };
    const expectServes = async (when: string) => {
      expect(server.address?.port, when).toBe(port);
      const client = new MicroClient(port, { timeoutMs: 1_000 });
      expect(await client.sendMessage(when)).toBe(`re ${when}`);
      await client.close();
    };

    await soon(Promise.all([server.stop(), server.stop()]), 'stop() before the first start');
    await soon(server.startListening(), 'the first start');
    await expectServes('after a stop before the start');
    await soon(server.startListening(), 'a second start');
    await expectServes('after starting twice');

    await soon(Promise.all([server.stop(), server.stop()]), 'stop() twice at once');
    await soon(server.stop(), 'a third stop()');
    expect(server.address).toBeUndefined();
    await expectFree('after three stops');

    const started = server.startListening();
    await soon(server.stop(), 'stop() during the start');
    await soon(started.catch(() => {}), 'the start that was stopped'); // resolved or rejected, but settled
    await expectFree('after a stop during the start');

    await soon(server.startListening(), 'a start after that');
    await expectServes('after a start that was stopped');
    const stopped = server.stop();
    const again = server.startListening();
    await soon(stopped, 'stop() with a start behind it');
    await soon(again, 'the start behind it');
    await expectServes('after a start during the stop');

    const all = [server.stop(), server.startListening(), server.stop()];
    await soon(Promise.allSettled(all), 'stop(), start and stop() at once');
    expect(server.address, 'the last word was stop()').toBeUndefined();
    await expectFree('after stop(), start and stop()');
    await soon(server.startListening(), 'the last start');
    await expectServes('after all that');

    await soon(server.stop(), 'the last stop()');
    await expectFree('at the end');
  });
});

describe('a script', () => {
  fault('B09', 'one call, no close(), server lives on; also with an idle timer', () =>
    watched({ callback: 'obey' }, async (server) => {
      const nobody = await freePort();
      const others = ['retry', 'abort signal', 'stream', 'stream left', 'timed out', 'ping', 'many clients', 'refused'];
      const ways = ['call', 'long deadline', 'retried in vain', ...some(others, 3)];
      const run = async (way: string) => {
        const port = way === 'refused' || way === 'retried in vain' ? nobody : server.port;
        const script = new Child('script.ts', { way, port });
        try {
          const { reply } = await script.ready<{ reply: string }>();
          const watch = new Stopwatch(script.pid);
          const { code, signal } = await within(5_000, script.exited, `the end of the script "${way}"`);
          return { way, reply, code, signal, stderr: script.stderr, ms: watch.ownMs };
        } finally {
          await script.kill();
        }
      };
      for (let at = 0; at < ways.length; at += 2) {
        for (const end of await Promise.all(ways.slice(at, at + 2).map(run))) {
          expect(end).toMatchObject({ code: 0, signal: null, stderr: '' });
          expect(end.reply, end.way).toMatch(EXPECTED[end.way] ?? /^pong$/);
          expect(end.ms, `${end.way}: milliseconds from the answer to the end`).toBeLessThan(500);
        }
      }
    }));

  const EXPECTED: Record<string, RegExp> = {
    stream: /^0 \n1 $/, 'stream left': /^0 $/, 'timed out': /^TIMEOUT$/, ping: /^number$/,
    refused: /^CONNECTION_REFUSED$/, 'retried in vain': /^CONNECT(ION_REFUSED|_TIMEOUT)$/,
  };
});

function heapBytes(): number {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  for (let times = 0; times < 3; times++) collect();
  return process.memoryUsage().heapUsed;
}
