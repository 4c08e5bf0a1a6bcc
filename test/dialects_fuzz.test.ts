/** What every further dialect must bear: inputs bent by chance, seeded. `FAULTS=full` tries 200,000 each. */
import { describe, expect, it, vi } from 'vitest';
import type { Sink } from '../lib/micro_client.ts';
import { MicroServer } from '../lib/micro_server.ts';
import { createEcho } from '../services/echo.ts';
import { FURTHER, FURTHER_NAMES } from './helpers/dialects.ts';
import { FULL } from './helpers/faults.ts';
import { FUZZ_SEED, fuzzRuns, seeded, type Random } from './helpers/random.ts';
import { stillServes } from './helpers/still_serves.ts';
import { askDuplex, eventsOf, loadVectors, openCodec, type Vector } from './helpers/vectors.ts';

vi.setConfig({ testTimeout: FULL ? 600_000 : 20_000 });
const RUNS = fuzzRuns(FULL ? 200_000 : 3_000);
const SERVED = 50; // each so many, one is shown to a server
const MAX_BYTES = 100; // of a message
/** The vectors that are bent, and the most that a codec may hold of an unfinished message. */
const ROWS = [
  { dialect: 'raw', file: 'raw.json', maxHeld: 2 * MAX_BYTES + 512 },
  { dialect: 'sized', file: 'sized_header.json', maxHeld: MAX_BYTES + 64 },
] as const;

const SPLICES = ['\n', '\r', '\0', ' ', '5', '64'.padEnd(64), '3'.padEnd(64), '999'.padEnd(64), '&END', 'revert', 'GET / ', 'é', '😀',
  '\xff', '$', 'ERR TIMEOUT ', '-', '9'.repeat(21)].map((text) => Buffer.from(text, text === '\xff' ? 'latin1' : 'utf8'));

/** The bytes of a vector, with one to six things done to them. */
function bend(bytes: Buffer, random: Random): Buffer {
  let bent = Buffer.from(bytes.subarray(0, 2_000));
  for (let times = random.between(1, 6); times > 0; times--) {
    const [at, to] = [random.int(bent.length + 1), random.int(bent.length + 1)].sort((a, b) => a - b) as [number, number];
    const [before, piece, after] = [bent.subarray(0, at), bent.subarray(at, to), bent.subarray(to)];
    bent = Buffer.concat(random.pick([
      () => [before, after],
      () => [before, piece, piece, after],
      () => [before, random.pick(SPLICES), piece, after],
      () => [before, random.bytes(random.between(1, 4)), piece, after],
      () => [after, before],
      () => [before, Buffer.from(piece.map((byte) => (random.int(8) === 0 ? byte ^ (1 << random.int(8)) : byte))), after],
    ])()).subarray(0, 4_000);
  }
  return bent;
}

function cut(bytes: Buffer, random: Random): Buffer[] {
  const pieces: Buffer[] = [];
  const most = random.between(1, 40);
  for (let at = 0; at < bytes.length; at += pieces.at(-1)!.length) {
    pieces.push(bytes.subarray(at, at + random.between(1, most)));
  }
  return pieces;
}

describe.each(ROWS)('$dialect', ({ file, maxHeld }) => {
  const vectors = loadVectors(file);

  it(`${RUNS} bent inputs: nothing is thrown, little is held, any split gives the same`, () => {
    const random = seeded();
    for (let run = 0; run < RUNS; run++) {
      const base = random.pick(vectors);
      const bytes = bend(base.bytes, random);
      const silences = new Map(Array.from({ length: random.int(4) }, () =>
        [random.int(bytes.length + 1), random.pick([24, 25, 200, 9_000])]));
      const vector: Vector = { ...base, bytes, silences, maxMessageBytes: MAX_BYTES };
      const how = `FUZZ_SEED=${FUZZ_SEED}, run ${run}, ${base.name}: ${bytes.toString('hex')}`;
      const pieces = cut(bytes, random);
      const whole = JSON.stringify(eventsOf(vector, [bytes]));
      if (JSON.stringify(eventsOf(vector, pieces)) !== whole) {
        expect(eventsOf(vector, pieces), how).toEqual(eventsOf(vector, [bytes]));
      }
      let isOver = false;
      const sink: Sink = { message() {}, response() {}, error() {}, write() {}, close() { isOver = true; } };
      const { codec } = openCodec(vector, sink);
      for (const piece of pieces) {
        if (isOver) break;
        codec.receive(piece, sink);
        if (codec.heldBytes > maxHeld) expect(codec.heldBytes, how).toBeLessThanOrEqual(maxHeld);
      }
    }
  });

  it(`${RUNS / SERVED} of them to a server with all dialects: each ends, and the next client is served`, async () => {
    const random = seeded();
    const dialects = FURTHER_NAMES.map((name) => FURTHER[name]());
    const server = new MicroServer(createEcho(), 0, { dialects, maxMessageBytes: MAX_BYTES, log() {} });
    const { port } = await server.startListening();
    const uncaught: unknown[] = [];
    const note = (error: unknown): void => { uncaught.push(error); };
    process.on('uncaughtException', note);
    for (let run = 0; run < RUNS / SERVED; run++) {
      const bytes = bend(random.pick(vectors).bytes, random);
      if (bytes.length > 0) await askDuplex(server, cut(bytes, random));
    }
    process.off('uncaughtException', note);
    expect(uncaught, `FUZZ_SEED=${FUZZ_SEED}`).toEqual([]);
    await stillServes({ port: port as number }, { ask: 'fine' });
    expect(server.stats()).toMatchObject({ inFlight: 0 });
    await server.stop();
  });
});
