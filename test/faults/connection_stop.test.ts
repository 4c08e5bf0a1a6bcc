/** Group B: servers that stop, and what becomes of those who wait for them. */
import { describe, expect } from 'vitest';
import { MicroClient } from '../../lib/micro_client.ts';
import { pause, until, within } from '../helpers/deadline.ts';
import { ended, range } from '../helpers/ended.ts';
import { fault } from '../helpers/faults.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { running } from '../helpers/running.ts';
import { watched } from '../helpers/watched.ts';

const quiet = () => {};
const TEXT = 'whole '.repeat(10_000);

describe('a signal', () => {
  fault('B05', 'SIGTERM: 50 callbacks of 500 ms in flight, idle peers, one mid-line', () =>
    watched({ callback: 'slow:500', signals: true }, async (server, monitor) => {
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
    }, { mayEnd: true }));

  fault('B07', 'second SIGINT 200 ms after the first, one request pending', () =>
    watched({ callback: 'slow:5000', signals: true }, async (server, monitor) => {
      const client = new MicroClient(server.port, { log: quiet });
      const pending = ended(client.sendMessage('m'));
      await running(server, 1);
      await monitor.suspended(async () => {
        server.process.kill('SIGINT');
        await pause(200);
        expect(server.isAlive, 'it drains').toBe(true);
        const second = performance.now();
        expect(await within(2_000, server.kill('SIGINT'), 'the end')).toEqual({ code: 130, signal: null });
        expect(performance.now() - second).toBeLessThan(500);
        expect(await within(500, pending, 'the call'))
          .toMatchObject({ error: { code: 'CONNECTION_LOST', outcome: 'maybe done' } });
      });
      await client.close();
    }, { mayEnd: true }));
});

/** Whether nobody takes a connection there any more. */
async function isRefused(port: number): Promise<boolean> {
  return RawClient.connect(port, 1_000).then((client) => { client.reset(); return false; },
    (error: NodeJS.ErrnoException) => error.code === 'ECONNREFUSED');
}
