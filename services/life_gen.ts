/** LIFE_GEN, a content generator: ask for `music` and get one of its lines by chance. */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { sizedHeader } from '../lib/dialects/sized_header.ts';
import type { Service } from '../lib/index.ts';

export interface LifeGenOptions {
  /** CSV in UTF-8 with a header that names `category` and `line`. Default: the one beside this. */
  file?: string;
  /** A number from 0 up to, not including, 1. An option, so that a test can hold chance still. */
  random?: () => number;
}

const OWN_FILE = fileURLToPath(new URL('life_gen.csv', import.meta.url));

/**
 * `music` → one line; `music 3` → a JSON array of 3 different ones; `categories` → a JSON array of
 * what can be asked for. Letters may be large or small. Whatever else is asked gets a line that
 * begins with `Cannot` and tells what would do.
 *
 * @throws {Error} The file can't be read, or is no such CSV: one sentence that says where.
 */
export function createLifeGen({ file = OWN_FILE, random = Math.random }: LifeGenOptions = {}): Service {
  const linesOf = readLines(file);
  const known = [...linesOf.keys()].sort();
  const [first = ''] = known;
  const [line = ''] = linesOf.get(first) ?? [];
  return {
    dialects: [sizedHeader()],
    contract: {
      summary: 'Gives lines of a category, by chance.',
      messages: {
        category: { example: first, reply: line },
        several: { example: `${first} 1`, reply: JSON.stringify([line]) },
        categories: { example: 'categories', reply: JSON.stringify(known) },
      },
    },
    callback(message) {
      const asked = nameOf(message);
      if (asked === 'categories') return JSON.stringify(known);

      const all = linesOf.get(asked);
      if (all !== undefined) return all[Math.floor(random() * all.length)] as string;

      const [, category = '', count = ''] = /^(.*) (.*)$/.exec(asked) ?? [];
      const lines = linesOf.get(category);
      if (lines === undefined) {
        return `Cannot find category ${quoted(message)}. Known: ${known.join(', ')}`;
      }
      if (!/^\d+$/.test(count) || Number(count) < 1 || Number(count) > lines.length) {
        return `Cannot give ${quoted(count)} lines of "${category}": ` +
          `expected a whole number from 1 to ${lines.length}`;
      }
      return JSON.stringify(pick(lines, Number(count), random));
    },
  };
}

/** How a category is looked up: in small letters, and with one blank where there were several. */
function nameOf(text: string): string {
  return text.trim().toLowerCase().replace(/\s+/g, ' ');
}

/** `count` different ones of `lines`, by chance: the first steps of a Fisher–Yates shuffle. */
function pick(lines: readonly string[], count: number, random: () => number): string[] {
  const deck = [...lines];
  for (let at = 0; at < count; at++) {
    const from = at + Math.floor(random() * (deck.length - at));
    [deck[at], deck[from]] = [deck[from] as string, deck[at] as string];
  }
  return deck.slice(0, count);
}

/** On one line and not too long, whatever was sent. */
function quoted(text: string): string {
  return JSON.stringify(text.length > 60 ? `${text.slice(0, 60)}…` : text);
}

/** The lines of each category, each line once. */
function readLines(file: string): Map<string, string[]> {
  const refuse = (why: string, cause?: unknown) => new Error(`Cannot read "${file}": ${why}. ` +
    'Give a CSV file in UTF-8 whose header names "category" and "line"', { cause });

  let rows: string[][];
  try {
    rows = parseCsv(new TextDecoder('utf-8', { fatal: true }).decode(readFileSync(file)));
  } catch (error) {
    const { code = '', message } = error as NodeJS.ErrnoException;
    throw refuse(REASONS[code] ?? message, error);
  }
  const [header = [], ...content] = rows;
  const columns = header.map(nameOf);
  const [categoryAt, lineAt] = [columns.indexOf('category'), columns.indexOf('line')];
  if (categoryAt < 0 || lineAt < 0) throw refuse(`its header is ${quoted(header.join(','))}`);

  const sets = new Map<string, Set<string>>();
  for (const row of content) {
    const [category, line] = [nameOf(row[categoryAt] as string), row[lineAt] as string];
    if (category === '' || line === '') continue;
    sets.set(category, (sets.get(category) ?? new Set()).add(line));
  }
  if (sets.size === 0) throw refuse('it has no rows below its header');
  return new Map([...sets].map(([category, lines]) => [category, [...lines]]));
}

const REASONS: Readonly<Record<string, string>> = {
  ENOENT: 'there is no such file',
  EISDIR: 'it is a folder',
  EACCES: 'it may not be read by this user',
  ERR_ENCODING_INVALID_ENCODED_DATA: 'it is not in UTF-8',
};

/**
 * The rows of a CSV text after RFC 4180: fields between `"` may hold commas, line breaks and `""`
 * for a quote. Lines end in CRLF or LF; empty ones are skipped.
 *
 * @throws {Error} A quote is amiss, or a row is not as wide as the first: with the line's number.
 */
export function parseCsv(text: string): string[][] {
  const field = /(?:"([^"]*(?:""[^"]*)*)"|([^",\r\n]*))(,|\r?\n|$)/y;
  const rows: string[][] = [];
  let row: string[] = [];
  for (let at = 0, end = false; !end; at = field.lastIndex) {
    const refuse = (why: string) => new Error(`line ${text.slice(0, at).split('\n').length} ${why}`);
    const found = field.exec(text);
    if (found === null) throw refuse('has a quote that is amiss, or that never ends');

    const [, inQuotes, plain, delimiter] = found;
    row.push(inQuotes?.replaceAll('""', '"') ?? plain as string);
    if (delimiter === ',') continue;

    const width = rows[0]?.length ?? row.length;
    const empty = row.length === 1 && row[0] === '';
    if (!empty && row.length !== width) {
      throw refuse(`has ${row.length} field${row.length === 1 ? '' : 's'}, expected ${width}: ` +
        'a comma inside a field wants quotes around the field');
    }
    if (!empty) rows.push(row);
    row = [];
    end = delimiter === '';
  }
  return rows;
}
