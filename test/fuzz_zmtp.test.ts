/** Mutated ZMTP: no bytes make its codec throw, hang or fill memory, nor its server refuse the next. */
import { describe, expect, it } from 'vitest';
import { zmtp } from '../lib/dialects/zmtp.ts';
import type { CodecOptions, Sink } from '../lib/micro_client.ts';
import { MicroServer } from '../lib/micro_server.ts';
import { createEcho } from '../services/echo.ts';
import { FULL } from './helpers/faults.ts';
import { FUZZ_SEED, fuzzRuns, seeded, type Random } from './helpers/random.ts';
import { RawClient } from './helpers/raw_client.ts';
import { stillServes } from './helpers/still_serves.ts';
import { command, frame, greetingOf, message, messagesOf, opening, property } from './helpers/zmtp_wire.ts';

const MAX_BYTES = 64;
const RUNS = fuzzRuns(FULL ? 70_000 : 5_000); // of each of the three

/** What peers say, whole: mutations start from here. */
const SEEDS: readonly Buffer[] = [
  ...['REQ', 'DEALER', 'REP', 'ROUTER', 'PUB'].map((type) => greetingOf(type, 'me')),
  opening({ mechanism: 'PLAIN' }), opening({ minor: 0 }),
  Buffer.from('ff00000000000000017f0103', 'hex'), frame(0, ''),
  message('', 'hello'), message('id', '', 'a', '', 'b'), message('x'.repeat(300)), message('', 'é☃'),
  message(...Array.from({ length: 40 }, () => '')), command('PING', '\0\x01ctx'), command('PONG', '7'),
  command('ERROR', '\x02no'), command('READY', property('Socket-Type', 'REQ')), frame(1, 'a'), frame(3, ''),
];
const EDGES = [0, 1, 2, 3, 4, 5, 6, 7, 8, 0x7f, 0x80, 0xfe, 0xff];

function mutated(random: Random): Buffer {
  const head = random.int(4) > 0 ? [greetingOf(random.pick(['REQ', 'DEALER', 'ROUTER']))] : [];
  const bytes = Buffer.concat([...head, ...Array.from({ length: random.between(1, 6) }, () => random.pick(SEEDS))]);
  for (let times = random.int(6); times > 0; times--) {
    const at = random.int(bytes.length);
    const how = random.int(4);
    if (how === 0) bytes[at] = random.pick(EDGES);
    else if (how === 1) bytes[at] = bytes[at]! ^ (1 << random.int(8));
    else if (how === 2) bytes.copyWithin(at, random.int(bytes.length));
    else bytes.fill(random.pick(EDGES), at, Math.min(bytes.length, at + random.between(1, 9)));
  }
  return bytes.subarray(0, random.int(8) === 0 ? random.int(bytes.length) : bytes.length);
}

/** What the codec told, shortly; fails where it told what it must not, or keeps too much. */
function run(options: CodecOptions, bytes: Buffer, random: Random): string {
  const told: string[] = [];
  let isClosed = false;
  const tell = (...words: unknown[]): void => { if (!isClosed) told.push(words.join(' ')); };
  const codec = zmtp().open(options);
  const sink: Sink = {
    hello: () => tell('hello'),
    message(asked) {
      if (Buffer.byteLength(asked.text) > 3 * MAX_BYTES + 1_024) throw new Error('a text past the limit');
      tell('message', asked.text, asked.parts?.length);
      codec.encode('reply', asked.text, asked.tag);
      codec.encode('reply', asked.parts ?? [], asked.tag);
    },
    response: (tag, kind) => tell('response', tag, kind),
    error: (code) => tell('error', code),
    write: () => {},
    close: () => { tell('close'); isClosed = true; },
  };
  codec.start?.(sink);
  for (let at = 0; at < bytes.length && !isClosed;) {
    const lent = Buffer.from(bytes.subarray(at, at + random.between(1, random.pick([3, 40, 5_000]))));
    at += lent.length;
    codec.receive(lent, sink);
    lent.fill(0xff);
    if (codec.heldBytes > MAX_BYTES + 16 * 1024) throw new Error(`it holds ${codec.heldBytes} bytes`);
  }
  return told.join('\n');
}

describe('whatever ZMTP comes', () => {
  it.each([['accepted', 'server'], ['dialled', 'server'], ['dialled', 'client']] as const)(
    `a codec goes on: %s, %s (${RUNS} runs)`, (side, role) => {
      const random = seeded(FUZZ_SEED);
      const options = { side, role, maxMessageBytes: MAX_BYTES, readsParts: true };
      for (let round = 0; round < RUNS; round++) {
        const bytes = mutated(random);
        const splits = [seeded(round), seeded(round + 1)];
        try {
          const [first, second] = splits.map((split) => run(options, bytes, split));
          if (first !== second) throw new Error(`splits differ:\n${first}\n---\n${second}`);
        } catch (error) {
          throw new Error(`FUZZ_SEED=${FUZZ_SEED}, round ${round}, ${bytes.toString('hex')}`, { cause: error });
        }
      }
    }, 600_000);

  it('a server serves the next client', async () => {
    const random = seeded(FUZZ_SEED);
    const server = new MicroServer(createEcho(), 0,
      { dialects: [zmtp()], maxMessageBytes: 1_024, log() {}, maxConnections: 512 });
    const { port } = await server.startListening() as { port: number };
    try {
      for (let round = 0; round < (FULL ? 200 : 20); round++) {
        await Promise.all(Array.from({ length: 25 }, () => RawClient.with(port, async (client) => {
          client.fin(mutated(random));
          await client.closed;
        })));
        await RawClient.with(port, async (client) => {
          client.fin(Buffer.concat([greetingOf('REQ'), message('', 'still there')]));
          const heard = messagesOf((await client.readToFin()).subarray(64));
          expect(heard.filter(([name]) => name === ''), `FUZZ_SEED=${FUZZ_SEED}, round ${round}`).toEqual([['', 'still there']]);
        });
      }
      await stillServes({ port });
      expect(server.stats().connections).toBeLessThan(10);
    } finally {
      await server.stop({ graceMs: 0 });
    }
  }, 600_000);

  it.each([
    ['a million empty parts', Buffer.from('0100'.repeat(1_000_000), 'hex')],
    ['a million PINGs between parts', Buffer.concat([frame(1, ''), Buffer.alloc(9_000_000, command('PING', '\0\0'))])],
    ['a million bytes, one at a time', Buffer.concat([frame(1, ''), Buffer.from('020000000000100000', 'hex'), Buffer.alloc(1_000_000)])],
  ])('%s cost little', (_, bytes) => {
    const codec = zmtp().open({ side: 'accepted', role: 'server', maxMessageBytes: 2_000_000 });
    let written = 0;
    const sink: Sink = { message() {}, response() {}, error() {}, close() {},
      write: (body) => { written += body.length; } };
    const before = process.memoryUsage();
    const began = performance.now();
    codec.receive(greetingOf('DEALER'), sink);
    const step = bytes.length > 1_100_000 ? 1_000 : 1;
    for (let at = 0; at < bytes.length; at += step) codec.receive(bytes.subarray(at, at + step), sink);
    const after = process.memoryUsage();
    expect(performance.now() - began, 'milliseconds').toBeLessThan(5_000);
    expect(codec.heldBytes).toBeLessThan(2_000_000);
    expect(written).toBeLessThan(100_000);
    expect(after.external - before.external, 'bytes outside the heap').toBeLessThan(64 * 1024 * 1024);
  });
});
