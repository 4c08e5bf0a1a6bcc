/**
 * ZeroMQ's own protocol, so that any REQ, DEALER, REP or ROUTER socket can be the other end: ZMTP 3.x
 * (23/ZMTP, 37/ZMTP) and 2.0 (15/ZMTP) with the NULL mechanism. PROTOCOL.md "ZMTP" tells what crosses.
 * In this order: the dialect; a connection's codec; its greeting; its frames; requests; bytes.
 */
import { Buffer, isAscii, isUtf8 } from 'node:buffer';
import {
  ERRORS, MicroError, isWellFormed, oneLine, quoted, type Body, type Codec, type CodecOptions, type Control,
  type Dialect, type ErrorCode, type Kind, type Message, type Sink, type Tag,
} from '../micro_client.ts';

export interface ZmtpOptions {
  /** What comes is never answered, as a heartbeat's sender never reads. Default false. */
  oneWay?: boolean;
}

/** The dialect of ZeroMQ sockets. Begins with `FF 00`. */
export function zmtp({ oneWay = false }: ZmtpOptions = {}): Dialect {
  return {
    name: 'zmtp', ordered: false, multipart: true,
    matches: ([first, second]) =>
      (first !== 0xff || (second ?? 0) !== 0 ? 'no' : second === undefined ? 'more' : 'yes'),
    open: (options) => new ZmtpCodec(options, oneWay),
  };
}

const [MORE, LONG, COMMAND] = [1, 2, 4]; // a frame's flags
const MAX_PARTS = 1_024; // and commands among them: empty ones never reach a limit of bytes
const MAX_COMMAND_BYTES = 8 * 1024; // as a hello of frames
const MAX_ENVELOPE_BYTES = 4 * 1024; // 16 hops of the longest identity
const MAX_IDENTITY_BYTES = 255;
const PING_CONTEXT_BYTES = 16;
/** From here on a part is kept where it was read, and not copied for an answer. */
const LARGE_BYTES = 64 * 1024;
const [SIGNATURE_BYTES, GREETING_BYTES] = [10, 64];
const MECHANISM = { start: 12, end: 32 };
/** The signature, and that we speak 3: enough for the peer to tell its own version. */
const OPENING = Buffer.from('ff00000000000000007f03', 'hex');
/** Minor version 1, mechanism NULL, no server in its sense, filler. */
const GREETING_REST = Buffer.from(`\x01NULL${'\0'.repeat(48)}`);
const NULL = Buffer.from('NULL'.padEnd(20, '\0'));
/** By their number in 2.0. */
const V2_TYPES = ['PAIR', 'PUB', 'SUB', 'REQ', 'REP', 'DEALER', 'ROUTER', 'PULL', 'PUSH'];
const PEERS = ['REQ', 'DEALER', 'REP', 'ROUTER']; // a DEALER, which we are where we dialled, can't serve the first
const DELIMITER = '\x01\0'; // an empty part with more behind it, as bytes of a latin1 string
const NOT_UTF8 = 'Cannot read a text that is not UTF-8';
const EMPTY = Buffer.alloc(0);

/** `version` and `greeting` are waited for, then READY; in 2.0 it is the identity. */
type State = 'version' | 'greeting' | 'ready' | 'identity' | 'open' | 'closed';

class ZmtpCodec implements Codec {
  readonly #isServer: boolean; readonly #isAccepted: boolean;
  readonly #readsParts: boolean; readonly #oneWay: boolean;
  readonly #max: number;
  readonly #hello: Readonly<Record<string, string>>;
  #state: State = 'version';
  #sink: Sink | undefined; // of the connection: kept for what encode() has to tell
  #hasCommands = false; // 3.x
  #hasPing = false; // 3.1, or pings itself
  #ttlMs: number | undefined; // after which silence the peer wants to be given up
  #fields: Record<string, string> | undefined; // of its READY, told with its first message
  // An unfinished message: its bytes, how far they were looked at, how many it has at least.
  #held = EMPTY; #heldBytes = 0; #scannedBytes = 0; #wantedBytes = 0;
  // Its parts: where they begin and end, from its first frame on.
  #bounds: number[] = []; #frames = 0; #partBytes = 0;
  #delimiter = -1; #envelopeBytes = 0; // the first empty part, and what is before it
  #current: Asked | undefined; // is being handed over or refused: an error now is about it
  // The client's way: what waits for READY or its turn, and whose reply is waited for.
  readonly #waiting = new Map<Tag, Message | 'ping'>();
  #isLockstep = false; #asked: Tag | undefined;

  constructor(options: CodecOptions, oneWay: boolean) {
    const { side, role, maxMessageBytes, hello = {}, readsParts = false } = options;
    this.#isServer = role === 'server'; this.#isAccepted = side === 'accepted';
    this.#readsParts = readsParts; this.#oneWay = oneWay;
    this.#max = maxMessageBytes;
    this.#hello = hello;
  }
  /** A greeting that doesn't go on is an unfinished message too. */
  get heldBytes(): number {
    const isGreeting = this.#state !== 'open' && this.#state !== 'closed';
    return isGreeting ? Math.max(1, this.#heldBytes) : this.#heldBytes;
  }
  start(sink: Sink): void {
    this.#sink = sink;
    sink.write(OPENING);
  }
  receive(chunk: Uint8Array, sink: Sink): void {
    if (this.#state === 'closed') return;
    this.#sink = sink;
    const isHeld = this.#heldBytes > 0;
    const lent = Buffer.isBuffer(chunk) ? chunk
      : Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length);
    const bytes = isHeld ? this.#hold(lent) : lent;
    const isGreeted = this.#state !== 'version' && this.#state !== 'greeting';
    let taken = isGreeted ? 0 : this.#greet(bytes, sink);
    if (isGreeted || taken > 0) taken = this.#read(bytes, taken, isHeld, sink);
    if (isHeld && taken === 0) return;
    [this.#held, this.#heldBytes] = [EMPTY, 0]; // what was in it may belong to a message now
    if (taken < bytes.length) this.#hold(bytes.subarray(taken));
  }
  /** Keeps a copy, in one buffer that grows up to what is wanted, and gives all that is held. */
  #hold(piece: Buffer): Buffer {
    const bytes = this.#heldBytes + piece.length;
    if (bytes > this.#held.length) {
      const grown = Buffer.allocUnsafe(Math.max(bytes, Math.min(8 * bytes, this.#wantedBytes)));
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
    const flags = bytes[SIGNATURE_BYTES - 1] ?? 1; // what a greeting of ZMTP 1.0 has there
    const version = bytes[SIGNATURE_BYTES];
    const isUnknown = bytes[0] !== 0xff || (flags & 1) === 0 || version === 0 || version === 2;
    if (isUnknown) this.#refuse('its greeting is not of ZMTP 2.0 or 3.x', sink);
    if (isUnknown || version === undefined) return isUnknown ? bytes.length : 0;
    this.#hasCommands = version > 1;
    if (this.#state === 'version') { // what comes next depends on the peer's: 2.0 would misread it
      this.#state = 'greeting';
      if (this.#hasCommands) sink.write(GREETING_REST);
      else if (!this.#isAccepted) this.#introduce('DEALER', sink);
    }
    const type = bytes[SIGNATURE_BYTES + 1];
    if (!this.#hasCommands && type !== undefined) {
      this.#state = 'identity';
      this.#meet(V2_TYPES[type] ?? String(type), sink);
      return SIGNATURE_BYTES + 2;
    }
    if (bytes.length < GREETING_BYTES || type === undefined) return 0;
    this.#state = 'ready';
    this.#hasPing = version > 3 || type > 0; // its minor version
    const mechanism = bytes.subarray(MECHANISM.start, MECHANISM.end);
    const name = quoted(mechanism.toString('latin1').replace(/\0+$/, ''));
    if (!mechanism.equals(NULL)) this.#refuse(`its mechanism is ${name}, expected "NULL"`, sink);
    else if (!this.#isAccepted) this.#introduce('DEALER', sink);
    return GREETING_BYTES;
  }
  /** The peer said what it is. Who accepted answers with what fits. */
  #meet(type: string, sink: Sink): void {
    const peers = this.#isAccepted ? PEERS : PEERS.slice(1);
    const name = quoted(type);
    if (!peers.includes(type)) return this.#refuse(`it is a ${name}, expected ${peers.join(', ')}`, sink);
    const isServing = type === 'ROUTER' || type === 'REP';
    if (this.#isAccepted) this.#introduce(isServing ? 'DEALER' : 'ROUTER', sink);
    // A REP returns any envelope as it is. A program behind a ROUTER may count on a REQ's, which is
    // one empty part, and may answer in any order: so one request at a time, unless it is our own.
    this.#isLockstep = type !== 'REP' && this.#fields?.['portcall'] === undefined;
  }
  #introduce(type: string, sink: Sink): void {
    if (!this.#hasCommands) return sink.write(Buffer.of(V2_TYPES.indexOf(type), 0, 0)); // and no identity
    const said = Object.entries({ portcall: '1', ...this.#hello });
    sink.write(command('READY', property('Socket-Type', type), property('Identity', ''),
      ...said.map(([name, value]) => property(`X-${name}`, value))));
  }
  #ready(data: Buffer, sink: Sink): void {
    const properties = readProperties(data);
    if (properties === undefined) return this.#refuse('its READY can\'t be read', sink);
    const identity = properties.get('identity') ?? EMPTY;
    if (identity.length > MAX_IDENTITY_BYTES) return this.#refuse('its identity has over 255 bytes', sink);
    const own = [...properties].filter(([name]) => name.startsWith('x-'));
    this.#fields = Object.fromEntries(own.map(([name, value]) => [name.slice(2), value.toString()]));
    this.#identify(identity);
    this.#meet(properties.get('socket-type')?.toString('latin1') ?? 'DEALER', sink);
    if (this.#state !== 'closed') this.#open(sink);
  }
  #identify(identity: Buffer): void {
    if (identity.length === 0) return;
    const shown = isUtf8(identity) ? identity.toString() : `0x${identity.toString('hex')}`;
    this.#fields = { ...this.#fields, identity: shown };
  }
  #open(sink: Sink): void {
    this.#state = 'open';
    for (const [tag, message] of this.#waiting) {
      if (message === 'ping') sink.write(ping(tag));
      else if (this.#asked === undefined) sink.write(this.#ask(message));
      else continue;
      this.#waiting.delete(tag);
    }
  }

  // Frames.
  /** Reads all whole messages; returns where an unfinished one begins. */
  #read(bytes: Buffer, from: number, isOwned: boolean, sink: Sink): number {
    let start = from, at = from + this.#scannedBytes;
    this.#wantedBytes = 0;
    while (this.#state !== 'closed' && at + 2 <= bytes.length) {
      const flags = bytes[at]!;
      let body = at + 2, length = bytes[at + 1]!;
      if ((flags & LONG) !== 0) {
        body = at + 9;
        if (body > bytes.length) break;
        length = bytes.readUInt32BE(at + 1) * 2 ** 32 + bytes.readUInt32BE(at + 5);
      }
      if (!this.#takes(flags, length, bytes, start, sink)) break;
      this.#wantedBytes = body + length - start;
      if (body + length > bytes.length) break;
      at = body + length;
      this.#frames++;
      if ((flags & COMMAND) !== 0) this.#command(bytes.subarray(body, at), sink);
      else if (this.#state === 'identity') {
        this.#identify(bytes.subarray(body, at));
        this.#open(sink);
      } else {
        this.#part(body - start, length);
        if ((flags & MORE) === 0) this.#message(bytes, start, isOwned, sink);
      }
      if (this.#bounds.length === 0) [start, this.#frames] = [at, 0];
    }
    this.#scannedBytes = at - start;
    return this.#state === 'closed' ? bytes.length : start;
  }
  /** Whether a frame may come, by its head: nothing of it is kept before. If not, that is told. */
  #takes(flags: number, length: number, bytes: Buffer, start: number, sink: Sink): boolean {
    const isCommand = (flags & COMMAND) !== 0;
    const isOpen = this.#state === 'open';
    const isFlagged = flags <= 7 && (!isCommand || ((flags & MORE) === 0 && this.#hasCommands));
    const isLong = length > (isCommand ? MAX_COMMAND_BYTES : MAX_IDENTITY_BYTES);
    const wrong = !isFlagged ? `its flags are ${flags}`
      : (isCommand || !isOpen) && isLong ? `${length} bytes came before a message, or as a command`
      : this.#state === 'ready' && !isCommand ? 'a message came before READY'
      : this.#state === 'identity' && flags !== 0 ? 'its identity can\'t be read' : undefined;
    const most = this.#max + (this.#delimiter < 0 ? MAX_ENVELOPE_BYTES : this.#envelopeBytes);
    const bytesNow = isCommand ? 0 : this.#partBytes + length;
    if (wrong === undefined && bytesNow <= most && this.#frames < MAX_PARTS) return true;
    const hasEnvelope = this.#bounds.length > 0 || wrong === undefined;
    if (hasEnvelope) this.#current = this.#asking(bytes, start, this.#delimiter + 1);
    if (wrong !== undefined) this.#refuse(wrong, sink);
    else this.#tooLarge(sink);
    return false;
  }
  #part(start: number, length: number): void {
    if (length === 0 && this.#delimiter === -1 && this.#partBytes <= MAX_ENVELOPE_BYTES) {
      [this.#delimiter, this.#envelopeBytes] = [this.#bounds.length / 2, this.#partBytes];
    }
    this.#partBytes += length;
    this.#bounds.push(start, start + length);
  }
  #message(bytes: Buffer, start: number, isOwned: boolean, sink: Sink): void {
    const count = this.#bounds.length / 2;
    const hasEnvelope = this.#delimiter !== -1 && this.#delimiter < count - 1; // something is behind it
    const first = hasEnvelope ? this.#delimiter + 1 : 0;
    const bodyBytes = this.#partBytes - (hasEnvelope ? this.#envelopeBytes : 0);
    const asked = this.#current = this.#asking(bytes, start, first);
    if (bodyBytes > this.#max) return this.#tooLarge(sink);
    const texts: (string | undefined)[] = [];
    for (let at = 2 * first; at < this.#bounds.length; at += 2) {
      texts.push(decode(bytes, start + this.#bounds[at]!, start + this.#bounds[at + 1]!));
    }
    const isText = !texts.includes(undefined);
    if (!this.#isServer) this.#reply(asked, isText ? texts as string[] : undefined, sink);
    else {
      asked.isText = isText;
      // What no service takes for a command, and as long as what it stands for.
      asked.text = !isText ? '\ufffd'.repeat(bodyBytes) : texts.length === 1 ? texts[0]! : texts.join('\n');
      if (!isText || texts.length > 1 || (isOwned && bodyBytes >= LARGE_BYTES)) {
        asked.kept = keep(bytes, start, this.#bounds.slice(2 * first), isOwned);
      }
      this.#hand(asked, sink);
    }
    this.#current = undefined;
    this.#bounds.length = 0;
    [this.#partBytes, this.#delimiter, this.#envelopeBytes] = [0, -1, 0];
  }
  /** A request whose first part is that of this number; those before are its envelope. */
  #asking(bytes: Buffer, start: number, first: number): Asked {
    let envelope = first === 0 ? '' : DELIMITER;
    for (let at = 2 * first - 4; at >= 0; at -= 2) {
      const [begin, end] = [this.#bounds[at]!, this.#bounds[at + 1]!];
      envelope = head(MORE, end - begin) + bytes.toString('latin1', start + begin, start + end) + envelope;
    }
    return new Asked(envelope, this.#oneWay);
  }
  #hand(asked: Asked, sink: Sink): void {
    const fields = this.#fields;
    this.#fields = undefined;
    if (fields !== undefined) sink.hello?.(fields); // now, so that who isn't admitted has an answer
    if (asked.isText || this.#readsParts) sink.message(asked);
    else sink.error('BAD_MESSAGE', NOT_UTF8, asked);
  }
  #command(body: Buffer, sink: Sink): void {
    const nameBytes = body[0] ?? 0;
    const name = body.toString('latin1', 1, 1 + nameBytes);
    const data = body.subarray(1 + nameBytes);
    if (nameBytes === 0 || name.length < nameBytes) return this.#refuse('a command has no name', sink);
    if (name === 'ERROR') return this.#told(data, sink);
    if (this.#state === 'ready') {
      if (name === 'READY') return this.#ready(data, sink);
      return this.#refuse(`${quoted(name)} came before READY`, sink);
    }
    if (name === 'PING' && data.length >= 2) {
      this.#hasPing = true;
      this.#ttlMs = data.readUInt16BE(0) * 100 || undefined; // it counts tenths of a second
      sink.write(command('PONG', data.subarray(2, 2 + PING_CONTEXT_BYTES)));
    } else if (name === 'PONG' && !this.#isServer) {
      const slot = data.toString('latin1');
      if (/^\d{1,9}$/.test(slot)) sink.response(Number(slot), 'reply', '');
    } else if (name === 'PING' || name === 'READY') this.#refuse(`its ${name} is out of place`, sink);
  }
  /** The peer refuses us. */
  #told(data: Buffer, sink: Sink): void {
    this.#state = 'closed';
    const why = quoted(data.toString('latin1', 1, 1 + (data[0] ?? 0)));
    sink.close(this.#isServer ? undefined
      : new MicroError('PROTOCOL_ERROR', `Cannot go on: the peer refused with ${why}`));
  }
  #refuse(why: string, sink: Sink): void {
    const outcome = this.#isServer || this.#state !== 'open' ? 'refused' : 'maybe done';
    const error = new MicroError('PROTOCOL_ERROR', `Cannot speak ZMTP with this peer: ${why}`, { outcome });
    sink.close(error);
    this.#state = 'closed';
  }
  /** A frame that was not read can't be skipped: all that came with it would have to be. */
  #tooLarge(sink: Sink): void {
    const slot = this.#current?.slot;
    sink.error('MESSAGE_TOO_LARGE', `Cannot read a message of over ${this.#max} bytes or ${MAX_PARTS} parts`,
      this.#isServer || slot === undefined ? undefined : slot);
    sink.close();
    this.#state = 'closed';
  }
  idleMs(): number | undefined { return this.#ttlMs; }
  idle(sink: Sink): void { sink.close(); }

  // Requests and replies.
  /** The client's way. What can't leave yet does when the peer is ready for it. */
  request(message: Message): Body {
    if (this.#state === 'open' && this.#asked === undefined) return this.#ask(message);
    this.#waiting.set(message.tag, message);
    return '';
  }
  #ask({ tag, text }: Message): Body {
    if (this.#isLockstep) this.#asked = tag;
    const slot = String(tag);
    return encoded(this.#isLockstep ? DELIMITER : `${head(MORE, slot.length)}${slot}${DELIMITER}`, [text]);
  }
  #reply(asked: Asked, texts: string[] | undefined, sink: Sink): void {
    const slot = this.#isLockstep ? this.#asked : asked.slot;
    this.#asked = undefined;
    const [text = '', ...more] = texts ?? [];
    if (slot === undefined) return sink.error('PROTOCOL_ERROR', 'a reply has no request\'s envelope');
    if (texts === undefined) {
      const garbled = new MicroError('PROTOCOL_ERROR', NOT_UTF8, { outcome: 'maybe done' });
      sink.response(slot, 'error', garbled);
    } else if (more.length > 0) {
      for (const part of texts) sink.response(slot, 'part', part);
      sink.response(slot, 'end', '');
    } else {
      const error = toldError(text);
      if (error !== undefined) sink.response(slot, 'error', error); else sink.response(slot, 'reply', text);
    }
    const [next] = this.#isLockstep ? this.#waiting.values() : [];
    if (next === undefined || next === 'ping') return;
    this.#waiting.delete(next.tag);
    sink.write(this.#ask(next));
  }
  encode(kind: Kind, body: Body | readonly Body[] | MicroError, tag?: Tag): Body {
    if (kind === 'notice' || kind === 'goodbye') return this.#farewell(body as MicroError);
    const asked = tag as Asked;
    if (asked.oneWay) return '';
    if (kind === 'part') return this.#gather(asked, body as string);
    const parts = kind === 'end' ? asked.gathered ?? [''] : body;
    const error = kind === 'error' ? asked.overflow ?? body as MicroError : asked.isText || asked.hasRead
      ? undefined : new MicroError('BAD_MESSAGE', NOT_UTF8);
    asked.gathered = undefined;
    if (error !== undefined) return encoded(asked.envelope, [errorText(error)]);
    return typeof parts === 'string' ? encoded(asked.envelope, [parts])
      : this.#several(asked.envelope, parts as readonly Body[]);
  }
  #several(envelope: string, parts: readonly Body[]): Body {
    const fail = (code: ErrorCode, why: string) => encoded(envelope, [errorText(new MicroError(code, why))]);
    const isBody = (part: unknown) => (typeof part === 'string' ? isWellFormed(part) : part instanceof Uint8Array);
    if (!parts.every(isBody)) return fail('CALLBACK_FAILED', 'a part of its reply is neither a string nor bytes');
    const bytes = parts.reduce((sum, part) => sum + Buffer.byteLength(part), 0);
    if (bytes > this.#max || parts.length > MAX_PARTS) return fail('MESSAGE_TOO_LARGE', this.#most());
    return encoded(envelope, parts.length === 0 ? [''] : parts);
  }
  #most(): string { return `Cannot send a reply of over ${this.#max} bytes or ${MAX_PARTS} parts`; }
  /** A stream is one message: its parts wait for the last one, as the peer would wait for them. */
  #gather(asked: Asked, part: string): Body {
    asked.gathered ??= [];
    asked.gathered.push(part);
    asked.gatheredBytes += Buffer.byteLength(part);
    if (asked.gathered.length <= MAX_PARTS && asked.gatheredBytes <= this.#max) {
      this.#sink?.control?.('credit', asked, 1);
    } else {
      asked.overflow = new MicroError('MESSAGE_TOO_LARGE', this.#most(), { outcome: 'failed' });
      this.#sink?.control?.('cancel', asked, 0);
    }
    return '';
  }
  /** An error that names no request: about the message under way, or the connection as a whole. */
  #farewell(error: MicroError): Body {
    const asked = this.#current;
    if (asked !== undefined) return asked.oneWay ? '' : encoded(asked.envelope, [errorText(error)]);
    if (!this.#hasCommands) return '';
    const reason = Buffer.from(errorText(error).replace(/[^ -~]/g, '?').slice(0, 255), 'latin1');
    return command('ERROR', Buffer.of(reason.length), reason);
  }
  control(word: Control, argument?: Tag | string): Body | undefined {
    if (word === 'cancel') this.#waiting.delete(argument as Tag);
    if (word !== 'ping') return undefined;
    if (this.#state === 'open') return this.#hasPing ? ping(argument as Tag) : undefined;
    if (this.#isServer) return undefined;
    this.#waiting.set(argument as Tag, 'ping');
    return '';
  }
}

/** A request, its own tag: it has what it takes to answer it. */
class Asked implements Message {
  readonly envelope: string; // as bytes of a latin1 string, delimiter included
  readonly oneWay: boolean;
  text = '';
  isText = true; hasRead = false; // its parts are UTF-8; the service looked at them
  kept: readonly Uint8Array[] | undefined = undefined; // else they are made of the text
  gathered: string[] | undefined = undefined; gatheredBytes = 0; // of a stream
  overflow: MicroError | undefined = undefined; // why that was cancelled
  timeoutMs: undefined; id: undefined; client: undefined;
  constructor(envelope: string, oneWay: boolean) {
    this.envelope = envelope;
    this.oneWay = oneWay;
  }
  get tag(): this { return this; }
  get parts(): readonly Uint8Array[] {
    this.hasRead = true;
    return this.kept ??= [Buffer.from(this.text)];
  }
  /** The client's: its envelope is the slot. */
  get slot(): number | undefined {
    const digits = /^\x01[^](\d{1,9})\x01\0$/.exec(this.envelope)?.[1];
    return digits === undefined ? undefined : Number(digits);
  }
}

// ------------------------------------------------------------------------------------------- Bytes
type Sliced = Buffer & Record<'latin1Slice' | 'utf8Slice', (start: number, end: number) => string>;
/** The text of some bytes; none if they are not UTF-8. */
function decode(bytes: Buffer, start: number, end: number): string | undefined {
  if (end - start >= LARGE_BYTES && isAscii(bytes.subarray(start, end))) {
    return (bytes as Sliced).latin1Slice(start, end); // is copied where UTF-8 is decoded
  }
  const text = (bytes as Sliced).utf8Slice(start, end);
  return text.includes('\ufffd') && !isUtf8(bytes.subarray(start, end)) ? undefined : text;
}
/** The parts at these bounds, to be kept: what is lent is copied, and so is little of much. */
function keep(bytes: Buffer, start: number, bounds: readonly number[], isOwned: boolean): Buffer[] {
  const [from, to] = [start + bounds[0]!, start + bounds.at(-1)!];
  const isWorth = isOwned && 2 * (to - from) >= bytes.length;
  const kept = isWorth ? bytes.subarray(from, to) : Buffer.from(bytes.subarray(from, to));
  return Array.from({ length: bounds.length / 2 }, (_, at) =>
    kept.subarray(bounds[2 * at]! - bounds[0]!, bounds[2 * at + 1]! - bounds[0]!));
}
/** A frame's head, as bytes of a latin1 string. */
function head(flags: number, length: number): string {
  if (length <= 255) return String.fromCharCode(flags, length);
  const bytes = Buffer.alloc(9);
  bytes[0] = flags | LONG;
  bytes.writeUInt32BE(Math.floor(length / 2 ** 32), 1);
  bytes.writeUInt32BE(length % 2 ** 32, 5);
  return bytes.toString('latin1');
}
/** One message: a string where it is ASCII and short, so that many leave in one write. */
function encoded(envelope: string, parts: readonly Body[]): Body {
  const [only] = parts;
  if (typeof only === 'string' && parts.length === 1 && only.length < 128) {
    const wire = `${envelope}\0${String.fromCharCode(only.length)}${only}`;
    if (Buffer.byteLength(wire) === wire.length) return wire;
  }
  const lengths = parts.map((part) => Buffer.byteLength(part));
  const heads = lengths.map((length, at) => head(at < parts.length - 1 ? MORE : 0, length));
  heads[0] = envelope + heads[0]!;
  const bytes = Buffer.allocUnsafe(lengths.reduce((sum, length, at) => sum + length + heads[at]!.length, 0));
  let end = 0;
  for (const [at, part] of parts.entries()) {
    end += bytes.write(heads[at]!, end, 'latin1');
    if (typeof part !== 'string') bytes.set(part, end);
    else bytes.write(part, end, part.length === lengths[at] ? 'latin1' : 'utf8');
    end += lengths[at]!;
  }
  return bytes;
}
function command(name: string, ...data: readonly Uint8Array[]): Buffer {
  const body = Buffer.concat([Buffer.of(name.length), Buffer.from(name), ...data]);
  return Buffer.concat([Buffer.from(head(COMMAND, body.length), 'latin1'), body]);
}
/** Its context comes back in the pong; it sets no time to live. */
const ping = (tag: Tag): Buffer => command('PING', Buffer.of(0, 0), Buffer.from(String(tag)));
function property(name: string, value: string): Buffer {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(Buffer.byteLength(value));
  return Buffer.concat([Buffer.of(name.length), Buffer.from(name), length, Buffer.from(value)]);
}
/** By name in small letters, for those of any case are the same; none if the bytes can't be read. */
function readProperties(data: Buffer): Map<string, Buffer> | undefined {
  const found = new Map<string, Buffer>();
  for (let at = 0; at < data.length;) {
    const nameEnd = at + 1 + data[at]!;
    const start = nameEnd + 4;
    if (nameEnd === at + 1 || start > data.length) return undefined;
    const end = start + data.readUInt32BE(nameEnd);
    if (end > data.length) return undefined;
    found.set(data.toString('latin1', at + 1, nameEnd).toLowerCase(), Buffer.from(data.subarray(start, end)));
    at = end;
  }
  return found;
}
/** As a line would tell it. */
function errorText({ code, message, retryAfterMs: ms }: MicroError): string {
  return `ERR ${code} ${ms === undefined ? oneLine(message) : `retry after ${ms} ms`}`;
}
function toldError(text: string): MicroError | undefined {
  const [, code = '', why = '', ms] = /^ERR ([A-Z_]{1,40}) ((?:retry after (\d{1,9}) ms$)?[^]*)$/.exec(text) ?? [];
  if (!Object.hasOwn(ERRORS, code)) return undefined;
  return new MicroError(code as ErrorCode, why, { retryAfterMs: ms === undefined ? undefined : Number(ms) });
}
