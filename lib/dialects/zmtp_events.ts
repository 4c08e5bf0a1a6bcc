/**
 * ZMTP for a client of a ZeroMQ framework: an event is two parts, its name and its JSON, where other
 * dialects have the one text `["name",…]`. Any other text crosses as the event `message`, with the
 * text as its JSON, and the reply to it comes back as text.
 */
import type { Codec, Dialect, Message, Sink, Tag } from '../micro_client.ts';
import { zmtp } from './zmtp.ts';

/** `new EventClient('KEY', { dialect: zmtpEvents() })`. A server takes both forms with `zmtp()` itself. */
export function zmtpEvents(): Dialect {
  const plain = zmtp();
  return { ...plain, name: 'zmtp events', open: (options) =>
    (options.role === 'client' ? new EventCodec(plain.open(options)) : plain.open(options)) };
}

/** Two parts of one text. */
export function partsOf(text: string): [name: string, json: string] {
  const [, name, json] = /^\s*\[\s*("(?:[^"\\]|\\.)*")\s*,([^]*)\]\s*$/.exec(text) ?? [];
  const parsed = name === undefined ? undefined : parse(name);
  return typeof parsed === 'string' ? [parsed, (json as string).trim()] : ['message', JSON.stringify(text)];
}

/** One text of two parts; `isPlain`: of the reply to a plain text. */
export function textOf([name, json]: readonly [name: string, json: string], isPlain = false): string {
  const value = isPlain ? parse(json) : undefined;
  if (typeof value === 'string') return value;
  return isPlain ? json : `[${JSON.stringify(name)},${json}]`;
}

function parse(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch {
    return undefined;
  }
}

class EventCodec implements Codec {
  readonly #codec: Codec;
  readonly #asked = new Map<Tag, { isPlain: boolean; parts: string[] }>();
  #told: Sink | undefined; // by the codec below
  #sink: Sink | undefined; // of the connection
  constructor(codec: Codec) {
    this.#codec = codec;
    if (codec.idleMs !== undefined) this.idleMs = () => codec.idleMs?.();
    if (codec.idle !== undefined) this.idle = (sink) => codec.idle?.(this.#between(sink));
  }
  idleMs?: () => number | undefined;
  idle?: (sink: Sink) => void;
  get heldBytes(): number { return this.#codec.heldBytes; }
  start(sink: Sink): void { this.#codec.start?.(this.#between(sink)); }
  receive(chunk: Uint8Array, sink: Sink): void { this.#codec.receive(chunk, this.#between(sink)); }
  request(message: Message): ReturnType<Codec['request']> {
    const parts = partsOf(message.text);
    this.#asked.set(message.tag, { isPlain: !/^\s*\[/.test(message.text), parts: [] });
    return this.#codec.request({ ...message, tag: message.tag, parts: parts.map((part) => Buffer.from(part)) });
  }
  encode(...words: Parameters<Codec['encode']>): ReturnType<Codec['encode']> {
    return this.#codec.encode(...words);
  }
  control(...words: Parameters<NonNullable<Codec['control']>>): ReturnType<NonNullable<Codec['control']>> {
    return this.#codec.control?.(...words);
  }
  /** The parts of a reply are told as one text. */
  #between(sink: Sink): Sink {
    if (this.#told !== undefined && this.#sink === sink) return this.#told;
    this.#sink = sink;
    const told: Sink = Object.create(sink) as Sink;
    told.response = (tag, kind, body) => {
      const asked = this.#asked.get(tag);
      if (kind === 'part' && asked !== undefined) return void asked.parts.push(body as string);
      this.#asked.delete(tag);
      const [name = '', json, ...more] = asked?.parts ?? [];
      if (kind !== 'end' || asked === undefined) return sink.response(tag, kind, body);
      const isEvent = json !== undefined && more.length === 0;
      return sink.response(tag, 'reply', isEvent ? textOf([name, json], asked.isPlain) : asked.parts.join('\n'));
    };
    return this.#told = told;
  }
}
