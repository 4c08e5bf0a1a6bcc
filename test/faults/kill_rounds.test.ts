/** The server is killed again and again under load; what callers were told must be what was done. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { MicroClient } from '../../lib/micro_client.ts';
import { check, History } from '../helpers/checker.ts';
import { within } from '../helpers/deadline.ts';
import { range } from '../helpers/ended.ts';
import { FULL } from '../helpers/faults.ts';
import { freePort } from '../helpers/free_port.ts';
import { Load } from '../helpers/load.ts';
import { FUZZ_SEED, seeded } from '../helpers/random.ts';
import { ServerProcess } from '../helpers/server_process.ts';

const ROUNDS = FULL ? 100 : 20;
const TIMEOUT_MS = 5_000;
const folder = mkdtempSync(join(tmpdir(), 'portcall-kills-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

it(`settles each of 64 calls in flight once, in time and rightly, in ${ROUNDS} rounds of kill -9`, async () => {
  const random = seeded();
  const setUp = { callback: 'slow:2', record: join(folder, 'journal'), address: await freePort() } as const;
  const clients = range(4).map((index) =>
    new MicroClient(setUp.address, { timeoutMs: TIMEOUT_MS, retry: index % 2 === 0, log: () => {} }));
  const history = new History();
  let server = await ServerProcess.start(setUp);
  let unknownBefore = 0;
  let roundsWithUnknown = 0;
  try {
    for (let round = 1; round <= ROUNDS; round++) {
      const load = new Load({ clients, history, name: `round ${round}, call`, inFlight: 64, timeoutMs: TIMEOUT_MS });
      const starting = ServerProcess.start({ ...setUp, listen: false });
      await load.progress(random.between(1, 400));
      const next = await starting;
      const stopped = load.stop(); // what is in flight now is in flight at the kill
      await server.kill();
      server = next;
      await server.start();
      await within(TIMEOUT_MS + 1_000, stopped, `the end of what was in flight in round ${round}`);
      expect(load.faults, `FUZZ_SEED=${FUZZ_SEED}, round ${round}`).toEqual([]);
      const unknown = history.with('unknown').size;
      if (unknown > unknownBefore) roundsWithUnknown++;
      unknownBefore = unknown;
    }
    check(history, server.recorded());
    expect(history.with('pending').size).toBe(0);
    expect(history.with('ok').size).toBeGreaterThan(ROUNDS * 100);
    expect(roundsWithUnknown, 'rounds in which calls were lost in flight').toBeGreaterThan(ROUNDS / 2);
  } finally {
    await server.kill();
    await Promise.all(clients.map((client) => client.close()));
  }
}, FULL ? 15 * 60_000 : 60_000);
