/**
 * ZeroMQ's own protocol, so that a REQ, DEALER, REP or ROUTER socket can be the other end: ZMTP 3.x
 * (23/ZMTP, 37/ZMTP) and 2.0 (15/ZMTP), mechanism NULL. PROTOCOL.md "ZMTP" tells what crosses. In
 * this order: the dialect; a connection's greeting, frames, requests and replies; bytes.
 */
import { Buffer, isAscii, isUtf8 } from 'node:buffer';
import {
  ERRORS, MicroError, errorText, isWellFormed, quoted, type Body, type Codec, type CodecOptions,
  type Control, type Dialect, type ErrorCode, type Kind, type Message, type Outcome, type Sink,
  type Tag,
} from '../micro_client.ts';

/** `oneWay`: nothing is answered, since who sends heartbeats doesn't read. Default false. */
export interface ZmtpOptions { oneWay?: boolean }

/** The dialect of ZeroMQ's sockets. Begins with `FF 00`. */
export function zmtp({ oneWay = false }: ZmtpOptions = {}): Dialect {
  return {
    name: 'zmtp', ordered: false, multipart: true,
    matches: ([ff, zero]) => (ff !== 0xff || zero ? 'no' : zero === undefined ? 'more' : 'yes'),
    open: (options) => new ZmtpCodec(options, oneWay),
  };
}
export const dialect = zmtp; // what `zmtp+tcp://host:port` loads

const [MORE, LONG, COMMAND] = [1, 2, 4]; // a frame's flags
const MAX_FRAMES = 1_024; // of a message: empty parts never reach a limit of bytes
const MAX_COMMAND_BYTES = 8 * 1024; // as a hello of frames
const MAX_ENVELOPE_BYTES = 4 * 1024; // 16 hops of the longest identity
const MAX_CONTEXT_BYTES = 16; // of a PING
const LARGE_BYTES = 64 * 1024; // from here on a part stays where it was read
const [SIGNATURE_BYTES, GREETING_BYTES] = [10, 64];
const OPENING = Buffer.from('ff00000000000000007f03', 'hex'); // the signature, and that we speak 3
const GREETING_REST = Buffer.from(`\x01NULL${'\0'.repeat(48)}`); // .1, the mechanism, filler
const V2_TYPES = ['PAIR', 'PUB', 'SUB', 'REQ', 'REP', 'DEALER', 'ROUTER', 'PULL', 'PUSH'];
const PEERS = ['REQ', 'DEALER', 'REP', 'ROUTER']; // REQ takes no DEALER, which is what dials
const DELIMITER = '\x01\0'; // an empty part before others, as bytes of a latin1 string
const EMPTY = Buffer.alloc(0);

type State = 'version' | 'greeting' | 'ready' | 'identity' | 'open' | 'closed'; // it waits for that

class ZmtpCodec implements Codec {
  readonly #options: CodecOptions; readonly #oneWay: boolean; readonly #max: number;
  readonly #isServer: boolean; readonly #isAccepted: boolean;
  #state: State = 'version';
  #sink: Sink | undefined; // kept for what encode() has to tell
  #hasCommands = false; // 3.x
  #hasPing = false; // 3.1, or pings itself
  #ttlMs: number | undefined; // after which silence the peer wants to be given up
  #fields: Record<string, string> | undefined; // of its READY: told with its first message
  // An unfinished message: its bytes, how far they were looked at, how many it has at least.
  #held = EMPTY; #heldBytes = 0; #scannedBytes = 0; #wantedBytes = 0;
  // Its parts: where each begins and ends, from its first frame on; commands may be between them.
  #parts: [from: number, to: number][] = []; #partBytes = 0; #frames = 0;
  #delimiter = -1; #envelopeBytes = 0; // the first empty part, and what is before it
  #current: Asked | undefined; // is handed over or refused: an error now is about it
  // The client's way: what waits for READY or its turn, and whose reply it waits for.
  readonly #waiting = new Map<Tag, Message | 'ping'>();
  #isLockstep = false; #asked: Tag | undefined;

  constructor(options: CodecOptions, oneWay: boolean) {
    this.#options = options; this.#oneWay = oneWay; this.#max = options.maxMessageBytes;
    this.#isServer = options.role === 'server'; this.#isAccepted = options.side === 'accepted';
  }
  /** A greeting that doesn't go on is an unfinished message too. */
  get heldBytes(): number {
    return Math.max(this.#heldBytes, this.#state === 'open' || this.#state === 'closed' ? 0 : 1);
  }
  start(sink: Sink): void { this.#sink = sink; sink.write(OPENING); }
  receive(chunk: Uint8Array, sink: Sink): void {
    if (this.#state === 'closed') return;
    this.#sink = sink;
    const isHeld = this.#heldBytes > 0;
    const lent = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length);
    const bytes = isHeld ? this.#hold(lent) : lent;
    const isGreeted = this.#state !== 'version' && this.#state !== 'greeting';
    let taken = isGreeted ? 0 : this.#greet(bytes, sink);
    if (isGreeted || taken > 0) taken = this.#read(bytes, taken, isHeld, sink);
    if (isHeld && taken === 0) return;
    [this.#held, this.#heldBytes] = [EMPTY, 0]; // what was in it may belong to a message now
    if (taken < bytes.length) this.#hold(bytes.subarray(taken));
  }
  /** Keeps a copy, in one buffer that grows up to what is wanted; gives all that is held. */
  #hold(piece: Buffer): Buffer {
    const bytes = this.#heldBytes + piece.length;
    if (bytes > this.#held.length) {
      const grown = Buffer.allocUnsafe(Math.max(bytes, Math.min(16 * bytes, this.#wantedBytes)));
      this.#held.copy(grown, 0, 0, this.#heldBytes);
      this.#held = grown;
    }
    piece.copy(this.#held, this.#heldBytes);
    this.#heldBytes = bytes;
    return this.#held.subarray(0, bytes);
  }

  // The greeting.
  /** Reads it, in whatever pieces it comes; returns its length once it is whole, else 0. */
  #greet(bytes: Buffer, sink: Sink): number {
    const flags = bytes[SIGNATURE_BYTES - 1] ?? 1; // where ZMTP 1.0 has them: its lowest bit is 0
    const [version, next] = bytes.subarray(SIGNATURE_BYTES);
    const isUnknown = bytes[0] !== 0xff || (flags & 1) === 0 || version === 0 || version === 2;
    if (isUnknown) this.#refuse('its greeting is not of ZMTP 2.0 or 3.x', sink);
    if (isUnknown || version === undefined) return isUnknown ? bytes.length : 0;
    this.#hasCommands = version > 1;
    if (this.#state === 'version') { // what comes now depends on the peer's: 2.0 would misread it
      this.#state = 'greeting';
      if (this.#hasCommands) sink.write(GREETING_REST);
      else if (!this.#isAccepted) this.#introduce('DEALER', sink);
    }
    const length = this.#hasCommands ? GREETING_BYTES : SIGNATURE_BYTES + 2;
    if (next === undefined || bytes.length < length) return 0;
    this.#state = this.#hasCommands ? 'ready' : 'identity';
    if (!this.#hasCommands) this.#meet(V2_TYPES[next] ?? String(next), sink);
    if (!this.#hasCommands) return length;
    this.#hasPing = version > 3 || next > 0;
    const mechanism = bytes.toString('latin1', SIGNATURE_BYTES + 2, 32).replace(/\0+$/, '');
    if (mechanism !== 'NULL') this.#refuse(`it wants ${quoted(mechanism)}, expected "NULL"`, sink);
    else if (!this.#isAccepted) this.#introduce('DEALER', sink);
    return length;
  }
  /** The peer said what it is. Who accepted answers with what fits. */
  #meet(type: string, sink: Sink): void {
    const peers = this.#isAccepted ? PEERS : PEERS.slice(1);
    const isPeer = peers.includes(type);
    if (!isPeer) return this.#refuse(`it is ${quoted(type)}, expected ${peers.join(', ')}`, sink);
    if (this.#isAccepted) this.#introduce(/^R(OUTER|EP)$/.test(type) ? 'DEALER' : 'ROUTER', sink);
    // Programs behind a ROUTER may count on a REQ's envelope, one empty part, and may answer in any
    // order: so one request at a time, unless it is our own.
    this.#isLockstep = type === 'ROUTER' && this.#fields?.['portcall'] === undefined;
  }
  #introduce(type: string, sink: Sink): void {
    if (!this.#hasCommands) return sink.write(Buffer.of(V2_TYPES.indexOf(type), 0, 0));
    const said = Object.entries({ portcall: '1', ...this.#options.hello })
      .map(([name, value]) => property(`X-${name}`, value));
    sink.write(command('READY', property('Socket-Type', type), property('Identity', ''), ...said));
  }
  #ready(data: Buffer, sink: Sink): void {
    const properties = readProperties(data);
    if (properties === undefined) return this.#refuse('its READY can\'t be read', sink);
    const identity = properties.get('identity') ?? EMPTY;
    this.#fields = Object.fromEntries([...properties].flatMap(([name, value]) =>
      (name.startsWith('x-') ? [[name.slice(2), String(value)]] : [])));
    this.#meet(properties.get('socket-type')?.toString('latin1') ?? 'DEALER', sink);
    if (this.#state !== 'closed') this.#open(identity, sink);
  }
  #open(identity: Buffer, sink: Sink): void {
    this.#state = 'open';
    const shown = isUtf8(identity) ? String(identity) : `0x${identity.toString('hex')}`;
    if (identity.length > 0) this.#fields = { ...this.#fields, identity: shown };
    for (const [tag, message] of this.#waiting) {
      if (message !== 'ping' && this.#asked !== undefined) continue;
      this.#waiting.delete(tag);
      sink.write(message === 'ping' ? ping(tag) : this.#ask(message));
    }
  }

  // Frames.
  /** Reads all whole messages; returns where an unfinished one begins. */
  #read(bytes: Buffer, from: number, isOwned: boolean, sink: Sink): number {
    let start = from, at = from + this.#scannedBytes;
    this.#wantedBytes = 0;
    while (this.#state !== 'closed' && at + 2 <= bytes.length) {
      const flags = bytes[at]!;
      const body = at + ((flags & LONG) === 0 ? 2 : 9);
      const length = (flags & LONG) === 0 ? bytes[at + 1]!
        : body > bytes.length ? 0 : Number(bytes.readBigUInt64BE(at + 1)); // 0: not known yet
      if (!this.#takes(flags, length, bytes, start, sink)) break;
      this.#wantedBytes = body + length - start;
      if (body + length > bytes.length) break;
      at = body + length;
      this.#frames++;
      if ((flags & COMMAND) !== 0) this.#command(bytes.subarray(body, at), sink);
      else if (this.#state === 'identity') this.#open(bytes.subarray(body, at), sink);
      else {
        if (length === 0 && this.#delimiter < 0 && this.#partBytes <= MAX_ENVELOPE_BYTES) {
          [this.#delimiter, this.#envelopeBytes] = [this.#parts.length, this.#partBytes];
        }
        this.#partBytes += length;
        this.#parts.push([body - start, at - start]);
        if ((flags & MORE) === 0) this.#message(bytes, start, isOwned, sink);
      }
      if (this.#parts.length === 0) [start, this.#frames] = [at, 0];
    }
    this.#scannedBytes = at - start;
    return this.#state === 'closed' ? bytes.length : start;
  }
  /** Whether a frame may come, by its head: nothing of it is kept before. If not, that is told. */
  #takes(flags: number, length: number, bytes: Buffer, start: number, sink: Sink): boolean {
    const isCommand = (flags & COMMAND) !== 0;
    const isFlagged = flags <= 7 && (!isCommand || ((flags & MORE) === 0 && this.#hasCommands));
    const wrong = !isFlagged ? `its flags are ${flags}`
      : isCommand && length > MAX_COMMAND_BYTES ? `a command has ${length} bytes`
      : this.#state === 'ready' && !isCommand ? 'a message came before READY'
      : this.#state === 'identity' && flags !== 0 ? 'its identity can\'t be read' : undefined;
    const most = this.#max + (this.#delimiter < 0 ? MAX_ENVELOPE_BYTES : this.#envelopeBytes);
    const isFit = (isCommand || this.#partBytes + length <= most) && this.#frames < MAX_FRAMES;
    if (wrong === undefined && isFit) return true;
    const isAsking = this.#parts.length > 0 || wrong === undefined;
    if (isAsking) this.#current = this.#asking(bytes, start, this.#delimiter + 1);
    if (wrong !== undefined) this.#refuse(wrong, sink); else this.#tooLarge(sink);
    return false;
  }
  #message(bytes: Buffer, start: number, isOwned: boolean, sink: Sink): void {
    const hasEnvelope = this.#delimiter >= 0 && this.#delimiter + 1 < this.#parts.length;
    const first = hasEnvelope ? this.#delimiter + 1 : 0;
    const bodyBytes = this.#partBytes - (hasEnvelope ? this.#envelopeBytes : 0);
    const asked = this.#current = this.#asking(bytes, start, first);
    if (bodyBytes > this.#max) return this.#tooLarge(sink);
    const body = this.#parts.slice(first);
    const texts = body.map(([from, to]) => decode(bytes, start + from, start + to));
    const isLarge = isOwned && bodyBytes >= LARGE_BYTES;
    asked.isText = !texts.includes(undefined);
    if (!asked.isText || body.length > 1 || isLarge) { // else its bytes are made of the text
      const whole = bytes.subarray(start, start + body.at(-1)![1]);
      const kept = isLarge ? whole : Buffer.from(whole);
      asked.kept = body.map(([from, to]) => kept.subarray(from, to));
    }
    this.#parts = [];
    [this.#partBytes, this.#delimiter, this.#envelopeBytes] = [0, -1, 0];
    if (!this.#isServer) this.#answered(asked, texts as string[], sink);
    else {
      // No service takes U+FFFD for a command; the text is as long as what it stands for.
      asked.text = asked.isText ? texts.join('\n') : '\ufffd'.repeat(bodyBytes);
      const fields = this.#fields;
      this.#fields = undefined;
      if (fields !== undefined) sink.hello?.(fields); // now: who isn't admitted gets an answer
      if (asked.isText || this.#options.readsParts) sink.message(asked);
      else sink.error('BAD_MESSAGE', misread('BAD_MESSAGE').message, asked);
    }
    this.#current = undefined;
  }
  /** A request whose body begins with that part; those before are its envelope. */
  #asking(bytes: Buffer, start: number, first: number): Asked {
    let envelope = '';
    for (const [from, to] of this.#parts.slice(0, first)) {
      envelope += head(MORE, to - from) + bytes.toString('latin1', start + from, start + to);
    }
    return new Asked(envelope, this.#oneWay);
  }
  #command(body: Buffer, sink: Sink): void {
    const end = 1 + (body[0] ?? 0);
    const [name, data] = [body.toString('latin1', 1, end), body.subarray(end)];
    const why = `Cannot go on: the peer refuses with ${quoted(data.toString('latin1', 1))}`;
    if (name === 'ERROR') {
      this.#close(sink, this.#isServer ? undefined : new MicroError('PROTOCOL_ERROR', why));
    } else if (this.#state === 'ready' && name === 'READY') this.#ready(data, sink);
    else if (this.#state === 'open' && name === 'PING' && data.length >= 2) {
      this.#hasPing = true;
      this.#ttlMs = data.readUInt16BE() * 100 || undefined; // it counts tenths of a second
      sink.write(command('PONG', data.subarray(2, 2 + MAX_CONTEXT_BYTES)));
    } else if (this.#state === 'open' && name === 'PONG') {
      const slot = /^\d{1,9}$/.exec(data.toString('latin1'))?.[0];
      if (slot !== undefined && !this.#isServer) sink.response(Number(slot), 'reply', '');
    } else if (this.#state === 'ready' || name.length < end - 1 || /^(|PING|READY)$/.test(name)) {
      this.#refuse(`its command ${quoted(name)} is out of place or cut`, sink);
    }
  }
  #refuse(why: string, sink: Sink): void {
    const outcome = this.#isServer || this.#state !== 'open' ? 'refused' : 'maybe done';
    this.#close(sink, new MicroError('PROTOCOL_ERROR', `Cannot speak ZMTP: ${why}`, { outcome }));
  }
  #close(sink: Sink, last?: MicroError): void { sink.close(last); this.#state = 'closed'; }
  /** What was not read can't be skipped as a line can, for as long as that would take. */
  #tooLarge(sink: Sink): void {
    const why = `Cannot read a message of over ${this.#max} bytes or ${MAX_FRAMES} parts`;
    sink.error('MESSAGE_TOO_LARGE', why, this.#isServer ? undefined : this.#slotOf(this.#current));
    this.#close(sink);
  }
  idleMs(): number | undefined { return this.#ttlMs; }
  idle(sink: Sink): void { this.#close(sink); }

  // Requests, the client's way.
  /** What can't leave yet does when the peer is ready for it. */
  request(message: Message): Body {
    if (this.#state === 'open' && this.#asked === undefined) return this.#ask(message);
    this.#waiting.set(message.tag, message);
    return '';
  }
  #ask({ tag, text, parts }: Message): Body {
    if (this.#isLockstep) this.#asked = tag;
    const slot = String(tag);
    const correlation = this.#isLockstep ? '' : head(MORE, slot.length) + slot;
    return encoded(correlation + DELIMITER, parts ?? [text]);
  }
  #slotOf(asked: Asked | undefined): Tag | undefined {
    if (this.#isLockstep) return this.#asked;
    const digits = /^\x01[^](\d{1,9})\x01\0$/.exec(asked?.envelope ?? '')?.[1];
    return digits === undefined ? undefined : Number(digits);
  }
  #answered(asked: Asked, texts: readonly string[], sink: Sink): void {
    const [slot, text = ''] = [this.#slotOf(asked), ...texts];
    const error = !asked.isText ? misread('PROTOCOL_ERROR', 'maybe done') : toldError(text);
    this.#asked = undefined;
    if (slot === undefined) sink.error('PROTOCOL_ERROR', 'its reply has no request\'s envelope');
    else if (error !== undefined) sink.response(slot, 'error', error);
    else if (texts.length === 1) sink.response(slot, 'reply', text);
    else {
      for (const part of texts) sink.response(slot, 'part', part);
      sink.response(slot, 'end', '');
    }
    const [next] = this.#isLockstep ? this.#waiting.values() : [];
    if (next === undefined || next === 'ping') return;
    this.#waiting.delete(next.tag);
    sink.write(this.#ask(next));
  }
  control(word: Control, argument?: Tag | string): Body | undefined {
    if (word === 'cancel') this.#waiting.delete(argument as Tag);
    const isOpen = this.#state === 'open';
    if (word !== 'ping' || (isOpen ? !this.#hasPing : this.#isServer)) return undefined;
    if (!isOpen) this.#waiting.set(argument as Tag, 'ping');
    return isOpen ? ping(argument as Tag) : '';
  }

  // Replies, the server's.
  encode(kind: Kind, body: Body | readonly Body[] | MicroError, tag?: Tag): Body {
    if (kind === 'notice' || kind === 'goodbye') return this.#farewell(body as MicroError);
    const asked = tag as Asked;
    if (asked.oneWay) return '';
    if (kind === 'part') return this.#gather(asked, body as string);
    if (kind === 'error') return told(asked, asked.overflow ?? body as MicroError);
    if (!asked.isText && !asked.hasRead) return told(asked, misread('BAD_MESSAGE', 'failed'));
    if (kind === 'reply' && typeof body === 'string') return encoded(asked.envelope, [body]);
    const parts = kind === 'end' ? asked.gathered : body as readonly unknown[];
    const why = 'a part of its reply is neither bytes nor a string that UTF-8 can carry';
    if (!parts.every(isBody)) return told(asked, new MicroError('CALLBACK_FAILED', why));
    const bytes = parts.reduce((sum, part) => sum + Buffer.byteLength(part), 0);
    if (bytes > this.#max || parts.length > MAX_FRAMES) return told(asked, this.#overflow());
    return encoded(asked.envelope, parts.length === 0 ? [''] : parts, this.#sink);
  }
  #overflow(): MicroError {
    const text = `Cannot send a reply of over ${this.#max} bytes or ${MAX_FRAMES} parts`;
    return new MicroError('MESSAGE_TOO_LARGE', text, { outcome: 'failed' });
  }
  /** A stream is one message: its parts wait for the last one here, as they would at the peer. */
  #gather(asked: Asked, part: string): Body {
    asked.gathered.push(part);
    asked.gatheredBytes += Buffer.byteLength(part);
    const isFit = asked.gathered.length <= MAX_FRAMES && asked.gatheredBytes <= this.#max;
    if (!isFit) asked.overflow = this.#overflow();
    this.#sink?.control?.(isFit ? 'credit' : 'cancel', asked, 1);
    return '';
  }
  /** An error that names no request: of the message under way, or of the connection. */
  #farewell(error: MicroError): Body {
    if (this.#current !== undefined) return this.#current.oneWay ? '' : told(this.#current, error);
    const reason = Buffer.from(errorText(error).replace(/[^ -~]/g, '?').slice(0, 255), 'latin1');
    return this.#hasCommands ? command('ERROR', Buffer.of(reason.length), reason) : '';
  }
}

/** A request, its own tag: it has what it takes to answer it. */
class Asked implements Message {
  readonly envelope: string; readonly oneWay: boolean; // the former up to its delimiter, as latin1
  text = '';
  isText = true; hasRead = false; // it is UTF-8; the service looked at its parts
  kept: Buffer[] | undefined = undefined;
  gathered: string[] = []; gatheredBytes = 0; // of a stream
  overflow: MicroError | undefined = undefined; // why that was cancelled
  constructor(envelope: string, oneWay: boolean) { this.envelope = envelope; this.oneWay = oneWay; }
  get tag(): this { return this; }
  get parts(): readonly Uint8Array[] {
    this.hasRead = true;
    return this.kept ??= [Buffer.from(this.text)];
  }
}

// ------------------------------------------------------------------------------------------- Bytes
type Sliced = Buffer & Record<'latin1Slice' | 'utf8Slice', (start: number, end: number) => string>;
/** The text of some bytes; none if they are not UTF-8. */
function decode(bytes: Buffer, start: number, end: number): string | undefined {
  const isPlain = end - start >= LARGE_BYTES && isAscii(bytes.subarray(start, end));
  if (isPlain) return (bytes as Sliced).latin1Slice(start, end); // a copy: faster than to decode
  const text = (bytes as Sliced).utf8Slice(start, end);
  return text.includes('\ufffd') && !isUtf8(bytes.subarray(start, end)) ? undefined : text;
}
/** A frame's head, as bytes of a latin1 string. */
function head(flags: number, length: number): string {
  if (length <= 255) return String.fromCharCode(flags, length);
  const bytes = Buffer.of(flags | LONG, 0, 0, 0, 0, 0, 0, 0, 0);
  bytes.writeBigUInt64BE(BigInt(length), 1);
  return bytes.toString('latin1');
}
/**
 * One message: a string where it is short and ASCII, so that many leave in one write. Its last part
 * is not copied where it is large: all before it is written to the sink.
 */
function encoded(envelope: string, parts: readonly Body[], sink?: Sink): Body {
  const [last, count] = [parts.at(-1)!, parts.length];
  if (typeof last === 'string' && count === 1 && last.length < 128) {
    const wire = `${envelope}\0${String.fromCharCode(last.length)}${last}`;
    if (Buffer.byteLength(wire) === wire.length) return wire;
  }
  const lengths = parts.map((part) => Buffer.byteLength(part));
  const heads = lengths.map((length, at) =>
    (at === 0 ? envelope : '') + head(at < count - 1 ? MORE : 0, length));
  const isApart = sink !== undefined && typeof last !== 'string' && last.length >= LARGE_BYTES;
  const total = lengths.reduce((sum, length, at) => sum + length + heads[at]!.length, 0);
  const bytes = Buffer.allocUnsafe(isApart ? total - last.length : total);
  let end = 0;
  for (const [at, part] of parts.entries()) {
    end += bytes.write(heads[at]!, end, 'latin1');
    const isPlain = part.length === lengths[at]; // ASCII: is copied where UTF-8 is encoded
    if (typeof part === 'string') bytes.write(part, end, isPlain ? 'latin1' : 'utf8');
    else if (at < count - 1 || !isApart) bytes.set(part, end);
    end += lengths[at]!;
  }
  if (isApart) sink.write(bytes);
  return isApart ? last : bytes;
}
function command(name: string, ...data: readonly Uint8Array[]): Buffer {
  const body = Buffer.concat([Buffer.of(name.length), Buffer.from(name), ...data]);
  return Buffer.concat([Buffer.from(head(COMMAND, body.length), 'latin1'), body]);
}
const ping = (tag: Tag): Buffer => command('PING', Buffer.of(0, 0), Buffer.from(String(tag)));
function property(name: string, value: string): Buffer {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(Buffer.byteLength(value));
  return Buffer.concat([Buffer.of(name.length), Buffer.from(name), length, Buffer.from(value)]);
}
/** By name in small letters, as those of any case are the same; none if they can't be read. */
function readProperties(data: Buffer): Map<string, Buffer> | undefined {
  const found = new Map<string, Buffer>();
  for (let at = 0, start, end; at < data.length; at = end) {
    start = at + 5 + data[at]!;
    end = start > data.length ? Infinity : start + data.readUInt32BE(start - 4);
    const name = data.toString('latin1', at + 1, start - 4).toLowerCase();
    const value = data.subarray(start, end);
    const isRead = name !== '' && end <= data.length && (name !== 'identity' || value.length < 256);
    if (!isRead) return undefined;
    found.set(name, value);
  }
  return found;
}
const misread = (code: ErrorCode, outcome?: Outcome): MicroError =>
  new MicroError(code, 'Cannot read a text that is not UTF-8', outcome && { outcome });
const isBody = (part: unknown): part is Body =>
  (typeof part === 'string' ? isWellFormed(part) : part instanceof Uint8Array);
const told = (asked: Asked, error: MicroError): Body => encoded(asked.envelope, [errorText(error)]);
/** The error that a reply tells, if it does. */
function toldError(text: string): MicroError | undefined {
  const [, code = '', why, ms] = /^ERR ([A-Z_]+) (retry after (\d{1,9}) ms$|[^]*)/.exec(text) ?? [];
  const more = ms === undefined ? {} : { retryAfterMs: Number(ms) };
  return Object.hasOwn(ERRORS, code) ? new MicroError(code as ErrorCode, why!, more) : undefined;
}
