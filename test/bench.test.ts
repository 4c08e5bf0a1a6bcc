/** The benchmark runs, and every rival that is installed answers rightly: `Load` checks each reply. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { beforeAll, describe, expect, it } from 'vitest';
import { PACKAGES } from './bench/shapes.ts';

const RUN = fileURLToPath(new URL('bench/run.ts', import.meta.url));
interface Row { against: string; verdict: string; reason?: string; rival?: number; portcall?: number }

describe('npm run bench -- --peers', () => {
  let rows: Row[];
  beforeAll(async () => {
    const words = ['--import', 'tsx', RUN, '--peers', '--quick', '--rounds', '1', '--only', 'flight64', '--json'];
    const { stdout } = await promisify(execFile)(process.execPath, words, { timeout: 25_000 })
      .catch((exit: { stdout: string }) => exit); // the row that FAILED tells why
    ({ rows } = JSON.parse(stdout) as { rows: Row[] });
  });

  it.for(['bare', ...PACKAGES])('measures portcall beside %s', (side, { skip }) => {
    const row = rows.find(({ against }) => against === side);
    if (row?.verdict === 'skipped') return skip(row.reason);
    expect(row).toMatchObject({ verdict: '', rival: expect.any(Number), portcall: expect.any(Number) });
    expect(row?.rival).toBeGreaterThan(0);
  });
});
