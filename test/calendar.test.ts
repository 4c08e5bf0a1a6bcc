import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';
import { MicroClient, MicroServer } from '../lib/index.ts';
import type { Context, Service } from '../lib/index.ts';
import { zmtp } from '../lib/dialects/zmtp.ts';
import { createCalendar, type CalendarOptions } from '../services/calendar.ts';
import { within } from './helpers/deadline.ts';
import { range } from './helpers/ended.ts';
import { built } from './helpers/programs_built.ts';
import { RawClient } from './helpers/raw_client.ts';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const root = mkdtempSync(join(tmpdir(), 'portcall-calendar-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const newFolder = () => mkdtempSync(join(root, 'data-'));
const START = Date.parse('2025-11-11T19:04:12.345Z');

type Told = Record<string, unknown>;
type Ask = (message: unknown, context?: Partial<Context>) => Promise<Told>;
interface Event { clientID: string; eventName: string; timestamp: string }

/** Does `task` to a calendar without a server around it, and stops it. */
async function withCalendar<T>(options: CalendarOptions,
  task: (ask: Ask, service: Service) => Promise<T>): Promise<T> {
  const service = await createCalendar({ folder: newFolder(), log: () => {}, ...options });
  const ask: Ask = async (message, context = {}) => {
    const text = typeof message === 'string' ? message : JSON.stringify(message);
    return JSON.parse(await service.callback(text, context as Context) as string) as Told;
  };
  try {
    return await task(ask, service);
  } finally {
    await service.stop?.();
  }
}

/** The context of a `Q`, and whether it stopped the server. */
function quitting(loopback = true): { context: Partial<Context>; isStopped(): boolean } {
  let isStopped = false;
  const client = { loopback } as Context['client'];
  return { context: { client, stopServer() { isStopped = true; } }, isStopped: () => isStopped };
}

const event = (eventName: string, clientID = 'TaskTracker') => ({ action: 'timestamp', clientID, eventName });
const stamped = (timestamp: unknown) => ({ status: 200, message: 'timestamp', timestamp });
const refused = (error: string) => ({ status: 400, error });
const missing = (field: string) => refused(`invalid or missing field: ${field}`);

async function allEvents(ask: Ask, more: Told = {}): Promise<Event[]> {
  const all: Event[] = [];
  for (let after = 0; ;) {
    const page = await ask({ action: 'events', after, ...more });
    all.push(...page['events'] as Event[]);
    expect(page['cursor'], 'a cursor that moves on').toBeGreaterThanOrEqual(after);
    if (page['more'] === false) return all;
    expect(page['cursor']).not.toBe(after);
    after = page['cursor'] as number;
  }
}

/** Whatever is in the files of a folder. */
const contentOf = (folder: string) => readdirSync(folder).map((file) => readFileSync(join(folder, file), 'utf8')).join('');

describe('requests', () => {
  it.each<[name: string, message: string, reply: Told]>([
    ['ping', '{ "action": "ping" } ', { status: 200, message: 'pong' }],
    ['timestamp', JSON.stringify(event('add.task')), stamped('2025-11-11T19:04:12Z')],
    ['broken JSON', '{"action":', refused('invalid json')],
    ['no JSON at all', 'hello', refused('invalid json')],
    ['nothing', '', refused('invalid json')],
    ['a small q', 'q', refused('invalid json')],
    ['null', 'null', missing('action')],
    ['a number', '5', missing('action')],
    ['a string', '"ping"', missing('action')],
    ['an array', '["ping"]', missing('action')],
    ['an empty object', '{}', missing('action')],
    ['an action that is no string', '{"action":["ping"]}', missing('action')],
    ['an empty action', '{"action":""}', missing('action')],
    ['an action that nobody knows', '{"action":"pong"}', refused('unknown action')],
    ['an action that every object has', '{"action":"constructor"}', refused('unknown action')],
    ['an action in the prototype', '{"__proto__":{"action":"ping"}}', missing('action')],
    ['no clientID', '{"action":"timestamp","eventName":"x"}', missing('clientID')],
    ['no eventName', '{"action":"timestamp","clientID":"TaskTracker"}', missing('eventName')],
    ['an empty eventName', JSON.stringify(event('')), missing('eventName')],
    ['an eventName that is no string', '{"action":"timestamp","clientID":"TaskTracker","eventName":7}',
      missing('eventName')],
    ['a stranger', JSON.stringify(event('x', 'Stranger')), refused('clientID is not a whitelisted APP')],
    ['an id that is a number', JSON.stringify({ ...event('x'), id: 1 }), missing('id')],
    ['an id that is null', JSON.stringify({ ...event('x'), id: null }), missing('id')],
    ['an empty id', JSON.stringify({ ...event('x'), id: '' }), missing('id')],
    ['an id too long', JSON.stringify({ ...event('x'), id: 'i'.repeat(129) }), missing('id')],
    ['a cursor that is text', '{"action":"events","after":"0"}', missing('after')],
    ['a cursor below 0', '{"action":"events","after":-1}', missing('after')],
    ['a cursor that is no whole number', '{"action":"events","after":1.5}', missing('after')],
    ['events of a stranger', '{"action":"events","clientID":"Stranger"}', refused('clientID is not a whitelisted APP')],
    ['events of no text', '{"action":"events","clientID":null}', missing('clientID')],
    ['Q where it is not allowed', 'Q', refused('quit is not allowed')],
  ])('%s', async (_, message, reply) => {
    await withCalendar({ clock: () => START }, async (ask, service) => {
      expect(await service.callback(message, quitting().context as Context)).toBe(JSON.stringify(reply));
      expect(await allEvents(ask), 'what is stored').toHaveLength(reply['message'] === 'timestamp' ? 1 : 0);
    });
  });

  it('takes event names of any letters, up to 1,024 bytes', async () => {
    const names = ['naïve ☃', '"quoted" \\', 'two\nlines\r', '\0\x1b[2J\u2028', ',"clientID":"x","eventName":"y"',
      '{"id":"u1","clientID":"', '\ud800', '../../etc/passwd', 'x'.repeat(1_024), '☃'.repeat(341)];
    const folder = newFolder();
    await withCalendar({ folder }, async (ask) => {
      for (const name of names) {
        expect(await ask({ ...event(name), id: name.slice(0, 128) })).toMatchObject({ status: 200 });
        expect(await ask(event(name, 'HabitTracker'))).toMatchObject({ status: 200 });
      }
      for (const name of ['x'.repeat(1_025), '☃'.repeat(342)]) {
        expect(await ask(event(name))).toEqual(missing('eventName'));
      }
    });
    await withCalendar({ folder, allowQuit: true }, async (ask) => {
      expect((await allEvents(ask, { clientID: 'TaskTracker' })).map(({ eventName }) => eventName)).toEqual(names);
      const { events } = await ask('Q', quitting().context) as unknown as { events: Record<string, Event[]> };
      for (const client of ['TaskTracker', 'HabitTracker']) {
        expect(events[client]?.map(({ eventName }) => eventName)).toEqual(names);
      }
    });
    expect(contentOf(folder), 'control characters in files').not.toMatch(/[\0-\x09\x0b-\x1f]/);
  });

  it('stores the same event however its request is spelled', async () => {
    const spellings: ((fields: Told) => string)[] = [
      (fields) => JSON.stringify(fields),
      (fields) => JSON.stringify(fields, null, 1).replaceAll(/\n */g, ' ').replace('{ ', '{').replace(' }', '}'),
      (fields) => JSON.stringify(fields, null, 2),
      (fields) => JSON.stringify(Object.fromEntries(Object.entries(fields).toReversed())),
      (fields) => JSON.stringify({ ...fields, more: 1 }),
      (fields) => JSON.stringify(fields).replace('{', '{"eventName":"first",'),
      (fields) => JSON.stringify(fields).replace('timestamp', '\\u0074imestamp'),
      (fields) => JSON.stringify(fields).replace('Task', '\\u0054ask').replace('add.task', '\\u0061dd.task'),
    ];
    const names = ['add.task', ' ', 'a b', '","id":"x', 'C:\\temp', 'ä☃', '👍', '\x7f', '\x1b', '\ud800', '\u2028', '}'];
    await withCalendar({ clock: () => START, whitelist: ['Task Tracker', 'Ä"\\'] }, async (ask, service) => {
      for (const [at, name] of names.entries()) {
        for (const client of ['Task Tracker', 'Ä"\\']) {
          for (const spell of spellings) {
            const text = spell(event(name, client));
            expect(JSON.parse(text), text).toMatchObject(event(name, client));
            expect(await service.callback(text, {} as Context), text).toContain('"status":200');
            const withId = spell({ ...event(name, client), id: `${name}${client}` });
            expect(await service.callback(withId, {} as Context), withId).toContain('"status":200');
          }
        }
        const { eventName, timestamp } = (await allEvents(ask)).at(-1) as Event;
        expect([at, eventName, timestamp]).toEqual([at, name, '2025-11-11T19:04:12Z']);
      }
      const stored = (await allEvents(ask)).map(({ clientID, eventName }) => ({ clientID, eventName }));
      expect(stored).toEqual(names.flatMap((eventName) => ['Task Tracker', 'Ä"\\'].flatMap((clientID) =>
        range(spellings.length + 1).map(() => ({ clientID, eventName })))));
    });
  });

  it('keeps its contract', async () => {
    await withCalendar({ clock: () => START, allowQuit: true }, async (ask, { contract }) => {
      for (const name of ['ping', 'timestamp', 'events', 'quit']) {
        const { example = '', reply = '' } = contract?.messages[name] ?? {};
        expect(await ask(example, quitting().context), name).toEqual(JSON.parse(reply));
      }
    });
  });
});

describe('whitelist', () => {
  const fileOf = (content: string) => {
    const file = join(newFolder(), 'whitelist.json');
    writeFileSync(file, content);
    return file;
  };
  const takes = async (options: CalendarOptions, clientID: string) => withCalendar(options, async (ask) =>
    (await ask(event('x', clientID)))['status'] === 200);

  it('has three names unless told', async () => {
    for (const name of ['TaskTracker', 'FitnessApp', 'HabitTracker']) expect(await takes({}, name), name).toBe(true);
    for (const name of ['tasktracker', 'TaskTracker ', 'length']) expect(await takes({}, name), name).toBe(false);
  });

  it('has the names of the option, or of the file, and no others', async () => {
    for (const options of [{ whitelist: ['Own', '__proto__'] }, { whitelistFile: fileOf('["Own","__proto__"]') }]) {
      expect(await takes(options, 'Own')).toBe(true);
      expect(await takes(options, '__proto__')).toBe(true);
      expect(await takes(options, 'TaskTracker')).toBe(false);
    }
  });

  it('admits nobody if it is empty', async () => {
    expect(await takes({ whitelist: [] }, 'TaskTracker')).toBe(false);
    expect(await takes({ whitelistFile: fileOf('[]') }, 'TaskTracker')).toBe(false);
  });

  it.each<[name: string, options: () => unknown, says: string]>([
    ['null', () => ({ whitelist: null }), 'whitelist: it is null'],
    ['undefined', () => ({ whitelist: undefined }), 'whitelist: it is undefined'],
    ['a string', () => ({ whitelist: 'TaskTracker' }), 'whitelist: it is "TaskTracker"'],
    ['an object', () => ({ whitelist: { TaskTracker: true } }), 'whitelist: it is an object'],
    ['an entry that is no string', () => ({ whitelist: ['TaskTracker', 5] }), 'whitelist: entry 2 is 5'],
    ['an empty entry', () => ({ whitelist: [''] }), 'whitelist: entry 1 is ""'],
    ['a hole', () => ({ whitelist: [, 'x'] }), 'whitelist: entry 1 is undefined'],
    ['no file', () => ({ whitelistFile: join(root, 'none.json') }), 'no such file'],
    ['no file name', () => ({ whitelistFile: undefined }), 'whitelist file undefined'],
    ['a number for a file', () => ({ whitelistFile: 0 }), 'whitelist file 0'],
    ['a folder', () => ({ whitelistFile: root }), 'EISDIR'],
    ['an empty file', () => ({ whitelistFile: fileOf('') }), 'JSON'],
    ['broken JSON', () => ({ whitelistFile: fileOf('["TaskTracker"') }), 'JSON'],
    ['null in a file', () => ({ whitelistFile: fileOf('null') }), 'it is null'],
    ['a string in a file', () => ({ whitelistFile: fileOf('"TaskTracker"') }), 'it is "TaskTracker"'],
    ['both', () => ({ whitelist: [], whitelistFile: fileOf('[]') }), 'expected one of them'],
  ])('refuses %s, in one line', async (_, options, says) => {
    const folder = newFolder();
    const starting = createCalendar({ folder, ...options() as CalendarOptions });
    const error = await starting.then(() => new Error('it started'), (reason: Error) => reason);
    expect(error.message).toMatch(/^Cannot use [^\n]+$/);
    expect(error.message).toContain(says);
    expect(readdirSync(folder), 'what it made').toEqual([]);
  });
});

describe('time stamps', () => {
  it('are seconds of the clock, and stay where they are when it goes back', async () => {
    const folder = newFolder();
    let time = START;
    const stamp = (ms: number) => {
      time = ms;
      return withCalendar({ folder, clock: () => time }, async (ask) => [await ask(event('x')), await ask(event('y'))]);
    };
    const at = (text: string) => [stamped(text), stamped(text)];
    expect(await stamp(START)).toEqual(at('2025-11-11T19:04:12Z'));
    expect(await stamp(START + 655)).toEqual(at('2025-11-11T19:04:13Z'));
    expect(await stamp(START - 3_600_000)).toEqual(at('2025-11-11T19:04:13Z'));
    expect(await stamp(START + 2_655)).toEqual(at('2025-11-11T19:04:15Z'));
  });
});

describe('events', () => {
  it('come in pages of 1,000, in order, of one app or of all', async () => {
    await withCalendar({}, async (ask) => {
      const clients = ['TaskTracker', 'FitnessApp'];
      await Promise.all(range(2_500).map((n) => ask(event(`e${n}`, clients[n % 2]))));
      const first = await ask({ action: 'events' });
      expect(Object.keys(first)).toEqual(['status', 'message', 'events', 'cursor', 'more']);
      expect(first).toMatchObject({ status: 200, message: 'events', cursor: 1_000, more: true });
      expect(Object.keys((first['events'] as Event[])[0] as Event)).toEqual(['clientID', 'eventName', 'timestamp']);
      expect(first['events']).toHaveLength(1_000);
      expect((await allEvents(ask)).map(({ eventName }) => eventName)).toEqual(range(2_500).map((n) => `e${n}`));
      const of = await allEvents(ask, { clientID: 'FitnessApp' });
      expect(of.map(({ eventName }) => eventName)).toEqual(range(1_250).map((n) => `e${2 * n + 1}`));
      expect(await allEvents(ask, { clientID: 'HabitTracker' })).toEqual([]);
      const last = await ask({ action: 'events', after: 2_000 });
      expect(last).toMatchObject({ cursor: 2_500, more: false });
      expect(last['events']).toHaveLength(500);
      expect(await ask({ action: 'events', after: 2_500 })).toMatchObject({ events: [], cursor: 2_500, more: false });
      expect(await ask({ action: 'events', after: 9_999 })).toMatchObject({ events: [], cursor: 9_999, more: false });
    });
  });

  it('tells of no more behind a page that is just full', async () => {
    await withCalendar({}, async (ask) => {
      await Promise.all(range(1_000).map((n) => ask(event(`e${n}`))));
      expect(await ask({ action: 'events' })).toMatchObject({ cursor: 1_000, more: false });
    });
  });

  it('fit in a reply', async () => {
    const maxReplyBytes = 10_000;
    await withCalendar({ maxReplyBytes }, async (ask, { callback }) => {
      await Promise.all(range(60).map((n) => ask(event(`${n} ${'☃'.repeat(300)}`))));
      const page = await callback('{"action":"events"}', {} as Context) as string;
      expect(Buffer.byteLength(page)).toBeLessThanOrEqual(maxReplyBytes);
      expect(Buffer.byteLength(page)).toBeGreaterThan(maxReplyBytes - 1_300);
      expect(await allEvents(ask)).toHaveLength(60);
    });
  });

  it('fit one at a time, whatever their names', async () => {
    await withCalendar({ maxReplyBytes: 7_168 }, async (ask, { callback }) => {
      for (const letter of 'ab') expect(await ask(event(letter + '\x1b'.repeat(1_023)))).toMatchObject({ status: 200 });
      expect(Buffer.byteLength(await callback('{"action":"events"}', {} as Context) as string)).toBeGreaterThan(6_138);
      expect(await allEvents(ask)).toHaveLength(2);
    });
    const small = createCalendar({ folder: newFolder(), maxReplyBytes: 7_167 });
    await expect(small).rejects.toThrow(/^Cannot use maxReplyBytes 7167: [^\n]+$/);
  });

  it('look at no more than 10,000 at a time for those of one app', async () => {
    await withCalendar({}, async (ask) => {
      for (let begin = 0; begin < 25_000; begin += 5_000) {
        await Promise.all(range(5_000).map((n) => ask(event(`${begin + n}`))));
      }
      await ask(event('rare', 'HabitTracker'));
      const first = await ask({ action: 'events', clientID: 'HabitTracker' });
      expect(first).toMatchObject({ events: [], cursor: 10_000, more: true });
      expect((await allEvents(ask, { clientID: 'HabitTracker' })).map(({ eventName }) => eventName)).toEqual(['rare']);
    });
  });
});

describe('ids', () => {
  const withId = (id: string, name = 'x', client?: string) => ({ ...event(name, client), id });

  it('make one event and the same reply, however often and however late they are sent', async () => {
    const folder = newFolder();
    let time = START;
    const clock = () => time;
    await withCalendar({ folder, clock }, async (ask) => {
      const replies = await Promise.all(range(5).map(() => ask(withId('u1')))); // four while the first is written
      expect(replies).toEqual(range(5).map(() => stamped('2025-11-11T19:04:12Z')));
      time += 5_000;
      expect(await ask(withId('u1'))).toEqual(stamped('2025-11-11T19:04:12Z'));
      expect(await ask(withId('u2'))).toEqual(stamped('2025-11-11T19:04:17Z'));
    });
    time += 5_000;
    await withCalendar({ folder, clock }, async (ask) => {
      expect(await ask(withId('u1'))).toEqual(stamped('2025-11-11T19:04:12Z'));
      expect(await ask(withId('u2'))).toEqual(stamped('2025-11-11T19:04:17Z'));
      expect(await allEvents(ask)).toEqual(['2025-11-11T19:04:12Z', '2025-11-11T19:04:17Z']
        .map((timestamp) => ({ clientID: 'TaskTracker', eventName: 'x', timestamp })));
    });
  });

  it('belong to an app, and to one event of it', async () => {
    await withCalendar({}, async (ask) => {
      const [first, other] = await Promise.all([ask(withId('u1')), ask(withId('u1', 'y'))]);
      expect(first).toMatchObject({ status: 200 });
      expect(other, 'while the first is written').toEqual(refused('id was used for another event'));
      expect(await ask(withId('u1', 'y')), 'later').toEqual(refused('id was used for another event'));
      expect(await ask(withId('u1', 'y', 'FitnessApp'))).toMatchObject({ status: 200 });
      expect(await ask(withId('u1","clientID":"TaskTracker'))).toMatchObject({ status: 200 });
      expect(await allEvents(ask)).toHaveLength(3);
    });
  });

  it('are remembered for the newest, as many as maxIds says, over a restart too', async () => {
    const folder = newFolder();
    const count = async (ids: readonly string[]) => withCalendar({ folder, maxIds: 3 }, async (ask) => {
      for (const id of ids) await ask(withId(id));
      return (await allEvents(ask)).length;
    });
    expect(await count(['a', 'b', 'c', 'a', 'b', 'c'])).toBe(3);
    expect(await count(['a', 'c', 'd']), 'a was forgotten for d').toBe(4);
    expect(await count(['b', 'd']), 'b is the oldest').toBe(4);
    expect(await count(['a', 'c', 'a', 'd']), 'and b for a').toBe(5);
    expect(await count(['c', 'd', 'a'])).toBe(5);
    expect(await count(['b'])).toBe(6);
  });
});

describe('Q', () => {
  it('tells all events, saves them, and stops the server once its reply is delivered', async () => {
    const folder = newFolder();
    const service = await createCalendar({ folder, allowQuit: true, clock: () => START });
    const server = new MicroServer(service, 0);
    const { port } = await server.startListening() as { port: number };
    const client = new MicroClient(port);
    await Promise.all(['a', 'b', 'c'].map((name) => client.sendMessage(JSON.stringify(event(name)))));
    await client.sendMessage(JSON.stringify(event('d', 'HabitTracker')));
    const timestamp = '2025-11-11T19:04:12Z';
    const events = {
      TaskTracker: ['a', 'b', 'c'].map((eventName) => ({ eventName, timestamp })),
      HabitTracker: [{ eventName: 'd', timestamp }],
    };
    await RawClient.with(port, async (raw) => {
      await raw.write('Q\n');
      expect(JSON.parse(await raw.readLine())).toEqual({ status: 200, message: 'bye', count: 4, events });
      expect(await raw.ended, 'FIN, no reset').toBe(true);
    });
    await server.stop(); // resolves with the stop that Q began
    await client.close();
    expect(JSON.parse(readFileSync(join(folder, 'event_log.json'), 'utf8'))).toEqual(events);
    await withCalendar({ folder }, async (ask) => expect(await allEvents(ask), 'the journal').toHaveLength(4));
  });

  it('is refused to other machines, and where it was not allowed', async () => {
    const folder = newFolder();
    await withCalendar({ folder, allowQuit: true }, async (ask) => {
      const { context, isStopped } = quitting(false);
      expect(await ask('Q', context)).toEqual(refused('quit is not allowed'));
      expect(isStopped()).toBe(false);
    });
    expect(readdirSync(folder)).not.toContain('event_log.json');
  });

  it('gives the newest where they don\'t all fit, and the file all', async () => {
    const folder = newFolder();
    const maxReplyBytes = 10_000;
    await withCalendar({ folder, allowQuit: true, maxReplyBytes, clock: () => START }, async (ask, { callback }) => {
      await Promise.all(range(3_000).map((n) => ask(event(`e${n}`, n % 3 === 0 ? 'FitnessApp' : 'TaskTracker'))));
      const text = await callback('Q', quitting().context as Context) as string;
      expect(Buffer.byteLength(text)).toBeLessThanOrEqual(maxReplyBytes);
      expect(Buffer.byteLength(text)).toBeGreaterThan(maxReplyBytes - 500);
      const { count, truncated, events } = JSON.parse(text);
      expect({ count, truncated }).toEqual({ count: 3_000, truncated: true });
      const names = Object.values(events as Record<string, Event[]>).flat().map(({ eventName }) => eventName);
      expect(new Set(names)).toEqual(new Set(range(names.length).map((n) => `e${2_999 - n}`)));
      expect(events.FitnessApp.at(-1).eventName).toBe('e2997');
      const saved = JSON.parse(readFileSync(join(folder, 'event_log.json'), 'utf8')) as Record<string, Event[]>;
      expect(saved['FitnessApp']?.map(({ eventName }) => eventName)).toEqual(range(1_000).map((n) => `e${3 * n}`));
      expect(saved['TaskTracker']).toHaveLength(2_000);
    });
  });

  it('has an answer where there are no events', async () => {
    const folder = newFolder();
    await withCalendar({ folder, allowQuit: true }, async (ask) =>
      expect(await ask('Q', quitting().context)).toEqual({ status: 200, message: 'bye', count: 0, events: {} }));
    expect(readFileSync(join(folder, 'event_log.json'), 'utf8')).toBe('{}\n');
  });

  it('saves what came after it, before the calendar stops', async () => {
    const folder = newFolder();
    await withCalendar({ folder, allowQuit: true }, async (ask) => {
      await ask(event('before'));
      await ask('Q', quitting().context);
      await ask(event('after'));
    });
    expect(readFileSync(join(folder, 'event_log.json'), 'utf8')).toContain('"after"');
  });

  it('goes on where the log can\'t be saved', async () => {
    const folder = newFolder();
    await withCalendar({ folder, allowQuit: true }, async (ask) => {
      await ask(event('x'));
      mkdirSync(join(folder, 'event_log.json', 'in the way'), { recursive: true });
      const { context, isStopped } = quitting();
      expect(await ask('Q', context)).toEqual({ status: 500, error: 'event log not saved' });
      expect(isStopped()).toBe(false);
      expect(await ask(event('y'))).toMatchObject({ status: 200 });
    });
  });
});

describe('serve calendar', () => {
  const serve = (...args: string[]) => spawn(process.execPath, [built('lib/cli.ts'), 'serve', 'calendar',
    '--port', '0', ...args], { cwd: ROOT, stdio: ['ignore', 'pipe', 'pipe'] });

  it('takes its options from the command line, and ends with 0 after Q', async () => {
    const folder = newFolder();
    const child = serve('--folder', folder, '--whitelist', 'Own, Other', '--allow-quit', '--fsync', 'always');
    try {
      const ended = once(child, 'close');
      const [line] = await within(15_000, once(child.stdout.setEncoding('utf8'), 'data'), 'that it listens') as [string];
      const [, port = ''] = /^listening on tcp:\/\/127\.0\.0\.1:(\d+) \(CALENDAR\)\n$/.exec(line) ?? [];
      await RawClient.with(Number(port), async (raw) => {
        const lines = [event('x', 'Own'), event('x', 'Other'), event('x')].map((one) => JSON.stringify(one));
        await raw.write(`${lines.join('\n')}\nQ\n`);
        const told = (await raw.readLines(4)).map((reply) => JSON.parse(reply) as Told);
        expect(told.map(({ status }) => status)).toEqual([200, 200, 400, 200]);
        expect(told[3]).toMatchObject({ message: 'bye', count: 2 });
      });
      expect(await within(10_000, ended, 'its end')).toEqual([0, null]);
      expect(Object.keys(JSON.parse(readFileSync(join(folder, 'event_log.json'), 'utf8')))).toEqual(['Own', 'Other']);
    } finally {
      child.kill('SIGKILL');
    }
  });

  it.each([
    { args: ['--whitelist', ''], says: 'whitelist: entry 1 is ""' },
    { args: ['--whitelist-file', 'none.json'], says: '"none.json"' },
    { args: ['--fsync', 'sometimes'], says: 'expected "always", "interval" or "never"' },
  ])('refuses $args in one line', async ({ args, says }) => {
    const child = serve('--folder', newFolder(), ...args);
    let stderr = '';
    child.stderr.setEncoding('utf8').on('data', (text) => { stderr += text; });
    expect(await within(15_000, once(child, 'close'), 'its end')).toEqual([2, null]);
    expect(stderr).toMatch(/^Cannot [^\n]+\n$/);
    expect(stderr).toContain(says);
  });
});

describe('what the first calendar was known for', () => {
  it('broken JSON ends nothing, over lines and frames', async () => {
    const server = new MicroServer(await createCalendar({ folder: newFolder() }), 0);
    const { port } = await server.startListening() as { port: number };
    const client = new MicroClient(port);
    try {
      await RawClient.with(port, async (raw) => {
        expect(await raw.ask('{"action"\n[\n{"action":"ping"}')).toBe(
          `${`${JSON.stringify(refused('invalid json'))}\n`.repeat(2)}{"status":200,"message":"pong"}\n`);
      });
      expect(await client.sendMessage('{')).toBe(JSON.stringify(refused('invalid json')));
      expect(await client.sendMessage('{"action":"ping"}')).toBe('{"status":200,"message":"pong"}');
    } finally {
      await client.close();
      await server.stop();
    }
  });

  it('events outlast it without a Q', async () => {
    const folder = newFolder();
    await withCalendar({ folder }, async (ask) => { await ask(event('kept')); });
    await withCalendar({ folder }, async (ask) => {
      expect((await allEvents(ask)).map(({ eventName }) => eventName)).toEqual(['kept']);
    });
  });
});

describe('over ZMTP, as its first clients speak', () => {
  it('a REQ gets a pong, its time stamp and its events', async () => {
    const server = new MicroServer(await createCalendar({ folder: newFolder() }), 0);
    try {
      const client = new MicroClient((await server.startListening()).url, { dialect: zmtp() });
      const ask = async (request: object) => JSON.parse(await client.sendMessage(JSON.stringify(request))) as Told;
      expect(await ask({ action: 'ping' })).toEqual({ status: 200, message: 'pong' });
      const { timestamp } = await ask(event('add.task'));
      expect((await ask({ action: 'events' }))['events']).toEqual(
        [{ clientID: 'TaskTracker', eventName: 'add.task', timestamp }]);
      expect(await client.sendMessage('Q')).toContain('quit is not allowed');
      await client.close();
    } finally {
      await server.stop();
    }
  });

  it.each([
    ['FF FE', '\xff\xfe'], ['FF and a line', '\xff\n'], ['TLS', '\x16\x03\x01\x02\0\x01\0\n'], ['ZMTP 1.0', '\x01\0'],
    ['HTTP', 'POST / HTTP/1.1\r\nHost: a\r\n\r\n'], ['bytes that are no UTF-8', '\x80'],
  ])('%s before an event stores none that a web page or noise could send', async (_name, first) => {
    const server = new MicroServer(await createCalendar({ folder: newFolder() }), 0, { log() {} });
    try {
      const { port = 0, url } = await server.startListening();
      const bytes = Buffer.from(`${first}${JSON.stringify(event('x'))}`, 'latin1');
      await RawClient.with(port, async (raw) => {
        raw.fin(bytes);
        await raw.readToFin();
      });
      const client = new MicroClient(url);
      expect(JSON.parse(await client.sendMessage('{"action":"events"}'))).toMatchObject({ events: [] });
      await client.close();
    } finally {
      await server.stop();
    }
  });
});
