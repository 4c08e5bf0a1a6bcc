/** Group B: servers that stop, and what becomes of those who wait for them. */
import { describe, expect } from 'vitest';
import { MicroClient } from '../../lib/micro_client.ts';
import { pause, until, within } from '../helpers/deadline.ts';
import { ended, range, tally } from '../helpers/ended.ts';
import { fault } from '../helpers/faults.ts';
import { freePort } from '../helpers/free_port.ts';
import { monitored } from '../helpers/monitor.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { ServerProcess } from '../helpers/server_process.ts';

const quiet = () => {};
const TEXT = 'whole '.repeat(10_000);

function running(server: ServerProcess, count: number) {
  return until(async () => (await server.vitals()).running === count, 5_000, `${count} calls in the callback`);
}

describe('a signal', () => {
  fault('B05', 'SIGTERM: 50 callbacks of 500 ms in flight, idle peers, one mid-line', () =>
    ServerProcess.with({ callback: 'slow:500', signals: true }, (server) => monitored(server, { mayEnd: true }, async (monitor) => {
      const clients = range(5).map(() => new MicroClient(server.port));
      const idle = await Promise.all(range(10).map(() => RawClient.connect(server.port)));
      const midLine = await RawClient.connect(server.port);
      const asker = await RawClient.connect(server.port);
      await midLine.write('an unfinished li');
      await Promise.all(clients.map((client) => client.ping()));
      const replies = range(25).map((index) => (clients[index % 5] as MicroClient).sendMessage(`${TEXT}${index}`));
      await asker.write(range(25).map((index) => `${TEXT}${index}\n`).join(''));
      await running(server, 50);
      await monitor.suspended(async () => {
        const sent = performance.now();
        const exited = server.kill('SIGTERM');
        await until(() => isRefused(server.port), 400, 'the refusal of new connections');
        expect(performance.now() - sent, 'refused while replies are still made').toBeLessThan(450);
        expect(await within(2_000, Promise.all(replies), '25 replies over frames'))
          .toEqual(range(25).map((index) => `${TEXT}${index}`));
        expect((await asker.readToFin(2_000)).toString(), '25 replies over lines')
          .toBe(range(25).map((index) => `${TEXT}${index}\n`).join(''));
        for (const peer of [...idle, midLine]) expect(await within(2_000, peer.ended, 'the FIN')).toBe(true);
        expect(await within(2_000, exited, 'the end of the server')).toEqual({ code: 0, signal: null });
        expect(performance.now() - sent).toBeLessThan(1_500);
        for (const peer of [...idle, midLine, asker]) peer.socket.destroy();
      });
      expect(server.stderr).toBe('');
    })));

  fault('B07', 'second SIGINT 200 ms after the first, one request pending', () =>
    ServerProcess.with({ callback: 'slow:5000', signals: true }, (server) => monitored(server, { mayEnd: true }, async (monitor) => {
      const client = new MicroClient(server.port, { log: quiet });
      const pending = ended(client.sendMessage('m'));
      await running(server, 1);
      await monitor.suspended(async () => {
        server.process.kill('SIGINT');
        await pause(200);
        expect(server.isAlive, 'it drains').toBe(true);
        const second = performance.now();
        expect(await within(2_000, server.kill('SIGINT'), 'the end of the server')).toEqual({ code: 130, signal: null });
        expect(performance.now() - second).toBeLessThan(500);
        expect(await within(500, pending, 'the call')).toMatchObject({ error: { code: 'CONNECTION_LOST', outcome: 'maybe done' } });
      });
      await client.close();
    })));
});

describe('stop()', () => {
  for (const graceMs of [1_000, undefined]) {
    fault('B06', `stop with a callback that never ends, grace ${graceMs === undefined ? 'default' : '1 s'}`, async () =>
      ServerProcess.with({ callback: 'obey', address: await freePort() }, (server) => monitored(server, { mayStayOpen: true }, async (monitor) => {
        const graceOrDefaultMs = graceMs ?? 10_000;
        const [client, alone] = [new MicroClient(server.port), new MicroClient(server.port)];
        const never = JSON.stringify({ waitMs: 60_000 });
        const late = (index: number) => JSON.stringify({ waitMs: 700, reply: `late ${index}` });
        const endless = [ended(client.sendMessage(never, { timeoutMs: 30_000 })), ended(alone.sendMessage(never, { timeoutMs: 30_000 }))];
        const replies = range(20).map((index) => client.sendMessage(late(index)));
        const [good, bad] = [await RawClient.connect(server.port), await RawClient.connect(server.port)];
        await good.write(`${late(0)}\n${late(1)}\n`);
        await bad.write(`${late(2)}\n${never}\n`);
        await running(server, 26);
        await monitor.suspended(async () => {
          const began = performance.now();
          const stopped = server.stop(graceMs === undefined ? undefined : { graceMs });
          expect(await within(2_000, Promise.all(replies), '20 replies')).toEqual(range(20).map((index) => `late ${index}`));
          expect((await good.readToFin()).toString()).toBe('late 0\nlate 1\n');
          await within(graceOrDefaultMs + 1_000, stopped, 'the end of stop()');
          expect(performance.now() - began).toBeLessThan(graceOrDefaultMs + 500);
          expect(performance.now() - began).toBeGreaterThan(graceOrDefaultMs - 50);
          expect(tally(await within(500, Promise.all(endless), 'the two calls'))).toEqual({ 'TIMEOUT, maybe done': 2 });
          expect((await bad.readToFin()).toString()).toMatch(/^late 2\nERR TIMEOUT [^\n]+\n$/);
          await server.start();
          for (const raw of [good, bad]) raw.socket.destroy();
          for (const each of [client, alone]) await each.close();
        });
      })));
  }
});

/** Whether nobody takes a connection there any more. */
async function isRefused(port: number): Promise<boolean> {
  return RawClient.connect(port, 1_000).then((client) => { client.reset(); return false; },
    (error: NodeJS.ErrnoException) => error.code === 'ECONNREFUSED');
}
