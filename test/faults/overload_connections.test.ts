/** Group C: more connections, requests or errors than a server has room for. */
import { describe, expect } from 'vitest';
import { MicroClient } from '../../lib/micro_client.ts';
import { until, within } from '../helpers/deadline.ts';
import { ended, range, tally } from '../helpers/ended.ts';
import { fault, FULL } from '../helpers/faults.ts';
import { MIB, monitored } from '../helpers/monitor.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { ServerProcess } from '../helpers/server_process.ts';
import { stillServes } from '../helpers/still_serves.ts';
import { Stopwatch } from '../helpers/stopwatch.ts';
import { watched } from '../helpers/watched.ts';

const HELLO = '\x01portcall/1 timeout=60000\n';
/** For the monitor, where it is counted what is run. */
const PING = { ask: '$ping', reply: 'pong' };
const BUSY = /^ERR SERVER_BUSY retry after \d+ ms$/;

const connectAll = (port: number, count: number) => Promise.all(range(count).map(() => RawClient.connect(port)));
async function closeAll(peers: readonly RawClient[]): Promise<void> {
  for (const peer of peers) peer.fin();
  await Promise.all(peers.map((peer) => within(5_000, peer.closed, 'the end of a connection')));
}

describe.concurrent('peers that wait, and a system that has few files', () => {
  const limitMs = FULL ? 30_000 : 2_000;
  fault('C06', '200 peers drip 1 byte/s without LF', () =>
    watched(FULL ? {} : { options: { partialTimeoutMs: limitMs } }, async (server) => {
      const dripping = range(200).map((index) => RawClient.with(server.port, async (peer) => {
        const watch = new Stopwatch(server.pid);
        await peer.write(index % 2 === 0 ? 'x' : `${HELLO}0 x`);
        const drip = setInterval(() => peer.socket.write('x'), FULL ? 1_000 : 200);
        const said = await peer.readToFin(2 * limitMs).finally(() => clearInterval(drip));
        expect(said.toString()).toMatch(index % 2 === 0 ? /^ERR TIMEOUT / : /^\x01[^\n]+\ngoodbye TIMEOUT r: /);
        expect(watch.ms, 'ms from its first byte').toBeGreaterThan(limitMs - 50);
        expect(watch.ownMs, 'ms from its first byte').toBeLessThan((limitMs * 35) / 30);
      }));
      await Promise.all(dripping);
      expect((await server.stats()).limits).toEqual({ partialTimeoutMs: 200 });
      await stillServes(server, { ask: 'fine' });
    }));

  for (const files of [64, 128]) {
    fault.unless(process.platform === 'linux' ? undefined : 'needs Linux', 'C05',
      `hard ulimit -n ${files}, 300 connects`,
      () => ServerProcess.with({}, (server) => monitored(server, {}, async () => {
        const earlier = await connectAll(server.port, 4);
        const asked = () => Promise.all(earlier.map(async (peer, index) => {
          await peer.write(`m${index}\n`);
          expect(await peer.readLine(), 'who was there before').toBe(`m${index}`);
        }));
        await asked();
        const [cpuMs, began] = [server.cpuMs(), performance.now()];
        const peers = await connectAll(server.port, 300);
        const heard = Promise.all(peers.map(async (peer) => {
          await peer.write('m\n');
          return peer.readLine(5_000).catch(() => 'closed');
        }));
        while (performance.now() < began + (FULL ? 5_000 : 1_500)) await asked();
        const counts: Record<string, number> = {};
        for (const line of await heard) {
          const how = BUSY.test(line) ? 'busy' : line;
          counts[how] = (counts[how] ?? 0) + 1;
        }
        const places = Math.max(8, files - 64) - earlier.length - 1; // and the monitor's
        expect(counts['m'], 'served').toBe(places);
        expect(Object.keys(counts).filter((how) => !['m', 'busy', 'closed'].includes(how))).toEqual([]);
        const share = (server.cpuMs() - cpuMs) / (performance.now() - began);
        expect(share, 'of a core').toBeLessThan(0.5);
        for (const peer of peers) peer.socket.destroy();
        const watch = new Stopwatch(server.pid);
        const isWell = () => stillServes(server, { ask: 'well' }).then(() => true, () => false);
        await until(isWell, 5_000, 'that it is well again');
        expect(watch.ownMs, 'ms until it was well again').toBeLessThan(2_000);
        await asked();
        await closeAll(earlier);
        expect(server.stderr).toBe('');
      }), { wrapper: ['bash', '-c', `ulimit -n ${files}; exec "$@"`, 'bash'] }));
  }
});

describe('places', () => {
  fault('C04', '1,024 + 50 connections', () => watched({}, async (server) => {
    const peers = await connectAll(server.port, 1_023); // the monitor has the last place
    const served = () => Promise.all(peers.map(async (peer, index) => {
      await peer.write(`m${index}\n`);
      expect(await peer.readLine()).toBe(`m${index}`);
    }));
    await served();
    const { runs } = await server.vitals();
    const late = await connectAll(server.port, 35);
    const clients = range(15).map(() => new MicroClient(server.port));
    const calls = Promise.all(clients.map((client) => ended(client.sendMessage('never run'))));
    for (const peer of late.slice(0, 20)) await peer.write('never run\n'); // the others are silent
    for (const peer of late) expect(await peer.readLine()).toMatch(BUSY);
    for (const peer of late) expect(await within(2_000, peer.ended, 'the FIN'), 'FIN, no reset').toBe(true);
    for (const { error } of await calls) expect(error?.retryAfterMs).toBeGreaterThan(0);
    expect(tally(await calls)).toEqual({ 'SERVER_BUSY, refused': 15 });
    expect((await server.stats()).limits).toEqual({ maxConnections: 50 });
    await closeAll(late);
    expect((await server.vitals()).runs, 'runs').toBe(runs);
    await served();
    const patient = new MicroClient(server.port);
    const [waiting, watch] = [patient.sendMessage('patient', { retry: true }), new Stopwatch(server.pid)];
    await closeAll(peers.splice(0, 1));
    expect(await within(2_000, waiting, 'the freed place')).toBe('patient');
    expect(watch.ownMs, 'ms until a freed place was given').toBeLessThan(1_000);
    await closeAll(peers.splice(0, 1));
    await RawClient.with(server.port, async (peer) => {
      await peer.write('another\n');
      expect(await peer.readLine()).toBe('another');
    });
    await closeAll(peers);
    await Promise.all([...clients, patient].map((client) => client.close()));
    await stillServes(server, { ask: 'fine' });
  }, PING));

  fault('C07', '100,000 ids open over 400 connections, then answered', () =>
    watched({ callback: 'gated' }, async (server) => {
      const EACH = 260; // of which 256 are in the callback
      const peers = await connectAll(server.port, 400);
      const texts = range(EACH).map((slot) => `${slot} m${slot}`);
      for (let asked = 0; asked < peers.length;) { // all at the same moment would be another fault
        for (const peer of peers.slice(asked, asked + 50)) await peer.write(`${HELLO}${texts.join('\n')}\n`);
        asked += 50;
        await until(async () => (await server.stats()).inFlight === asked * 256, 5_000, `${asked * 256} open ids`);
      }
      const answers = peers.map(async (peer) => {
        const [, ...replies] = await peer.readLines(1 + EACH, 20_000);
        return replies;
      });
      await server.ask('open');
      for (const replies of await Promise.all(answers)) {
        expect(replies.sort((a, b) => parseInt(a) - parseInt(b))).toEqual(texts);
      }
      const { mostRunning, runs } = await server.vitals();
      expect({ mostRunning, runs }).toEqual({ mostRunning: 400 * 256, runs: 400 * EACH });
      expect((await server.stats()).inFlight).toBe(0);
      for (const peer of peers) expect(await peer.ask(''), 'behind the last').toBe('');
      await closeAll(peers);
      await stillServes(server);
    }));

  const times = FULL ? 10_000 : 2_000;
  fault('C13', '10,000 × connect, ask, close, 50 at a time', () => watched({}, async (server) => {
    const visits = {
      lines: (text: string) => RawClient.with(server.port, async (peer) => {
        expect(await peer.ask(`${text}\n`)).toBe(`${text}\n`);
      }),
      frames: async (text: string) => {
        const client = new MicroClient(server.port);
        expect(await client.sendMessage(text)).toBe(text);
        await client.close();
      },
    };
    let begun = 0;
    const visitor = async () => {
      while (begun < times) await visits[begun % 2 === 0 ? 'lines' : 'frames'](`m${begun++}`);
    };
    await Promise.all(range(50).map(visitor));
    await until(async () => (await server.stats()).connections <= 1, 2_000, 'no connection but the monitor\'s');
    await stillServes(server, { ask: 'fine' });
  }, { rssGrowthBytes: 16 * MIB }));
});

describe('errors', () => {
  const MAX = 1_000;
  const bytes = (...pieces: (string | number[])[]) =>
    Buffer.concat(pieces.map((piece) => Buffer.from(piece as string)));
  const long = 'x'.repeat(MAX + 1);
  const CASES = [
    { name: 'lines, no UTF-8', hello: '', bad: bytes('a', [0xff], '\n'), code: /^ERR BAD_MESSAGE / },
    { name: 'lines, too long', hello: '', bad: bytes(`${long}\n`), code: /^ERR MESSAGE_TOO_LARGE / },
    { name: 'lines, no command', hello: '', bad: bytes('$nonsense\n'), code: /^ERR BAD_MESSAGE / },
    { name: 'frames, no frame', hello: HELLO, bad: bytes('nonsense\n'), code: /^! PROTOCOL_ERROR r: / },
    { name: 'frames, no UTF-8', hello: HELLO, bad: bytes('7 a', [0xff], '\n'), code: /^7! BAD_MESSAGE r: / },
    { name: 'frames, too long', hello: HELLO, bad: bytes(`7 ${long}\n`), code: /^7! MESSAGE_TOO_LARGE r: / },
  ];
  fault('C12', '30 protocol errors on a connection', () =>
    watched({ options: { maxMessageBytes: MAX } }, async (server) => {
      for (const each of CASES) await tooMany(server, each);
      await stillServes(server, { ask: 'fine' });
    }, PING));

  async function tooMany(server: ServerProcess, { name, hello, bad, code }: (typeof CASES)[number]): Promise<void> {
    const good = (index: number) => (hello === '' ? `m${index}` : `${index} m${index}`);
    const mixed = (errors: number) =>
      Buffer.concat(range(errors).flatMap((index) => [bad, Buffer.from(`${good(index)}\n`)]));
    const greeted = async (peer: RawClient) => {
      if (hello === '') return;
      await peer.write(hello);
      expect(await peer.readLine(), name).toMatch(/^\x01portcall\/1/);
    };
    const { requests } = await server.stats();
    await RawClient.with(server.port, async (peer) => {
      await greeted(peer);
      void peer.write(mixed(30));
      const lines = (await peer.readToFin()).toString().split('\n');
      expect(lines.pop(), name).toBe('');
      const reason = /^(ERR|goodbye) PROTOCOL_ERROR .*Cannot go on after 20 errors/;
      expect(lines.pop(), `${name}: the reason`).toMatch(reason);
      expect(lines.filter((line) => code.test(line)), `${name}: errors that were answered`).toHaveLength(20);
      expect(lines.filter((line) => !code.test(line)), name).toEqual(range(20).map(good));
    });
    expect((await server.stats()).requests - requests, `${name}: requests that were run`).toBe(20);
    await RawClient.with(server.port, async (peer) => {
      await greeted(peer);
      for (const count of [19, 1]) { // 19, and the last one that may be
        await peer.write(mixed(count));
        const lines = await peer.readLines(2 * count);
        expect(lines.filter((line) => code.test(line)), `${name}: errors`).toHaveLength(count);
        await peer.write(`${good(99)}\n`);
        expect(await peer.readLine(), `${name}: it stays open`).toBe(good(99));
      }
      expect(peer.socket.readableEnded, name).toBe(false);
    });
  }
});
