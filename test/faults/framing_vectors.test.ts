/** Group A, the vectors of every dialect: how bytes are cut into packets changes nothing. */
import { readdirSync } from 'node:fs';
import { afterAll, expect } from 'vitest';
import { isFurther } from '../helpers/dialects.ts';
import { fault, FULL, some } from '../helpers/faults.ts';
import { monitored } from '../helpers/monitor.ts';
import { everyCut, inBytes, inPackets, inTwo, type Packets } from '../helpers/packets.ts';
import { seeded } from '../helpers/random.ts';
import { ServerProcess } from '../helpers/server_process.ts';
import { stillServes } from '../helpers/still_serves.ts';
import { eventsOf, loadVectors, type Vector } from '../helpers/vectors.ts';

const files = readdirSync(new URL('../vectors/', import.meta.url)).filter((file) => file.endsWith('.json')).sort();
const vectors = files.flatMap((file) =>
  loadVectors(file).map((vector) => ({ ...vector, name: `${file}: ${vector.name}` })));
/** Over tcp: but for raw, where the time that a packet takes counts. */
const answered = vectors.filter(({ answer, dialect }) => answer !== undefined && dialect !== 'raw');
/** Those that a codec can be shown alone; the first bytes are told by the server. */
const shown = vectors.filter(({ name, events }) => events.length > 0 && !name.startsWith('first_bytes.json'));
const CUTS = 800; // of some 30,000, in the quick run
/** Of as many: test/vectors.test.ts holds each cut of a vector up to 1,500 bytes against what the vector says. */
const CODEC_CUTS = 8_000;
const LONG_BYTES = 2_000; // of these, not every cut

const servers = new Map<string, Promise<ServerProcess>>();
afterAll(async () => {
  for (const server of servers.values()) await (await server).kill();
});

/** What an echo server needs for a vector: its limit, and its dialect where that is not always on. */
const needOf = ({ maxMessageBytes, dialect }: Vector): string =>
  `${maxMessageBytes} ${isFurther(dialect) ? dialect : ''}`;

function echo(need: string): Promise<ServerProcess> {
  const [max = '', dialect = ''] = need.split(' ');
  const dialects = isFurther(dialect) ? [dialect] : [];
  const server = servers.get(need) ?? ServerProcess.start({ dialects, options: { maxMessageBytes: Number(max) } });
  servers.set(need, server);
  return server;
}

type Row = Packets & { vector: Vector };

/** What is different, the first of each vector, so that a failure shows them all. */
class Differences {
  readonly #found = new Map<Vector, string>();

  compare({ vector, how }: Row, got: string, whole: string | undefined): void {
    if (got === whole || this.#found.has(vector)) return;
    this.#found.set(vector, `${vector.name}, ${how}: ${got.slice(0, 500)} … in place of ${whole?.slice(0, 500)}`);
  }

  check(): void {
    expect([...this.#found.values()]).toEqual([]);
  }
}

/** Sends the rows, and compares each answer with that to the same bytes in one packet. */
async function sameAnswers(rows: readonly Row[]): Promise<void> {
  const differences = new Differences();
  const shownOf = (answer: Buffer) => answer.toString('latin1').replace(/^\{"requests":.*/gm, 'the numbers of $stats');
  for (const need of new Set(rows.map(({ vector }) => needOf(vector)))) {
    const server = await echo(need);
    const ofServer = rows.filter(({ vector }) => needOf(vector) === need);
    await monitored(server, parseInt(need) < 100 ? { ask: '$ping', reply: 'pong' } : {}, async () => {
      const wholes = new Map<Vector, string>();
      const uncut = [...new Set(ofServer.map(({ vector }) => vector))].map((vector) =>
        ({ vector, pieces: [vector.bytes], how: `${vector.name}, uncut` }));
      await inPackets(server, uncut, (answer, { vector }) => wholes.set(vector, shownOf(answer)));
      await inPackets(server, ofServer, (answer, row) =>
        differences.compare(row, shownOf(answer), wholes.get(row.vector)));
      await stillServes(server);
    });
  }
  differences.check();
}

/** The same for what a codec tells: messages, errors and what it writes. */
function sameEvents(rows: readonly Row[]): void {
  const differences = new Differences();
  const wholes = new Map<Vector, string>();
  for (const row of rows) {
    const { vector, pieces } = row;
    const whole = wholes.get(vector) ?? JSON.stringify(eventsOf(vector, [vector.bytes]));
    wholes.set(vector, whole);
    differences.compare(row, JSON.stringify(eventsOf(vector, pieces)), whole);
  }
  differences.check();
}

function cutsOf({ bytes }: Vector): number[] {
  if (bytes.length <= LONG_BYTES) return everyCut(bytes);
  return [1, ...seeded().sample(everyCut(bytes), FULL ? 2_000 : 20), bytes.length - 1];
}

fault('A01', `each of ${answered.length} vectors over tcp, cut in two at every byte`, async () => {
  expect(answered.length, 'vectors').toBeGreaterThan(200);
  const rows = answered.flatMap((vector) =>
    inTwo(vector.bytes, cutsOf(vector)).map((row) => ({ ...row, vector })));
  await sameAnswers(some(rows, CUTS));
});

fault('A01', `each of ${shown.length} vectors in a codec, cut in two at every byte`, async () => {
  const rows = shown.flatMap((vector) => inTwo(vector.bytes, cutsOf(vector)).map((row) => ({ ...row, vector })));
  sameEvents(some(rows, CODEC_CUTS));
});

fault('A02', `each of ${answered.length} vectors over tcp, in 1-byte packets`, async () => {
  const most = FULL ? LONG_BYTES : 100;
  const short = answered.filter(({ bytes }) => bytes.length > 0 && bytes.length <= most);
  expect(short.length, 'vectors').toBeGreaterThan(200);
  const rows = short.map((vector) => ({ ...inBytes(vector.bytes), vector }));
  await sameAnswers(rows.sort((a, b) => a.pieces.length - b.pieces.length)); // batches of about one length
});

fault('A02', `each of ${shown.length} vectors in a codec, in 1-byte packets`, async () => {
  sameEvents(shown.map((vector) => ({ ...inBytes(vector.bytes), vector })));
});
