/**
 * What keeping events costs: `node --import tsx test/bench/scripts/calendar.ts [FOLDER]`.
 *
 * An echo service and calendars, each in a process of its own, get the same texts from one MicroClient
 * in this one, in turn, round after round. `always` is held against a file that gets one event and one
 * fdatasync after the other. The folder should lie on the disk that is meant.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { MicroClient } from '../../../lib/micro_client.ts';

const ROUNDS = 7;
const SLICE_MS = 400;
const IN_FLIGHT = 64;
const TEXTS = Array.from({ length: 4096 }, (_, n) =>
  JSON.stringify({ action: 'timestamp', clientID: 'TaskTracker', eventName: `event.${1_000_000 + n}` }));
const SERVER = `
  const [kind, folder, fsync] = JSON.parse(process.argv[1]);
  const { MicroServer } = await import('./lib/index.ts');
  const service = kind === 'echo' ? (await import('./services/echo.ts')).createEcho()
    : await (await import('./services/calendar.ts')).createCalendar({ folder, fsync });
  const { port } = await new MicroServer(service, 0).startListening();
  process.send(port);
  process.once('disconnect', () => process.exit());`;

const root = fileURLToPath(new URL('../../../', import.meta.url));
const pin = spawnSync('taskset', ['-c', '0,1', 'true']).status === 0 ? ['taskset', '-c', '1'] : [];
if (pin.length > 0) spawnSync('taskset', ['-pc', '0', String(process.pid)]);
const children: ChildProcess[] = [];
const folder = mkdtempSync(join(process.argv[2] ?? tmpdir(), 'portcall-bench-calendar-'));
try {
  const peers = await Promise.all([['echo'], ['calendar', 'interval'], ['calendar', 'always']].map(start));
  const [echo, interval, always] = peers as [MicroClient, MicroClient, MicroClient];
  for (const peer of peers) await rate(peer, 2 * SLICE_MS); // compiled
  const rows: number[][] = [];
  for (let round = 0; round < ROUNDS; round++) {
    rows.push([await rate(echo), await rate(interval), await rate(always), await syncRate()]);
  }
  const column = (at: number) => median(rows.map((row) => row[at] as number));
  const ratio = (one: number, other: number) =>
    median(rows.map((row) => (row[one] as number) / (row[other] as number))).toFixed(2);
  console.log(`${IN_FLIGHT} in flight, a second: echo ${column(0)}, calendar with interval ${column(1)}, with ` +
    `always ${column(2)}; one fdatasync after the other ${column(3)}`);
  console.log(`interval against echo: ${ratio(1, 0)} (bar: 0.50)`);
  console.log(`always against one fdatasync after the other: ${ratio(2, 3)} (bar: 20)`);
} finally {
  for (const child of children) child.kill('SIGKILL');
  rmSync(folder, { recursive: true, force: true });
}

async function start([kind = '', fsync = '']: readonly string[]): Promise<MicroClient> {
  const [command = '', ...words] = [...pin, process.execPath, '--import', import.meta.resolve('tsx'),
    '--input-type=module', '--eval', SERVER, JSON.stringify([kind, join(folder, fsync), fsync])];
  const child = spawn(command, words, { cwd: root, stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
  children.push(child);
  const [port] = await once(child, 'message') as [number];
  return new MicroClient(port);
}

/** Replies a second. */
async function rate(client: MicroClient, ms = SLICE_MS): Promise<number> {
  const began = performance.now();
  let [next, replies] = [0, 0];
  await Promise.all(Array.from({ length: IN_FLIGHT }, async () => {
    while (performance.now() - began < ms) {
      const text = TEXTS[next++ % TEXTS.length] as string;
      const reply = await client.sendMessage(text);
      if (reply !== text && !reply.startsWith('{"status":200,')) throw new Error(`Cannot count "${reply}"`);
      replies++;
    }
  }));
  return Math.round(replies / (performance.now() - began) * 1000);
}

/** Events a second of a file that is synced behind each. */
async function syncRate(): Promise<number> {
  const file = await open(join(folder, 'synced'), 'a');
  const began = performance.now();
  let events = 0;
  for (; performance.now() - began < SLICE_MS; events++) {
    await file.write(`${TEXTS[events % TEXTS.length]}\n`);
    await file.datasync();
  }
  const perSecond = Math.round(events / (performance.now() - began) * 1000);
  await file.close();
  return perSecond;
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] as number;
}
