/**
 * ZMTP as ZeroMQ frameworks use it: an event is two parts, its name and its JSON, where other
 * dialects have the one text `["name",…]`. Of a client, any other text crosses as the event
 * `message`, with the text as its JSON, and the reply to it comes back as text.
 */
import { isUtf8 } from 'node:buffer';
import type { Body, Codec, Dialect, Kind, Message, MicroError, Sink, Tag } from '../micro_client.ts';
import { zmtp } from './zmtp.ts';

export const dialect = zmtpEvents; // what `zmtp_events+tcp://host:port` loads

/**
 * Of a client: `new EventClient('KEY', { dialect: zmtpEvents() })`. Of a router's front: its workers
 * get one text each, whatever they speak. A service with `Events` needs no more than `zmtp()`.
 */
export function zmtpEvents(): Dialect {
  const plain = zmtp();
  return { ...plain, open: (options) => eventCodec(plain.open({ ...options, readsParts: true })) };
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

/** Turns events of a codec that has parts into one text each, and back. */
export function eventCodec(codec: Codec): Codec {
  const asked = new Map<Tag, { isPlain: boolean; parts: string[] }>(); // by us
  const ofTwoParts = new WeakSet<object>(); // of us: their replies are to be so as well
  let between: { sink: Sink; told: Sink } | undefined;
  const toldBy = (sink: Sink): Sink => {
    if (between?.sink !== sink) between = { sink, told: telling(sink, asked, ofTwoParts) };
    return between.told;
  };
  return {
    get heldBytes() { return codec.heldBytes; },
    start: (sink) => codec.start?.(toldBy(sink)),
    receive: (chunk, sink) => codec.receive(chunk, toldBy(sink)),
    request(message: Message): Body {
      const isPlain = !/^\s*\[/.test(message.text);
      asked.set(message.tag, { isPlain, parts: [] });
      const parts = partsOf(message.text).map((part) => Buffer.from(part));
      return codec.request({ tag: message.tag, text: message.text, parts });
    },
    encode(kind: Kind, body: Body | readonly Body[] | MicroError, tag?: Tag): Body {
      const isEvent = kind === 'reply' && typeof body === 'string' && ofTwoParts.has(tag as object);
      return codec.encode(kind, isEvent ? partsOf(body) : body, tag);
    },
    control: (...words) => codec.control?.(...words),
    idleMs: () => codec.idleMs?.(),
    idle: (sink) => codec.idle?.(toldBy(sink)),
  };
}

/** What the codec below tells: parts here, one text there. */
function telling(
  sink: Sink, asked: Map<Tag, { isPlain: boolean; parts: string[] }>, ofTwoParts: WeakSet<object>,
): Sink {
  return {
    hello: (fields) => sink.hello?.(fields),
    message(message) {
      const { tag, parts = [], oneWay } = message;
      const [name, json, ...more] = parts;
      if (!parts.every((part) => isUtf8(part))) {
        return sink.error('BAD_MESSAGE', 'Cannot read a text that is not UTF-8', tag);
      }
      if (name === undefined || json === undefined || more.length > 0) return sink.message(message);
      ofTwoParts.add(tag as object);
      const text = textOf([String(Buffer.from(name)), String(Buffer.from(json))]);
      return sink.message({ tag, text, oneWay });
    },
    response(tag, kind, body) {
      const call = asked.get(tag);
      if (kind === 'part' && call !== undefined) return void call.parts.push(body as string);
      asked.delete(tag);
      const [name = '', json, ...more] = call?.parts ?? [];
      if (kind !== 'end' || call === undefined) return sink.response(tag, kind, body);
      const isEvent = json !== undefined && more.length === 0;
      const text = isEvent ? textOf([name, json], call.isPlain) : call.parts.join('\n');
      return sink.response(tag, 'reply', text);
    },
    control: (word, argument, count) => sink.control?.(word, argument, count),
    command: (line, tag) => sink.command?.(line, tag),
    error: (code, text, tag) => sink.error(code, text, tag),
    write: (bytes) => sink.write(bytes),
    close: (last) => sink.close(last),
  };
}
