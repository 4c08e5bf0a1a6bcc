/** Group A, lines: what bytes become which messages. Frames are tried along where the rule is theirs too. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect } from 'vitest';
import { MicroClient } from '../../lib/micro_client.ts';
import { pause } from '../helpers/deadline.ts';
import { fault, FULL, some } from '../helpers/faults.ts';
import { MIB, monitored } from '../helpers/monitor.ts';
import { everyCut, inBytes, inPackets, inTwo } from '../helpers/packets.ts';
import { seeded } from '../helpers/random.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { RawServer } from '../helpers/raw_server.ts';
import { ServerProcess } from '../helpers/server_process.ts';
import { stillServes } from '../helpers/still_serves.ts';

const MAX = MIB;
const HELLO = '\x01portcall/1 timeout=20000\n';
const folder = mkdtempSync(join(tmpdir(), 'portcall-framing-'));
let echo: ServerProcess;
let recorder: ServerProcess; // an echo too, with limits made small; what it runs is in a file
const SMALL_MAX = 4096;

beforeAll(async () => {
  [echo, recorder] = await Promise.all([
    ServerProcess.start(),
    ServerProcess.start({ record: join(folder, 'runs'), options: { maxMessageBytes: SMALL_MAX } }),
  ]);
});
afterAll(async () => {
  await Promise.all([echo?.kill(), recorder?.kill()]);
  rmSync(folder, { recursive: true, force: true });
});

/** Messages that were run since `task` began, the monitor's not among them. */
async function runsOf(task: () => Promise<void>): Promise<string[]> {
  const before = recorder.recorded().length;
  await task();
  return recorder.recorded().slice(before);
}

const linesOf = (bytes: Buffer): string[] => bytes.toString().split('\n');

fault('A03', '10,000 requests in one write, over lines and frames', () => monitored(echo, {}, async () => {
  const COUNT = 10_000;
  const numbers = Array.from({ length: COUNT }, (_, at) => String(at));
  await ServerProcess.with({ callback: 'obey' }, async (slow) => {
    // Later ones are done sooner: lines must put them in order, frames must not mix them up.
    const waiting = numbers.map((number) => `{"reply":"${number}","waitMs":${1 + (7 * Number(number)) % 5}}`);
    for (const [server, texts] of [[echo, numbers], [slow, waiting]] as const) {
      await monitored(server, {}, () => RawClient.with(server.port, async (client) => {
        const began = performance.now();
        await client.write(texts.map((text) => `${text}\n`).join(''));
        expect(await client.readLines(COUNT, 2_000), 'lines').toEqual(numbers);
        expect(performance.now() - began, 'ms over lines').toBeLessThan(2_000);
        client.fin();
        expect((await client.readToFin()).toString(), 'behind the last reply').toBe('');
      }));
      await monitored(server, {}, () => RawClient.with(server.port, async (client) => {
        const began = performance.now();
        client.fin(HELLO + texts.map((text, slot) => `${slot} ${text}\n`).join(''));
        const [hello, ...rest] = linesOf(await client.readToFin(2_000));
        expect(performance.now() - began, 'ms over frames').toBeLessThan(2_000);
        expect(hello).toMatch(/^\x01portcall\/1( |$)/);
        expect(rest.pop(), 'behind the last LF').toBe('');
        const replies = rest.filter((line) => !line.startsWith('ping ')); // asked while it reads no more
        const sorted = replies.sort((a, b) => parseInt(a) - parseInt(b));
        expect(sorted, 'frames').toEqual(numbers.map((number) => `${number} ${number}`));
      }));
    }
  });
  await stillServes(echo, { ask: 'fine' });
}));

fault('A04', '2-, 3-, 4-byte letters cut after each byte, 20 ms apart', () => monitored(echo, {}, async () => {
  const text = 'aé☃😀z';
  const GAP_MS = 20;
  const overLines = RawClient.with(echo.port, async (client) => {
    await client.writeSlices(`${text}\n`, 1, () => pause(GAP_MS));
    expect(await client.readLine(), 'a request over lines').toBe(text);
  });
  const overFrames = RawClient.with(echo.port, async (client) => {
    await client.write(HELLO);
    await client.writeSlices(`0 ${text}\n`, 1, () => pause(GAP_MS));
    expect((await client.readLines(2))[1], 'a request over frames').toBe(`0 ${text}`);
  });
  const toClient = RawServer.with(async (socket) => {
    socket.resume().on('end', () => socket.end());
    for (const byte of Buffer.from(`\x01portcall/1\n0 ${text}\n`)) {
      socket.write(Buffer.of(byte));
      await pause(GAP_MS);
    }
  }, async ({ port }) => {
    const client = new MicroClient(port);
    expect(await client.sendMessage('?'), 'a reply over frames').toBe(text);
    await client.close();
  });
  await Promise.all([overLines, overFrames, toClient]);
  await stillServes(echo, { ask: text });
}));

/** No UTF-8: an overlong NUL, half a surrogate pair, past U+10FFFF, a lone second byte, a letter cut off. */
const NOT_UTF8 = ['C080', 'EDA080', 'F5808080', '80', 'E282'].map((hex) => Buffer.from(hex, 'hex'));

fault('A05', 'lines that are not UTF-8, good lines between', () => monitored(echo, {}, async () => {
  const pieces = NOT_UTF8.flatMap((bad, at) =>
    [Buffer.from(`good ${at} é\na`), bad, Buffer.from('b\n'), bad, Buffer.from('\n')]);
  const bytes = Buffer.concat([...pieces, Buffer.from('last ☃\n')]);
  const errors = ['ERR BAD_MESSAGE', 'ERR BAD_MESSAGE'];
  const expected = [...NOT_UTF8.flatMap((_, at) => [`good ${at} é`, ...errors]), 'last ☃', ''];
  let first = '';
  const check = (answer: Buffer, how: string) => {
    const text = answer.toString();
    expect(text, how).not.toContain('\uFFFD');
    expect(linesOf(answer).map((line) => line.replace(/^(ERR BAD_MESSAGE) .*/, '$1')), how).toEqual(expected);
    first ||= text;
    expect(text, how).toBe(first); // the words of the errors too are the same on every split
  };
  await RawClient.with(echo.port, async (client) => check(Buffer.from(await client.ask(bytes)), 'whole'));
  const rows = [...inTwo(bytes, everyCut(bytes)), inBytes(bytes)];
  await inPackets(echo, rows, (answer, { how }) => check(answer, how));
  const random = seeded();
  for (let run = 0; run < 10; run++) {
    await RawClient.with(echo.port, async (client) => {
      await client.writeSlices(bytes, () => random.between(1, 4), run < 2 ? () => echo.hasRead() : undefined);
      client.fin();
      check(await client.readToFin(), `random pieces, run ${run}`);
    });
  }
  await RawClient.with(echo.port, async (client) => { // over frames, each for its slot
    const frames = NOT_UTF8.flatMap((bad, at) =>
      [Buffer.from(`${2 * at} x`), bad, Buffer.from(`\n${2 * at + 1} é\n`)]);
    await client.write(Buffer.concat([Buffer.from(HELLO), ...frames]));
    const [, ...replies] = await client.readLines(1 + 2 * NOT_UTF8.length);
    expect(replies.map((line) => line.replace(/ r: .*/, ''))).toEqual(
      NOT_UTF8.flatMap((_, at) => [`${2 * at}! BAD_MESSAGE`, `${2 * at + 1} é`]));
  });
  await stillServes(echo, { ask: '\uFFFD is a letter like any other' });
}));

fault('A06', 'NUL, BOM, U+0085, U+2028, VT, FF inside a text', () => monitored(echo, {}, async () => {
  const letters = ['\0', '\uFEFF', '\u0085', '\u2028', '\u2029', '\v', '\f', '\x1b', '\x7f', '\t'];
  const texts = letters.flatMap((letter) => [`a${letter}b`, `a${letter}${letter}b`, `a${letter}`]);
  const starting = letters.map((letter) => `${letter}a`); // a connection can't begin with them, a text can
  await RawClient.with(echo.port, async (client) => {
    const all = [...texts, ...starting, ...letters];
    expect((await client.ask(`${all.join('\n')}\n`)).split('\n'), 'lines').toEqual([...all, '']);
  });
  const client = new MicroClient(echo.port);
  const all = [...texts, ...starting, ...letters, letters.join(''), letters.join('\n')];
  expect(await Promise.all(all.map((text) => client.sendMessage(text))), 'frames').toEqual(all);
  await client.close();
  await stillServes(echo, { ask: 'fine' });
}));

fault('A07', 'CR before LF, twice, inside a line, in a packet before LF', () => monitored(recorder, {}, async () => {
  const bytes = Buffer.from('a\r\na\r\r\na\rb\na\r\n');
  const expected = ['a', 'a\r', 'a\rb', 'a'];
  const whole = await runsOf(() => RawClient.with(recorder.port, async (client) => void await client.ask(bytes)));
  expect(whole, 'in one packet').toEqual(expected);
  for (const cut of everyCut(bytes)) {
    const runs = await runsOf(() => inPackets(recorder, inTwo(bytes, [cut]), () => {}));
    expect(runs, `cut at ${cut}`).toEqual(expected);
  }
  const single = await runsOf(() => inPackets(recorder, [inBytes(bytes)], () => {}));
  expect(single, 'byte by byte').toEqual(expected);
  const last = await runsOf(() => RawClient.with(recorder.port, async (client) => void await client.ask('a\r')));
  expect(last, 'CR, then FIN').toEqual(['a']);
  await stillServes(recorder, { ask: 'fine' });
}));

fault('A08', 'empty lines, first and between', () => monitored(echo, {}, async () => {
  const before = await echo.stats();
  for (const empty of ['\n', '\r\n', '\n\r\n\n', '\n'.repeat(10_000), '\r\n'.repeat(10_000)]) {
    const how = `${empty.length} bytes of ${JSON.stringify(empty.slice(0, 4))}`;
    await RawClient.with(echo.port, async (client) => {
      expect(await client.ask(`${empty}one\n${empty}two\n${empty}`), how).toBe('one\ntwo\n');
    });
    await RawClient.with(echo.port, async (client) => {
      expect(await client.ask(empty), `only ${how}`).toBe('');
    });
  }
  const bytes = Buffer.from('\n\r\none\n\r\n\ntwo\n');
  await inPackets(echo, inTwo(bytes, everyCut(bytes)), (answer, { how }) =>
    expect(answer.toString(), how).toBe('one\ntwo\n'));
  expect((await echo.stats()).errors, 'errors counted').toBe(before.errors);
  await stillServes(echo, { ask: 'fine' });
}));

fault('A09', 'texts of MAX-1, MAX and MAX+1 bytes', () => monitored(echo, {}, async () => {
  const ofBytes = (letter: string, bytes: number): string => {
    const whole = letter.repeat(Math.floor(bytes / Buffer.byteLength(letter)));
    return whole + 'x'.repeat(bytes - Buffer.byteLength(whole));
  };
  for (const letter of ['a', '😀']) {
    const [less, just, more] = [ofBytes(letter, MAX - 1), ofBytes(letter, MAX), ofBytes(letter, MAX + 1)];
    expect([less, just, more].map((text) => Buffer.byteLength(text))).toEqual([MAX - 1, MAX, MAX + 1]);
    await RawClient.with(echo.port, async (client) => {
      void client.write(`${less}\n${just}\n${more}\nnext\n`);
      const heard = await client.readLines(4);
      expect(heard[0] === less, `lines: MAX-1 bytes of ${letter}`).toBe(true);
      expect(heard[1] === just, `lines: MAX bytes of ${letter}`).toBe(true);
      expect(heard[2]?.slice(0, 100), `lines: MAX+1 bytes of ${letter}`).toMatch(/^ERR MESSAGE_TOO_LARGE /);
      expect(heard[3], 'lines: the next').toBe('next');
      void client.write(`${just}\r\n${more}\r\nnext\n`); // the CR is no part of it
      const again = await client.readLines(3);
      expect(again[0] === just, `lines: MAX bytes of ${letter} and CR`).toBe(true);
      expect(again[1]?.slice(0, 100), `lines: MAX+1 bytes of ${letter} and CR`).toMatch(/^ERR MESSAGE_TOO_LARGE /);
      expect(again[2], 'lines: the next').toBe('next');
    });
    await RawClient.with(echo.port, async (client) => {
      void client.write(`${HELLO}0 ${less}\n1 ${just}\n2 ${more}\n3 next\n`);
      const [, ...heard] = await client.readLines(5);
      expect(heard[0] === `0 ${less}`, `frames: MAX-1 bytes of ${letter}`).toBe(true);
      expect(heard[1] === `1 ${just}`, `frames: MAX bytes of ${letter}`).toBe(true);
      expect(heard[2]?.slice(0, 100), `frames: MAX+1 bytes of ${letter}`).toMatch(/^2! MESSAGE_TOO_LARGE r: /);
      expect(heard[3], 'frames: the next').toBe('3 next');
    });
    const usual = new MicroClient(echo.port);
    const generous = new MicroClient(echo.port, { maxMessageBytes: 4 * MAX });
    for (const [text, name] of [[less, 'MAX-1'], [just, 'MAX']] as const) {
      expect(await usual.sendMessage(text) === text, `MicroClient: ${name} bytes of ${letter}`).toBe(true);
    }
    await expect(usual.sendMessage(more), 'refused by the client')
      .rejects.toMatchObject({ code: 'MESSAGE_TOO_LARGE', outcome: 'not sent' });
    await expect(generous.sendMessage(more), 'refused by the server')
      .rejects.toMatchObject({ code: 'MESSAGE_TOO_LARGE', outcome: 'refused' });
    expect(await generous.sendMessage('next')).toBe('next');
    await Promise.all([usual.close(), generous.close()]);
  }
  const client = new MicroClient(echo.port); // where each letter is escaped, a line has twice the bytes
  for (const text of ['\n'.repeat(MAX), '\\\n'.repeat(MAX / 2), `${'\\'.repeat(MAX - 1)}\n`]) {
    expect(await client.sendMessage(text) === text, `MAX bytes of ${JSON.stringify(text.slice(0, 2))}`).toBe(true);
  }
  await client.close();
  await stillServes(echo, { ask: 'fine' });
}));

fault('A10', 'a line too long whose tail is a command, cut at 64 offsets', () => monitored(recorder, {}, async () => {
  const tails = ['revert', '{"action":"ping"}', '$stats'];
  const twice = 2 * SMALL_MAX + 64; // what is held of a line whose letters may be escaped
  const around = (offset: number) => Array.from({ length: 64 }, (_, at) => offset - 32 + at);
  for (const tail of tails) {
    for (const bytes of [SMALL_MAX + 1, SMALL_MAX + 100, twice, twice + 1, 3 * SMALL_MAX]) {
      const line = Buffer.from(`${'x'.repeat(bytes - tail.length)}${tail}\nnext\n`);
      const beforeTail = bytes - tail.length;
      const cuts = [...new Set([...around(SMALL_MAX), ...around(twice), ...around(beforeTail)])]
        .filter((cut) => cut > 0 && cut < line.length);
      const runs = await runsOf(() => inPackets(recorder, inTwo(line, some(cuts, 40)), (answer, { how }) => {
        const [error, next, ...rest] = linesOf(answer);
        expect(error, `${bytes} bytes, ${how}`).toMatch(/^ERR MESSAGE_TOO_LARGE /);
        expect([next, rest], `${bytes} bytes, ${how}`).toEqual(['next', ['']]);
      }));
      expect(runs.filter((run) => run !== 'next'), `${bytes} bytes before ${tail}: run`).toEqual([]);
    }
  }
  await stillServes(recorder, { ask: 'fine' });
}));

fault('A10', 'the same at the default limit', () => monitored(echo, {}, async () => {
  for (const tail of ['revert', '{"action":"ping"}', '$stats']) {
    const line = Buffer.from(`${'x'.repeat(2 * MAX + 64)}${tail}\nnext\n`);
    const cuts = [MAX - 1, MAX, MAX + 1, 2 * MAX + 63, 2 * MAX + 64, 2 * MAX + 65, line.length - 6];
    for (const cut of some(cuts, 3)) { // one at a time: each is of 2 MiB
      await inPackets(echo, inTwo(line, [cut]), (answer, { how }) => {
        expect(linesOf(answer).map((text) => text.replace(/^(ERR MESSAGE_TOO_LARGE) .*/, '$1')), how)
          .toEqual(['ERR MESSAGE_TOO_LARGE', 'next', '']);
      });
    }
  }
  await stillServes(echo, { ask: 'fine' });
}));

/** After garbage was collected too: malloc keeps some 40 MiB of what 1 GiB was read into, a bare server's likewise. */
const MOST_BYTES = 96 * MIB;
for (const [dialect, before] of [['lines', ''], ['frames', `${HELLO}0 `]] as const) {
  fault('A11', `1 GiB without LF over ${dialect}, then LF and a request`, () => monitored(echo, { rssGrowthBytes: MOST_BYTES }, () =>
    RawClient.with(echo.port, async (client) => {
      const piece = Buffer.alloc(MIB, 'x');
      await client.write(before);
      await echo.ask('collect');
      echo.forgetPeak();
      const rssBefore = echo.rssBytes();
      const began = performance.now();
      const pieces = FULL || dialect === 'lines' ? 1024 : 256;
      for (let sent = 0; sent < pieces; sent++) await client.write(piece);
      expect(performance.now() - began, 'ms for all').toBeLessThan(30_000);
      await client.write(`\n${dialect === 'lines' ? '' : '1 '}request\n`);
      const heard = await client.readLines(dialect === 'lines' ? 2 : 3, 10_000);
      const [error, reply] = heard.slice(-2);
      expect(error).toMatch(dialect === 'lines' ? /^ERR MESSAGE_TOO_LARGE / : /^0! MESSAGE_TOO_LARGE r: /);
      expect(reply).toBe(dialect === 'lines' ? 'request' : '1 request');
      client.fin(dialect === 'lines' ? '' : 'goodbye\n');
      expect((await client.readToFin()).toString(), 'behind the reply').toBe('');
      expect((echo.peakRssBytes() - rssBefore) / MIB, 'peak growth in MiB').toBeLessThan(MOST_BYTES / MIB);
      await stillServes(echo, { ask: 'fine' });
    })));
}

fault('A12', 'a last line without LF, then FIN', () => monitored(echo, {}, async () => {
  const bytes = Buffer.from('one\ntwo');
  await RawClient.with(echo.port, async (client) => {
    expect(await client.ask(bytes)).toBe('one\ntwo\n');
    expect(await client.closed, 'no reset').toBeUndefined();
  });
  await inPackets(echo, inTwo(bytes, everyCut(bytes)), (answer, { how }) =>
    expect(answer.toString(), how).toBe('one\ntwo\n'));
  await RawClient.with(echo.port, async (client) => { // FIN in a packet of its own
    await client.write(bytes);
    expect(await client.readLine()).toBe('one');
    await echo.hasRead();
    client.fin();
    expect((await client.readToFin()).toString()).toBe('two\n');
  });
  await ServerProcess.with({ callback: 'slow:100' }, (slow) => monitored(slow, {}, () =>
    RawClient.with(slow.port, async (client) => expect(await client.ask(bytes), 'slowly').toBe('one\ntwo\n'))));
  await stillServes(echo, { ask: 'fine' });
}));


fault('A17', 'replies with line breaks of every kind', () => ServerProcess.with({ callback: 'obey' }, (server) =>
  monitored(server, {}, async () => {
    const replies = ['a\nb', 'a\r\nb', 'a\rb', 'a\\nb', '\n', '\r', '\\', '\\\\n\n', '\\n\n\\',
      'a\n', '\na', '\r\n', '', '\n'.repeat(10_000), '\r\n'.repeat(10_000), '0! X\n1 y', 'ERR BUSY\nx'];
    const orders = replies.map((reply) => JSON.stringify({ reply }));
    const flat = replies.map((reply) => reply.replaceAll('\n', '\\n'));
    await RawClient.with(server.port, async (client) => {
      const answer = await client.ask(`${orders.join('\n')}\n$help\n$help\n`);
      const heard = answer.split('\n');
      expect(heard.length, 'lines, and nothing behind the last LF').toBe(replies.length + 2 + 1);
      expect(heard.slice(0, replies.length)).toEqual(flat);
      expect(heard[replies.length]).toMatch(/\$ping/);
      expect(heard[replies.length + 1]).toBe(heard[replies.length]);
    });
    const client = new MicroClient(server.port);
    expect(await Promise.all(orders.map((order) => client.sendMessage(order))), 'frames').toEqual(replies);
    const streamed: string[] = [];
    for (const order of orders) for await (const part of client.streamMessage(order)) streamed.push(part);
    expect(streamed, 'frames, as streams of one part').toEqual(replies);
    await client.close();
    await stillServes(server, { ask: 'fine' });
  })));
