import { execFileSync } from 'node:child_process';
import { chmodSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { BLOCK_BYTES, blocksOf, hashOf, identityOf, openToRead } from '../lib/untrusted_file.ts';
import { hashOf as expectedHash } from './helpers/backups.ts';
import { within } from './helpers/deadline.ts';
import { scratch } from './helpers/scratch.ts';

const newFolder = scratch('untrusted');

describe('openToRead', () => {
  it.each<[kind: string, make: (path: string) => unknown]>([
    ['a folder', (path) => mkdirSync(path)],
    ['a pipe', (path) => execFileSync('mkfifo', [path])],
    ['a device', (path) => symlinkSync('/dev/zero', path)],
  ])('refuses %s without waiting', async (kind, make) => {
    const path = join(newFolder(), 'odd');
    make(path);
    const start = `Cannot open ${JSON.stringify(path)}: `;
    await expect(within(1_000, openToRead(path, { follow: true }), 'the refusal')).rejects.toThrow(
      `${start}it is ${kind}, expected a plain file`);
    await expect(within(1_000, openToRead(path), 'the refusal')).rejects.toThrow(
      start + (kind === 'a device' ? 'it is a symbolic link, or too many of them'
        : `it is ${kind}, expected a plain file`));
  });

  it('refuses a socket', async () => {
    const path = join(newFolder(), 'socket');
    const server = createServer();
    await new Promise<void>((resolve) => { server.listen(path, resolve); });
    await expect(openToRead(path, { follow: true })).rejects.toThrow('it is a socket, expected a plain file');
    await expect(openToRead(path)).rejects.toThrow(/^Cannot open ".*": [^\n]+$/);
    server.close();
  });

  it('follows a link only where told to', async () => {
    const folder = newFolder();
    writeFileSync(join(folder, 'target'), 'text');
    symlinkSync('target', join(folder, 'link'));
    await expect(openToRead(join(folder, 'link'))).rejects.toThrow('it is a symbolic link');
    const file = await openToRead(join(folder, 'link'), { follow: true });
    expect(await hashOf(file, 4)).toBe(expectedHash('text'));
    await file.close();
  });
});

describe('blocksOf', () => {
  it.each([0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES])(
    'gives all of %i bytes, and no more than are asked for', async (bytes) => {
      const path = join(newFolder(), 'file');
      const content = Buffer.from(Array.from({ length: bytes % 251 }, (_, at) => at % 256));
      const all = content.length === 0 ? Buffer.alloc(bytes) : Buffer.alloc(bytes, content);
      writeFileSync(path, all);
      const file = await openToRead(path);
      for (const most of [bytes, bytes + 5, Math.floor(bytes / 2)]) {
        const pieces: Buffer[] = [];
        for await (const { block, at } of blocksOf(file, most)) {
          expect(at).toBe(pieces.reduce((sum, piece) => sum + piece.length, 0));
          pieces.push(Buffer.from(block));
        }
        expect(Buffer.concat(pieces).equals(all.subarray(0, most)), `${most}`).toBe(true);
      }
      await file.close();
    });
});

describe('identityOf', () => {
  it('changes with each write and each change of rights, and with nothing else', async () => {
    const path = join(newFolder(), 'file');
    writeFileSync(path, 'one');
    const file = await openToRead(path);
    const identity = async () => identityOf(await file.stat({ bigint: true }));
    const seen = new Set([await identity(), await identity()]);
    expect(seen.size).toBe(1);
    for (const change of [() => writeFileSync(path, 'two', { flag: 'r+' }), () => chmodSync(path, 0o600)]) {
      await new Promise((resolve) => { setTimeout(resolve, 20); }); // a tick
      change();
      seen.add(await identity());
    }
    expect(seen.size).toBe(3);
    await file.close();
  });
});
