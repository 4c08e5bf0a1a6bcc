/**
 * What a journal's files hold, a line a record:
 *
 *     <CRC-32, 8 hex digits> <number> <text>\n
 *     <CRC-32, 8 hex digits> <number>"<text as a JSON string>"\n
 *
 * The CRC covers all between it and the line's end, the number too, so that a line that was lost,
 * doubled or moved is noticed. JSON only where a text holds a line feed or half a surrogate pair.
 * So a line feed always ends a line, reading goes on at the next one after damage, and `less` shows
 * it all.
 *
 * Bytes in, records out: nothing here opens a file.
 */
import { crc32 } from './crc32.ts';
import { isWellFormed } from './micro_client.ts';

const LF = 0x0a;
const SPACE = 0x20;
const QUOTE = 0x22;
const PLACE = '00000000 '; // until `seal` knows the checksum
const LEAST_BYTES = PLACE.length + 2; // a digit, and the blank of an empty text
const HEX = new TextEncoder().encode('0123456789abcdef');
const DIGITS = new Int8Array(256).fill(-1);
HEX.forEach((letter, value) => { DIGITS[letter] = value; });

/** Longest line with its line feed, in bytes. */
export const MAX_LINE_BYTES = 16 * 1024 * 1024;

/** A record's line, still without its checksum. */
export function lineOf(number: number, text: string): string {
  return text.includes('\n') || !isWellFormed(text) ? `${PLACE}${number}${JSON.stringify(text)}\n`
    : `${PLACE}${number} ${text}\n`;
}

/**
 * The lines of records from number `first` on, for {@link seal}. Texts of one line each, the usual
 * ones, are joined with `first` in each number's place: 60 ns a line, where {@link lineOf} takes 170.
 */
export function linesOf(first: number, texts: readonly string[]): string {
  if (`${first}`.length === `${first + texts.length - 1}`.length) {
    const head = `${PLACE}${first} `;
    const lines = `${head}${texts.join(`\n${head}`)}\n`;
    if (isWellFormed(lines) && countLines(lines) === texts.length) return lines;
  }
  return texts.map((text, at) => lineOf(first + at, text)).join('');
}

function countLines(lines: string): number {
  let count = 0;
  for (let at = lines.indexOf('\n'); at !== -1; at = lines.indexOf('\n', at + 1)) count++;
  return count;
}

/** Writes numbers and checksums into whole lines; tells where each begins. */
export function seal(
  lines: Buffer, end: number, first: number, line: (number: number, start: number) => void,
): void {
  let digits = `${first}`.length;
  let limit = 10 ** digits;
  for (let number = first, start = 0; start < end; number++) {
    if (number === limit) [digits, limit] = [digits + 1, limit * 10];
    const place = start + PLACE.length;
    // Only the digits that are not yet right: the last two or so.
    for (let at = place + digits, rest = number, was = first; rest !== was;) {
      lines[--at] = 0x30 + rest % 10;
      rest = Math.floor(rest / 10);
      was = Math.floor(was / 10);
    }
    const lf = lines.indexOf(LF, start);
    const crc = crc32(lines, place, lf);
    for (let at = 0; at < 8; at++) lines[start + at] = HEX[crc >>> (28 - 4 * at) & 15]!;
    line(number, start);
    start = lf + 1;
  }
}

/** What a record's line says: `from` and `to` of {@link RecordSink.record}. */
export function textOf(bytes: Buffer, from: number, to: number): string {
  return bytes[from] === SPACE ? bytes.toString('utf8', from + 1, to)
    : JSON.parse(bytes.toString('utf8', from, to)) as string;
}

/** Lines that are no records, or not those that belong here. Offsets and lengths in bytes. */
export interface Damage {
  offset: number;
  bytes: number;
  /** The first number that is missing, and the first one after it that isn't. */
  from: number;
  to: number;
}

export interface RecordSink {
  /**
   * `bytes[from]` to `bytes[to - 1]` hold the text; lent for this call. True: enough, stop here.
   */
  record(number: number, offset: number, bytes: Buffer, from: number, to: number): boolean | void;
  damage(damage: Damage): void;
}

/**
 * Finds the records in bytes that come in pieces. What it hands on has a right checksum and number.
 */
export class RecordReader {
  /** The number that comes next, after those read and those that are lost. */
  next: number;
  /** Offset of the first byte that is not dealt with. */
  offset: number;
  /** Offset behind the last line feed. What follows is no whole line. */
  endOfLines: number;
  readonly #sink: RecordSink;
  readonly #limit: number;
  #badOffset = -1; // of damage not told yet, since it may go on
  #badLines = 0;

  /**
   * @param limit Where the next file's numbers begin: what is found here from there on isn't it.
   */
  constructor(next: number, offset: number, sink: RecordSink, limit = Infinity) {
    this.#limit = limit;
    this.next = next;
    this.offset = this.endOfLines = offset;
    this.#sink = sink;
  }

  /**
   * Reads the whole lines of `bytes`, the first of which is at `offset`. True: the sink has enough.
   */
  read(bytes: Buffer, end: number): boolean {
    const base = this.offset;
    for (let start = 0; start < end;) {
      const lf = bytes.indexOf(LF, start);
      if (lf === -1 || lf >= end) break;
      if (this.#line(bytes, start, lf)) return true;
      start = lf + 1;
      this.offset = this.endOfLines = base + start;
    }
    return false;
  }

  /**
   * So many bytes begin a line that is longer than any of ours; its end is a bad line by itself.
   */
  skip(bytes: number): void {
    this.#bad();
    this.offset += bytes;
  }

  /**
   * There is no more: tells of what is missing. At the very end a number is given up for each bad
   * line.
   */
  end(): void {
    this.#tell(this.#limit === Infinity ? this.next + this.#badLines : this.#limit);
  }

  #line(bytes: Buffer, start: number, lf: number): boolean {
    let at = start + PLACE.length;
    let number = 0;
    for (let digit = 0; at < lf && (digit = bytes[at]! - 0x30) >= 0 && digit <= 9; at++) {
      number = 10 * number + digit;
    }
    const isGood = lf - start >= LEAST_BYTES &&
      (bytes[at] === SPACE || bytes[at] === QUOTE) && bytes[start + 8] === SPACE &&
      crc32(bytes, start + PLACE.length, lf) === hexAt(bytes, start) &&
      number >= this.next && number < this.#limit && Number.isSafeInteger(number);
    if (!isGood) {
      this.#bad();
      this.#badLines++;
      return false;
    }
    if (number > this.next || this.#badOffset !== -1) this.#tell(number);
    this.next = number + 1;
    return this.#sink.record(number, this.offset, bytes, at, lf) === true;
  }

  #bad(): void {
    if (this.#badOffset === -1) this.#badOffset = this.offset;
  }

  #tell(to: number): void {
    const offset = this.#badOffset === -1 ? this.offset : this.#badOffset;
    const from = this.next;
    this.next = to;
    const bytes = this.endOfLines - offset;
    this.#badOffset = -1;
    this.#badLines = 0;
    if (bytes > 0 || to > from) this.#sink.damage({ offset, bytes, from, to });
  }
}

/** What 8 hex digits say, or −1. */
function hexAt(bytes: Buffer, start: number): number {
  let value = 0;
  for (let at = start; at < start + 8; at++) {
    const digit = DIGITS[bytes[at]!]!;
    if (digit < 0) return -1;
    value = value << 4 | digit;
  }
  return value >>> 0;
}
