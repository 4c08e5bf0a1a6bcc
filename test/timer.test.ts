/** TIMER, alone with a clock that the tests turn, and over real connections with the system's. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { pathToFileURL } from 'node:url';
import { afterEach, describe, expect, it } from 'vitest';
import { MicroClient, MicroServer, type Client, type Context, type Service } from '../lib/index.ts';
import { zmtp } from '../lib/dialects/zmtp.ts';
import { createTimer, type TimerOptions } from '../services/timer.ts';
import { within } from './helpers/deadline.ts';
import { FakeClock } from './helpers/fake_clock.ts';
import { built } from './helpers/programs_built.ts';
import { RawClient } from './helpers/raw_client.ts';
import { greetingOf, message, messagesOf } from './helpers/zmtp_wire.ts';

interface Status { id: number; totalMs: number; remainingMs: number }

/** A service without a server around it, and the clients that ask it. */
function alone(options: TimerOptions = {}) {
  const clock = new FakeClock();
  const service = createTimer({ clock, ...options });
  const newClient = () => ({ state: new Map() }) as unknown as Client;
  const first = newClient();
  const ask = (message: string, client = first, parts?: readonly Uint8Array[]): unknown =>
    service.callback(message, { client, parts } as Context);
  const status = (): Status[] => JSON.parse(ask('status', newClient()) as string) as Status[];
  return { clock, service, newClient, ask, status };
}

/** All parts of a stream, each with the time at which it came. */
function listen(stream: unknown, clock: FakeClock): { told: [part: string, atMs: number][]; end: Promise<void> } {
  const told: [string, number][] = [];
  const end = (async () => {
    for await (const part of stream as AsyncIterable<string>) told.push([part, clock.now()]);
  })();
  return { told, end };
}

const servers = new Set<MicroServer>();
afterEach(async () => {
  await Promise.all([...servers].map((server) => server.stop({ graceMs: 0 })));
  servers.clear();
});
async function serve(service: Service = createTimer()): Promise<number> {
  const server = new MicroServer(service, 0);
  servers.add(server);
  return (await server.startListening()).port as number;
}

describe('what starts a timer', () => {
  it.each(['0 0 5', '00:00:05', '0:0:5', '  0   0  5 ', '00 00 05', '0\t0\t5'])('%j comes back as it came', (line) => {
    const { ask, status } = alone();
    expect(ask(line)).toBe(line);
    expect(status()).toEqual([{ id: 1, totalMs: 5_000, remainingMs: 5_000 }]);
  });
  it.each([
    ['0 0 1', 1_000], ['0 1 0', 60_000], ['1 0 0', 3_600_000], ['1 2 3', 3_723_000], ['99:59:59', 359_999_000],
    ['0 0 59', 59_000], ['0 59 0', 3_540_000],
  ])('%s has %i milliseconds', (line, totalMs) => {
    const { ask, status } = alone();
    ask(line);
    expect(status()).toEqual([{ id: 1, totalMs, remainingMs: totalMs }]);
  });
  it('three messages, each echoed; it runs from the third on', async () => {
    const { ask, status, clock } = alone();
    expect([ask('0'), ask('01')]).toEqual(['0', '01']);
    await clock.advance(60_000);
    expect(status()).toEqual([]);
    expect(ask('5')).toBe('5');
    expect(status()).toEqual([{ id: 1, totalMs: 65_000, remainingMs: 65_000 }]);
  });
  it('three messages of one client are its own, whatever others say meanwhile', () => {
    const { ask, status, newClient } = alone();
    const [one, two] = [newClient(), newClient()];
    for (const text of ['1', '2', '3']) for (const client of [one, two]) expect(ask(text, client)).toBe(text);
    expect(status().map(({ totalMs }) => totalMs)).toEqual([3_723_000, 3_723_000]);
  });
  it('what is said between the three does not disturb them', () => {
    const { ask, status } = alone();
    for (const text of ['0', 'status', 'cancel', '0', '0 0 9', 'stream', '7']) ask(text);
    expect(status().map(({ totalMs }) => totalMs)).toEqual([9_000, 7_000]);
  });
  it('one message of three parts comes back in the same parts', () => {
    const { ask, status, newClient } = alone();
    const parts = ['0', '0', '5'].map((text) => Buffer.from(text));
    expect(ask('0', newClient(), parts)).toEqual({ parts });
    expect(status()).toEqual([{ id: 1, totalMs: 5_000, remainingMs: 5_000 }]);
  });
  it('messages of one part are as those without', () => {
    const { ask, status, newClient } = alone();
    const client = newClient();
    for (const text of ['0', '0', '5']) expect(ask(text, client, [Buffer.from(text)])).toBe(text);
    expect(status().length).toBe(1);
  });
  it('a wrong one of the three begins anew', () => {
    const { ask, status } = alone();
    for (const text of ['1', '60', '0', '0', '5']) ask(text);
    expect(status().map(({ totalMs }) => totalMs)).toEqual([5_000]);
  });
});

describe('what starts none', () => {
  const LINES = ['', ' ', '-1', '100', '1.5', '1e1', '+1', 'NaN', 'Infinity', '٣', 'five', '0x5', '0 0', '0 0 0 5', '0 0 60', '0 60 0',
    '100 0 0', '-1 0 0', '0 0 -1', '1000000000 0 0', '1e9 0 0', '9'.repeat(400), '0 0 NaN', '00:00', '0:0:0:5', '::',
    '00:00:05:', '0 0:5', 'status now', 'Stream', 'stream 0', 'stream 0 0 60', 'stream 0 0 0 1', 'stream x', 'x\ny', '\u2028'];
  it.each(LINES)('%j gets one line that says why', (line) => {
    const { ask, status } = alone();
    expect(ask(line)).toMatch(/^Cannot start a timer: [^\n\u2028]{1,200}$/);
    expect(status()).toEqual([]);
  });
  it.each([[['0', '0']], [['0', '0', '0', '5']], [['0', '0', '']], [['0', '0', '\xff']], [[]]])('parts %j', (texts) => {
    const { ask, newClient, status } = alone();
    expect(ask('', newClient(), texts.map((text) => Buffer.from(text, 'latin1')))).toMatch(/^Cannot start a timer: /);
    expect(status()).toEqual([]);
  });
  it('names what is wrong', () => {
    const { ask } = alone();
    expect(ask('0 60 0')).toBe('Cannot start a timer: minutes is "60", expected a whole number from 0 to 59. ' +
      'Send hours, minutes and seconds, such as 0 0 5');
  });
});

describe('how many there may be', () => {
  it('one more than maxTimers is refused, until one is done or cancelled', async () => {
    const { ask, clock, status } = alone({ maxTimers: 2 });
    expect([ask('0 0 1'), ask('0 0 9')]).toEqual(['0 0 1', '0 0 9']);
    const refused = 'Cannot start a timer: 2 run already. Cancel one, or raise maxTimers';
    expect([ask('0 0 5'), ask('stream 0 0 5'), ask('0'), ask('0'), ask('5')]).toEqual([refused, refused, '0', '0', refused]);
    await clock.advance(1_000);
    expect(ask('0 0 5')).toBe('0 0 5');
    expect(ask('0 0 6')).toBe(refused);
    expect(ask('cancel')).toBe('cancelled 3');
    expect(ask('0 0 6')).toBe('0 0 6');
    expect(status().map(({ id }) => id)).toEqual([2, 4]);
  });
  it('1,000 by default', () => {
    const { ask } = alone();
    for (let count = 0; count < 1_000; count++) expect(ask('1 0 0')).toBe('1 0 0');
    expect(ask('1 0 0')).toMatch(/^Cannot start a timer: 1000 run already/);
  });
  it.each([0, -1, 1.5, NaN, Infinity])('maxTimers can\'t be %d', (maxTimers) => {
    expect(() => createTimer({ maxTimers })).toThrow(RangeError);
  });
});

describe('status and cancel', () => {
  it('status tells what is left, oldest first, and forgets what is done', async () => {
    const { ask, status, clock } = alone();
    for (const line of ['0 0 3', '0 0 1', '0 0 2']) ask(line);
    await clock.advance(999);
    expect(status()).toEqual([{ id: 1, totalMs: 3_000, remainingMs: 2_001 }, { id: 2, totalMs: 1_000, remainingMs: 1 },
      { id: 3, totalMs: 2_000, remainingMs: 1_001 }]);
    await clock.advance(1);
    expect(status().map(({ id }) => id)).toEqual([1, 3]);
    await clock.advance(2_000);
    expect(status()).toEqual([]);
  });
  it('cancel ends the newest of this client, cancel ID anybody\'s', () => {
    const { ask, status, newClient } = alone();
    const other = newClient();
    ask('0 0 5');
    ask('0 0 5', other);
    ask('0 0 5', other);
    expect(ask('cancel')).toBe('cancelled 1');
    expect(ask('cancel 3')).toBe('cancelled 3');
    expect(status().map(({ id }) => id)).toEqual([2]);
  });
  it.each(['cancel', 'cancel 7', 'cancel -1', 'cancel x', 'cancel 1 1', 'cancel 1.0', 'cancel 0x1'])(
    '%j where there is no such timer is one line', (line) => {
      const { ask, newClient, status } = alone();
      ask('0 0 5', newClient());
      expect(ask(line)).toMatch(/^Cannot cancel [^\n]+$/);
      expect(status().length).toBe(1);
    });
  it('what is done or cancelled can\'t be cancelled again', async () => {
    const { ask, clock } = alone();
    ask('0 0 1');
    await clock.advance(1_000);
    expect(ask('cancel')).toMatch(/^Cannot cancel /);
    ask('0 0 1');
    expect([ask('cancel'), ask('cancel')]).toEqual(['cancelled 2', expect.stringMatching(/^Cannot cancel /)]);
  });
});

describe('stream', () => {
  it('of a new timer tells each second as it begins, then done', async () => {
    const { ask, clock } = alone();
    const { told, end } = listen(ask('stream 0 0 3'), clock);
    await clock.advance(5_000);
    await end;
    expect(told).toEqual([['00:00:03', 0], ['00:00:02', 1_000], ['00:00:01', 2_000], ['done', 3_000]]);
    expect(clock.waiting).toBe(0);
  });
  it('of the newest timer joins where that is', async () => {
    const { ask, clock } = alone();
    ask('0 1 1');
    await clock.advance(59_500);
    const { told, end } = listen(ask('stream'), clock);
    await clock.advance(5_000);
    await end;
    expect(told).toEqual([['00:00:02', 59_500], ['00:00:01', 60_000], ['done', 61_000]]);
  });
  it('does not drift, and is never early, where each wait ends late', async () => {
    const clock = new FakeClock(30);
    const { ask } = alone({ clock });
    const { told, end } = listen(ask('stream 0 1 0'), clock);
    await clock.advance(61_000);
    await end;
    expect(told.length).toBe(61);
    told.forEach(([part, at], index) => {
      expect(part).toBe(index === 60 ? 'done' : index === 0 ? '00:01:00' : `00:00:${String(60 - index).padStart(2, '0')}`);
      expect(at - 1_000 * index, part).toBe(index === 0 ? 0 : 30);
    });
  });
  it('is not early where waits end before their time, as those of an engine may', async () => {
    const clock = new FakeClock(-2);
    const { ask } = alone({ clock });
    const { told, end } = listen(ask('stream 0 0 9'), clock);
    await clock.advance(10_000);
    await end;
    expect(told.length).toBe(10);
    told.forEach(([part, at], index) => {
      expect(at, part).toBeGreaterThanOrEqual(1_000 * index);
      expect(at, part).toBeLessThan(1_000 * index + 2);
    });
  });
  it('a reader who was away gets no ticks of the past', async () => {
    const { ask, clock } = alone();
    const iterator = (ask('stream 0 0 9') as AsyncIterable<string>)[Symbol.asyncIterator]();
    expect((await iterator.next()).value).toBe('00:00:09');
    await clock.advance(4_200);
    expect((await iterator.next()).value).toBe('00:00:05');
    const next = iterator.next();
    await clock.advance(800);
    expect((await next).value).toBe('00:00:04');
    await iterator.return?.();
  });
  it('of 0 seconds is done at once; of 99:59:59 it counts in hours', async () => {
    const { ask, clock } = alone();
    const { told, end } = listen(ask('stream 0 0 0'), clock);
    await end;
    expect(told).toEqual([['done', 0]]);
    const long = listen(ask('stream 99:59:59'), clock);
    await clock.advance(359_000);
    expect(long.told.slice(0, 2)).toEqual([['99:59:59', 0], ['99:59:58', 1_000]]);
    expect(long.told.at(-1)).toEqual(['99:54:00', 359_000]);
    ask('cancel');
    await long.end;
  });
  it('ends when the timer is cancelled, and says so', async () => {
    const { ask, clock, newClient } = alone();
    const { told, end } = listen(ask('stream 0 0 9'), clock);
    await clock.advance(500);
    ask('cancel 1', newClient());
    await end;
    expect(told.at(-1)).toEqual(['cancelled 1', 500]);
    expect(clock.waiting).toBe(0);
  });
  it('of what is done already says done; of none says how to have one', async () => {
    const { ask, clock, newClient } = alone();
    ask('0 0 1');
    await clock.advance(1_000);
    const { told, end } = listen(ask('stream'), clock);
    await end;
    expect(told).toEqual([['done', 1_000]]);
    expect(ask('stream', newClient())).toBe('Cannot stream: this connection has no timer. ' +
      'Send hours, minutes and seconds, such as 0 0 5');
  });
  it('ends when the service stops', async () => {
    const { ask, clock, service, status } = alone();
    const { told, end } = listen(ask('stream 1 0 0'), clock);
    await clock.advance(1);
    await service.stop?.();
    await end;
    expect(told.at(-1)?.[0]).toBe('cancelled 1');
    expect([status(), clock.waiting]).toEqual([[], 0]);
  });
});

describe('over a connection', () => {
  it('three lines sent at once are echoed each, and the timer runs', async () => {
    const port = await serve();
    await RawClient.with(port, async (client) => {
      await client.write('0\n0\n5\nstatus\n');
      const [hours, minutes, seconds, status = ''] = await client.readLines(4);
      expect([hours, minutes, seconds]).toEqual(['0', '0', '5']);
      expect(JSON.parse(status)).toEqual([{ id: 1, totalMs: 5_000, remainingMs: expect.any(Number) }]);
    });
  });
  it('three messages of a MicroClient, sent at once', async () => {
    const client = new MicroClient(await serve());
    expect(await Promise.all(['0', '1', '5'].map((text) => client.sendMessage(text)))).toEqual(['0', '1', '5']);
    expect(JSON.parse(await client.sendMessage('status'))).toMatchObject([{ id: 1, totalMs: 65_000 }]);
    await client.close();
  });
  it('$ping between the three, and a packet each', async () => {
    const port = await serve();
    await RawClient.with(port, async (client) => {
      const heard: string[] = [];
      for (const line of ['0', '$ping', '0', '$ping', '5', '$ping', 'cancel']) {
        await client.write(`${line}\n`);
        heard.push(await client.readLine());
      }
      expect(heard).toEqual(['0', 'pong', '0', 'pong', '5', 'pong', 'cancelled 1']);
    });
  });
  it('a timer outlives the connection that set it; cancel from another one', async () => {
    const port = await serve();
    await RawClient.with(port, async (client) => expect(await client.ask('0 1 0\n')).toBe('0 1 0\n'));
    await RawClient.with(port, async (client) => {
      await client.write('stream\nstatus\ncancel 1\n');
      expect(await client.readLine()).toMatch(/^Cannot stream: /);
      expect(JSON.parse(await client.readLine())).toMatchObject([{ id: 1, totalMs: 60_000 }]);
      expect(await client.readLine()).toBe('cancelled 1');
    });
  });
  it('over lines a stream is a line a tick, an empty one at its end, and then what came behind it', async () => {
    const port = await serve();
    await RawClient.with(port, async (client) => {
      const began = performance.now();
      await client.write('stream 0 0 2\n$ping\n0 0 0\n');
      expect(await client.readLines(6)).toEqual(['00:00:02', '00:00:01', 'done', '', 'pong', '0 0 0']);
      expect(performance.now() - began).toBeGreaterThanOrEqual(1_999);
    });
  });
  it('over frames a stream leaves the connection free; cancelled from there it ends', async () => {
    const client = new MicroClient(await serve());
    const told: string[] = [];
    for await (const part of client.streamMessage('stream 0 0 9')) {
      told.push(part);
      if (told.length === 1) expect(await client.sendMessage('cancel')).toBe('cancelled 1');
    }
    expect(told).toEqual(['00:00:09', 'cancelled 1']);
    await client.close();
  });
});

describe('over ZMTP', () => {
  /** The bodies of the replies that a REQ gets to these messages, sent at once. */
  async function callAsReq(port: number, ...requests: (string | Uint8Array)[][]): Promise<string[][]> {
    const bytes = requests.map((parts) => message('', ...parts));
    const heard = await RawClient.with(port, (client) => {
      client.fin(Buffer.concat([greetingOf('REQ'), ...bytes]));
      return client.readToFin();
    });
    return messagesOf(heard.subarray(64)).filter(([first = '']) => !first.startsWith('/')).map(([, ...body]) => body);
  }

  it('a message of three parts comes back in the same parts, three messages one by one, and both timers run', async () => {
    const port = await serve();
    for (const requests of [[['0', '0', '5']], [['0'], ['1'], ['5']]]) {
      expect(await callAsReq(port, ...requests)).toEqual(requests);
    }
    const client = new MicroClient(port);
    expect(JSON.parse(await client.sendMessage('status'))).toMatchObject([{ totalMs: 5_000 }, { totalMs: 65_000 }]);
    await client.close();
  });
  it('what is no time starts none, in text or in bytes', async () => {
    const port = await serve();
    const replies = await callAsReq(port, ['0', '0'], ['0', '60', '0'], ['0', '0', Buffer.of(0xff)], [Buffer.of(0xff)]);
    expect(replies.map(([reply]) => reply)).toEqual([
      expect.stringMatching(/^Cannot start a timer: got "0 0"/), expect.stringMatching(/^Cannot start a timer: minutes is "60"/),
      expect.stringMatching(/^Cannot start a timer: seconds is /), expect.stringMatching(/^Cannot start a timer: hours is /),
    ]);
    expect(await new MicroClient(port).sendMessage('status')).toBe('[]');
  });
  it('a stream is one message, with a part for each second', async () => {
    const client = new MicroClient(await serve(), { dialect: zmtp() });
    const told: string[] = [];
    for await (const part of client.streamMessage('stream 0 0 1')) told.push(part);
    expect(told).toEqual(['00:00:01', 'done']);
    await client.close();
  });
});

it('a timer that runs keeps no process alive', async () => {
  const code = `
    const { createTimer } = await import(${JSON.stringify(pathToFileURL(built('services/timer.ts')).href)});
    const service = createTimer();
    const context = { client: { state: new Map() } };
    const stream = service.callback('stream 1 0 0', context);
    void (async () => { for await (const tick of stream) console.log(tick); })();`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', code],
    { stdio: ['ignore', 'pipe', 'inherit'] });
  try {
    let said = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => { said += text; });
    const [exitCode] = await within(10_000, once(child, 'close'), 'the end of a process with a timer');
    expect([said, exitCode]).toEqual(['01:00:00\n', 0]);
  } finally {
    child.kill('SIGKILL');
  }
});
