import { basename } from 'node:path';
import { describe, expect, it } from 'vitest';
import { namesFor } from '../lib/backup_name.ts';

const FACTS = { order: 42, atMs: Date.UTC(2026, 10, 21, 14, 35, 17, 123), sha256: 'a1'.repeat(32) };
const NAME = /^notes\.[\da-f]{8}\.0000000042\.20261121T143517123Z\.(?:a1){32}\.txt$/;

describe('namesFor', () => {
  it('tells all in the name, and reads it back', () => {
    const names = namesFor('/home/me/notes.txt');
    expect(names.format(FACTS)).toMatch(NAME);
    expect(names.parse(names.format(FACTS))).toEqual(FACTS);
  });

  it.each(['/a/no_extension', '/a/.hidden', '/a/-rf', '/a/line\nbreak.txt', '/a/ends in dot.', '/a/naïve ☃.md',
    `/a/${'n'.repeat(251)}.txt`, `/a/${'☃'.repeat(85)}`, `/a/x.${'e'.repeat(253)}`, `/a/${'é'.repeat(120)}.tar.gz`,
    '/a/a.0000000001.b', '/a/(.*).txt'])('makes a name of %j that fits, and reads it back', (source) => {
    const names = namesFor(source);
    const order = 999_999_999_999_999;
    const name = names.format({ ...FACTS, order });
    expect(Buffer.byteLength(name)).toBeLessThanOrEqual(255);
    expect(name).not.toContain('\uFFFD');
    expect(name).not.toContain('/');
    expect(names.parse(name)).toEqual({ ...FACTS, order });
    const [stem = ''] = name.split(/\.[\da-f]{8}\.9{15}/);
    expect(basename(source).startsWith(stem)).toBe(true);
  });

  it('sorts as they were made', () => {
    const { format } = namesFor('/a/notes.txt');
    const names = [9, 10, 99, 100].map((order) => format({ ...FACTS, order, atMs: FACTS.atMs - 1_000 * order }));
    expect([...names].sort()).toEqual(names);
  });

  it('knows those of another source from its own, be it of the same name', () => {
    const name = namesFor('/a/notes.txt').format(FACTS);
    for (const source of ['/b/notes.txt', '/a/notes', '/a/notes.md', '/a/note.txt']) {
      expect(namesFor(source).parse(name), source).toBeUndefined();
    }
  });

  it.each(['', 'notes.txt', '.txt', 'x', 'a/b', '..'])('takes %j for a stranger', (name) => {
    expect(namesFor('/a/notes.txt').parse(name)).toBeUndefined();
  });

  it('takes a name for a stranger at the least change of its form', () => {
    const names = namesFor('/a/notes.txt');
    const name = names.format(FACTS);
    for (const bad of [name.slice(1), `${name}.txt`, name.replace('0000000042', '42'), name.toUpperCase(),
      name.replace('1121T', '1199T'), name.replace('a1a1', 'a1'), `x${name}`, name.replace('Z.', 'Z')]) {
      expect(names.parse(bad), bad).toBeUndefined();
    }
  });
});
