/**
 * Raw: text without a line end, which a silence ends; its reply has no line end either. For the
 * five-line `socket` program of a tutorial. A service opts in; lines go on beside it on the same
 * connection. PROTOCOL.md, "Raw".
 */
import { isUtf8 } from 'node:buffer';
import { MicroError, errorText, exceeds } from '../micro_client.ts';
import type {
  Body, Codec, CodecOptions, Dialect, Kind, LineCodec, Message, Sink,
} from '../micro_client.ts';

export interface RawOptions {
  /** Texts that are messages after `wordSilenceMs` already: commands, such as `revert`. */
  words?: readonly string[];
  /** Milliseconds of silence that end a text which is one of `words`. Default 25. */
  wordSilenceMs?: number;
  /** Milliseconds of silence that end any other text. Default 200. */
  silenceMs?: number;
}

/** @throws {TypeError | RangeError} A word that no silence could end, or times that are none. */
export function raw({ words = [], wordSilenceMs = 25, silenceMs = 200 }: RawOptions = {}): Dialect {
  const bad = words.find((word) => typeof word !== 'string' || word === '' || word.includes('\n'));
  if (bad !== undefined) {
    throw new TypeError(`Cannot use the word ${JSON.stringify(bad)}: expected letters on one line`);
  }
  for (const [name, ms] of Object.entries({ wordSilenceMs, silenceMs })) {
    if (!(ms > 0 && ms < Infinity)) {
      throw new RangeError(`Cannot use ${name} ${ms}: expected milliseconds above 0`);
    }
  }
  const times = { words: words.map((word) => Buffer.from(word)), wordSilenceMs, silenceMs };
  return {
    name: 'raw',
    ordered: true,
    // What begins as a line does, but for what another dialect may claim wherever it is listed.
    matches(head) {
      const [first = 0] = head;
      const isControl = first === 0xff || (first < 32 && ![9, 10, 13].includes(first));
      const isSized = SIZED.test(Buffer.from(head.subarray(0, 64)).toString('latin1'));
      return isControl || isSized ? 'no' : 'yes';
    },
    open: (options) => new RawCodec(options, times),
  };
}
export const dialect = raw; // what `raw+tcp://host:port` loads

/** A whole sized header. */
const SIZED = /^(?=.{64}$)\d{1,20} +$/;

interface Times {
  words: readonly Uint8Array[];
  wordSilenceMs: number;
  silenceMs: number;
}

/** What a raw message is answered by. */
class RawTag {
  /** A part of its reply has left: a line break stands before the next. */
  hasPart = false;
}

const LF = Buffer.from('\n');

/** Reads all as lines, and ends by itself the one that the peer leaves open. */
class RawCodec implements Codec {
  readonly #lines: LineCodec;
  readonly #times: Times;
  readonly #maxBytes: number;
  /** The last byte was no LF: something may wait for its end, if only to be dropped. */
  #isOpen = false;
  /** A line came: at a half-close the unfinished rest is one too. */
  #hasLine = false;
  /** A message came, so that no foreign protocol can. */
  #hasBegun = false;

  constructor({ lines, maxMessageBytes }: CodecOptions, times: Times) {
    if (lines === undefined) {
      throw new MicroError('PROTOCOL_ERROR', 'Cannot call over raw: nothing tells ' +
        'where a reply ends, expected a dialect that does. Leave out the option', { outcome: 'not sent' });
    }
    this.#lines = lines();
    this.#maxBytes = maxMessageBytes;
    this.#times = times;
  }

  get heldBytes(): number {
    return this.#lines.heldBytes;
  }

  receive(chunk: Uint8Array, sink: Sink): void {
    if (chunk.length === 0) return;
    this.#hasLine ||= chunk.includes(10);
    this.#isOpen = chunk[chunk.length - 1] !== 10;
    this.#lines.receive(chunk, this.#through(sink));
  }

  idleMs(): number | undefined {
    const { words, wordSilenceMs, silenceMs } = this.#times;
    if (!this.#isOpen) return undefined;
    const { held } = this.#lines;
    return words.some((word) => held.equals(word)) ? wordSilenceMs : silenceMs;
  }

  idle(sink: Sink): void {
    const { held } = this.#lines;
    const isUnfinished = isCutLetter(held) || (!this.#hasBegun && isCutForeign(held));
    if (!isUnfinished) this.#finish(sink);
  }

  end(sink: Sink): void {
    if (!this.#isOpen) return;
    if (this.#hasLine) this.#lines.receive(LF, this.#through(sink));
    else this.#finish(sink);
  }

  #finish(sink: Sink): void {
    this.#isOpen = false;
    this.#lines.receive(LF, this.#through(sink, new RawTag()));
  }

  /** What the lines tell, with a tag for what a silence ended; `$` means nothing there. */
  #through(sink: Sink, tag?: RawTag): Sink {
    const message = (told: Message): void => {
      this.#hasBegun = true;
      sink.message(told);
    };
    const asRaw = (text: string, own: RawTag): void => {
      if (!exceeds(text, this.#maxBytes)) return message({ tag: own, text });
      sink.error('MESSAGE_TOO_LARGE', `Cannot read a message of over ${this.#maxBytes} bytes`, own);
    };
    return {
      message: (told) => {
        if (tag === undefined) message(told);
        else asRaw(told.text.startsWith('$') ? `$${told.text}` : told.text, tag); // it was `$$`
      },
      command: (line, number) => {
        if (tag === undefined) sink.command?.(line, number);
        else asRaw(line, tag);
      },
      error: (code, why, number) => sink.error(code, why, tag ?? number),
      response: () => {},
      write: (bytes) => sink.write(bytes),
      close: (last) => sink.close(last),
    };
  }

  request({ text }: Message): Body {
    return text;
  }

  encode(kind: Kind, body: Body | readonly Body[] | MicroError, tag?: Message['tag']): Body {
    if (!(tag instanceof RawTag)) return this.#lines.encode(kind, body, tag);
    if (kind === 'end') return '';
    const text = body instanceof MicroError ? errorText(body) : body as string;
    const separator = tag.hasPart ? '\n' : '';
    tag.hasPart = true;
    return separator + text;
  }
}

/** Whether a letter of UTF-8 is not whole yet, and all before it is well. */
function isCutLetter(bytes: Buffer): boolean {
  if (isUtf8(bytes)) return false;
  try {
    new TextDecoder('utf-8', { fatal: true }).decode(bytes, { stream: true });
    return true;
  } catch {
    return false; // no more bytes could mend it
  }
}

/** What browsers, proxies and SSH clients begin with: RFC 9110, 9.3; 5789; 9113, 3.4; 4253, 4.2. */
const METHODS = ['GET', 'HEAD', 'POST', 'PUT', 'DELETE', 'CONNECT', 'OPTIONS', 'TRACE', 'PATCH',
  'PRI'];
const BEGINNINGS = [...METHODS.map((method) => `${method} `), 'Host:', 'SSH-'];
/** RFC 9112, 3.2: a path, a URL or `*`; but for CONNECT's. `GET key` has none, and is a text. */
const TARGET = /^(?:[/*]|[a-z][a-z\d+.-]*:)/i;
const VERSIONS = ['HTTP/0.', 'RTSP/0.', 'SIP/0.'];

/** Whether more bytes could make a line of it that is refused as HTTP or SSH. */
function isCutForeign(bytes: Buffer): boolean {
  const text = bytes.toString('latin1');
  if (text === '') return false;
  if (BEGINNINGS.some((begin) => begin.startsWith(text)) || /^Host[ \t]*$/.test(text)) return true;
  const [, method, target = '', version = ''] = /^([A-Z-]+) (\S*)(?: (\S*))?$/.exec(text) ?? [];
  if (method === undefined) return false;
  const isTarget = TARGET.test(target) || method === 'CONNECT' ||
    (METHODS.includes(method) && 'https:'.startsWith(target));
  return isTarget && VERSIONS.some((one) => one.startsWith(version.replaceAll(/\d/g, '0')));
}
