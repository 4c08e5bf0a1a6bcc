/** Group C: callbacks that are too many, fail, never end, or keep the event loop to themselves. */
import { describe, expect } from 'vitest';
import { MicroClient } from '../../lib/micro_client.ts';
import { pause, within } from '../helpers/deadline.ts';
import { ended, range, tally } from '../helpers/ended.ts';
import { fault, FULL } from '../helpers/faults.ts';
import { RETURNED, THROWN } from '../helpers/misbehave.ts';
import { MIB } from '../helpers/monitor.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { running } from '../helpers/running.ts';
import type { ServerProcess } from '../helpers/server_process.ts';
import { stillServes } from '../helpers/still_serves.ts';
import { Stopwatch } from '../helpers/stopwatch.ts';
import { watched } from '../helpers/watched.ts';

const HELLO = '\x01portcall/1 timeout=60000\n';
/** What a stack has and no message of these tests: a place in a file, or in Node. */
const STACK = /\n|\bat \S+ \(|\.[jt]s\b|node:|file:|\/tmp\//;

describe.concurrent('callbacks that take their time', () => {
  fault('C03', '1,000 at once, callback 100 ms', () => watched({ callback: 'slow:100' }, async (server) => {
    const texts = range(1_000).map((index) => `m${index}`);
    const client = new MicroClient(server.port);
    expect(await Promise.all(texts.map((text) => client.sendMessage(text))), 'frames').toEqual(texts);
    expect((await server.vitals()).mostRunning, 'at a time').toBe(256);
    await client.close();
    await RawClient.with(server.port, async (peer) => {
      expect(await peer.ask(`${texts.join('\n')}\n`), 'lines').toBe(`${texts.join('\n')}\n`);
    });
    expect((await server.vitals()).mostRunning, 'at a time').toBe(256);
    await stillServes(server);
  }));

  fault('C08', 'event loop blocked 2 s, 20 peers waiting (monitor exempt)', () =>
    // Each limit ends within the pause: none may be held against a peer, or a callback, that kept it.
    watched({ callback: 'obey',
      options: { partialTimeoutMs: 1_900, callbackTimeoutMs: 1_900, outputTimeoutMs: 1_900 } },
      async (server, monitor) => monitor.suspended(async () => {
        const clients = range(4).map(() => new MicroClient(server.port));
        const peers = await Promise.all(range(16).map(() => RawClient.connect(server.port)));
        const [working, midMessage, about, readers] = [0, 4, 8, 12].map((at) => peers.slice(at, at + 4)) as
          [RawClient[], RawClient[], RawClient[], RawClient[]];
        const slow = (index: number) => JSON.stringify({ reply: `m${index}`, waitMs: 1_400 });
        const long = JSON.stringify({ reply: 'x'.repeat(1_000), times: 1_000 });
        for (const reader of readers) {
          reader.socket.pause();
          void reader.write(`${long}\n`.repeat(8));
        }
        for (const [index, peer] of midMessage.entries()) await peer.write(index % 2 === 0 ? 'm' : `${HELLO}0 m`);
        for (const [index, peer] of working.entries()) await peer.write(`${slow(index)}\n`);
        const calls = clients.map((client, index) => client.sendMessage(slow(index)));
        await running(server, 8);
        await server.hasRead();
        const watch = new Stopwatch(server.pid);
        const blocked = server.ask('block', 2_000);
        await pause(100);
        for (const [index, peer] of midMessage.entries()) await peer.write(`${index}\n`);
        for (const [index, peer] of about.entries()) await peer.write(`m${index}\n`);
        for (const reader of readers) reader.socket.resume();
        const hear = (peer: RawClient, index: number) => peer.readLine(5_000, `the answer to peer ${index}`);
        expect(await Promise.all(calls), 'frames').toEqual(range(4).map((index) => `m${index}`));
        expect(await Promise.all(working.map(hear))).toEqual(range(4).map((index) => `m${index}`));
        expect(await Promise.all(about.map(hear))).toEqual(range(4).map((index) => `m${index}`));
        for (const [index, peer] of midMessage.entries()) {
          if (index % 2 === 1) expect(await hear(peer, index)).toMatch(/^\x01portcall\/1 /);
          expect(await hear(peer, index)).toBe(index % 2 === 0 ? `m${index}` : `0 m${index}`);
        }
        for (const reader of readers) {
          const lines = await reader.readLines(8);
          expect(lines.every((line) => line === 'x'.repeat(1_000_000)), 'long replies').toBe(true);
        }
        expect(watch.ms, 'it was blocked').toBeGreaterThan(1_900);
        await blocked;
        expect((await server.stats()).limits, 'nobody met a limit').toEqual({});
        const closed = peers.filter(({ socket }) => socket.readableEnded || socket.closed);
        expect(closed, 'nobody was closed').toEqual([]);
        for (const peer of peers) peer.socket.destroy();
        for (const client of clients) await client.close();
        await stillServes(server);
      })));

  const limitMs = FULL ? 30_000 : 1_000;
  fault('C11', '300 callbacks that never settle', () =>
    watched({ callback: 'obey', watchAborts: true, ...(!FULL && { options: { callbackTimeoutMs: limitMs } }) },
      async (server) => {
        const client = new MicroClient(server.port, { timeoutMs: 3 * limitMs });
        const other = new MicroClient(server.port);
        const never = JSON.stringify({ waitMs: 10 * limitMs });
        const watch = new Stopwatch(server.pid);
        const calls = range(300).map(() => ended(client.sendMessage(never)));
        const peer = await RawClient.connect(server.port);
        await peer.write(`${never}\n`.repeat(300));
        await running(server, 512);
        for (let times = 0; times < 20; times++) {
          const { reply, ownMs } = await ended(other.sendMessage('other'));
          expect(reply).toBe('other');
          expect(ownMs, 'another connection').toBeLessThan(100);
        }
        const ends = await within(3 * limitMs, Promise.all(calls), 'the end of 300 calls');
        expect(tally(ends)).toEqual({ 'TIMEOUT, maybe done': 300 });
        const late = await peer.readLines(300, 2 * limitMs);
        expect(late.filter((line) => !line.startsWith('ERR TIMEOUT ')), 'lines').toEqual([]);
        // 256 were in the callback at once, 44 when those had given up their places.
        for (const [from, to, times] of [[0, 256, 1], [256, 300, 2]] as const) {
          for (const { ms, ownMs } of ends.slice(from, to)) {
            expect(ms).toBeGreaterThan(times * limitMs - 50);
            expect(ownMs).toBeLessThan(times * limitMs + 500);
          }
        }
        const { aborts } = await server.vitals();
        expect(aborts.filter(({ message }) => message === never)).toHaveLength(600);
        for (const { afterMs } of aborts) {
          // Less than the limit: that runs from the begin of the chunk, in which others were called before.
          expect(afterMs, 'until the signal was aborted').toBeGreaterThan(limitMs / 2);
          expect(afterMs - watch.waitedMs, 'until the signal was aborted').toBeLessThan(limitMs + 250);
        }
        const { inFlight, limits } = await server.stats();
        expect({ inFlight, limits }).toEqual({ inFlight: 0, limits: { callbackTimeoutMs: 600 } });
        const texts = range(256).map((index) => `m${index}`);
        expect(await Promise.all(texts.map((text) => client.sendMessage(text))), 'its places again').toEqual(texts);
        await peer.write('more\n');
        expect(await peer.readLine()).toBe('more');
        peer.socket.destroy();
        await Promise.all([client.close(), other.close()]);
      }));
});

describe.concurrent('callbacks that fail', () => {
  fault('C09', 'callback throws, rejects, throws null, a throwing getter, a 2 MiB message', () =>
    watched({ callback: 'misbehave' }, async (server) => {
      for (const name of Object.keys(THROWN)) {
        for (const how of ['throw', 'reject']) await failing(server, `${how} ${name}`);
      }
      expect(await over(server.port, 'throw error')).toMatchObject({ line: 'ERR CALLBACK_FAILED it broke',
        frame: '0! CALLBACK_FAILED f: it broke', message: 'it broke' });
      await stillServes(server, { ask: 'fine' });
    }));

  fault('C10', 'returns undefined, 42, {}, Symbol, 1n, a throwing thenable, an iterator failing midway', () =>
    watched({ callback: 'misbehave' }, async (server) => {
      for (const name of Object.keys(RETURNED)) {
        for (const how of ['return', 'resolve']) await failing(server, `${how} ${name}`);
      }
      expect(await over(server.port, 'null'), 'there is nothing to say')
        .toMatchObject({ line: '', frame: '0 ', reply: '' });
      await stillServes(server, { ask: 'fine' });
    }));

  /** One `CALLBACK_FAILED`, short and without a stack; then the next is answered. */
  async function failing(server: ServerProcess, request: string): Promise<void> {
    const before = await server.stats();
    const { line, frame, code, outcome, message } = await over(server.port, request);
    expect(line, request).toMatch(/^ERR CALLBACK_FAILED [^\x00-\x1f\x7f-\x9f\u2028\u2029]+$/);
    expect(frame, request).toMatch(/^0! CALLBACK_FAILED f: [^\x00-\x1f\x7f-\x9f\u2028\u2029]+$/);
    expect({ code, outcome }, request).toEqual({ code: 'CALLBACK_FAILED', outcome: 'failed' });
    for (const text of [line, frame, message]) {
      expect(text, request).not.toMatch(STACK);
      expect(Buffer.byteLength(text), request).toBeLessThanOrEqual(MIB);
    }
    const { errors, inFlight } = await server.stats();
    expect({ errors: errors - before.errors, inFlight }, request).toEqual({ errors: 3, inFlight: 0 });
  }

  /** What is answered over lines, over frames and to a MicroClient, without its parts; so must be the next. */
  async function over(port: number, request: string) {
    const isPart = (text: string) => /^(0\+ )?(one|two)$/.test(text);
    const [line = '', ...more] = await RawClient.with(port, async (peer) =>
      (await peer.ask(`${request}\nnext\n`)).split('\n').filter((text) => !isPart(text)));
    expect(more, `over lines, behind ${request}`).toEqual(['next', '']);
    const [, frame = '', ...others] = await RawClient.with(port, async (peer) => {
      await peer.write(`${HELLO}0 ${request}\n`);
      const first = await peer.readLines(2);
      while (isPart(first[1] ?? '')) first[1] = await peer.readLine();
      await peer.write('0 next\n');
      peer.fin();
      return [...first, ...(await peer.readToFin()).toString().split('\n')];
    });
    expect(others, `over frames, behind ${request}`).toEqual(['0 next', '']);
    const client = new MicroClient(port);
    const { reply, error } = await ended(client.sendMessage(request));
    expect(await client.sendMessage('next'), `to a MicroClient, behind ${request}`).toBe('next');
    await client.close();
    return { line, frame, reply, code: error?.code, outcome: error?.outcome, message: error?.message ?? '' };
  }
});
