/** Durations and sizes as people write them on a command line: `500ms`, `128MiB`. */

const MS: Readonly<Record<string, number>> = {
  ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000,
};
const BYTES: Readonly<Record<string, number>> = {
  b: 1, kib: 1024, mib: 1024 ** 2, gib: 1024 ** 3,
};

/**
 * Milliseconds of `500ms`, `1s`, `1.5m`, `2h` or `30d`; a bare number means seconds. Rounded to
 * whole milliseconds. Node's timers end at 24.8 days: longer ones are the caller's to split.
 *
 * @throws {RangeError} It is none of these, or more milliseconds than a number counts exactly.
 */
export function parseDuration(text: string): number {
  return parse(text, MS, 's', 'a duration', 'ms, s, m, h or d, such as 500ms');
}

/**
 * Bytes of `512`, `64KiB`, `128MiB` or `1GiB`, rounded to whole ones.
 *
 * @throws {RangeError} It is none of these, or more bytes than a number counts exactly.
 */
export function parseSize(text: string): number {
  return parse(text, BYTES, 'b', 'a size', 'B, KiB, MiB or GiB, such as 64KiB');
}

function parse(
  text: string, units: Readonly<Record<string, number>>, bare: string, what: string, names: string,
): number {
  const [, amount, unit] = /^(\d+(?:\.\d+)?)\s*([a-z]*)$/.exec(text.trim().toLowerCase()) ?? [];
  const factor = Object.hasOwn(units, unit || bare) ? units[unit || bare] : undefined;
  const value = Math.round(Number(amount) * (factor ?? NaN));
  if (!Number.isSafeInteger(value)) {
    throw new RangeError(`Cannot read "${text}" as ${what}: expected a number with ${names}`);
  }
  return value;
}
