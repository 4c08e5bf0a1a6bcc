/**
 * CALENDAR: gives events of known apps a time stamp and keeps them. An event is in an append-only
 * journal before its reply leaves, so that a kill at any moment loses nothing that was acknowledged.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { writeFileAtomically } from '../lib/atomic_file.ts';
import { zmtp } from '../lib/dialects/zmtp.ts';
import type { Context, Service } from '../lib/index.ts';
import { Journal, type JournalOptions, type JournalRecord } from '../lib/journal.ts';
import { Awaitable } from '../lib/later.ts';
import { escapeOf, exceeds, logToStderr, positive, quoted, textOf, type Log } from '../lib/micro_client.ts';

export interface CalendarOptions {
  /** Gets the journal and `event_log.json`; made if missing, and held by one process at a time. */
  folder?: string;
  /**
   * Names of the apps whose events are taken; `[]` admits nobody. Default: `TaskTracker`,
   * `FitnessApp` and `HabitTracker`.
   */
  whitelist?: readonly string[];
  /** A file with such an array as JSON, in place of `whitelist`. */
  whitelistFile?: string;
  /** Whether `Q`, sent from this machine, saves `event_log.json` and stops. Default false. */
  allowQuit?: boolean;
  /**
   * What an acknowledged event outlasts beside a crash and `kill -9` of this process, which each of
   * them does. `always`: a loss of power too; the disk is waited for. `interval`, the default: a loss
   * of power may take what came in the last `intervalMs`. `never`: it may take what the system had
   * not written by itself, 30 s or more.
   */
  fsync?: 'always' | 'interval' | 'never';
  /** Milliseconds between two syncs under `fsync: 'interval'`. Default 100. */
  intervalMs?: number;
  /** How many `id`s of requests are remembered, the newest. Default 100,000. */
  maxIds?: number;
  /** Longest `eventName`, in bytes of UTF-8; past it: status 400. Default 1,024. */
  maxEventNameBytes?: number;
  /** Longest page of events and reply to `Q`: the server's `maxMessageBytes`. Default 1 MiB. */
  maxReplyBytes?: number;
  /** Milliseconds since 1970. Time is the world's, not ours: an option, so that a test can set it. */
  clock?: () => number;
  log?: Log;
}

export const DEFAULT_FOLDER = 'calendar';
const DEFAULT_WHITELIST = ['TaskTracker', 'FitnessApp', 'HabitTracker'];
const MAX_ID_LENGTH = 128;
const PAGE_EVENTS = 1_000;
const MAX_SCANNED = 10_000; // records for a page, so that a filter which finds little holds up nobody
const MARGIN_BYTES = 200; // what stands in a reply around its events
const WIDEST_ESCAPE_BYTES = 6; // of one byte, as JSON: \u001b

const refusal = (error: string): string => JSON.stringify({ status: 400, error });
const missing = (field: string): string => refusal(`invalid or missing field: ${field}`);
const PONG = '{"status":200,"message":"pong"}';
const INVALID_JSON = refusal('invalid json');
const UNKNOWN_ACTION = refusal('unknown action');
const NOT_WHITELISTED = refusal('clientID is not a whitelisted APP');
const QUIT_NOT_ALLOWED = refusal('quit is not allowed');
const ID_IN_USE = refusal('id was used for another event');
const NOT_STORED = '{"status":500,"error":"event not stored"}';
const NOT_READ = '{"status":500,"error":"events not read"}';
const NOT_SAVED = '{"status":500,"error":"event log not saved"}';

/** What stands in a request, none of it checked. */
type Fields = Readonly<Partial<Record<'action' | 'clientID' | 'eventName' | 'id' | 'after', unknown>>>;
const NO_FIELDS: Fields = {};

const PLAIN = String.raw`[^"\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+`; // letters that asJson leaves as they are
/**
 * A time stamp's request as most programs write it, with a blank behind colon and comma or without
 * any: name, and event and id as JSON. Takes 70 ns, `JSON.parse` 440 (Node 20): that gets all others.
 */
const USUAL = new RegExp(`^\\{"action": ?"timestamp", ?"clientID": ?"(${PLAIN})", ?` +
  `"eventName": ?("${PLAIN}")(?:, ?"id": ?("${PLAIN}"))?\\}$`);

/**
 * `{"action":"timestamp","clientID":"TaskTracker","eventName":"add.task"}` → its time stamp, in UTC;
 * `{"action":"events","clientID":"TaskTracker","after":0}` → events in pages of at most 1,000, of all
 * apps without `clientID`; ask on with the page's `cursor` in `after` while `more` is true, even
 * where a page is empty. `{"action":"ping"}` → pong. `Q` → all events, and the end.
 *
 * With an `"id"` of its own, 128 letters at most, a request makes one event of its app, however often
 * it is sent; each time the reply is the same. Another `eventName` under that id is refused, since a
 * 200 would say that it is stored.
 *
 * @throws {Error} The whitelist is named but can't be used, or the folder can't: one sentence.
 */
export async function createCalendar(options: CalendarOptions = {}): Promise<Service> {
  const calendar = new Calendar(options);
  await calendar.open();
  return {
    dialects: [zmtp()], // for the REQ sockets of pyzmq programs
    contract: CONTRACT,
    callback: (message, context) => calendar.answer(message, context),
    stop: () => calendar.stop(),
  };
}

class Calendar {
  readonly #folder: string; readonly #allowQuit: boolean; readonly #log: Log;
  readonly #clock: () => number;
  readonly #maxIds: number; readonly #maxEventNameBytes: number; readonly #maxReplyBytes: number;
  readonly #journalOptions: JournalOptions;
  #journal!: Journal;
  /** By name, what a record without an id has before the name of the event. */
  readonly #whitelist: ReadonlyMap<string, string>;
  #second = -Infinity; // since 1970, of the newest time stamp
  #recordEnd = ''; #reply = ''; // made once a second
  #written: Promise<void> | undefined; // the newest group of events, which share a write
  #answer: GroupReply | undefined; // and a reply
  /** By the part of the record before the event's name: the record's number, oldest first. */
  readonly #ids = new Map<string, number>();
  readonly #oldestIds = this.#ids.keys(); // one for all time: a new one would pass what was deleted
  /** Of ids whose event is being written. */
  readonly #pending = new Map<string, { name: string; answer: GroupReply }>();
  #saving: Promise<void> | undefined;
  #saved: Saved | undefined; // once it was asked for

  constructor(options: CalendarOptions) {
    const { folder = DEFAULT_FOLDER, fsync = 'interval', intervalMs, log = logToStderr } = options;
    this.#folder = folder;
    this.#allowQuit = options.allowQuit === true;
    this.#log = log;
    this.#clock = options.clock ?? Date.now;
    this.#maxIds = Math.ceil(positive(options, 'maxIds', 100_000));
    this.#maxEventNameBytes = positive(options, 'maxEventNameBytes', 1_024);
    this.#maxReplyBytes = positive(options, 'maxReplyBytes', 1024 * 1024);
    const leastBytes = WIDEST_ESCAPE_BYTES * this.#maxEventNameBytes + 1_024;
    if (this.#maxReplyBytes < leastBytes) {
      throw new RangeError(`Cannot use maxReplyBytes ${this.#maxReplyBytes}: an event may take ` +
        `${leastBytes}, expected as many. Raise it, or lower maxEventNameBytes`);
    }
    this.#whitelist = new Map(whitelistOf(options).map((name) =>
      [name, `{"clientID":${asJson(name)},"eventName":`]));
    this.#journalOptions = { folder, name: 'calendar', fsync, log,
      ...(intervalMs !== undefined && { intervalMs }) };
  }

  /** Reads the journal: the newest time stamp, and the ids that are remembered. */
  async open(): Promise<void> {
    let last: string | undefined;
    const withId: { text: string; number: number }[] = []; // a ring of the newest
    let ids = 0;
    const onRecord = (text: string, number: number): void => {
      last = text;
      if (hasId(text)) withId[ids++ % this.#maxIds] = { text, number };
    };
    this.#journal = await Journal.open({ ...this.#journalOptions, onRecord });
    const oldest = ids % this.#maxIds;
    for (const { text, number } of [...withId.slice(oldest), ...withId.slice(0, oldest)]) {
      this.#remember(own(keyOf(text)), number);
    }
    if (last !== undefined) this.#turnTo(Date.parse(timestampOf(last)) / 1000);
  }

  answer(message: string, context: Context): Reply {
    const usual = this.#usual(message);
    if (usual !== undefined) return usual;
    if (message === 'Q') return this.#quit(context);
    let fields: Fields;
    try {
      fields = (JSON.parse(message) ?? NO_FIELDS) as Fields; // what is no object has no fields
    } catch {
      return INVALID_JSON;
    }
    switch (fields.action) {
      case 'timestamp': return this.#timestamp(fields);
      case 'ping': return PONG;
      case 'events': return this.#events(fields);
      default: return isText(fields.action) ? UNKNOWN_ACTION : missing('action');
    }
  }

  /** Stops when all is stored that was taken. */
  async stop(): Promise<void> {
    await this.#saving?.catch(() => {});
    try {
      if (this.#saved !== undefined) await this.#save(); // what came since
    } finally {
      await this.#journal.close();
    }
  }

  // Events in.
  /** A usual request that has nothing wrong with it. */
  #usual(message: string): Reply | undefined {
    const found = USUAL.exec(message);
    if (found === null) return undefined;
    const [client, name, id] = [this.#whitelist.get(found[1]!), found[2]!, found[3]];
    const isWithin = !exceeds(name, this.#maxEventNameBytes) && (id?.length ?? 0) <= MAX_ID_LENGTH;
    return client !== undefined && isWithin ? this.#take(client, name, id) : undefined;
  }

  #timestamp({ clientID, eventName, id }: Fields): Reply {
    if (!isText(clientID)) return missing('clientID');
    if (!isText(eventName) || exceeds(eventName, this.#maxEventNameBytes)) return missing('eventName');
    if (id !== undefined && (!isText(id) || id.length > MAX_ID_LENGTH)) return missing('id');
    const client = this.#whitelist.get(clientID);
    if (client === undefined) return NOT_WHITELISTED;
    return this.#take(client, asJson(eventName), id && asJson(id));
  }

  /** @param client What a record has before the event's name; the others as JSON. */
  #take(client: string, name: string, id: string | undefined): Reply {
    if (id !== undefined) return this.#once(`{"id":${id},${client.slice(1)}`, name);
    return this.#store(client, name);
  }

  /** One event for one key, and the same reply each time. */
  #once(key: string, name: string): Reply {
    const pending = this.#pending.get(key);
    if (pending !== undefined) return pending.name === name ? pending.answer : ID_IN_USE;
    const number = this.#ids.get(key);
    if (number !== undefined) return this.#again(number, `${key}${name},"timestamp":`);

    const next = this.#journal.count;
    const answer = this.#store(key, name);
    this.#pending.set(key, { name, answer });
    answer.tell({ resolve: (reply) => {
      this.#pending.delete(key); // of what was not stored, the id is free again
      if (reply !== NOT_STORED) this.#remember(key, next);
    } });
    return answer;
  }

  /** The reply to what was stored under an id, as the journal has it. */
  async #again(number: number, expected: string): Promise<string> {
    try {
      const [record] = await this.#journal.read(number, 1);
      if (record?.number !== number) throw new Error(`event ${number} is not there any more`);
      if (!record.text.startsWith(expected)) return ID_IN_USE;
      return stamped(timestampOf(record.text));
    } catch (error) {
      return this.#told(error, NOT_READ);
    }
  }

  /** Appends a record. Events of one group and one second share their reply. */
  #store(recordStart: string, name: string): GroupReply {
    const second = Math.floor(this.#clock() / 1000);
    if (second > this.#second) this.#turnTo(second); // else it is the same, or was set back
    const written = this.#journal.append(recordStart + name + this.#recordEnd);
    if (written === this.#written && this.#answer !== undefined) return this.#answer;

    const [answer, reply] = [new GroupReply(), this.#reply];
    this.#written = written;
    written.then(() => answer.give(reply), () => answer.give(NOT_STORED)); // the journal's log tells why
    return this.#answer = answer;
  }

  #remember(key: string, number: number): void {
    this.#ids.set(key, number);
    if (this.#ids.size > this.#maxIds) this.#ids.delete(this.#oldestIds.next().value as string);
  }

  #turnTo(second: number): void {
    const timestamp = `${new Date(second * 1000).toISOString().slice(0, -5)}Z`;
    this.#second = second;
    this.#recordEnd = `,"timestamp":"${timestamp}"}`;
    this.#reply = stamped(timestamp);
    this.#answer = undefined;
  }

  #told(error: unknown, reply: string): string {
    this.#log('error', `Cannot use the journal in ${quoted(this.#folder)}: ${textOf(error)}`);
    return reply;
  }

  // Events out.
  async #events({ clientID, after = 0 }: Fields): Promise<string> {
    if (clientID !== undefined && !isText(clientID)) return missing('clientID');
    if (typeof after !== 'number' || !Number.isSafeInteger(after) || after < 0) return missing('after');
    const only = clientID === undefined ? '' : this.#whitelist.get(clientID);
    if (only === undefined) return NOT_WHITELISTED;
    try {
      return await this.#page(after, only);
    } catch (error) {
      return this.#told(error, NOT_READ);
    }
  }

  async #page(after: number, only: string): Promise<string> {
    const events: string[] = [];
    let [cursor, more, scanned, roomBytes] = [after, false, 0, this.#maxReplyBytes - MARGIN_BYTES];
    scan: for await (const records of this.#pages(after)) {
      for (const { number, text } of records) {
        const event = withoutId(text);
        const isWanted = event.startsWith(only);
        if (isWanted) roomBytes -= Buffer.byteLength(event) + 1;
        const isFull = isWanted && (events.length === PAGE_EVENTS || roomBytes < 0);
        more = isFull || ++scanned > MAX_SCANNED;
        if (more) break scan;
        if (isWanted) events.push(event);
        cursor = number + 1;
      }
    }
    return `{"status":200,"message":"events","events":[${events.join()}],` +
      `"cursor":${cursor},"more":${more}}`;
  }

  /** Pages of all records from one number up to, not including, another. */
  async *#pages(
    from: number, end = Infinity, most = PAGE_EVENTS + 1,
  ): AsyncGenerator<JournalRecord[]> {
    while (from < end) {
      const records = await this.#journal.read(from, Math.min(most, end - from));
      if (records.length === 0) return;
      yield records;
      from = (records.at(-1) as JournalRecord).number + 1;
    }
  }

  // The end.
  async #quit(context: Context): Promise<string> {
    if (!this.#allowQuit || !context.client.loopback) return QUIT_NOT_ALLOWED;
    try {
      await this.#save();
      const reply = await this.#farewell(this.#saved as Saved);
      context.stopServer();
      return reply;
    } catch (error) {
      return this.#told(error, NOT_SAVED); // and goes on: nothing is lost, and there may be room later
    }
  }

  /** The reply to `Q`: all events by app, or as many of the newest as it has room for. */
  async #farewell({ end, events: count }: Saved): Promise<string> {
    const byClient = new Map<string, string[]>();
    let [roomBytes, isCut] = [this.#maxReplyBytes - MARGIN_BYTES, false];
    scan: for (let before = end; before > 0; before -= PAGE_EVENTS) {
      const records: JournalRecord[] = [];
      const pages = this.#pages(Math.max(0, before - PAGE_EVENTS), before);
      for await (const page of pages) records.push(...page);
      for (const { text } of records.reverse()) {
        const { client, event } = partsOf(text);
        const events = byClient.get(client) ?? [];
        roomBytes -= Buffer.byteLength(event) + 1;
        if (events.length === 0) roomBytes -= Buffer.byteLength(client) + 4;
        isCut = roomBytes < 0;
        if (isCut) break scan;
        byClient.set(client, events);
        events.push(event);
      }
    }
    const lists = Array.from(byClient, ([client, events]) => `${client}:[${events.reverse().join()}]`);
    return `{"status":200,"message":"bye","count":${count},"events":{${lists.join()}}` +
      `${isCut ? ',"truncated":true' : ''}}`;
  }

  /** Brings `event_log.json` up to date. */
  #save(): Promise<void> {
    return this.#saving ??= this.#writeLog().finally(() => { this.#saving = undefined; });
  }

  async #writeLog(): Promise<void> {
    const end = this.#journal.count;
    await this.#written?.catch(() => {}); // so that all before `end` is stored
    if (end === this.#saved?.end) return;
    const counts = new Map<string, number>(); // by app; the whitelist may have been another before
    for await (const records of this.#pages(0, end, Infinity)) {
      for (const { text } of records) {
        const { client } = partsOf(text);
        counts.set(client, (counts.get(client) ?? 0) + 1);
      }
    }
    const log = this.#eventLog([...counts.keys()], end);
    await writeFileAtomically(join(this.#folder, 'event_log.json'), log);
    this.#saved = { end, events: [...counts.values()].reduce((sum, count) => sum + count, 0) };
  }

  /** JSON as in the reply to `Q`: `{"TaskTracker":[{…},…],…}`. Read anew for each app, never held. */
  async *#eventLog(clients: readonly string[], end: number): AsyncGenerator<string> {
    yield '{';
    for (const [at, client] of clients.entries()) {
      yield `${at > 0 ? ',' : ''}${client}:[`;
      let comma = '';
      for await (const records of this.#pages(0, end, Infinity)) {
        const events = records.map(({ text }) => partsOf(text))
          .filter((parts) => parts.client === client).map(({ event }) => event);
        if (events.length === 0) continue;
        yield `${comma}${events.join()}`;
        comma = ',';
      }
      yield ']';
    }
    yield '}\n';
  }
}

/** At once, or as soon as it can be told. */
type Reply = string | GroupReply | Promise<string>;

interface Waiting { resolve(reply: string): void }

/** What a group of events waits for: tells one after the other, without a promise for each. */
class GroupReply extends Awaitable<string> {
  readonly #waiting: Waiting[] = [];
  #reply: string | undefined;

  tell(whom: Waiting): void {
    if (this.#reply === undefined) this.#waiting.push(whom);
    else whom.resolve(this.#reply);
  }

  give(reply: string): void {
    this.#reply = reply;
    for (const whom of this.#waiting) whom.resolve(reply);
  }
}

/** What is in the event log: events with numbers before `end`, and how many those are. */
interface Saved { end: number; events: number }

// ------------------------------------------------------------------------------------------ Records
// A record is JSON: {"id":"u1","clientID":"TaskTracker","eventName":"add.task","timestamp":"…Z"}, its
// id left out where it has none. Its fields stand in this order and without blanks, so that it can be
// taken apart without being parsed: inside a string every quote has a backslash before it, so that
// what is looked for below is found between strings alone.

function hasId(record: string): boolean {
  return record.startsWith('{"id":');
}

function withoutId(record: string): string {
  return hasId(record) ? `{${record.slice(record.indexOf(',"clientID":"') + 1)}` : record;
}

/** What comes before the event's name. */
function keyOf(record: string): string {
  return record.slice(0, record.indexOf('"eventName":"') + '"eventName":'.length);
}

function timestampOf(record: string): string {
  return record.slice(record.lastIndexOf(':"') + 2, -2);
}

/** Both as JSON: the app's name, and the event without it. */
function partsOf(record: string): { client: string; event: string } {
  const [clientAt, eventAt] = [record.indexOf('"clientID":"'), record.indexOf(',"eventName":"')];
  return {
    client: record.slice(clientAt + '"clientID":'.length, eventAt),
    event: `{${record.slice(eventAt + 1)}`,
  };
}

/** A copy that doesn't keep in memory what it was cut from. */
function own(text: string): string {
  return Buffer.from(text).toString();
}

// ---------------------------------------------------------------------------------------- Whitelist

function whitelistOf(options: CalendarOptions): readonly string[] {
  const { whitelist, whitelistFile } = options;
  const [hasList, hasFile] = ['whitelist' in options, 'whitelistFile' in options];
  if (hasList && hasFile) {
    throw new TypeError('Cannot use both whitelist and whitelistFile: expected one of them');
  }
  if (hasList) return checkedWhitelist(whitelist, 'whitelist');
  return hasFile ? readWhitelist(whitelistFile) : DEFAULT_WHITELIST;
}

function readWhitelist(file: unknown): readonly string[] {
  const refuse = (cause: unknown) => new Error(`Cannot use whitelist file ${quoted(file)}: ` +
    `${textOf(cause)}. Give it a JSON array of names`, { cause });
  let names: unknown;
  try {
    names = JSON.parse(readFileSync(file as string, 'utf8'));
  } catch (error) {
    throw refuse(error);
  }
  return checkedWhitelist(names, `whitelist file ${quoted(file)}`);
}

function checkedWhitelist(names: unknown, where: string): readonly string[] {
  const expected = 'expected an array of names, such as ["TaskTracker"]; [] admits nobody';
  if (!Array.isArray(names)) {
    throw new TypeError(`Cannot use ${where}: it is ${quoted(names)}, ${expected}`);
  }
  const odd = names.findIndex((name) => !isText(name));
  if (odd === -1) return names as string[];
  throw new TypeError(`Cannot use ${where}: entry ${odd + 1} is ${quoted(names[odd])}, ${expected}`);
}

// ---------------------------------------------------------------------------------------- Small ones

/** With what JSON leaves as it is, and yet ends a line or steers a terminal, escaped: files get read. */
function asJson(text: string): string {
  return JSON.stringify(text).replace(/[\x7f-\x9f\u2028\u2029]/g, escapeOf);
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value !== '';
}

function stamped(timestamp: string): string {
  return `{"status":200,"message":"timestamp","timestamp":"${timestamp}"}`;
}

const CONTRACT: NonNullable<Service['contract']> = {
  summary: 'Gives events of known apps a time stamp, and keeps them.',
  messages: {
    ping: { example: '{"action":"ping"}', reply: PONG },
    timestamp: {
      example: '{"action":"timestamp","clientID":"TaskTracker","eventName":"add.task"}',
      reply: stamped('2025-11-11T19:04:12Z'),
    },
    events: {
      example: '{"action":"events","clientID":"TaskTracker","after":0}',
      reply: '{"status":200,"message":"events","events":[{"clientID":"TaskTracker",' +
        '"eventName":"add.task","timestamp":"2025-11-11T19:04:12Z"}],"cursor":1,"more":false}',
    },
    quit: {
      example: 'Q',
      reply: '{"status":200,"message":"bye","count":1,"events":{"TaskTracker":[' +
        '{"eventName":"add.task","timestamp":"2025-11-11T19:04:12Z"}]}}',
    },
  },
};
