import { afterAll, describe, expect, it } from 'vitest';
import { MicroClient, frames, type Dialect } from '../lib/micro_client.ts';
import { MicroServer, type Service } from '../lib/micro_server.ts';
import { zmtp } from '../lib/dialects/zmtp.ts';
import { createEcho } from '../services/echo.ts';
import { FUZZ_SEED, fuzzRuns, seeded } from './helpers/random.ts';
import {
  askDuplex, askSocket, checkAnswer, checkVector, closesItself, eventsOf, loadVectors, splits, type Vector,
} from './helpers/vectors.ts';
import { greetingOf } from './helpers/zmtp_wire.ts';

const FILES = ['lines.json', 'frames.json', 'frames_client.json', 'zmtp.json'];
const servers = new Map<string, Promise<MicroServer>>();

/** One echo server for each `maxMessageBytes`, with ZMTP and without. */
function echoServer(maxMessageBytes: number, dialect = ''): Promise<MicroServer> {
  const dialects = dialect === 'zmtp' ? [zmtp()] : [];
  const id = `${maxMessageBytes} ${dialects.length}`;
  const known = servers.get(id) ?? (async () => {
    const server = new MicroServer(createEcho(), 0, { maxMessageBytes, dialects });
    await server.startListening();
    return server;
  })();
  servers.set(id, known);
  return known;
}
afterAll(async () => {
  for (const server of servers.values()) await (await server).stop();
});

async function checkServer(server: MicroServer, vector: Omit<Vector, 'dialect'>, fin: boolean): Promise<void> {
  checkAnswer(vector, await askSocket(server.address?.port as number, vector.bytes, fin), 'over tcp');
  for (const [how, pieces] of splits(vector.bytes, FUZZ_SEED, 3)) {
    if (how.startsWith('cut')) continue;
    checkAnswer(vector, await askDuplex(server, pieces, fin), how);
  }
}

describe.each(FILES)('%s', (file) => {
  const vectors = loadVectors(file);
  it.each(vectors)('a codec, in any split: $name', (vector) => {
    const opened = vector.peer === undefined ? 0 : greetingOf(vector.peer).length; // is cut in others
    for (const [how, pieces] of splits(vector.bytes)) {
      if (pieces.length !== 2 || pieces[0]!.length >= opened) checkVector(vector, pieces, how);
    }
  });
  it.each(vectors.filter(({ answer }) => answer !== undefined))('an echo server: $name', async (vector) => {
    await checkServer(await echoServer(vector.maxMessageBytes, vector.dialect), vector, !closesItself(vector));
  });
});

describe('first_bytes.json', () => {
  const vectors = loadVectors('first_bytes.json') as unknown as (Omit<Vector, 'dialect'> & { dialect: string })[];
  it.each(vectors)('$name: $dialect', async (vector) => {
    const { bytes, dialect } = vector;
    expect(frames().matches(bytes), 'frames').toBe(dialect === 'frames' ? 'yes'
      : dialect === 'undecided' ? 'more' : 'no');
    await checkServer(await echoServer(1024 * 1024), vector, dialect !== 'none');
  });

  it.each(['lines', 'frames'])('tells the service the dialect: %s', async (wanted) => {
    const told: string[] = [];
    const server = new MicroServer((message, { client }) => { told.push(client.dialect); return message; }, 0);
    const vector = vectors.find(({ dialect, answer }) => dialect === wanted && answer?.at(-1) !== undefined);
    for (const [, pieces] of splits(vector?.bytes ?? Buffer.of(), FUZZ_SEED, 2)) await askDuplex(server, pieces);
    expect(new Set(told)).toEqual(new Set([wanted]));
  });

  it('tells a service that has `connected` the dialect too', async () => {
    const told: string[] = [];
    const service: Service = { connected() {}, callback(message, { client }) {
      told.push(client.dialect);
      return message;
    } };
    await askDuplex(new MicroServer(service, 0), [Buffer.from('a\n')]);
    expect(told).toEqual(['lines']);
  });

  /** A dialect that begins with FF and a digit, and answers at once. */
  const claiming = (name: string, matches: Dialect['matches']): Dialect => ({
    name, ordered: true, matches, open: () => ({
      heldBytes: 0, request: () => '', encode: () => '',
      receive: (chunk, sink) => sink.write(`${name} ${Buffer.from(chunk).toString('hex')}\n`),
    }),
  });
  it('an enabled dialect takes what would be refused, byte by byte too', async () => {
    const ff = claiming('ff', (head) => (head[0] !== 0xff ? 'no' : head.length < 2 ? 'more' : 'yes'));
    const server = new MicroServer(createEcho(), 0, { dialects: [ff] });
    const bytes = Buffer.from('ff00', 'hex');
    expect(String(await askDuplex(server, [bytes]))).toBe('ff ff00\n');
    expect(String(await askDuplex(server, [bytes.subarray(0, 1), bytes.subarray(1)]))).toBe('ff ff00\n');
    expect(String(await askDuplex(server, [Buffer.from('fe\n')]))).toBe('fe\n');
  });
  it('what a dialect might still claim is lines once it does not, or at FIN', async () => {
    const digits = claiming('sized', (head) => {
      const text = Buffer.from(head).toString('latin1');
      return !/^\d+ *$/.test(text) ? 'no' : text.length < 8 ? 'more' : 'yes';
    });
    const server = new MicroServer(createEcho(), 0, { dialects: [digits] });
    for (const pieces of [['12'], ['1', '2'], ['12\n'], ['1', '2', '\n']]) {
      expect(String(await askDuplex(server, pieces.map((piece) => Buffer.from(piece)))), pieces.join('|')).toBe('12\n');
    }
    expect(String(await askDuplex(server, [Buffer.from('12   '), Buffer.from('   ')]))).toMatch(/^sized /);
  });
});

describe('whatever bytes come', () => {
  const WORDS = ['\x01portcall/1', ' ', ' ', '\n', '\n', '\n', '\r\n', '0', '1', '12', '999999999', '@', '5', '#', '~', '+', '.',
    '!', '\\', '\\n', 'cancel', 'credit', 'ping', 'pong', 'gone', 'draining', 'goodbye', ' TIMEOUT m: ', ' SERVER_BUSY r 200: ',
    '$ping', '$$', 'a', 'é', '☃', '😀', '\u2028', '\0', '%41', '%zz', '=', 'x'.repeat(13), 'y'.repeat(300), 'POST / HTTP/1.1',
    'Host: a', 'ERR TIMEOUT x'];
  const ROUNDS = fuzzRuns(150);
  it.each([['lines', 'server'], ['frames', 'server'], ['frames', 'client']] as const)(
    'a codec never throws, and every split gives the same: %s, %s', (dialect, role) => {
      const random = seeded(FUZZ_SEED);
      for (let round = 0; round < ROUNDS; round++) {
        const pieces = Array.from({ length: random.between(1, 40) }, () =>
          (random.int(12) === 0 ? random.bytes(random.between(1, 3)) : Buffer.from(random.pick(WORDS))));
        const greeting = dialect === 'frames' && random.int(4) > 0 ? '\x01portcall/1\n' : '';
        const bytes = Buffer.concat([Buffer.from(greeting), ...pieces]);
        const vector: Vector = { name: `FUZZ_SEED=${FUZZ_SEED}, round ${round}, ${bytes.toString('hex')}`, dialect, role,
          side: role === 'server' ? 'accepted' : 'dialled', maxMessageBytes: 12, hello: {}, readsParts: false, bytes, asks: [], says: [],
          controls: [], events: [] };
        vector.events = eventsOf(vector, [bytes]).events;
        for (const [how, split] of splits(bytes, FUZZ_SEED + round, 4)) {
          if (!how.startsWith('cut') || random.int(10) === 0) checkVector(vector, split, how);
        }
      }
    });
  it('a chunk of a great many bad lines costs little', () => {
    const bad = Array.from({ length: 200_000 }, (_, i) => (i % 2 ? 10 : 0xff));
    const bytes = Buffer.concat([Buffer.from('a\n'.repeat(100_000)), Buffer.from([0xff, 10]), Buffer.from(bad)]);
    const vector: Vector = { ...(loadVectors('lines.json')[0] as Vector), bytes };
    const began = performance.now();
    const { events } = eventsOf(vector, [bytes]);
    expect(events.length).toBe(200_001);
    expect(performance.now() - began).toBeLessThan(3_000);
  });
  it('a text comes back the same: any that UTF-8 can carry', async () => {
    const random = seeded(FUZZ_SEED);
    const server = await echoServer(1024 * 1024);
    const letters = ['a', ' ', '\n', '\r', '\\', '\\n', '\0', '\x01', '\u2028', '\ufeff', 'é', '☃', '😀', '\u{10ffff}',
      ...'$0+!.~#@'];
    const client = new MicroClient(server.address?.port as number);
    const texts = Array.from({ length: ROUNDS }, () =>
      Array.from({ length: random.int(30) }, () => random.pick(letters)).join(''));
    const replies = await Promise.all(texts.map((text) => client.sendMessage(text)));
    expect(replies, `FUZZ_SEED=${FUZZ_SEED}`).toEqual(texts);
    await client.close();
  });
});

describe('replies over lines come in the order of the requests', () => {
  const wanted = Array.from({ length: 600 }, (_, i) => (i === 290 ? 'pong' : i === 580 ? 'bad' : String(i)));
  const bytes = Buffer.concat(wanted.map((line) => (line === 'bad' ? Buffer.from([0x80, 10])
    : Buffer.from(line === 'pong' ? '$ping\n' : `${line}\n`))));
  const shown = (answer: Buffer): string[] => answer.toString().trimEnd().split('\n')
    .map((line) => (line.startsWith('ERR BAD_MESSAGE') ? 'bad' : line));
  it('at once', async () => {
    const server = new MicroServer((message) => message, 0);
    expect(shown(await askDuplex(server, [bytes]))).toEqual(wanted);
  });
  it('from callbacks that end in any order', async () => {
    const server = new MicroServer(async (message) => {
      for (let turns = Number(message) % 7; turns > 0; turns--) await null;
      return message;
    }, 0, { maxInFlight: 10 });
    for (const [how, pieces] of splits(bytes, FUZZ_SEED, 2)) {
      expect(shown(await askDuplex(server, pieces)), how).toEqual(wanted);
    }
  });
});
