/** The calendar's share of groups A, D and E: hostile requests and set-ups, full disks, clocks, ids, size. */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'vitest';
import { Journal } from '../../lib/journal.ts';
import { MicroClient } from '../../lib/micro_client.ts';
import { createCalendar, type CalendarOptions } from '../../services/calendar.ts';
import type { ChildOptions } from '../helpers/child.ts';
import { range } from '../helpers/ended.ts';
import { fault, FULL } from '../helpers/faults.ts';
import { MIB, monitored, type Monitor } from '../helpers/monitor.ts';
import { built } from '../helpers/programs_built.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { scratch } from '../helpers/scratch.ts';
import { ServerProcess } from '../helpers/server_process.ts';
import { stillServes } from '../helpers/still_serves.ts';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const newFolder = scratch('calendar-faults');
const PING = { ask: '{"action":"ping"}', reply: '{"status":200,"message":"pong"}' };
const NOT_STORED = '{"status":500,"error":"event not stored"}';

interface Event { clientID: string; eventName: string; timestamp: string }
type Options = Omit<CalendarOptions, 'clock' | 'log'>;

const setUpOf = (options: Options, port = 0) => ({ address: port,
  service: { file: 'calendar.ts', create: 'createCalendar', options } });

/** Starts a calendar, does `task` to it under the standing monitor, and ends it. */
function withCalendar<T>(options: Options, task: (server: ServerProcess, monitor: Monitor) => Promise<T>,
  how: ChildOptions & { rssGrowthBytes?: number } = {}): Promise<T> {
  const { rssGrowthBytes = 32 * MIB, ...child } = how;
  return ServerProcess.with(setUpOf(options), (server) =>
    monitored(server, { ...PING, rssGrowthBytes }, (monitor) => task(server, monitor)), child);
}

const stamp = (eventName: string, more: object = {}) =>
  JSON.stringify({ action: 'timestamp', clientID: 'TaskTracker', eventName, ...more });

/** The status of each reply to lines. */
async function statuses(port: number, lines: readonly string[]): Promise<number[]> {
  const replies = await RawClient.with(port, (client) => client.ask(lines.map((line) => `${line}\n`).join('')));
  return replies.split('\n').slice(0, -1).map((reply) => (JSON.parse(reply) as { status: number }).status);
}

async function eventsOf(port: number): Promise<Event[]> {
  const client = new MicroClient(port);
  const all: Event[] = [];
  for (let [after, more] = [0, true]; more;) {
    const page = JSON.parse(await client.sendMessage(JSON.stringify({ action: 'events', after })));
    all.push(...page.events as Event[]);
    ({ cursor: after, more } = page);
  }
  await client.close();
  return all;
}

const namesOf = async (port: number) => (await eventsOf(port)).map(({ eventName }) => eventName);

/** The events that another process finds in a folder. */
const found = (folder: string) => ServerProcess.with(setUpOf({ folder }), ({ port }) => namesOf(port));

// ------------------------------------------------------------------------------------------ Requests

fault('A14', 'JSON 100,000 levels deep, arrays and objects', () => withCalendar({ folder: newFolder() }, async (server) => {
  const depth = 100_000;
  const arrays = '['.repeat(depth) + ']'.repeat(depth);
  const objects = '{"a":'.repeat(depth) + '1' + '}'.repeat(depth);
  for (const text of [arrays, objects, '['.repeat(depth), `{"action":${arrays}}`, stamp('x').replace('"x"', objects),
    stamp('x', { id: 0 }).replace(':0', `:${arrays}`), `{"action":"events","after":${objects}}`]) {
    const began = performance.now();
    expect(await statuses(server.port, [text])).toEqual([400]);
    expect(performance.now() - began, 'milliseconds').toBeLessThan(250);
  }
  expect(await namesOf(server.port)).toEqual([]);
  await stillServes(server, PING);
}));

fault('A15', '__proto__ and constructor in requests to calendar', () => withCalendar({ folder: newFolder() }, async (server) => {
  const before = (await server.vitals()).prototypeNames;
  for (const name of ['__proto__', 'constructor', 'prototype', 'toString', 'hasOwnProperty']) {
    const requests = [`{"${name}":{"action":"ping"}}`, `{"action":"${name}"}`, `{"action":{"${name}":"ping"}}`,
      `{"action":"timestamp","clientID":"${name}","eventName":"x"}`, `{"action":"events","clientID":"${name}"}`,
      `{"action":"timestamp","${name}":{"clientID":"TaskTracker","eventName":"x"}}`];
    expect(await statuses(server.port, requests), name).toEqual(requests.map(() => 400));
    const good = [stamp(name), stamp(name, { id: name }), stamp(name, { id: name })];
    expect(await statuses(server.port, good)).toEqual([200, 200, 200]);
  }
  expect(await namesOf(server.port)).toHaveLength(2 * 5);
  const reply = await RawClient.with(server.port, (client) => client.ask('{"action":"constructor"}'));
  expect(reply).toBe('{"status":400,"error":"unknown action"}\n');
  expect((await server.vitals()).prototypeNames, 'Object.prototype').toEqual(before);
  await stillServes(server, PING);
}));

fault('D12', 'whitelist absent, [], null, a string, broken JSON', async () => {
  const folder = newFolder();
  const file = (content: string) => {
    const path = join(newFolder(), 'whitelist.json');
    writeFileSync(path, content);
    return path;
  };
  const names = ['TaskTracker', 'FitnessApp', 'HabitTracker', 'Stranger'];
  const admitted = (options: Options) => withCalendar({ folder: newFolder(), ...options }, (server) =>
    statuses(server.port, names.map((clientID) => stamp('x', { clientID }))));
  expect(await admitted({})).toEqual([200, 200, 200, 400]);
  expect(await admitted({ whitelist: [] })).toEqual([400, 400, 400, 400]);
  expect(await admitted({ whitelistFile: file('[]') })).toEqual([400, 400, 400, 400]);
  const bad = [{ whitelist: null }, { whitelist: 'TaskTracker' }, { whitelistFile: file('null') },
    { whitelistFile: file('"TaskTracker"') }, { whitelistFile: file('["TaskTracker"') }, { whitelistFile: file('') },
    { whitelistFile: join(folder, 'none') }] as unknown as Options[];
  const refusal = /^Cannot use whitelist[^\n]+$/;
  for (const options of bad) {
    await expect(createCalendar({ folder, ...options }), JSON.stringify(options)).rejects.toThrow(refusal);
  }
  const started = ServerProcess.start(setUpOf({ folder, ...bad[0] }));
  await expect(started).rejects.toThrow(/it ended with 2: Cannot use whitelist[^\n]+\n$/);
  expect(readdirSync(folder), 'what they made').toEqual([]);
});

fault('D13', 'clientIDs that are nobody\'s', () => withCalendar({ folder: newFolder() }, async (server) => {
  const ids = ['__proto__', 'constructor', '', null, 5, [], 'tasktracker', ['TaskTracker'], { TaskTracker: 1 }, true];
  const requests = ids.map((clientID) => stamp('x', { clientID }));
  expect(await statuses(server.port, requests)).toEqual(ids.map(() => 400));
  const client = new MicroClient(server.port);
  for (const request of requests) expect(JSON.parse(await client.sendMessage(request)).status, request).toBe(400);
  await client.close();
  expect(await namesOf(server.port), 'what is stored').toEqual([]);
  await stillServes(server, PING);
}));

fault('D14', '../, absolute, NUL, %2e in event, client and id', async () => {
  const outside = newFolder();
  const folder = join(outside, 'data');
  const names = ['../evil', '../../../../etc/passwd', join(outside, 'evil'), 'a\0b', '%2e%2e/evil', '..', '.', 'con\r\n'];
  await withCalendar({ folder, whitelist: names, allowQuit: true }, async (server) => {
    const before = (await server.vitals()).prototypeNames;
    const files = readdirSync(folder).sort();
    const requests = names.flatMap((name) => [stamp(name, { clientID: name, id: name }),
      JSON.stringify({ action: 'events', clientID: name })]);
    expect(await statuses(server.port, requests)).toEqual(requests.map(() => 200));
    expect(await namesOf(server.port)).toEqual(names);
    expect(readdirSync(folder).sort(), 'files in the folder').toEqual(files);
    expect(readdirSync(outside), 'files beside it').toEqual(['data']);
    expect((await server.vitals()).prototypeNames).toEqual(before);
  });
});

// ---------------------------------------------------------------------------------- The journal fails

fault.unless(noTmpfs(), 'E04', 'the calendar\'s disk is full, then has room', async () => {
  const folder = newFolder();
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', folder]);
  try {
    const filler = join(folder, 'filler');
    const ok: string[] = [];
    const store = async (port: number, name: string, id?: string): Promise<number> => {
      const [status = 0] = await statuses(port, [stamp(name, { id })]);
      if (status === 200) ok.push(name);
      return status;
    };
    await withCalendar({ folder }, async (server) => {
      for (const at of range(20)) expect(await store(server.port, `before ${at}`)).toBe(200);
      writeFileSync(filler, Buffer.alloc(900 * 1024));
      const names = range(1_000).map((at) => `${at} `.padEnd(600, '.'));
      const seen = await statuses(server.port, names.map((name) => stamp(name)));
      ok.push(...names.filter((_, at) => seen[at] === 200));
      expect(seen.filter((status) => status !== 200 && status !== 500)).toEqual([]);
      let tries = 0; // there may be room left for a few
      while (await store(server.port, `${tries} `.padEnd(1_000, '.'), `id ${tries}`) === 200) expect(++tries).toBeLessThan(200);
      const reply = await RawClient.with(server.port, (client) =>
        client.ask(`${stamp(`${tries} `.padEnd(1_000, '.'), { id: `id ${tries}` })}\n{"action":"ping"}\n`));
      expect(reply).toBe(`${NOT_STORED}\n${PING.reply}\n`);
      rmSync(filler);
      expect(await store(server.port, `${tries} `.padEnd(1_000, '.'), `id ${tries}`), 'its id is free').toBe(200);
      for (const at of range(20)) expect(await store(server.port, `after ${at}`)).toBe(200);
      expect(await namesOf(server.port), 'acknowledged = stored').toEqual(ok);
      await stillServes(server, PING);
    });
    expect(await found(folder), 'after a restart').toEqual(ok);
  } finally {
    execFileSync('umount', ['-l', folder]);
  }
});

fault.unless(noPrlimit(), 'E05', 'the calendar hits RLIMIT_FSIZE: 500, never 200, and it lives on', async () => {
  const folder = newFolder();
  let stored: string[] = [];
  await withCalendar({ folder }, async (server) => {
    const names = range(100).map((at) => `event ${at}`);
    const seen: number[] = [];
    for (const name of names) seen.push(...await statuses(server.port, [stamp(name)]));
    expect(new Set(seen)).toEqual(new Set([200, 500]));
    const failing = stamp('once', { id: 'u1' });
    const reply = await RawClient.with(server.port, (client) => client.ask(failing));
    expect(reply).toBe(`${NOT_STORED}\n`);
    execFileSync('prlimit', [`--pid=${server.pid}`, '--fsize=unlimited:unlimited']);
    expect(await statuses(server.port, [failing, failing, stamp('last')]), 'its id is free again').toEqual([200, 200, 200]);
    stored = [...names.filter((_, at) => seen[at] === 200), 'once', 'last'];
    expect(await namesOf(server.port)).toEqual(stored);
    await stillServes(server, PING);
  }, { wrapper: ['prlimit', '--fsize=4096:unlimited'] });
  expect(await found(folder), 'after a restart').toEqual(stored);
});

fault('E08', 'a second calendar on the same folder, then kill -9 of the first', async () => {
  const folder = newFolder();
  const first = await ServerProcess.start(setUpOf({ folder }));
  try {
    await monitored(first, PING, async () => {
      const { status, stdout, stderr } = spawnSync(process.execPath, [built('lib/cli.ts'), 'serve',
        'calendar', '--folder', folder, '--port', '0'], { cwd: ROOT, encoding: 'utf8', timeout: 20_000 });
      expect({ status, stdout }).toEqual({ status: 2, stdout: '' });
      expect(stderr).toMatch(new RegExp(`^Cannot [^\\n]*pid ${first.pid}\\b[^\\n]*\\n$`));
      expect(await statuses(first.port, [stamp('kept')])).toEqual([200]);
    });
  } finally {
    await first.kill();
  }
  for (let times = 0; times < 3; times++) expect(await found(folder), 'a dead owner\'s lock').toEqual(['kept']);
});

fault('E11', 'the folder is a file, or can\'t be written', async () => {
  const file = join(newFolder(), 'file');
  writeFileSync(file, 'mine');
  const serve = (folder: string) => spawnSync(process.execPath, [built('lib/cli.ts'), 'serve', 'calendar',
    '--folder', folder, '--port', '0'], { cwd: ROOT, encoding: 'utf8', timeout: 20_000 });
  for (const folder of [file, join(file, 'below')]) {
    const { status, stdout, stderr } = serve(folder);
    expect({ status, stdout }, folder).toEqual({ status: 2, stdout: '' });
    expect(stderr, folder).toMatch(/^Cannot [^\n]+\n$/);
    expect(stderr).toContain(folder);
  }
  expect(readFileSync(file, 'utf8')).toBe('mine');
});

fault.unless(noTmpfs(), 'E11', 'the folder becomes read-only', async () => {
  const folder = newFolder();
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', folder]);
  try {
    await withCalendar({ folder, maxIds: 10 }, async (server) => {
      expect(await statuses(server.port, [stamp('before')])).toEqual([200]);
    });
    execFileSync('mount', ['-o', 'remount,ro', folder]);
    await expect(ServerProcess.start(setUpOf({ folder }))).rejects.toThrow(/it ended with 2: Cannot [^\n]+\n$/);
    execFileSync('mount', ['-o', 'remount,rw', folder]);
    expect(await found(folder)).toEqual(['before']);
  } finally {
    execFileSync('umount', ['-l', folder]);
  }
});

// ------------------------------------------------------------------------------------ Time, ids, size

fault('E12', 'clock back 1 h, 1 day, over a restart', async () => {
  const folder = newFolder();
  const start = Date.parse('2026-03-29T00:59:58Z');
  const [hour, day] = [3_600_000, 86_400_000];
  const names: string[] = [];
  const stamps: string[] = [];
  for (const offset of [0, 1_500, -hour, 2_000, -day, 3_000 - day, 2_999, 4_000, -365 * day, 4_000]) {
    let time = start + offset;
    const calendar = await createCalendar({ folder, clock: () => time });
    for (const step of [0, 0, 400, -hour, 700]) {
      time += step;
      const eventName = `event ${names.push(`event ${names.length}`) - 1}`;
      const reply = await calendar.callback(stamp(eventName), {} as never) as string;
      stamps.push((JSON.parse(reply) as Event).timestamp);
    }
    await calendar.stop?.();
  }
  expect(stamps, 'never decrease').toEqual(stamps.toSorted());
  expect(stamps.at(-1)).toBe('2026-03-29T01:00:02Z');
  await ServerProcess.with(setUpOf({ folder }), async ({ port }) => {
    const events = await eventsOf(port);
    expect(events.map(({ eventName }) => eventName), 'order').toEqual(names);
    expect(events.map(({ timestamp }) => timestamp)).toEqual(stamps);
  });
});

fault('E13', 'a request with an id 3×, the third after kill -9', async () => {
  const folder = newFolder();
  const message = stamp('paid', { id: 'u1' });
  const ask = ({ port }: ServerProcess) => RawClient.with(port, (client) => client.ask(message));
  const replies = await ServerProcess.with(setUpOf({ folder }), (server) =>
    monitored(server, { ...PING, mayEnd: true }, async ({ suspended }) => {
      const both = [await ask(server), await ask(server)];
      await suspended(() => server.kill()).catch(() => {}); // there is nobody to go on with
      return both;
    }));
  await withCalendar({ folder }, async (server) => {
    const third = await ask(server);
    expect([...replies, third]).toEqual([third, third, third]);
    expect(JSON.parse(third)).toMatchObject({ status: 200 });
    expect(await namesOf(server.port)).toEqual(['paid']);
  });
});

const EVENTS = FULL ? 10_000_000 : 100_000;
fault('E14', `start with ${EVENTS.toLocaleString('en')} events`, async () => {
  const folder = newFolder();
  await fill(folder, EVENTS);
  const began = performance.now();
  await ServerProcess.with(setUpOf({ folder, allowQuit: true }), async (server) => {
    expect(performance.now() - began, 'milliseconds to listen').toBeLessThan(20_000);
    await monitored(server, { ...PING, mayEnd: true }, async () => {
      const client = new MicroClient(server.port);
      const first = JSON.parse(await client.sendMessage('{"action":"events"}'));
      expect(first).toMatchObject({ cursor: 1_000, more: true });
      for (const after of [0, 7, EVENTS >> 1, EVENTS - 1_500]) {
        const text = await client.sendMessage(JSON.stringify({ action: 'events', after }));
        expect(Buffer.byteLength(text)).toBeLessThanOrEqual(MIB);
        const { events, cursor } = JSON.parse(text) as { events: Event[]; cursor: number };
        expect(events).toHaveLength(1_000);
        expect(events[0]?.eventName).toBe(`event ${after}`);
        expect(cursor).toBe(after + 1_000);
      }
      expect(JSON.parse(await client.sendMessage(stamp('more', { id: `id ${EVENTS - 20}` }))).status, 'an id in use').toBe(400);
      await client.close();
      expect(server.peakRssBytes() / MIB, 'peak RSS in MiB').toBeLessThan(300);
    });
    const bye = await RawClient.with(server.port, async (client) => {
      await client.write('Q\n');
      return JSON.parse(await client.readLine(60_000)) as { count: number; truncated: boolean };
    });
    expect(bye).toMatchObject({ status: 200, count: EVENTS, truncated: true });
    expect(server.peakRssBytes() / MIB, 'peak RSS in MiB after Q').toBeLessThan(300);
  });
  expect(existsSync(join(folder, 'event_log.json'))).toBe(true);
});

/** Writes events as the calendar does; one in ten has an id. */
async function fill(folder: string, count: number): Promise<void> {
  mkdirSync(folder, { recursive: true });
  const journal = await Journal.open({ folder, name: 'calendar', fsync: 'never' });
  for (let at = 0; at < count;) {
    const group: Promise<void>[] = [];
    for (let end = Math.min(count, at + 20_000); at < end; at++) {
      const id = at % 10 === 0 ? `"id":"id ${at}",` : '';
      group.push(journal.append(`{${id}"clientID":"${at % 3 === 0 ? 'FitnessApp' : 'TaskTracker'}",` +
        `"eventName":"event ${at}","timestamp":"2025-11-11T19:04:12Z"}`));
    }
    await Promise.all(group);
  }
  await journal.close();
}

function noTmpfs(): string | undefined {
  if (process.platform !== 'linux' || process.getuid?.() !== 0) return 'needs root on Linux';
  const folder = newFolder();
  const { status } = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', folder]);
  if (status !== 0) return 'needs to mount a tmpfs';
  spawnSync('umount', ['-l', folder]);
  return undefined;
}

function noPrlimit(): string | undefined {
  return spawnSync('prlimit', ['--version']).status === 0 ? undefined : 'needs the command prlimit';
}
