/** Who is answered at once looks for more before its event loop sleeps; who isn't, soon gives that up. */
import { execFileSync } from 'node:child_process';
import { setTimeout as pause } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { MicroClient, poll } from '../lib/micro_client.ts';
import { MicroServer } from '../lib/micro_server.ts';
import { until } from './helpers/deadline.ts';
import { built } from './helpers/programs_built.ts';

const server = new MicroServer((text) => (text === 'slow' ? pause(2, text) : text), 0);
let client: MicroClient;
beforeAll(async () => { client = new MicroClient((await server.startListening()).url); });
afterAll(async () => {
  await client.close();
  await server.stop();
});

it('looks for more while it is answered at once, and rests when it is done', async () => {
  let looked = false;
  for (let count = 0; count < 200; count++) {
    await client.sendMessage('fast');
    looked ||= poll.isOn;
  }
  expect(looked).toBe(true);
  await until(() => !poll.isOn, 1_000, 'the event loop sleeps');
});

it('gives it up where answers take longer', async () => {
  await until(() => !poll.isOn, 1_000, 'the event loop sleeps');
  poll.left = poll.passes = 1;
  for (let count = 0; count < 40; count++) {
    await client.sendMessage('slow');
    await pause(1); // both are in this process: else the next request would be what comes
  }
  expect(poll.passes).toBeGreaterThanOrEqual(32);
});

it('can be turned off', () => {
  const file = pathToFileURL(built('lib/micro_client.ts')).href;
  const program = `import { poll } from ${JSON.stringify(file)}; console.log(poll.left);`;
  const left = (env: Record<string, string>) => execFileSync(process.execPath,
    ['--input-type=module', '-e', program], { env: { ...process.env, ...env }, encoding: 'utf8' });
  expect(left({ PORTCALL_BUSY_POLL: '0' })).toBe('Infinity\n');
  expect(left({})).toBe('16\n');
});
