/** The work that every peer is given: distinct texts to send, and a check of each reply. */

const MIB = 1024 * 1024;
const COUNTER_FROM = 1_000_000; // seven digits from first to last, so that every text has the same size
const COUNTERS = 9_000_000;
const COUNTER_DIGITS = 7;
const SMALL_TEXTS = 4096; // more than are ever in flight
const BIG_TEXTS = 16; // likewise

/** What a client can drive. `inFlight` is for each connection. */
export interface LoadOptions {
  connections: number;
  inFlight: number;
  textBytes: number;
  maxMessageBytes: number;
}

/** Keeps `inFlight` messages under way until the load is over, then waits for the last replies. */
export interface Connection {
  run(inFlight: number, load: Load): Promise<void>;
}

/** A way to talk that is measured. */
export interface Peer {
  listen(options: { maxMessageBytes: number; maxConnections: number }): Promise<number>;
  connect(port: number, options: LoadOptions): Promise<Connection>;
}

/** Some work: texts until it is over, and a count of the right replies. */
export class Load {
  over = false;
  replies = 0;
  readonly next: () => string;

  constructor(next: () => string) {
    this.next = next;
  }

  /** Takes a reply, which must be what was sent. */
  check(sent: string | undefined, reply: string): void {
    if (reply !== sent) {
      throw new Error(`Cannot count a reply: got ${outline(reply)}, expected ${outline(sent)}`);
    }
    this.replies++;
  }
}

/** Keeps messages in flight on a connection whose replies come in the order of the requests. */
export class Flight {
  readonly finished: Promise<void>;
  readonly #load: Load;
  readonly #send: (text: string) => void;
  readonly #expected: string[]; // a ring: message n is at n % inFlight
  #sent = 0;
  #answered = 0;
  #finish: () => void = () => {};

  constructor(inFlight: number, load: Load, send: (text: string) => void) {
    this.#load = load;
    this.#send = send;
    this.#expected = new Array<string>(inFlight).fill('');
    this.finished = new Promise((resolve) => { this.#finish = resolve; });
  }

  start(): void {
    for (let i = 0; i < this.#expected.length; i++) this.#sendNext();
  }

  reply(text: string): void {
    this.#load.check(this.#expected[this.#answered++ % this.#expected.length], text);
    if (!this.#load.over) this.#sendNext();
    else if (this.#answered === this.#sent) this.#finish();
  }

  #sendNext(): void {
    const text = this.#load.next();
    this.#expected[this.#sent++ % this.#expected.length] = text;
    this.#send(text);
  }
}

/** A connection of a library that hands each message's reply to a callback. */
export function byCallback(send: (text: string, take: (reply: string) => void) => void): Connection {
  return {
    run(inFlight, load) {
      const flight = new Flight(inFlight, load, (text) => send(text, take));
      const take = (reply: string) => flight.reply(reply);
      flight.start();
      return flight.finished;
    },
  };
}

/** Distinct texts of one size, made beforehand: else the making would hide what the sending costs. */
export function texts(textBytes: number): () => string {
  const count = textBytes < MIB ? SMALL_TEXTS : BIG_TEXTS;
  const made = Array.from({ length: count }, (_, n) => numbered(n, textBytes));
  let n = 0;
  return () => made[n++ % count] ?? '';
}

/** A text of so many bytes that carries a number, in one piece of memory. */
export function numbered(n: number, textBytes: number): string {
  const text = `${COUNTER_FROM + (n % COUNTERS)}${'-'.repeat(textBytes - COUNTER_DIGITS)}`;
  return Buffer.from(text).toString(); // V8 would else join its two halves when it is first read
}

function outline(text: string | undefined): string {
  return text === undefined ? 'nothing' : `"${text.slice(0, 40)}" (${text.length} characters)`;
}
