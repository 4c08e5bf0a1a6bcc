/** Group A, frames: slots and ids, what a client bears, and that a connection keeps its dialect. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect } from 'vitest';
import { MicroClient, MicroError, resolveAddress } from '../../lib/micro_client.ts';
import { within } from '../helpers/deadline.ts';
import { fault, FULL } from '../helpers/faults.ts';
import { MIB, monitored } from '../helpers/monitor.ts';
import { FUZZ_SEED, fuzzRuns, seeded, type Random } from '../helpers/random.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { eachLine, RawServer } from '../helpers/raw_server.ts';
import { ServerProcess } from '../helpers/server_process.ts';
import { stillServes } from '../helpers/still_serves.ts';

const HELLO = '\x01portcall/1 timeout=20000\n';
const folder = mkdtempSync(join(tmpdir(), 'portcall-frames-'));
let server: ServerProcess; // does what it is told, keeps a file of it, and bears many errors

beforeAll(async () => {
  server = await ServerProcess.start({ callback: 'obey', record: join(folder, 'runs'),
    options: { maxProtocolErrors: 10_000, dedupe: 1_000 } });
});
afterAll(async () => {
  await server?.kill();
  rmSync(folder, { recursive: true, force: true });
});

/** The lines of `text`, pings of a server left out, and what is behind the last LF, which must be nothing. */
function framesOf(text: string): string[] {
  const lines = text.split('\n');
  expect(lines.pop(), 'behind the last LF').toBe('');
  return lines.filter((line) => !/^ping \d+$/.test(line));
}

/** What is no slot, and so can't be a request. */
const BAD_SLOTS = ['-1', '1.5', String(2 ** 53), '1e309', '', '+1', '01', '0x1', 'NaN', 'Infinity', '٣', '1\t'];
/** Heads with a good slot and something that is not known, or not for a server. */
const BAD_HEADS = ['1?', '1@', '1@x', '1@-5', '1#', '1~', '1&', '1+', '1!', 'cancel', 'cancel x', 'nonsense 1',
  'ping', 'ping -1'];

fault('A15', '__proto__, constructor in frames, lines and ports.json', () => monitored(server, {}, async () => {
  const names = ['__proto__', 'constructor', 'prototype', 'toString', 'hasOwnProperty'];
  const before = (await server.vitals()).prototypeNames;
  const ownBefore = Reflect.ownKeys(Object.prototype).map(String);
  for (const name of names) {
    await RawClient.with(server.port, async (client) => {
      const hello = `\x01portcall/1 ${name}=1 ${name}=polluted\n`;
      const [, ...replies] = framesOf(await client.ask(`${hello}0#${name}~${name} ${name}\n1#${name} again\n` +
        `cancel ${name}\ncredit ${name} 1\ngone ${name}\n${name} x\n2 {"reply":"${name}"}\n`));
      expect(replies.filter((line) => /^\d/.test(line)), 'frames').toEqual([`0 ${name}`, `1 ${name}`, `2 ${name}`]);
      expect(replies.filter((line) => !/^(\d|! PROTOCOL_ERROR)/.test(line)), 'frames').toEqual([]);
    });
    await RawClient.with(server.port, async (client) => {
      const answer = await client.ask(`${name}\n$${name}\n{"${name}":{"reply":"x"}}\n`);
      const [text, command, json] = answer.split('\n');
      expect(text).toBe(name);
      expect(command).toMatch(/^ERR BAD_MESSAGE /);
      expect(json).toBe(`{"${name}":{"reply":"x"}}`);
    });
    // A server that answers with them.
    await RawServer.with((socket) => socket.end(`\x01portcall/1 ${name}=1\n0! ${name} r: x\n`), async ({ port }) => {
      const client = new MicroClient(port, { log: () => {}, timeoutMs: 1_000 });
      await expect(client.sendMessage('x')).rejects.toBeInstanceOf(MicroError);
      await client.close();
    });
    // Look-ups: what every object has is no key, what the file has is one.
    const withCode = (code: string) => expect.objectContaining({ code }) as Error;
    expect(() => resolveAddress(name, { LIFE_GEN: 5467 }), name).toThrow(withCode('UNKNOWN_SERVICE'));
    const file = join(folder, 'ports.json');
    writeFileSync(file, `{"LIFE_GEN":5467,"${name}":5468}`);
    expect(resolveAddress(name, file).port, `${name} in a file`).toBe(5468);
    writeFileSync(file, `{"LIFE_GEN":5467,"${name}":{"HIDDEN":5468,"port":1}}`);
    expect(() => resolveAddress('HIDDEN', file), `a key in ${name}`).toThrow(withCode('UNKNOWN_SERVICE'));
    expect(() => resolveAddress(name, file), name).toThrow(withCode('BAD_PORTS_FILE'));
    expect(resolveAddress('LIFE_GEN', file).port).toBe(5467);
    writeFileSync(file, `{"LIFE_GEN":"${name}"}`);
    expect(() => resolveAddress('LIFE_GEN', file), `${name} as an address`).toThrow(MicroError);
  }
  expect((await server.vitals()).prototypeNames, 'Object.prototype in the server').toEqual(before);
  expect(Reflect.ownKeys(Object.prototype).map(String), 'Object.prototype here').toEqual(ownBefore);
  await stillServes(server, { ask: 'fine' });
}));

fault('A16', 'frame ids that are pending, or none', () => monitored(server, {}, async () => {
  const slow = JSON.stringify({ waitMs: 200, reply: 'slow' });
  const runs = await server.runsOf(() => RawClient.with(server.port, async (client) => {
    const bad = [...BAD_SLOTS.map((slot) => `${slot} bad`), ...BAD_HEADS];
    const mixed = bad.map((frame, at) => `${frame}\n${100 + at} good ${at}\n`).join('');
    await client.write(`${HELLO}7 ${slow}\n7 bad: still pending\n${mixed}7#again bad: still pending\n8 good, the last\n`);
    client.fin();
    const [, ...replies] = framesOf((await client.readToFin()).toString());
    const notices = replies.filter((line) => line.startsWith('!'));
    expect(notices.map((line) => line.replace(/: .*/, '')), 'a notice for each').toEqual(
      Array.from({ length: bad.length + 2 }, () => '! PROTOCOL_ERROR r'));
    expect(replies.filter((line) => !line.startsWith('!')), 'the others, once each').toEqual(
      [...bad.map((_, at) => `${100 + at} good ${at}`), '8 good, the last', '7 slow']);
  }));
  expect(runs.filter((run) => run.includes('bad')), 'run').toEqual([]);
  await stillServes(server, { ask: 'fine' });
}));

fault('A16', 'a client that is sent replies to ids that it never asked by', async () => {
  const odd = [...BAD_SLOTS.map((slot) => `${slot} odd`), '999999999 odd', '12345 odd', '500+ odd', '500.',
    '500! TIMEOUT m: odd', '0@5 odd', '0#id odd', '0~client odd', 'nonsense', '! PROTOCOL_ERROR r: odd'];
  let next = '';
  await RawServer.with((socket) => {
    const held: string[] = [];
    eachLine(socket, (line) => {
      const [, slot, text] = /^(\d+) (.*)$/.exec(line) ?? [];
      if (line.startsWith('\x01')) socket.write('\x01portcall/1\n');
      if (slot === undefined) return;
      if (text === 'first') return void held.push(`${slot} first\n`);
      // In one packet: the second reply to a slot comes before it is given away again, so its id is unknown.
      socket.write(`${next}\n${slot} ${text}\n${slot} twice\n${held.splice(0).join('')}`);
    });
  }, async ({ port }) => {
    for (next of odd) {
      const warnings: string[] = [];
      const client = new MicroClient(port, { log: (_, text) => warnings.push(text), timeoutMs: 2_000 });
      const pending = client.sendMessage('first');
      expect(await client.sendMessage('second'), `after ${next}`).toBe('second');
      expect(await pending, `around ${next}`).toBe('first');
      expect(await client.sendMessage('third'), `later than ${next}`).toBe('third');
      expect(warnings.length, `warnings of ${next}, and of the second replies: ${warnings.join('; ')}`).toBe(4);
      await client.close();
    }
  });
});

/** What a client may be told by what is no server of ours, `isGreeted` once it has said hello. */
const GARBAGE: Record<string, (socket: Socket, random: Random) => unknown> = {
  'random bytes': (socket, random) => void socket.end(random.bytes(random.between(1, 3_000))),
  'random bytes behind a hello': (socket, random) =>
    void socket.end(Buffer.concat([Buffer.from('\x01portcall/1\n'), random.bytes(random.between(1, 3_000))])),
  'random lines without end behind a hello': (socket, random) => {
    socket.write('\x01portcall/1\n');
    endlessly(socket, () => Buffer.concat([random.bytes(random.between(0, 200)), Buffer.from('\n')]));
  },
  'random letters without end': (socket, random) =>
    endlessly(socket, () => Buffer.from(random.bytes(500).toString('base64'))),
  HTTP: (socket, random) => void socket.end(`HTTP/1.1 ${random.between(200, 599)} Hm\r\nContent-Length: 3\r\n\r\nHi!`),
  'an SSH banner': (socket) => void socket.write('SSH-2.0-OpenSSH_9.6\r\n'),
  'an endless line': (socket) => endlessly(socket, () => X),
  'an endless line behind a hello': (socket) => {
    socket.write('\x01portcall/1\n');
    endlessly(socket, () => X);
  },
  'an endless reply': (socket) => {
    socket.write('\x01portcall/1\n0 ');
    endlessly(socket, () => X);
  },
  'unasked bytes': (socket, random) => void socket.write(`${random.pick(
    ['0 x', 'ping 1', 'pong 0', '0! TIMEOUT m: x', '', ' ', 'draining', '0+ x', '0.', '220 ready', 'ERR OOPS x'])}\n`),
  'unasked replies without end behind a hello': (socket, random) => {
    socket.write('\x01portcall/1\n');
    const ends = [' x', '+ x', '.', '! TIMEOUT m: x'];
    endlessly(socket, () => Buffer.from(`${random.between(10, 1e9)}${random.pick(ends)}\n`.repeat(30)));
  },
  'half a hello, then FIN': (socket, random) =>
    void socket.end('\x01portcall/1 max=9\n'.slice(0, random.between(0, 18))),
  'half a frame, then FIN': (socket, random) => {
    const frame = random.pick(['0 half', '0! TIME', '0\\ ha', '0', '0!', 'drain', 'goodbye PRO']);
    socket.end(`\x01portcall/1\n${frame.slice(0, random.between(1, frame.length))}`);
  },
  'half a frame, then RST': (socket) => socket.once('data', () => // else it may be reset before it is connected
    void socket.write('\x01portcall/1\n0 half', () => socket.resetAndDestroy())),
};
const X = Buffer.alloc(64 * 1024, 'x');

/** Writes on and on, a turn of the event loop apart, so that both sides get on. */
function endlessly(socket: Socket, next: () => Buffer): void {
  const go = (): void => {
    if (socket.destroyed || !socket.writable) return;
    if (socket.write(next())) setImmediate(go);
  };
  socket.on('drain', go);
  go();
}

/** Answers as a server would, the text being the reply. */
function echoFrames(socket: Socket): void {
  eachLine(socket, (line) => {
    if (line.startsWith('\x01')) socket.write('\x01portcall/1\n');
    else if (/^\d+ /.test(line)) socket.write(`${line}\n`);
  });
}

fault('A18', 'a client against garbage', async () => {
  const DEADLINE_MS = 1_500;
  const MAX_BYTES = 64 * 1024;
  const MOST_TRIES = 3; // a client may need a time-out or two to learn that nothing good will come
  const kinds = Object.keys(GARBAGE);
  const chancy = kinds.filter((kind) => GARBAGE[kind]?.length === 2); // of the others, 3 runs are enough
  const seeds = Array.from({ length: fuzzRuns(FULL ? 1_000 : 20 * kinds.length) }, (_, run) => FUZZ_SEED + run);
  const wrong = new Map<string, string>(); // by kind: the first is enough
  const one = async (seed: number, run: number): Promise<void> => {
    const random = seeded(seed);
    const from = run < 3 * kinds.length ? kinds : chancy;
    const kind = from[run % from.length] as string;
    if (wrong.has(kind)) return;
    await RawServer.with((socket, number) => {
      if (number > 0) return echoFrames(socket); // dialled again, it is a good one
      socket.resume().on('end', () => socket.end());
      GARBAGE[kind]?.(socket, random);
    }, async ({ port }) => {
      const client = new MicroClient(port, { timeoutMs: DEADLINE_MS, maxMessageBytes: MAX_BYTES, log: () => {} });
      const fails = (how: string) => wrong.set(kind, `${kind}: ${how} (FUZZ_SEED=${seed})`);
      const began = performance.now();
      const end = await client.sendMessage('x').then((reply) => `the reply ${JSON.stringify(reply)}`,
        (error: unknown) => (error instanceof MicroError ? error.code : String(error)));
      const ms = performance.now() - began;
      const isAllowed = ['PROTOCOL_ERROR', 'CONNECTION_LOST'].includes(end) ||
        (kind === 'an endless reply' && end === 'MESSAGE_TOO_LARGE');
      if (!isAllowed) fails(end);
      else if (ms > DEADLINE_MS + 250) fails(`settled after ${Math.round(ms)} ms`);
      else {
        let again = '';
        for (let tries = 0; tries < MOST_TRIES && again !== 'again'; tries++) {
          again = await client.sendMessage('again').catch((error: unknown) => String(error));
        }
        if (again !== 'again') fails(`${end}, then ${MOST_TRIES} calls in a row got ${again.slice(0, 200)}`);
      }
      await within(4_000, client.close(), 'its end').catch((error: unknown) => fails(String(error)));
    });
  };
  const waiting = seeds.entries();
  await Promise.all(Array.from({ length: 8 }, async () => {
    for (const [run, seed] of waiting) await one(seed, run);
  }));
  expect([...wrong.values()]).toEqual([]);
});

fault('A18', 'what a client holds of an endless line', async () => {
  for (const start of ['', '\x01portcall/1\n', '\x01portcall/1\n0 ', '\x01portcall/1\n0+ x\n0+ ']) {
    let written = 0;
    let most = 0;
    const held = () => { const { heapUsed, external } = process.memoryUsage(); return heapUsed + external; };
    const before = held();
    await RawServer.with((socket) => {
      socket.resume();
      socket.write(start);
      endlessly(socket, () => {
        written += X.length;
        if (written % MIB === 0) most = Math.max(most, process.memoryUsage().external);
        if (written > (FULL ? 512 : 64) * MIB) socket.end();
        return X;
      });
    }, async ({ port }) => {
      const client = new MicroClient(port, { timeoutMs: 2_000, log: () => {} });
      const sent = client.sendMessage('x');
      await expect(sent, `endless behind ${JSON.stringify(start)}`).rejects.toBeInstanceOf(MicroError);
      await client.close();
    });
    // A line may be of 2 MAX and be joined once: what is over 8 MAX was heaped up.
    expect((most - before) / MIB, `MiB held behind ${JSON.stringify(start)}`).toBeLessThan(8);
  }
});

fault('A19', 'replies 300 ms late to a deadline of 100 ms, slots reused', () => monitored(server, {}, async () => {
  // 10,000: 5 rounds of 8 connections of 250 slots. Who asks by hand may use a slot again at its TIMEOUT.
  const [ROUNDS, CONNECTIONS, SLOTS] = [5, 8, 250];
  const slots = Array.from({ length: SLOTS }, (_, slot) => slot);
  const before = await server.stats();
  const reuse = (at: number) => RawClient.with(server.port, async (client) => {
    const late = slots.map((slot) => `${slot}@100 ${JSON.stringify({ waitMs: 300, reply: `late ${at} ${slot}` })}\n`);
    await client.write(HELLO + late.join(''));
    const [, ...ends] = await client.readLines(1 + SLOTS);
    const told = ends.map((line) => line.replace(/: .*/, ''));
    expect(told, 'at the deadline').toEqual(slots.map((slot) => `${slot}! TIMEOUT m`));
    // Those that reuse the slots are pending themselves when the late replies come.
    const reused = slots.map((slot) =>
      `${slot} ${JSON.stringify({ waitMs: 400, reply: `right ${at} ${slot}` })}\n`);
    client.fin(reused.join(''));
    const replies = framesOf((await client.readToFin()).toString());
    expect(replies.sort((a, b) => parseInt(a) - parseInt(b)), 'in the same slots').toEqual(
      slots.map((slot) => `${slot} right ${at} ${slot}`));
  });
  for (let round = 0; round < ROUNDS; round++) {
    await Promise.all(Array.from({ length: CONNECTIONS }, (_, at) => reuse(at)));
  }
  const after = await server.stats();
  expect(after.errors - before.errors, 'errors counted').toBe(ROUNDS * CONNECTIONS * SLOTS);
  expect((after.limits.callbackTimeoutMs ?? 0) - (before.limits.callbackTimeoutMs ?? 0), 'deadlines counted')
    .toBe(ROUNDS * CONNECTIONS * SLOTS);
  await stillServes(server, { ask: 'fine' });
}));

fault('A19', 'a client whose server is late by 300 ms and knows no cancel', async () => {
  const [CLIENTS, CALLS] = [10, 1_000];
  await RawServer.with((socket) => {
    eachLine(socket, (line) => {
      if (line.startsWith('\x01')) socket.write('\x01portcall/1\n');
      const [, slot, text = ''] = /^(\d+)\S* (.*)$/.exec(line) ?? [];
      if (slot === undefined) return;
      const reply = (): void => { if (socket.writable) socket.write(`${slot} ${text}\n`); };
      if (text.startsWith('late')) setTimeout(reply, 300);
      else reply();
    });
  }, async ({ port }) => {
    await Promise.all(Array.from({ length: CLIENTS }, async (_, number) => {
      const client = new MicroClient(port, { log: () => {}, timeoutMs: 5_000 });
      const ask = (kind: string, options: { timeoutMs?: number }) => Promise.allSettled(Array.from({ length: CALLS },
        (_, at) => client.sendMessage(`${kind} ${number} ${at}`, options)));
      const right = (ends: PromiseSettledResult<string>[], kind: string) => {
        const wrong = ends.findIndex((end, at) =>
          end.status === 'rejected' || end.value !== `${kind} ${number} ${at}`);
        expect(ends[wrong], `${kind}: call ${wrong}`).toBeUndefined();
      };
      right(await ask('first', {}), 'first'); // its connection is a good one
      const late = await ask('late', { timeoutMs: 100 });
      const codes = late.map((end) => (end.status === 'rejected' ? (end.reason as MicroError).code : end.value));
      expect([...new Set(codes)], 'late calls').toEqual(['TIMEOUT']);
      for (let wave = 1; wave <= 8; wave++) { // while the late replies come, and after
        right(await ask(`wave${wave}`, {}), `wave${wave}`);
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      await client.close();
    }));
  });
});

fault('A20', 'hello after a line, line after a hello, ZMTP after either', () => monitored(server, {}, async () => {
  const zmtp = ['ff00000000000000017f0300', Buffer.from('NULL').toString('hex'), '00'.repeat(48)].join('');
  const withZmtp = (before: string, after: string) =>
    Buffer.concat([Buffer.from(before), Buffer.from(zmtp, 'hex'), Buffer.from(after)]);
  const [hello, refused] = [/^\x01portcall\/1( .*)?$/, /^! PROTOCOL_ERROR r: /];
  const rows: { name: string; bytes: Buffer; expected: RegExp[]; runs: string[] }[] = [
    { name: 'hello after a line', bytes: Buffer.from('one\n\x01portcall/1 timeout=5\n0 two\n'),
      expected: [/^one$/, /^(\x01portcall\/1 timeout=5|ERR [A-Z_]+ .*)$/, /^0 two$/], runs: ['one', '0 two'] },
    { name: 'line after a hello', bytes: Buffer.from('\x01portcall/1\n0 one\ntwo\n$ping\n{"reply":"x"}\n1 three\n'),
      expected: [hello, /^0 one$/, refused, refused, refused, /^1 three$/], runs: ['one', 'three'] },
    { name: 'a second hello', bytes: Buffer.from('\x01portcall/1\n0 one\n\x01portcall/1\n\x01portcall/2\n1 two\n'),
      expected: [hello, /^0 one$/, refused, refused, /^1 two$/], runs: ['one', 'two'] },
    { name: 'ZMTP greeting after a line', bytes: withZmtp('one\n', '\ntwo\n'),
      expected: [/^one$/, /^ERR BAD_MESSAGE /, /^two$/], runs: ['one', 'two'] },
    { name: 'ZMTP greeting after a hello', bytes: withZmtp('\x01portcall/1\n0 one\n', '\n1 two\n'),
      expected: [hello, /^0 one$/, /^! (PROTOCOL_ERROR|BAD_MESSAGE) r: /, /^1 two$/], runs: ['one', 'two'] },
  ];
  for (const { name, bytes, expected, runs } of rows) {
    for (const pieceBytes of [bytes.length, 1, 7]) {
      const how = `${name}, ${pieceBytes} bytes a packet`;
      const run = await server.runsOf(() => RawClient.with(server.port, async (client) => {
        await client.writeSlices(bytes, pieceBytes, pieceBytes === 1 ? undefined : () => server.hasRead());
        client.fin();
        const answer = framesOf((await client.readToFin()).toString());
        expect(answer.length, `${how}: ${JSON.stringify(answer)}`).toBe(expected.length);
        expected.forEach((line, at) => expect(answer[at], how).toMatch(line));
      }));
      expect(run.filter((message) => !message.startsWith('\x01')), `${how}: run`).toEqual(runs);
      expect(new Set(run).size, `${how}: nothing twice`).toBe(run.length);
    }
  }
  await stillServes(server, { ask: 'fine' });
}));

fault('A21', 'hello of another version or none, request in the same packet', () => monitored(server, {}, async () => {
  const versions = ['/2', '/0', '/x', '/', '', '/01', '/1x', '/1.0', '/-1', '/11', '/2 timeout=5', '/1\t', ' /1'];
  const hellos = [...versions.map((version) => `\x01portcall${version}`), '\x01', '\x01PORTCALL/1', '\x01port'];
  const runs = await server.runsOf(() => Promise.all(hellos.flatMap((hello) => [1_000, 3].map((pieceBytes) =>
    RawClient.with(server.port, async (client) => {
      const how = `${JSON.stringify(hello)}, ${pieceBytes} bytes a packet`;
      await client.writeSlices(`${hello}\n0 run me\nrun me\n`, pieceBytes, () => server.hasRead());
      const began = performance.now();
      const answer = (await client.readToFin(1_000, `FIN after ${how}`)).toString();
      expect(performance.now() - began, `${how}: ms to its end`).toBeLessThan(1_000);
      expect(answer, how).toMatch(/^(goodbye PROTOCOL_ERROR r: |ERR PROTOCOL_ERROR ).*(portcall\/1|frames).*\n$/);
    })))));
  expect(runs, 'run').toEqual([]);
  await stillServes(server, { ask: 'fine' });
}));

fault('A22', 'frames with a 100,000-byte id, ×1,000', () => monitored(server, {}, async () => {
  const long = '7'.repeat(100_000);
  const frames = [`${long} bad`, `0#${long} bad`, `0~${long} bad`, `0@${long} bad`, `cancel ${long}`, `${long}! bad`];
  for (const [at, frame] of frames.entries()) {
    const times = FULL || at < 2 ? 1_000 : 100;
    const how = `${frame.slice(0, 8)}…`;
    const runs = await server.runsOf(() => RawClient.with(server.port, async (client) => {
      await client.write(HELLO);
      for (let count = 0; count < times; count++) await client.write(`${frame}\n`);
      await client.write('1 fine\n');
      const [, ...heard] = await client.readLines(2 + times, 10_000);
      expect(heard.pop(), how).toBe('1 fine');
      expect(new Set(heard.map((line) => line.slice(0, 21))), how).toEqual(new Set(['! PROTOCOL_ERROR r: C']));
      expect(Math.max(...heard.map((line) => line.length)), `${how}: none is sent back`).toBeLessThan(500);
    }));
    expect(runs, how).toEqual(['fine']);
  }
  await RawClient.with(server.port, async (client) => { // the longest id that is one, and one letter more
    const id = 'i'.repeat(128);
    expect(framesOf(await client.ask(`${HELLO}0#${id} a\n1#${id}i b\n`)).slice(1)).toEqual(
      ['0 a', expect.stringMatching(/^! PROTOCOL_ERROR r: /)]);
  });
  await RawClient.with(server.port, async (client) => {
    expect(await client.ask(`${long}\n${long} text\n`) === `${long}\n${long} text\n`, 'plain text in lines').toBe(true);
  });
  await stillServes(server, { ask: 'fine' });
}));
