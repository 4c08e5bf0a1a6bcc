/** Group G: eight workers, one killed each 200 ms. What callers were told must be what was done. */
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect } from 'vitest';
import { build } from '../bench/build.ts';
import { check, History } from '../helpers/checker.ts';
import { pause, within } from '../helpers/deadline.ts';
import { range } from '../helpers/ended.ts';
import { fault, FULL } from '../helpers/faults.ts';
import { Load } from '../helpers/load.ts';
import { FUZZ_SEED, seeded } from '../helpers/random.ts';
import { routed } from '../helpers/routed.ts';

const CHAOS_MS = FULL ? 60_000 : 5_000;
const WORKERS = 8, KILL_EVERY_MS = 200, TIMEOUT_MS = 5_000;
const folder = mkdtempSync(join(tmpdir(), 'portcall-chaos-'));
afterAll(() => rmSync(folder, { recursive: true }));

fault('G01', `8 workers, one kill -9 each ${KILL_EVERY_MS} ms, 64 calls in flight`, async () => {
  const program = build(folder)('scripts/router_node'); // plain JavaScript: a worker starts in no time
  const { back, dial, joined, router } = await routed({ strategy: 'least_busy', maxInFlight: 16 });
  const random = seeded();
  const workers: ChildProcess[] = [];
  const hire = (): void => {
    const record = join(folder, `journal ${workers.length}`);
    const setUp = { kind: 'worker', back, waitMs: 3, record };
    workers.push(fork(program, [JSON.stringify(setUp)], { execArgv: [] }));
  };
  const living = () => workers.filter(({ exitCode, signalCode }) => exitCode === null && signalCode === null);
  const history = new History();
  const clients = [dial(), dial(), dial({ retry: true }), dial({ retry: true })];
  let kills = 0;
  try {
    range(WORKERS).forEach(hire);
    await joined(WORKERS);
    const load = new Load({ clients, history, name: 'call', inFlight: 64, timeoutMs: TIMEOUT_MS });
    for (const end = performance.now() + CHAOS_MS; performance.now() < end; kills++) {
      await pause(KILL_EVERY_MS);
      const victim = random.pick(living());
      victim.kill('SIGKILL');
      await once(victim, 'exit');
      hire();
    }
    await within(TIMEOUT_MS + 1_000, load.stop(), 'the end of all calls');
    expect(load.faults, `FUZZ_SEED=${FUZZ_SEED}`).toEqual([]);
    expect(load.answered).toBeGreaterThan(kills * 20);
    expect(router.stats().queued).toBe(0);
  } finally {
    await Promise.all(living().map((worker) => { worker.kill('SIGKILL'); return once(worker, 'exit'); }));
  }
  const journals = range(workers.length).map((index) => join(folder, `journal ${index}`)).filter(existsSync);
  const lines = journals.flatMap((file) => readFileSync(file, 'utf8').split('\n').slice(0, -1));
  check(history, lines.map((line) => JSON.parse(line) as string));
  expect(history.with('unknown').size, 'calls that a killed worker had').toBeGreaterThan(0);
});
