/**
 * Writes to a file without a pause, in a process of its own. A generation is a number, eight digits
 * and a line break, over and over: a file that holds two of them is no state but a mixture.
 */
import { closeSync, ftruncateSync, openSync, renameSync, writeFileSync, writeSync } from 'node:fs';
import { answer, given, ready } from '../child.ts';
import type { WriterSetUp } from '../generations.ts';

const { file, bytes, way, restsMs = 0, everyMs = 0 } = given<WriterSetUp>();
const PIECES = 16;
let generation = 0;
let isStopped = false;
let ended = Promise.resolve();

const next = (): Buffer => Buffer.alloc(bytes, `${String(++generation).padStart(8, '0')}\n`);

const WAYS: Record<WriterSetUp['way'], () => void> = {
  rewrite: () => inPlace('r+', next()),
  truncate: () => inPlace('w', next()),
  resize() {
    const content = next();
    const fd = openSync(file, 'r+');
    ftruncateSync(fd, Math.floor(bytes * Math.random()));
    writeSync(fd, content, 0, bytes, 0);
    ftruncateSync(fd, bytes * 2);
    ftruncateSync(fd, bytes);
    closeSync(fd);
  },
  replace() {
    writeFileSync(`${file}.new`, next());
    renameSync(`${file}.new`, file);
  },
};

function inPlace(flags: string, content: Buffer): void {
  const fd = openSync(file, flags);
  const piece = Math.ceil(bytes / PIECES);
  for (let at = 0; at < bytes; at += piece) writeSync(fd, content, at, Math.min(piece, bytes - at), at);
  closeSync(fd);
}

async function write(): Promise<void> {
  while (!isStopped) {
    WAYS[way]();
    const ms = everyMs + (restsMs > 0 && generation % 20 === 0 ? restsMs * Math.random() : 0);
    if (ms > 0) await new Promise((resolve) => { setTimeout(resolve, ms); });
    else await new Promise((resolve) => { setImmediate(resolve); }); // to hear that it is to stop
  }
}

answer({
  start() {
    isStopped = false;
    ended = write();
  },
  async stop() {
    isStopped = true;
    await ended;
    return generation;
  },
});
ready({});
