/**
 * Runs the vectors of `test/vectors`: through a codec in any split, and against a real server. Their
 * format is told in PROTOCOL.md "Vectors". For any test that wants known bytes and what comes of them.
 */
import { readFileSync } from 'node:fs';
import { Duplex } from 'node:stream';
import { expect } from 'vitest';
import {
  MicroError, type Body, type Codec, type Control, type ErrorCode, type Kind, type LineCodec,
  type Message, type Outcome, type Sink,
} from '../../lib/micro_client.ts';
import { lines, type MicroServer } from '../../lib/micro_server.ts';
import { within } from './deadline.ts';
import { DIALECTS } from './dialects.ts';
import { FUZZ_SEED, fuzzRuns, seeded } from './random.ts';
import { RawClient } from './raw_client.ts';
import { framesOf, greetingOf, messagesOf, shownPart, type ZmtpMessage } from './zmtp_wire.ts';

/** A piece of the bytes: text as UTF-8, or hex; a bare string is text. Or a silence behind those before it. */
type Piece = string | { text?: string; hex?: string; times?: number; silentMs?: number };
/**
 * A line of an answer, whole or as it begins: errors may be worded otherwise. `rest`: all else. Of
 * ZMTP a message, as the list of its parts.
 */
type AnswerLine = string | { starts: string } | { rest: true } | ZmtpMessage;
/** A slot or a line's number; of a request over ZMTP its envelope, as the list of its parts; `raw`. */
type ShownTag = number | string[] | 'raw';
interface Failure {
  tag?: ShownTag; kind?: 'error'; code: ErrorCode; outcome?: Outcome; retryAfterMs?: number; text?: string;
}
type VectorEvent =
  | { hello: Record<string, string> }
  | { message: { tag: ShownTag; text: string; parts?: string[]; timeoutMs?: number; id?: string; client?: string } }
  | { response: { tag: ShownTag; kind: 'reply' | 'part' | 'end'; text: string } | Failure }
  | { control: [word: string, argument?: number | string, count?: number] }
  | { command: { tag: ShownTag; line: string } }
  | { error: Failure }
  | { write: string }
  | { finish: true }
  | { close: null | { starts: string } | Failure };
interface Asked { tag: number; text: string; timeoutMs?: number; id?: string; client?: string }
export interface Said {
  kind: Kind; tag?: number; text?: string; code?: ErrorCode; outcome?: Outcome; retryAfterMs?: number;
}
export interface Vector {
  name: string;
  dialect: keyof typeof DIALECTS;
  role: 'server' | 'client';
  side: 'accepted' | 'dialled';
  maxMessageBytes: number;
  /** Fields of the codec's own hello. */
  hello: Record<string, string>;
  bytes: Buffer;
  readsParts: boolean;
  /** Of ZMTP: a socket of this type has greeted already; its greeting is part of the bytes. */
  peer?: string;
  /** Milliseconds of silence, by how many bytes came before it. */
  silences: ReadonlyMap<number, number>;
  /** Requests that the codec writes first, and all that it has written then, its greeting included. */
  asks: Asked[];
  /** What the codec encodes first, and what it gives. */
  says: Said[];
  controls: [word: Control, argument?: number | string, count?: number][];
  out?: string;
  events: VectorEvent[];
  /** What an echo server answers to the bytes and a FIN; absent where it can't be asked so. */
  answer?: AnswerLine[];
}

interface Row extends Partial<Omit<Vector, 'bytes' | 'silences'>> { name: string; text?: string; hex?: string; pieces?: Piece[] }

const FOLDER = new URL('../vectors/', import.meta.url);

const ARITY: Readonly<Record<Control, number>> = { cancel: 1, credit: 2, ping: 1, gone: 1, draining: 0, goodbye: 0 };
const WAIT_MS = 5_000;

/** The vectors of one file: what a row leaves out, the file's head gives. */
export function loadVectors(file: string): Vector[] {
  const { vectors, ...head } = JSON.parse(readFileSync(new URL(file, FOLDER), 'utf8')) as
    Partial<Row> & { vectors: Row[] };
  return vectors.map((row) => {
    const { text, hex, pieces, ...rest } = row;
    const silences = new Map<number, number>();
    let bytes = rest.peer === undefined ? Buffer.alloc(0) : greetingOf(rest.peer);
    for (const piece of pieces ?? [hex === undefined ? { text: text ?? '' } : { hex }]) {
      if (typeof piece === 'object' && piece.silentMs !== undefined) silences.set(bytes.length, piece.silentMs);
      else bytes = Buffer.concat([bytes, bytesOf(piece)]);
    }
    const side = rest.side ?? head.side ?? 'accepted';
    return { dialect: 'lines', role: 'server', side, maxMessageBytes: 1024 * 1024, readsParts: false, hello: {}, asks: [], says: [],
      controls: [], events: [], ...head, ...rest, bytes, silences } satisfies Vector;
  });
}

function bytesOf(piece: Piece): Buffer {
  if (typeof piece === 'string') return Buffer.from(piece);
  const { text = '', hex, times = 1 } = piece;
  const once = hex === undefined ? Buffer.from(text) : Buffer.from(hex.replaceAll(' ', ''), 'hex');
  return Buffer.concat(Array.from({ length: times }, () => once));
}

/**
 * The bytes whole, byte by byte, in two at every point (at chosen ones, where they are many) and in
 * seeded random pieces. Each comes with what to tell where it fails.
 */
export function* splits(bytes: Buffer, seed = FUZZ_SEED, runs = fuzzRuns(20)):
Generator<[how: string, pieces: Buffer[]]> {
  yield ['whole', [bytes]];
  if (bytes.length < 2) return;
  if (bytes.length <= 100_000) yield ['byte by byte', cut(bytes, () => 1)];
  const random = seeded(seed);
  const points = bytes.length <= 1_500 ? Array.from({ length: bytes.length - 1 }, (_, i) => i + 1)
    : Array.from({ length: 40 }, () => 1 + random.int(bytes.length - 1));
  for (const at of points) {
    yield [`cut in two at ${at} (FUZZ_SEED=${seed})`, [bytes.subarray(0, at), bytes.subarray(at)]];
  }
  for (let run = 0; run < runs; run++) {
    const most = random.between(1, run % 2 === 0 ? 8 : bytes.length);
    const pieces = cut(bytes, () => random.between(1, most * (bytes.length > 100_000 ? 1_000 : 1)));
    yield [`random pieces, FUZZ_SEED=${seed}, run ${run}`, pieces];
  }
}

function cut(bytes: Buffer, length: () => number): Buffer[] {
  const pieces: Buffer[] = [];
  for (let at = 0; at < bytes.length;) {
    const piece = bytes.subarray(at, at + length());
    pieces.push(piece);
    at += piece.length;
  }
  return pieces;
}

/** A codec as the vector wants it, once it has asked and said what the vector has. */
export function openCodec(vector: Vector, sink: Sink): { codec: Codec; out: string } {
  const { side, role, maxMessageBytes, hello, readsParts } = vector;
  const options = { side, role, maxMessageBytes, hello, readsParts };
  const codec = DIALECTS[vector.dialect]().open({ ...options, lines: () => lines().open(options) as LineCodec });
  const written: Body[] = [];
  codec.start?.({ ...sink, write: (bytes) => written.push(bytes) });
  for (const asked of vector.asks) written.push(codec.request(asked));
  for (const { kind, tag, text = '', code, ...more } of vector.says) {
    written.push(codec.encode(kind, code === undefined ? text : new MicroError(code, text, more), tag));
  }
  for (const control of vector.controls) written.push(codec.control?.(...control) ?? '');
  return { codec, out: written.map((bytes) => shownBytes(vector, bytes)).join('') };
}

/** Bytes as vectors have them: ZMTP's are no text. */
function shownBytes({ dialect }: Vector, bytes: Body): string {
  return dialect === 'zmtp' ? Buffer.from(bytes as string, 'latin1').toString('hex')
    : Buffer.from(bytes as string).toString();
}
const isRequest = (tag: unknown): tag is { envelope: string } =>
  typeof tag === 'object' && tag !== null && 'envelope' in tag;
/** The tag of what a silence ended is no number, and has no envelope: its reply has no line end. */
const shownTag = (tag: unknown): ShownTag => (typeof tag === 'number' ? tag : isRequest(tag)
  ? framesOf(Buffer.from(tag.envelope, 'latin1')).map(({ shown }) => shown) : 'raw');
/** The parts of a message, where they are not its text alone. */
function shownParts({ text, parts }: Message): { parts?: string[] } {
  const isText = parts === undefined || (parts.length === 1 && Buffer.from(parts[0]!).equals(Buffer.from(text)));
  return isText ? {} : { parts: parts.map((part) => shownPart(Buffer.from(part))) };
}

/**
 * What a codec tells of these pieces, each lent and overwritten after it was received. After `close`
 * nothing counts: the connection is over.
 */
export function eventsOf(vector: Vector, pieces: readonly Buffer[]): { out: string; events: VectorEvent[] } {
  const events: VectorEvent[] = [];
  let isOver = false;
  const seen = (event: VectorEvent): void => {
    const last = events.at(-1);
    if (isOver) return;
    if ('write' in event && last !== undefined && 'write' in last) last.write += event.write;
    else events.push(event);
  };
  const sink: Sink = {
    hello: (fields) => seen({ hello: { ...fields } }),
    message: ({ tag, text, timeoutMs, id, client, parts }) => seen({ message: {
      tag: shownTag(tag), text, ...shownParts({ tag, text, parts }), ...(timeoutMs !== undefined && { timeoutMs }), ...(id !== undefined && { id }),
      ...(client !== undefined && { client }) } }),
    response: (tag, kind, body) => seen({ response: body instanceof MicroError
      ? { tag: shownTag(tag), kind: 'error', ...plain(body) }
      : { tag: shownTag(tag), kind: kind as 'reply', text: body } }),
    control: (...words) => seen({ control: words.slice(0, 1 + ARITY[words[0]]) as [string] }),
    command: (line, tag) => seen({ command: { tag: shownTag(tag), line } }),
    error: (code, text, tag) => seen({ error: { ...(tag !== undefined && { tag: shownTag(tag) }), code, text } }),
    write: (bytes) => seen({ write: shownBytes(vector, bytes) }),
    finish: () => seen({ finish: true }),
    close: (last) => {
      seen({ close: last === undefined ? null : last instanceof MicroError ? plain(last)
        : { starts: Buffer.from(last as string).toString() } });
      isOver = true;
    },
  };
  const { codec, out } = openCodec(vector, sink);
  let at = 0;
  for (const piece of pieces.flatMap((one) => atSilences(one, vector, (at += one.length) - one.length))) {
    if (isOver) break;
    const lent = Buffer.from(piece.bytes);
    codec.receive(lent, sink);
    lent.fill(0);
    const ms = codec.idleMs?.();
    if (ms !== undefined && ms <= piece.silentMs) codec.idle?.(sink);
  }
  if (!isOver) codec.end?.(sink);
  return { out, events };
}

/** A piece that starts at this byte, cut where it is silent, and for how long it is. */
function atSilences(piece: Buffer, { silences }: Vector, start: number): { bytes: Buffer; silentMs: number }[] {
  const end = start + piece.length;
  const ends = [...new Set([...silences.keys(), end])].filter((at) => at > start && at <= end).sort((a, b) => a - b);
  return ends.map((to, index) => ({ bytes: piece.subarray((ends[index - 1] ?? start) - start, to - start),
    silentMs: silences.get(to) ?? 0 }));
}


function plain({ code, outcome, retryAfterMs, message }: MicroError): Failure {
  return { code, outcome, ...(retryAfterMs !== undefined && { retryAfterMs }), text: message };
}

/** Fails where a split of the vector gives anything but what it says. */
export function checkVector(vector: Vector, pieces: readonly Buffer[], how: string): void {
  const { out, events } = behindGreeting(vector, eventsOf(vector, pieces));
  if (vector.out !== undefined && out !== vector.out) expect(out, `${vector.name}: written first`).toBe(vector.out);
  const got = events.map((event, at) => comparable(event, vector.events[at]));
  if (JSON.stringify(got) === JSON.stringify(vector.events)) return;
  expect(got, `${vector.name}: ${how}`).toEqual(vector.events);
}

/** Leaves out what the codec says of itself to a peer that has greeted. */
function behindGreeting({ peer }: Vector, { out, events }: ReturnType<typeof eventsOf>): ReturnType<typeof eventsOf> {
  const [first, ...more] = events;
  if (peer === undefined || first === undefined || !('write' in first)) return { out, events };
  const [opening, said] = [Buffer.from(out, 'hex'), Buffer.from(first.write, 'hex')];
  const own = Buffer.concat([opening, said]);
  const [ready] = framesOf(own.subarray(64));
  const write = own.subarray(64 + (ready?.bytes ?? 0)).toString('hex');
  return { out, events: write === '' ? more : [{ write }, ...more] };
}

/** Leaves out the text and the outcome of an error where the vector tells none. */
function comparable(got: VectorEvent, wanted: VectorEvent | undefined): VectorEvent {
  const [name, value] = Object.entries(got)[0] as [string, unknown];
  if ('close' in got && wanted !== undefined && 'close' in wanted && startsLike(got.close, wanted.close)) return wanted;
  if (typeof value !== 'object' || value === null || !('code' in value)) return got;
  const model = Object.values(wanted ?? {})[0] as Record<string, unknown> | null | undefined;
  const kept = Object.entries(value).filter(([key]) => !['text', 'outcome'].includes(key) ||
    (typeof model === 'object' && model !== null && key in model));
  return { [name]: Object.fromEntries(kept) } as unknown as VectorEvent;
}

function startsLike(got: unknown, wanted: unknown): boolean {
  const [text, model] = [got, wanted].map((value) => (value as { starts?: string } | null)?.starts);
  return text !== undefined && model !== undefined && text.startsWith(model);
}

/** Whether the server ends it without our FIN: a whole line made it close, or anything over ZMTP. */
export function closesItself({ dialect, events, bytes }: Vector): boolean {
  return events.some((event) => 'close' in event) && (dialect === 'zmtp' || bytes.includes(10));
}

/** Fails unless these bytes are what the vector says the echo server answers with: lines, or what the dialect has. */
export function checkAnswer(vector: Pick<Vector, 'name' | 'answer' | 'peer'> & { dialect?: string }, bytes: Buffer,
  how: string): void {
  if (vector.peer !== undefined || Array.isArray(vector.answer?.[0])) {
    const got = messagesOf(bytes.subarray(64)).filter(([name = '']) => !/^\/(READY|PING)$/.test(name)); // a half-close is pinged
    return expect(got, `${vector.name}: ${how}`).toEqual(vector.answer?.map((line) => (Array.isArray(line)
      ? line.map((part) => (typeof part === 'string' ? part : expect.stringMatching(`^${part.starts}`))) : line)));
  }
  const isSized = vector.dialect === 'sized';
  const text = bytes.toString();
  const got = isSized ? unsized(bytes) : text === '' ? [] : text.replace(/\n$/, '').split('\n');
  const wanted = (vector.answer ?? []).filter((line) => typeof line === 'string' || 'starts' in line);
  const shown = got.map((line, at) => {
    const want = wanted[at];
    return typeof want === 'object' && line.startsWith(want.starts) ? want : line;
  });
  if (wanted.length < (vector.answer?.length ?? 0)) shown.length = Math.min(shown.length, wanted.length);
  expect(shown, `${vector.name}: ${how}`).toEqual(wanted);
  if (text !== '' && !isSized && vector.dialect !== 'raw') expect(text.endsWith('\n'), `${vector.name}: ${how}: the last line ends`).toBe(true);
}

/** The texts behind their sized headers. */
export function unsized(bytes: Buffer): string[] {
  const texts: string[] = [];
  for (let at = 0; at < bytes.length;) {
    const header = bytes.toString('latin1', at, at + 64);
    if (!/^\d+ *$/.test(header) || header.length < 64) throw new Error(`Cannot read the header ${JSON.stringify(header)}`);
    const end = at + 64 + Number(header);
    if (end > bytes.length) throw new Error(`Cannot read ${Number(header)} bytes: ${bytes.length - at - 64} are there`);
    texts.push(bytes.toString('utf8', at + 64, end));
    at = end;
  }
  return texts;
}

/** Sends the bytes, then FIN if wanted; resolves with all that comes up to the peer's. */
export function askSocket(to: number | string, bytes: Uint8Array, fin = true): Promise<Buffer> {
  return RawClient.with(to, async (client) => {
    if (fin) client.fin(bytes);
    else await client.write(bytes);
    return client.readToFin(WAIT_MS, 'the server\'s FIN');
  });
}

/** The same without a socket: one `receive` a piece, whatever a network would make of them. */
export async function askDuplex(server: MicroServer, pieces: readonly Uint8Array[], fin = true): Promise<Buffer> {
  const got: Buffer[] = [];
  let ended = (): void => {};
  const isEnded = new Promise<void>((resolve) => { ended = resolve; });
  const duplex = new Duplex({
    read() {},
    write(chunk: Buffer, _encoding, done) { got.push(Buffer.from(chunk)); done(); },
    final(done) { done(); ended(); },
    destroy(error, done) { done(error); ended(); },
  });
  server.serve(duplex);
  for (const piece of pieces) duplex.push(Buffer.from(piece));
  if (fin) duplex.push(null);
  await within(WAIT_MS, isEnded, `the end of what began with ${JSON.stringify(String(pieces[0]).slice(0, 80))}`);
  duplex.destroy();
  return Buffer.concat(got);
}
