/**
 * Events: `[name, data]`, data being JSON, dispatched to a handler each.
 *
 * Over ZMTP an event is two parts, the name and the JSON, and so is its reply. In one text, over any
 * dialect, it is a JSON array: `["add",{"a":1}]`, answered by `["add",…]`. Any other text is the
 * event `message` with the text as its data, and a string answers it as it is.
 */
import { isUtf8 } from 'node:buffer';
import { MicroClient, MicroError, quoted, textOf, type CallOptions } from './micro_client.ts';
import type { Callback, Context } from './micro_server.ts';

/** What the data of each event is, and what answers it; both as JSON carries them. */
export type EventTypes = Record<string, { data: unknown; reply: unknown }>;
/** Its reply crosses as JSON; `undefined` as `null`. What it throws is the caller's error. */
export type EventHandler<Type extends EventTypes[string] = EventTypes[string]> =
  (data: Type['data'], context: Context) => Type['reply'] | Promise<Type['reply']>;

interface Event { name: string; data: unknown; form: 'parts' | 'array' | 'text' }

/**
 * Handlers by event, and the callback that calls them.
 *
 * @example
 * type Sums = { add: { data: number[]; reply: number } };
 * const events = new Events<Sums>().on('add', (all) => all.reduce((sum, one) => sum + one, 0));
 * new MicroServer(events.callback, 'SUMS');
 */
export class Events<Types extends EventTypes = EventTypes> {
  readonly #handlers = new Map<string, EventHandler>();

  /**
   * Sets the handler of an event. Types are the writer's word: what comes is not checked.
   *
   * @throws {RangeError} It has one.
   */
  on<Name extends keyof Types & string>(name: Name, handler: EventHandler<Types[Name]>): this {
    if (this.#handlers.has(name)) {
      throw new RangeError(`Cannot handle event ${quoted(name)} twice: expected one handler each`);
    }
    this.#handlers.set(name, handler as unknown as EventHandler);
    return this;
  }

  /**
   * For a MicroServer, a worker or a service.
   *
   * @throws {MicroError} `BAD_MESSAGE`: no such event, or none that can be read.
   */
  readonly callback: Callback = async (message, context) => {
    const { name, data, form } = read(message, context.parts);
    const handler = this.#handlers.get(name);
    if (handler === undefined) {
      const known = [...this.#handlers.keys()].slice(0, 12).map(quoted).join(', ') || 'none';
      throw bad(`handle event ${quoted(name)}: expected one of ${known}`);
    }
    const reply = await handler(data, context) ?? null;
    if (form === 'parts') return { parts: [name, JSON.stringify(reply)] };
    if (form === 'array') return JSON.stringify([name, reply]);
    return typeof reply === 'string' ? reply : JSON.stringify(reply);
  };
}

/** A client that sends events as well. */
export class EventClient<Types extends EventTypes = EventTypes> extends MicroClient {
  /**
   * Sends one event and resolves with what its handler answered.
   *
   * @param data Whatever JSON can carry; `undefined` crosses as `null`.
   * @throws {MicroError} As `sendMessage`. `BAD_MESSAGE`: JSON can't carry the data, or the service
   *   knows no such event. `PROTOCOL_ERROR`: what came back is no event.
   */
  async sendEvent<Name extends keyof Types & string>(
    name: Name, data?: Types[Name]['data'], options?: CallOptions,
  ): Promise<Types[Name]['reply']> {
    const reply = await this.sendMessage(written(name, data), options);
    try {
      return read(reply, undefined, 'array').data;
    } catch (cause) {
      const why = `Cannot read the reply to event ${quoted(name)}: it is ${quoted(reply)}, ` +
        'expected ["event",data]. Does the service speak events?';
      throw new MicroError('PROTOCOL_ERROR', why, { outcome: 'maybe done', cause });
    }
  }
}

const bad = (why: string, outcome: 'refused' | 'not sent' = 'refused', cause?: unknown) =>
  new MicroError('BAD_MESSAGE', `Cannot ${why}`, { outcome, cause });

function written(name: string, data: unknown): string {
  try {
    return JSON.stringify([name, data ?? null]);
  } catch (cause) {
    throw bad(`send event ${quoted(name)}: ${textOf(cause)}, expected data for JSON`, 'not sent', cause);
  }
}

/** @throws {MicroError} `BAD_MESSAGE`, if it is none. */
function read(
  text: string, parts: readonly Uint8Array[] | undefined, wanted?: 'array',
): Event {
  if (parts !== undefined && parts.length > 1) return readParts(parts);
  if (wanted === undefined && !/^\s*\[/.test(text)) return { name: 'message', data: text, form: 'text' };
  const [name, data, ...more] = parse(text, 'an event', '["event",data]') as unknown[];
  if (typeof name === 'string' && data !== undefined && more.length === 0) {
    return { name, data, form: 'array' };
  }
  throw bad(`read an event: it is ${quoted(text)}, expected ["event",data]`);
}

function readParts([name, json, ...more]: readonly Uint8Array[]): Event {
  if (more.length > 0) throw bad(`read an event: it has ${more.length + 2} parts, expected 2`);
  if (![name, json].every((part) => part !== undefined && isUtf8(part))) {
    throw bad('read an event: a part is not UTF-8');
  }
  const known = String(Buffer.from(name as Uint8Array));
  return { name: known, form: 'parts',
    data: parse(String(Buffer.from(json as Uint8Array)), `the data of event ${quoted(known)}`, 'JSON') };
}

function parse(json: string, what: string, expected: string): unknown {
  try {
    return JSON.parse(json);
  } catch (cause) {
    throw bad(`read ${what}: it is ${quoted(json)}, expected ${expected}`, 'refused', cause);
  }
}
