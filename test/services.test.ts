import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { MicroClient, MicroServer } from '../lib/index.ts';
import type { Context, Service } from '../lib/index.ts';
import { createEcho } from '../services/echo.ts';
import { createLifeGen, parseCsv } from '../services/life_gen.ts';

const folder = mkdtempSync(join(tmpdir(), 'portcall-services-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function fileOf(content: string | Uint8Array): string {
  const file = join(folder, 'own.csv');
  writeFileSync(file, content);
  return file;
}

/** What a service answers without a server around it. */
function ask({ callback }: Service, message: string, context: Partial<Context> = {}): unknown {
  return callback(message, context as Context);
}

/** Runs `task` against a real server on a free port; stops it whatever happens. */
async function serving(service: Service, task: (port: number) => Promise<void>): Promise<void> {
  const server = new MicroServer(service, 'HERE', { ports: { HERE: 0 } });
  try {
    await task((await server.startListening()).port as number);
  } finally {
    await server.stop();
  }
}

/** All that a server says to `text` and a half-close. */
function overLines(port: number, text: string): Promise<string> {
  return new Promise((resolve, reject) => {
    let heard = '';
    const socket = connect(port, '127.0.0.1', () => socket.end(text));
    socket.setEncoding('utf8').setTimeout(5_000, () => socket.destroy(new Error(`only: ${heard}`)));
    socket.on('data', (piece) => { heard += piece; });
    socket.on('end', () => resolve(heard)).on('error', reject);
  });
}

describe('parseCsv', () => {
  it.each([
    { name: 'nothing', text: '', rows: [] },
    { name: 'LF, and no line end at the end', text: 'a,b\n1,2', rows: [['a', 'b'], ['1', '2']] },
    { name: 'CRLF', text: 'a,b\r\n1,2\r\n', rows: [['a', 'b'], ['1', '2']] },
    { name: 'a comma between quotes', text: 'a,"b,c"', rows: [['a', 'b,c']] },
    { name: 'doubled quotes', text: '"""a"" b",c', rows: [['"a" b', 'c']] },
    { name: 'line breaks between quotes', text: 'a,"b\r\nc\nd"\n', rows: [['a', 'b\r\nc\nd']] },
    { name: 'empty fields', text: ',""\n"",', rows: [['', ''], ['', '']] },
    { name: 'a comma at the end of all', text: 'a,', rows: [['a', '']] },
    { name: 'empty lines', text: '\na,b\n\r\n\nc,d\n\n', rows: [['a', 'b'], ['c', 'd']] },
    { name: 'blanks kept', text: ' a , b ', rows: [[' a ', ' b ']] },
  ])('reads $name', ({ text, rows }) => {
    expect(parseCsv(text)).toEqual(rows);
  });

  it.each([
    { name: 'a quote that never ends', text: 'a,b\nc,"d\ne\n', says: 'line 2 has a quote' },
    { name: 'a quote inside a plain field', text: 'a,b"c"', says: 'line 1 has a quote' },
    { name: 'text behind a quoted field', text: 'a,"b"c', says: 'line 1 has a quote' },
    { name: 'a field too many', text: 'a,b\n"1\n2",3\n4,5,6', says: 'line 4 has 3 fields, expected 2' },
    { name: 'a field too few', text: 'a,b\nc', says: 'line 2 has 1 field, expected 2' },
  ])('names the line of $name', ({ text, says }) => {
    expect(() => parseCsv(text)).toThrow(says);
  });
});

describe('LIFE_GEN', () => {
  const own = parseCsv(readFileSync(new URL('../services/life_gen.csv', import.meta.url), 'utf8'));
  const linesOf = (category: string) =>
    own.filter(([name]) => name === category).map(([, line]) => line);
  const lifeGen = createLifeGen();

  it('has a few hundred lines of its own, no two alike', () => {
    expect(own.length).toBeGreaterThan(300);
    expect(new Set(own.map(([, line]) => line)).size).toBe(own.length);
    expect(own.flat().filter((field) => field.trim() !== field || field === '')).toEqual([]);
  });

  it.each(['music', 'MUSIC', ' Music\t'])('gives a line of "%s"', (message) => {
    expect(linesOf('music')).toContain(ask(lifeGen, message));
  });

  it('can give each line, as chance has it', () => {
    const all = linesOf('space');
    const given = all.map((_, at) =>
      ask(createLifeGen({ random: () => at / all.length }), 'space'));
    expect(given).toEqual(all);
    expect(ask(createLifeGen({ random: () => 1 - Number.EPSILON }), 'space')).toBe(all.at(-1));
  });

  it('gives as many different lines as asked for, all of them if need be', () => {
    const all = linesOf('food');
    for (let count = 1; count <= all.length; count++) {
      const lines = JSON.parse(ask(lifeGen, `Food  ${count}`) as string) as string[];
      expect(new Set(lines).size, `food ${count}`).toBe(count);
      expect(all).toEqual(expect.arrayContaining(lines));
    }
    const least = createLifeGen({ random: () => 0 });
    expect(JSON.parse(ask(least, 'food 3') as string)).toEqual(all.slice(0, 3));
  });

  it('lists its categories', () => {
    const names = [...new Set(own.slice(1).map(([name]) => name))].sort();
    expect(JSON.parse(ask(lifeGen, 'Categories') as string)).toEqual(names);
  });

  it.each([
    '0', '28', '-1', '1.5', 'three', '1e1', '99999999999999999999',
  ])('refuses "music %s"', (count) => {
    expect(ask(lifeGen, `music ${count}`)).toBe(
      `Cannot give "${count}" lines of "music": expected a whole number from 1 to 27`);
  });

  it.each(['', 'weather', 'weather 3', '__proto__', 'rain\nsnow\n', '☃'.repeat(5000)])(
    'names what it knows in place of %j, on one short line', (message) => {
      const reply = ask(lifeGen, message) as string;
      expect(reply).toMatch(/^Cannot find category ".*"\. Known: animals, art, .*, music, .*, space$/);
      expect(reply.length).toBeLessThan(300);
    });

  it('takes a CSV of one\'s own: columns in any order, a BOM, CRLF, quotes', () => {
    const file = fileOf('\uFEFFid,Line,Category\r\n1,"a ""b"", c",World  News\r\n' +
      '2,"two\r\nlines",x\r\n3,a,X\r\n4,a,x\r\n5,,x\r\n');
    const service = createLifeGen({ file });
    expect(ask(service, 'categories')).toBe('["world news","x"]');
    expect(ask(service, 'world news')).toBe('a "b", c');
    expect(JSON.parse(ask(service, 'x 2') as string).sort()).toEqual(['a', 'two\r\nlines']);
    expect(ask(service, 'x 3')).toMatch(/from 1 to 2$/);
  });

  it.each([
    { name: 'no file', file: () => join(folder, 'none.csv'), says: 'there is no such file' },
    { name: 'a folder', file: () => folder, says: 'it is a folder' },
    { name: 'an empty file', file: () => fileOf(''), says: 'its header is ""' },
    { name: 'another header', file: () => fileOf('a,b\n1,2'), says: 'its header is "a,b"' },
    { name: 'a header alone', file: () => fileOf('category,line\n'), says: 'it has no rows' },
    { name: 'a broken row', file: () => fileOf('category,line\na,b,c'), says: 'line 2 has 3 fields' },
    {
      name: 'UTF-16',
      file: () => fileOf(Buffer.from('\uFEFFcategory', 'utf16le')),
      says: 'it is not in UTF-8',
    },
  ])('tells in one line what is wrong with $name', ({ file, says }) => {
    const path = file();
    const message = `Cannot read "${path}": ${says}`.replaceAll(/[\\()[\]]/g, '\\$&');
    expect(() => createLifeGen({ file: path })).toThrow(new RegExp(`^${message}.*\\. Give a CSV .*$`));
  });

  it('keeps its contract, whatever the file', () => {
    const service = createLifeGen({ file: fileOf('category,line\nonly,one\n') });
    for (const { example, reply } of Object.values(service.contract?.messages ?? {})) {
      expect(ask(service, example), example).toBe(reply);
    }
  });

  it('answers clients and plain sockets through a server', async () => {
    await serving(lifeGen, async (port) => {
      const client = new MicroClient(port);
      expect(linesOf('art')).toContain(await client.sendMessage('art'));
      expect(await client.sendMessage('weather')).toMatch(/^Cannot find category/);
      await client.close();
      const replies = (await overLines(port, 'music\nweather\ncategories\n')).split('\n');
      expect(replies).toHaveLength(4);
      expect(linesOf('music')).toContain(replies[0]);
      expect(replies[1]).toMatch(/^Cannot find category "weather"/);
      expect(JSON.parse(replies[2] as string)).toContain('music');
    });
  });
});

describe('ECHO', () => {
  it('gives several parts back as they are', () => {
    const parts = [new Uint8Array([1, 255]), new Uint8Array()];
    expect(ask(createEcho(), '', { parts })).toEqual({ parts });
  });

  it('gives texts back through a server', async () => {
    await serving(createEcho(), async (port) => {
      const client = new MicroClient(port);
      for (const text of ['hello', '', ' naïve ☃ ', 'two\nlines\\n', '\0', 'ERR no error']) {
        expect(await client.sendMessage(text)).toBe(text);
      }
      await client.close();
      expect(await overLines(port, 'hello\n\nERR\nlast')).toBe('hello\nERR\nlast\n');
    });
  });
});
