/** Log files: they rotate, are deleted in time, hold whole lines, and outlast a full disk. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { LogFiles, toLog, type Logger } from '../lib/log_files.ts';
import { MicroServer } from '../lib/micro_server.ts';
import { Child } from './helpers/child.ts';
import { scratch } from './helpers/scratch.ts';

const folder = scratch('logs');
const START = Date.UTC(2025, 10, 11, 19, 4, 12, 123);
const DAY_MS = 86_400_000;
const read = (path: string) => readFileSync(path, 'utf8');
afterEach(() => { vi.restoreAllMocks(); });

describe('LogFiles', () => {
  it('appends a line with its time and level, behind what is there', () => {
    const path = join(folder(), 'deep', 'a.log');
    for (const text of ['one', 'two']) {
      const files = new LogFiles(path);
      files.log('warn', text);
      files.close();
    }
    expect(read(path)).toMatch(/^\d{4}-\d\d-\d\dT[\d:.]{12}Z warn one\n\S{24} warn two\n$/);
  });
  it('rotates before maxBytes are passed, and loses no line', () => {
    const at = folder();
    const files = new LogFiles(join(at, 'a.log'), { maxBytes: 1_000, now: () => START });
    for (let line = 0; line < 100; line++) files.log('info', `line ${String(line).padStart(3, '0')} ${'x'.repeat(60)}`);
    files.close();
    const names = readdirSync(at).sort();
    expect(names.length).toBeGreaterThan(5);
    for (const name of names) {
      expect(name).toMatch(/^a\.(2025-11-11T19-04-12-\d{3}Z\.)?log$/);
      expect(Buffer.byteLength(read(join(at, name)))).toBeLessThanOrEqual(1_000);
    }
    const lines = names.map((name) => read(join(at, name))).join('').match(/line \d{3}/g);
    expect(lines).toEqual(Array.from({ length: 100 }, (_, line) => `line ${String(line).padStart(3, '0')}`));
  });
  it('begins a file at maxBytes exactly, not before', () => {
    const at = folder();
    const line = '2025-11-11T19:04:12.123Z info x\n';
    const files = new LogFiles(join(at, 'a.log'), { maxBytes: 2 * line.length, now: () => START });
    files.log('info', 'x');
    files.log('info', 'x');
    expect(readdirSync(at)).toEqual(['a.log']);
    files.log('info', 'x');
    expect(readdirSync(at).length).toBe(2);
    expect(read(join(at, 'a.log'))).toBe(line);
    files.close();
  });
  it('begins a file each day, and deletes those of more than maxDays', () => {
    const at = folder();
    let now = START;
    const files = new LogFiles(join(at, 'a.log'), { now: () => now });
    for (let day = 0; day < 20; day++, now += DAY_MS) files.log('info', `day ${day}`);
    files.close();
    const names = readdirSync(at).sort();
    expect(names.length).toBe(8); // 7 that are full, and today's
    expect(read(join(at, 'a.log'))).toContain('day 19');
    expect(read(join(at, names[0] as string))).toContain('day 12');
  });
  it('keeps maxFiles at most, and touches no other file', () => {
    const at = folder();
    const others = ['a.2025-11-11.log', 'b.2025-11-11T19-04-12-000Z.log', 'a.log.bak', 'a.txt'];
    for (const name of others) writeFileSync(join(at, name), 'not ours');
    const files = new LogFiles(join(at, 'a.log'), { maxBytes: 100, maxFiles: 3, now: () => START });
    for (let line = 0; line < 50; line++) files.log('info', 'x'.repeat(80));
    files.close();
    const names = readdirSync(at);
    for (const name of others) expect(names).toContain(name);
    expect(names.length).toBe(others.length + 3 + 1);
  });
  it.each(['a\nb', 'a\r\nb', 'a\u001b[31mb', 'a\u2028b', 'a\u2029b', 'a\u0085b', 'a\0b', 'a\x7fb', 'a\u009b31mb'])(
    'a line can\'t be forged: %j', (text) => {
      const path = join(folder(), 'a.log');
      const files = new LogFiles(path, { now: () => START });
      files.log('info', text);
      files.close();
      expect(read(path)).toMatch(/^2025-11-11T19:04:12\.123Z info a [^\p{Cc}\p{Zl}\p{Zp}]*b\n$/u);
    });
  it('a line of 10 MB is cut', () => {
    const path = join(folder(), 'a.log');
    const files = new LogFiles(path);
    files.log('error', '☃'.repeat(10_000_000 / 3));
    files.close();
    expect(Buffer.byteLength(read(path))).toBeLessThan(20_000);
  });
  it('refuses a path that can\'t be a file, and wrong options', () => {
    const at = folder();
    mkdirSync(join(at, 'a.log'));
    expect(() => new LogFiles(join(at, 'a.log'))).toThrow(/^Cannot log to ".*a\.log": .*EISDIR.*\. Make its folder writable/);
    expect(() => new LogFiles(join(at, 'b.log'), { maxBytes: 0 })).toThrow(RangeError);
    expect(() => new LogFiles(join(at, 'b.log'), { maxDays: '7' as never })).toThrow(TypeError);
  });
  const NO_PRLIMIT = spawnSync('prlimit', ['--version']).status === 0 ? undefined : 'no prlimit here';
  it('outlasts a full disk: drops, counts, and goes on', async (ctx) => {
    if (NO_PRLIMIT !== undefined) ctx.skip(NO_PRLIMIT);
    const path = join(folder(), 'a.log');
    const child = new Child('logger.ts', { path }, { wrapper: ['prlimit', '--fsize=2000:unlimited'] });
    try {
      await child.ready();
      const dropped = await child.ask<number>('log', 100);
      expect(dropped).toBeGreaterThan(80);
      expect(read(path).length).toBe(2_000);
      spawnSync('prlimit', ['--pid', String(child.pid), '--fsize=unlimited:unlimited']);
      expect(await child.ask('log', 2)).toBe(dropped);
      const lines = read(path).split('\n');
      const whole = lines.filter((line) => /^\S+Z info line \d+ x{90}$/.test(line));
      expect(whole.length).toBe(100 - dropped + 2);
      expect(lines.filter((line) => /^\S{24} warn \d+ lines could not be logged$/.test(line))).toEqual([expect.stringContaining(` ${dropped} `)]);
    } finally {
      await child.kill();
    }
  });
  it('takes what a server has to say', async () => {
    const path = join(folder(), 'a.log');
    const files = new LogFiles(path);
    const server = new MicroServer(() => 'x', 'tcp://0.0.0.0:0', { insecure: true, log: files.log });
    await server.startListening();
    await server.stop();
    files.close();
    expect(read(path)).toMatch(/^\S+ warn Listening on tcp:\/\/0\.0\.0\.0:0 without a token/);
  });
});

describe('toLog', () => {
  it('hands lines to a logger, at their level', () => {
    const seen: string[] = [];
    const logger = Object.fromEntries(['info', 'warn', 'error'].map((level) =>
      [level, (text: string) => seen.push(`${level} ${text}`)])) as unknown as Logger;
    const log = toLog(logger);
    log('info', 'a');
    log('warn', 'b\nc');
    log('error', '%s %d');
    expect(seen).toEqual(['info a', 'warn b c', 'error %s %d']);
  });
  it('takes console, and calls a method as a method', () => {
    const warn = vi.spyOn(console, 'warn').mockImplementation(() => {});
    toLog(console)('warn', 'careful');
    expect(warn.mock.calls).toEqual([['careful']]);
    class Counting {
      count = 0;
      info(): void { this.count++; }
      warn(): void { this.count++; }
      error(): void { this.count++; }
    }
    const logger = new Counting();
    toLog(logger)('error', 'x');
    expect(logger.count).toBe(1);
  });
  it('a logger that throws harms nobody', () => {
    const said: string[] = [];
    vi.spyOn(process.stderr, 'write').mockImplementation((text) => { said.push(String(text)); return true; });
    const broken = () => { throw new Error('broken'); };
    toLog({ info: broken, warn: broken, error: broken })('warn', 'x');
    expect(said).toEqual(['portcall: Cannot log "x": broken\n']);
  });
  it.each([[undefined], [{}], [{ info() {}, warn() {} }]])('refuses %j', (logger) => {
    expect(() => toLog(logger as Logger)).toThrow(/^Cannot log to .*: expected its method (info|error), as of console$/);
  });
});
