/**
 * `node --import tsx test/bench/scripts/journal.ts [appends] [group] [open] [crc]`: what a journal carries on this
 * machine's disk. `FOLDER=…` puts it elsewhere; `EVENTS=…` says how many are opened.
 */
import { fdatasyncSync, mkdtempSync, openSync, closeSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from '../../../lib/crc32.ts';
import { Journal, type JournalOptions } from '../../../lib/journal.ts';

const TEXT = '{"at":1763735723000,"text":"a line of calendar text as people write them, about 100 bytes long, all told"}';
const folder = mkdtempSync(join(process.env['FOLDER'] ?? tmpdir(), 'portcall-bench-journal-'));
const EVENTS = Number(process.env['EVENTS'] ?? 10_000_000);

/** `inFlight` appends at a time, each following its acknowledgement, for `ms`. */
async function appends(options: Omit<JournalOptions, 'folder'>, inFlight: number, ms: number): Promise<number> {
  const journal = await Journal.open({ ...options, folder: mkdtempSync(join(folder, 'appends-')) });
  const run = async (end: number): Promise<void> => {
    while (performance.now() < end) {
      let last: Promise<void> | undefined;
      for (let at = 0; at < inFlight; at++) last = journal.append(TEXT);
      await last;
    }
  };
  await run(performance.now() + ms / 4); // until it is compiled
  const [first, began, cpu] = [journal.count, performance.now(), process.cpuUsage()];
  await run(began + ms);
  const count = journal.count - first;
  const { user, system } = process.cpuUsage(cpu);
  const perSecond = count / (performance.now() - began) * 1_000;
  await journal.close();
  console.log(`${(options.fsync ?? '').padEnd(8)} ${String(inFlight).padStart(6)} in flight: ` +
    `${perSecond.toFixed(0).padStart(9)} appends/s, ${((user + system) / count * 1_000).toFixed(0)} ns of CPU each, ` +
    `${(user / count * 1_000).toFixed(0)} of them in user mode`);
  return perSecond;
}

const PARTS: Record<string, () => Promise<void>> = {
  async crc() {
    const bytes = Buffer.from(TEXT.repeat(1_000));
    const began = performance.now();
    let mixed = 0;
    for (let at = 0; at < 1e6; at++) {
      const start = at % 999 * TEXT.length;
      mixed ^= crc32(bytes, start, start + TEXT.length);
    }
    console.log(`crc32 of ${TEXT.length} bytes: ${(performance.now() - began).toFixed(0)} ns (${mixed})`);
  },
  async appends() {
    for (const fsync of ['never', 'interval', 'always'] as const) {
      for (const inFlight of [1, 64, 1_024]) await appends({ fsync }, inFlight, 2_000);
    }
  },
  /** Group commit against a write and a sync for each record. */
  async group() {
    const file = openSync(join(folder, 'alone'), 'w');
    const began = performance.now();
    let alone = 0;
    while (performance.now() < began + 2_000) {
      writeSync(file, `${TEXT}\n`);
      fdatasyncSync(file);
      alone++;
    }
    const perSecond = alone / (performance.now() - began) * 1_000;
    closeSync(file);
    console.log(`a sync for each, no journal: ${perSecond.toFixed(0)} records/s`);
    const together = await appends({ fsync: 'always' }, 1_024, 2_000);
    console.log(`group commit: ${(together / perSecond).toFixed(0)} times as many (bar: 20)`);
  },
  async open() {
    const where = join(folder, 'open');
    const writer = await Journal.open({ folder: where, fsync: 'never' });
    for (let at = 0; at < EVENTS;) {
      let last: Promise<void> | undefined;
      for (const end = Math.min(EVENTS, at + 10_000); at < end; at++) last = writer.append(TEXT);
      await last;
    }
    await writer.close();
    globalThis.gc?.();
    const before = process.memoryUsage.rss();
    let [seen, peak] = [0, 0];
    const watch = setInterval(() => { peak = Math.max(peak, process.memoryUsage.rss()); }, 20);
    const began = performance.now();
    const journal = await Journal.open({ folder: where, onRecord: () => { seen++; } });
    const seconds = (performance.now() - began) / 1_000;
    clearInterval(watch);
    const readBegan = performance.now();
    const page = await journal.read(EVENTS - 1_000, 100);
    const readMs = performance.now() - readBegan;
    console.log(`opening ${seen} events: ${seconds.toFixed(1)} s (bar: 20), RSS ${(peak / 2 ** 20).toFixed(0)} MiB at most ` +
      `(${(before / 2 ** 20).toFixed(0)} before; bar: 300 MB); a page of ${page.length} near the end: ${readMs.toFixed(1)} ms`);
    await journal.close();
  },
};

try {
  const asked = process.argv.slice(2);
  for (const part of asked.length > 0 ? asked : Object.keys(PARTS)) {
    if (PARTS[part] === undefined) throw new Error(`Cannot measure "${part}": expected ${Object.keys(PARTS).join(', ')}`);
    await PARTS[part]();
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
