/** Files are there whole or not at all. */
import { lstatSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { syncFolder, writeFileAtomically } from '../lib/atomic_file.ts';
import { Child } from './helpers/child.ts';
import { scratch } from './helpers/scratch.ts';
import { noStrace, traced } from './helpers/strace.ts';

const newFolder = scratch('atomic');

describe('writeFileAtomically', () => {
  it('makes a file, replaces one, and leaves nothing else', async () => {
    const folder = newFolder();
    const path = join(folder, 'a.json');
    await writeFileAtomically(path, 'one');
    expect(readFileSync(path, 'utf8')).toBe('one');
    await writeFileAtomically(path, Uint8Array.of(0, 255), { mode: 0o600 });
    expect([...readFileSync(path)]).toEqual([0, 255]);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(readdirSync(folder)).toEqual(['a.json']);
  });

  it('takes a name of 255 bytes', async () => {
    const folder = newFolder();
    await writeFileAtomically(join(folder, 'x'.repeat(255)), 'long');
    expect(readdirSync(folder)).toEqual(['x'.repeat(255)]);
  });

  it('replaces a symbolic link, and does not write through it', async () => {
    const folder = newFolder();
    const [path, other] = [join(folder, 'link'), join(folder, 'other')];
    writeFileSync(other, 'untouched');
    symlinkSync(other, path);
    await writeFileAtomically(path, 'new');
    expect(lstatSync(path).isFile()).toBe(true);
    expect([readFileSync(path, 'utf8'), readFileSync(other, 'utf8')]).toEqual(['new', 'untouched']);
  });

  it('leaves the old one, and no temporary file, where it cannot rename', async () => {
    const folder = newFolder();
    mkdirSync(join(folder, 'taken'));
    await expect(writeFileAtomically(join(folder, 'taken'), 'x')).rejects.toThrow(/EISDIR|ENOTEMPTY|EEXIST/);
    expect(readdirSync(folder)).toEqual(['taken']);
    await expect(writeFileAtomically(join(folder, 'missing', 'a'), 'x')).rejects.toThrow('ENOENT');
  });

  it('leaves the old one, and no temporary file, where the disk takes no more', async () => {
    const folder = newFolder();
    const path = join(folder, 'a');
    writeFileSync(path, 'old');
    const child = new Child('atomic_writer.ts', { path, text: 'new'.repeat(100) },
      { wrapper: ['prlimit', '--fsize=200:200'] });
    expect(await child.ready()).toEqual({ error: 'EFBIG' });
    expect([readFileSync(path, 'utf8'), readdirSync(folder)]).toEqual(['old', ['a']]);
  });

  it('leaves the old one or the new one, whole, wherever kill -9 comes', async (ctx) => {
    if (noStrace !== undefined) ctx.skip(noStrace);
    const seen = new Set<string>();
    for (const step of ['fsync:signal=KILL:when=1', 'rename:signal=KILL:when=1', 'fsync:signal=KILL:when=2']) {
      const folder = newFolder();
      const path = join(folder, 'a');
      writeFileSync(path, 'old');
      const child = new Child('atomic_writer.ts', { path, text: 'new'.repeat(1_000) }, traced({ inject: step }));
      expect((await child.exited).signal, `${step}: ${child.stderr}`).toBe('SIGKILL');
      const found = readFileSync(path, 'utf8');
      expect(['old', 'new'.repeat(1_000)]).toContain(found);
      seen.add(found.slice(0, 3));
    }
    expect([...seen]).toEqual(['old', 'new']);
  });
});

describe('syncFolder', () => {
  it('rejects where there is no folder', async () => {
    const folder = newFolder();
    await syncFolder(folder);
    writeFileSync(join(folder, 'file'), '');
    await expect(syncFolder(join(folder, 'file'))).rejects.toThrow('ENOTDIR');
    await expect(syncFolder(join(folder, 'none'))).rejects.toThrow('ENOENT');
  });
});
