import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  appendFileSync, chmodSync, chownSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, renameSync,
  rmSync, statSync, symlinkSync, truncateSync, utimesSync, writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, describe, expect, it } from 'vitest';
import { copyVerified, isTemporary, type CopyOptions } from '../lib/verified_copy.ts';
import { hashOf } from './helpers/backups.ts';
import { within } from './helpers/deadline.ts';

const MIB = 1024 * 1024;
const root = mkdtempSync(join(tmpdir(), 'portcall-copy-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));

function place(content?: string | Uint8Array) {
  const folder = mkdtempSync(join(root, 'case-'));
  const [source, copies] = [join(folder, 'source'), join(folder, 'copies')];
  mkdirSync(copies);
  if (content !== undefined) writeFileSync(source, content);
  const copy = (options: Partial<CopyOptions> = {}) => copyVerified(source, copies, {
    nameOf: (sha256) => sha256, settleMs: 15, giveUpAt: performance.now() + 1_000, ...options });
  return { folder, source, copies, copy };
}

describe('copyVerified', () => {
  it.each([
    ['nothing', ''], ['a few bytes', 'hello'], ['exactly a block', Buffer.alloc(MIB, 'x')],
    ['a block and a byte', Buffer.alloc(MIB + 1, 'xy')], ['zeros', Buffer.alloc(3 * MIB)],
  ])('copies %s', async (_, content) => {
    const { copies, copy } = place(content);
    const { copy: made } = await copy();
    expect(made).toMatchObject({ name: hashOf(content), sha256: hashOf(content), bytes: content.length });
    expect(readFileSync(join(copies, hashOf(content))).equals(Buffer.from(content as string))).toBe(true);
    expect(readdirSync(copies)).toEqual([hashOf(content)]);
  });

  it('keeps holes between data, wherever they begin', async () => {
    const { source, copies, copy } = place('');
    const content = Buffer.alloc(64 * MIB);
    for (const at of [0, 4_095, 4_096, MIB - 1, 5 * MIB + 17, 64 * MIB - 1]) content[at] = 1 + (at % 255);
    truncateSync(source, content.length);
    const { open } = await import('node:fs/promises');
    const file = await open(source, 'r+');
    for (let at = 0; at < content.length; at += 4_096) {
      const page = content.subarray(at, at + 4_096);
      if (page.some((byte) => byte !== 0)) await file.write(page, 0, page.length, at);
    }
    await file.close();
    await copy();
    const path = join(copies, hashOf(content));
    expect(readFileSync(path).equals(content)).toBe(true);
    expect(statSync(path).blocks * 512).toBeLessThan(MIB);
  });

  it('makes none where a file has the bytes already, and one where it only has the length', async () => {
    const { folder, copies, copy } = place('same bytes');
    const other = join(folder, 'other');
    writeFileSync(other, 'same bytes');
    expect((await copy({ unless: other })).copy).toBeUndefined();
    expect(readdirSync(copies)).toEqual([]);
    for (const content of ['same bytez', 'same byte', 'same bytes!', '']) {
      writeFileSync(other, content);
      expect((await copy({ unless: other })).copy, content).toBeDefined();
    }
    expect((await copy({ unless: join(folder, 'missing') })).copy).toBeDefined();
    symlinkSync('source', join(folder, 'link'));
    expect((await copy({ unless: join(folder, 'link') })).copy, 'a link is not followed').toBeDefined();
  });

  it('tells the source\'s identity once any later change shows in it', async () => {
    const { source, copy } = place('x');
    expect((await copy()).sourceIdentity, 'it may be mapped, and dirty').toBeUndefined();
    utimesSync(source, 1, Date.now() / 1_000 - 61.5);
    expect((await copy()).sourceIdentity).toMatch(/^\d+:\d+:1:\d+:\d+$/);
  });

  it('gives a group\'s rights to no other group', async ({ skip }) => {
    if (process.getuid?.() !== 0) return skip('only root may give a file to any group');
    const { source, copies, copy } = place('for one group');
    chownSync(source, 0, 54_321);
    chmodSync(source, 0o640);
    const { copy: made } = await copy();
    expect(statSync(join(copies, made?.name ?? '')).mode & 0o777).toBe(0o600);
  });

  it('waits until the source was left alone', async () => {
    const { source, copy } = place('x');
    const began = performance.now();
    const writer = setInterval(() => appendFileSync(source, 'x'), 10);
    setTimeout(() => clearInterval(writer), 400);
    const { copy: made } = await copy({ settleMs: 150, giveUpAt: performance.now() + 5_000 });
    clearInterval(writer);
    expect(performance.now() - began).toBeGreaterThan(500);
    expect(made?.bytes).toBe(statSync(source).size);
  });

  it('waits after a write that hides its time', async () => {
    const { source, copy } = place('x');
    utimesSync(source, 1_000, 1_000.5);
    const began = performance.now();
    await copy({ settleMs: 150, giveUpAt: began + 5_000 });
    expect(performance.now() - began).toBeGreaterThan(100);
  });

  it('waits longer where the file system counts whole seconds', async () => {
    const { source, copy } = place('x');
    const now = Math.floor(Date.now() / 1_000);
    utimesSync(source, now, now);
    const began = Date.now();
    await copy({ giveUpAt: performance.now() + 5_000 });
    expect(Date.now() - began).toBeGreaterThan(1_000);
    expect(Date.now() - now * 1_000).toBeGreaterThan(2_000);
  });

  it('gives up a source that is never left alone, and leaves nothing', async () => {
    const { source, copies, copy } = place('x');
    const writer = setInterval(() => appendFileSync(source, 'x'), 5);
    const began = performance.now();
    await expect(copy({ settleMs: 100, giveUpAt: began + 300 })).rejects.toThrow(
      `Cannot copy ${JSON.stringify(source)}: it does not hold still`);
    clearInterval(writer);
    expect(performance.now() - began).toBeLessThan(1_000);
    expect(readdirSync(copies)).toEqual([]);
  });

  it('ends when told to, and leaves nothing', async () => {
    const { copies, copy } = place(Buffer.alloc(64 * MIB, 'long '));
    for (const phase of ['copying', 'comparing']) {
      const stop = new AbortController();
      await expect(copy({ signal: stop.signal, progress: (now, bytes) => {
        if (now === phase && bytes > 5 * MIB) stop.abort(new Error('Cannot go on: stopped'));
      } })).rejects.toThrow('stopped');
      expect(readdirSync(copies), phase).toEqual([]);
    }
  });

  it('is not deceived by a source that changes and changes back, so that both readings agree', async () => {
    const [A, B] = [Buffer.alloc(2 * MIB, 'A'), Buffer.alloc(2 * MIB, 'B')];
    const { source, copies, copy } = place(A);
    const changes = [['copying', MIB, B], ['copying', 2 * MIB, A], ['comparing', MIB, B]] as const;
    let tries = 0;
    const { copy: made } = await copy({ giveUpAt: performance.now() + 5_000, progress(phase, bytes) {
      if (phase === 'copying' && bytes === MIB) tries++;
      const change = changes.find(([when, at]) => tries === 1 && phase === when && bytes === at);
      if (change !== undefined) writeFileSync(source, change[2], { flag: 'r+' });
    } });
    expect(tries, 'tries').toBe(2);
    expect(readFileSync(join(copies, made?.name ?? '')).equals(B)).toBe(true);
    expect(readdirSync(copies)).toHaveLength(1);
  });

  it('takes the generation whole that is replaced by rename while it is copied, at the first try', async () => {
    const old = Buffer.alloc(2 * MIB, 'old');
    const { source, copies, copy } = place(old);
    let tries = 0;
    const { copy: made } = await copy({ progress(phase, bytes) {
      if (phase !== 'copying' || bytes !== MIB) return;
      tries++;
      writeFileSync(`${source}.new`, 'new');
      renameSync(`${source}.new`, source);
    } });
    expect(tries, 'tries').toBe(1);
    expect(readFileSync(join(copies, made?.name ?? '')).equals(old)).toBe(true);
  });

  it('refuses a file whose length is not told, such as those of /proc', async ({ skip }) => {
    if (!existsSync('/proc/self/stat')) return skip('no /proc on this machine');
    const { copies } = place();
    const options = { nameOf: (sha256: string) => sha256, settleMs: 15, giveUpAt: performance.now() + 200 };
    await expect(copyVerified('/proc/self/limits', copies, options)).rejects.toThrow('does not hold still');
    expect(readdirSync(copies)).toEqual([]);
  });

  it('makes no mixture while a program writes through a map in memory', async ({ skip }) => {
    const python = await promisify(execFile)('python3', ['--version']).catch(() => undefined);
    if (python === undefined) return skip('no python3 on this machine');
    const bytes = 4 * MIB;
    const { source, copies, copy } = place(Buffer.alloc(bytes, '0'));
    // Whole generations, a page at a time from the last to the first; sometimes it rests between two.
    const writer = spawn('python3', ['-c', `
import mmap, sys, time
with open(sys.argv[1], 'r+b') as file:
    pages = mmap.mmap(file.fileno(), 0)
    print('ready', flush=True)
    number = 0
    while True:
        number += 1
        page = bytes([number % 10 + 48]) * 4096
        for at in range(len(pages) - 4096, -1, -4096):
            pages[at:at + 4096] = page
        if number % 40 == 0: time.sleep(0.2)
`, source], { stdio: ['ignore', 'pipe', 'inherit'] });
    try {
      await within(5_000, once(writer.stdout, 'data'), 'the writer');
      let made = 0;
      for (const end = performance.now() + 10_000; made < 3 && performance.now() < end;) {
        const done = await copy({ giveUpAt: performance.now() + 500 }).catch(() => undefined);
        if (done?.copy === undefined) continue;
        made++;
        const content = readFileSync(join(copies, done.copy.name));
        expect(content.equals(Buffer.alloc(bytes, content.subarray(0, 1))), 'one generation').toBe(true);
      }
      expect(made, 'copies to judge').toBe(3);
    } finally {
      writer.kill('SIGKILL');
      await within(5_000, once(writer, 'exit'), 'its end');
    }
  });
});

describe('isTemporary', () => {
  it('knows its own names from others', () => {
    expect(isTemporary('.portcall-0123456789abcdef.part')).toBe(true);
    for (const name of ['.portcall-0123456789abcde.part', '.portcall-0123456789ABCDEF.part', 'x.part', '.part',
      'x.portcall-0123456789abcdef.part', '.portcall-0123456789abcdef.part.txt', '.portcall-backup.lock']) {
      expect(isTemporary(name), name).toBe(false);
    }
  });
});
