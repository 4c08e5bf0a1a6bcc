/**
 * The sized header: 64 bytes of decimal length, padded with spaces, then so many bytes of UTF-8;
 * the same both ways. What many a first client with sockets speaks. PROTOCOL.md, "Sized header".
 */
import { isUtf8 } from 'node:buffer';
import { ERRORS, MicroError, errorText } from '../micro_client.ts';
import type {
  Body, Codec, CodecOptions, Control, Dialect, ErrorCode, Kind, Message, Sink, Tag,
} from '../micro_client.ts';

const HEADER_BYTES = 64;
/** What can be a header, whole or as it begins. */
const HEADER = /^(?:\d{1,20} *)?/;
/** A client's last word: it closes without a reply. */
const END_WORD = '&END';
const EMPTY = Buffer.alloc(0);
const MIN_ROOM_BYTES = 4096;

/** For either side. A client of it can't tell a stream's parts from replies: it asks for none. */
export function sizedHeader(): Dialect {
  return {
    name: 'sized',
    ordered: true,
    matches(head) {
      const begin = latin1(head.subarray(0, HEADER_BYTES));
      const isHeader = rightBytes(begin) === begin.length;
      return !isHeader ? 'no' : begin.length < HEADER_BYTES ? 'more' : 'yes';
    },
    open: (options) => new SizedCodec(options),
  };
}
export const dialect = sizedHeader; // what `sized_header+tcp://host:port` loads

class SizedCodec implements Codec {
  readonly #maxBytes: number;
  readonly #isServer: boolean;
  /** What is there of the header; once that is whole, of the body, in a buffer that grows. */
  #held: Buffer = EMPTY;
  #isBody = false;
  #wantedBytes = HEADER_BYTES;
  /** Bytes of `#held` that are filled. */
  #bytes = 0;
  /** Of a message too long, which was answered: dropped unread. */
  #skippedBytes = 0;
  #isOver = false;
  /** Of the next request. */
  #tag = 0;
  /** Of a client's requests without a reply, the oldest first. */
  readonly #asked: Tag[] = [];

  constructor({ maxMessageBytes, role }: CodecOptions) {
    this.#maxBytes = maxMessageBytes;
    this.#isServer = role === 'server';
  }

  get heldBytes(): number {
    return this.#isBody ? HEADER_BYTES + this.#bytes : this.#bytes;
  }

  receive(chunk: Uint8Array, sink: Sink): void {
    for (let at = 0; at < chunk.length && !this.#isOver;) {
      if (this.#skippedBytes > 0) {
        const bytes = Math.min(this.#skippedBytes, chunk.length - at);
        this.#skippedBytes -= bytes;
        at += bytes;
        continue;
      }
      const piece = chunk.subarray(at, at + this.#wantedBytes - this.#bytes);
      at += piece.length;
      this.#hold(piece);
      if (!this.#isBody) this.#readHeader(sink);
      if (this.#isBody && this.#bytes === this.#wantedBytes) this.#readBody(sink);
    }
  }

  /** Told, so that a client whose length is too long learns it. */
  end(sink: Sink): void {
    if (this.heldBytes === 0 || this.#isOver) return;
    const what = this.#isBody ? 'body' : 'header';
    this.#isOver = true;
    this.#bad('PROTOCOL_ERROR',
      `Cannot read a ${what} of ${this.#bytes} bytes: expected ${this.#wantedBytes}`, sink);
  }

  request({ tag, text }: Message): Body {
    this.#asked.push(tag);
    return framed(text);
  }

  /** A stream is a message a part, an empty one `\e`, and an empty message at its end. */
  encode(kind: Kind, body: Body | readonly Body[] | MicroError): Body {
    if (body instanceof MicroError) return framed(errorText(body));
    return framed(kind === 'part' && body === '' ? '\\e' : body as string);
  }

  control(word: Control): Body | undefined {
    return word === 'goodbye' && !this.#isServer ? framed(END_WORD) : undefined;
  }

  /** Keeps a copy. Room is made as bytes come, whatever a header promises. */
  #hold(piece: Uint8Array): void {
    const bytes = this.#bytes + piece.length;
    if (bytes > this.#held.length) {
      const roomBytes = Math.max(bytes, 2 * this.#held.length, MIN_ROOM_BYTES);
      const grown = Buffer.allocUnsafe(Math.min(this.#wantedBytes, roomBytes));
      this.#held.copy(grown, 0, 0, this.#bytes);
      this.#held = grown;
    }
    this.#held.set(piece, this.#bytes);
    this.#bytes = bytes;
  }

  /** Refuses what is no header at its first wrong byte, and a length too long before its body. */
  #readHeader(sink: Sink): void {
    const header = latin1(this.#held.subarray(0, this.#bytes));
    const right = rightBytes(header);
    if (right < header.length) {
      const head = JSON.stringify(header.slice(0, right + 1)); // however much came with it
      return this.#close('PROTOCOL_ERROR', `Cannot read the header ${head}: ` +
        `expected 1 to 20 digits, then spaces up to ${HEADER_BYTES} bytes`, sink);
    }
    if (this.#bytes < HEADER_BYTES) return;
    const length = Number(header);
    const isLong = length > this.#maxBytes;
    this.#expect(!isLong, isLong ? HEADER_BYTES : length);
    if (!isLong) return;
    const why = `Cannot read a message of ${header.trimEnd()} bytes: ` +
      `expected ${this.#maxBytes} at most`;
    if (!Number.isSafeInteger(length)) return this.#close('MESSAGE_TOO_LARGE', why, sink);
    this.#skippedBytes = length;
    this.#bad('MESSAGE_TOO_LARGE', why, sink);
  }

  #readBody(sink: Sink): void {
    const body = this.#held.subarray(0, this.#bytes);
    const isText = isUtf8(body);
    const text = isText ? body.toString() : '';
    this.#expect(false, HEADER_BYTES);
    if (this.#isServer && text === END_WORD) {
      this.#isOver = true;
      return sink.finish?.();
    }
    if (!isText) {
      const code = this.#isServer ? 'BAD_MESSAGE' : 'PROTOCOL_ERROR'; // a garbled reply
      return this.#bad(code, 'Cannot read a text that is not UTF-8', sink);
    }
    const tag = this.#nextTag();
    if (tag === undefined) {
      return sink.error('PROTOCOL_ERROR', 'Cannot take a reply: nothing was asked');
    }
    if (this.#isServer) return sink.message({ tag, text });
    const error = errorOf(text);
    sink.response(tag, error === undefined ? 'reply' : 'error', error ?? text);
  }

  #expect(isBody: boolean, bytes: number): void {
    this.#isBody = isBody;
    this.#wantedBytes = bytes;
    this.#held = EMPTY;
    this.#bytes = 0;
  }

  /** A request, or a reply, that can't be used. */
  #bad(code: ErrorCode, why: string, sink: Sink): void {
    const tag = this.#nextTag();
    if (this.#isServer || tag === undefined) return sink.error(code, why, tag);
    sink.response(tag, 'error', new MicroError(code, why, { outcome: 'maybe done' }));
  }

  #close(code: ErrorCode, why: string, sink: Sink): void {
    this.#isOver = true;
    this.#expect(false, HEADER_BYTES);
    sink.close(new MicroError(code, why, { outcome: this.#isServer ? 'refused' : 'maybe done' }));
  }

  #nextTag(): Tag | undefined {
    return this.#isServer ? this.#tag++ : this.#asked.shift();
  }
}

/** Header and body in one, so that they leave in one write: clients read 64 bytes at once. */
function framed(text: string): string {
  return String(Buffer.byteLength(text)).padEnd(HEADER_BYTES) + text;
}

/** The error that a reply tells; a reply that only looks like one can't be told from it. */
function errorOf(text: string): MicroError | undefined {
  const [, code = '', why = ''] = /^ERR ([A-Z_]+) ([^\n]*)$/.exec(text) ?? [];
  if (!Object.hasOwn(ERRORS, code)) return undefined;
  const [, ms] = /^retry after (\d{1,9}) ms$/.exec(why) ?? [];
  const retryAfterMs = ms === undefined ? undefined : Number(ms);
  return new MicroError(code as ErrorCode, why, { retryAfterMs });
}

/** How much of it can be a header. */
function rightBytes(header: string): number {
  return HEADER.exec(header)?.[0].length ?? 0;
}

function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('latin1');
}
