/** Clients that know nothing of portcall, each on the service that it was written for, and all on one port. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { MicroClient, frames } from '../../lib/micro_client.ts';
import { sizedHeader } from '../../lib/dialects/sized_header.ts';
import { zmtp } from '../../lib/dialects/zmtp.ts';
import { FURTHER_NAMES } from '../helpers/dialects.ts';
import { FULL } from '../helpers/faults.ts';
import {
  LINES, OUTSIDERS, backup, calendar, microClient, timer, timerParts, type Outsider,
} from '../helpers/outsiders.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { scratch } from '../helpers/scratch.ts';
import { withServed } from '../helpers/served.ts';
import { watched } from '../helpers/watched.ts';

const newFolder = scratch('clients');
const ROUNDS = FULL ? 20 : 2;

/** A test that skips where the client can't be had. */
function itAsks(service: string, client: Outsider, words: () => readonly string[],
  check: (port: number) => Promise<void>): void {
  it(`${service}: ${client.name}`, async (ctx) => {
    if (client.missing !== undefined) ctx.skip(client.missing);
    await withServed([...words(), '--dialects', 'all'], check);
  });
}

/** Says one line, and gives the line that answers. */
const line = (port: number, text: string): Promise<string> => RawClient.with(port, async (client) => {
  await client.write(`${text}\n`);
  return client.readLine();
});

describe('a client asks the service that it was written for', () => {
  itAsks('calendar', calendar, () => ['calendar', '--folder', newFolder()], async (port) => {
    const replies = [...(await calendar.ask(port)).matchAll(/^RESPONSE: (.*) $/gm)].map(([, json]) => json);
    expect(replies).toEqual(['{"status":200,"message":"pong"}',
      expect.stringMatching(/^\{"status":200,"message":"timestamp","timestamp":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"\}$/)]);
    const { events } = JSON.parse(await line(port, '{"action":"events","after":0}'));
    expect(events).toMatchObject([{ clientID: 'TaskTracker', eventName: 'add.task' }]);
  });
  const folder = newFolder();
  itAsks('backup', backup, () => {
    writeFileSync(join(folder, 'notes.txt'), 'notes\n');
    return ['backup', '--source', join(folder, 'notes.txt'), '--folder', join(folder, 'kept')];
  }, async (port) => {
    expect(await backup.ask(port)).toBe('6\n\'No backup found.\'\n');
    expect(await line(port, 'backup')).toBe('Backup completed');
    const path = await line(port, 'revert');
    expect(path).toMatch(/\/kept\/[^/]+$/);
    expect(await backup.ask(port)).toBe(`6\n'${path}'\n`);
  });
  itAsks('timer', timer, () => ['timer'], async (port) => {
    expect(await timer.ask(port)).toBe(timer.echoed);
    const timers = JSON.parse(await line(port, 'status')) as { totalMs: number }[];
    expect(timers.map(({ totalMs }) => totalMs)).toEqual([5_000, 3_723_000]);
  });
  itAsks('timer', timerParts, () => ['timer'], async (port) => {
    expect(await timerParts.ask(port)).toBe(timerParts.echoed);
    expect(JSON.parse(await line(port, 'status'))).toMatchObject([{ totalMs: 5_000 }]);
  });
  itAsks('life_gen', microClient, () => ['life_gen'], async (port) => {
    const [categories, unknown, end] = (await microClient.ask(port)).trimEnd().split('\n');
    expect(JSON.parse(categories as string)).toContain('music');
    expect(unknown).toMatch(/^Cannot find category "naïve ☃"\. Known: /);
    expect(end).toBe('b\'\'');
  });
  for (const client of LINES) {
    itAsks('echo', client, () => ['echo'], async (port) => expect(await client.ask(port)).toBe(client.echoed));
  }
});

it('one port: all dialects, one callback, all clients at a time, a lines client answered within 250 ms', async (ctx) => {
  const here = OUTSIDERS.filter(({ missing }) => missing === undefined);
  const service = { file: 'echo.ts', create: 'createEcho', options: {} };
  await watched({ callback: 'echo', service, dialects: FURTHER_NAMES }, async ({ port }) => {
    const ours = [frames(), sizedHeader(), zmtp()].map(async (dialect) => {
      const client = new MicroClient(port, { dialect, timeoutMs: 20_000 });
      const texts = Array.from({ length: 1_000 }, (_, at) => `${dialect.name} ${at}`);
      expect(await Promise.all(texts.map((text) => client.sendMessage(text)))).toEqual(texts);
      await client.close();
    });
    const theirs = Array.from({ length: ROUNDS }, () => here).flat().map(async ({ name, ask, echoed }) =>
      expect(await ask(port), name).toBe(echoed));
    await Promise.all([...ours, ...theirs]);
  });
  const missing = OUTSIDERS.flatMap((one) => one.missing ?? []);
  if (missing.length > 0) ctx.skip(`all that could be had passed; ${[...new Set(missing)].join('; ')}`);
}, 60_000);
