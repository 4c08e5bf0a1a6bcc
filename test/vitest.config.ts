/** Three workers on the two cores that this must pass on: much of a test's time is waiting. With four, nothing is won. */
import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

// Where a machine sets it, each of some 600 node processes reads these certificates at its start, for
// 60 ms of CPU; nothing here dials a host that would show one.
delete process.env['NODE_EXTRA_CA_CERTS'];

/** Files of 8 s and more, longest first. */
const LONGEST = ['faults/router_workers', 'faults/calendar_kills', 'faults/framing_vectors', 'faults/framing_frames',
  'faults/framing_raw', 'faults/connection_slow', 'worker', 'faults/connection_restart', 'faults/backup_writers',
  'faults/connection_loss', 'faults/framing_lines', 'faults/backup_folder', 'cli'];

/** These first, that none of them runs alone at the end; then as vitest would, which knows the last run's times at most. */
class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const place = ({ moduleId }: TestSpecification): number => {
      const at = LONGEST.findIndex((name) => moduleId.endsWith(`/test/${name}.test.ts`));
      return at === -1 ? LONGEST.length : at;
    };
    return (await super.sort(files)).sort((one, other) => place(one) - place(other));
  }
}

export default defineConfig({
  root: new URL('..', import.meta.url).pathname,
  test: {
    include: ['test/**/*.test.ts'],
    exclude: ['**/node_modules/**', 'dist/**'],
    globalSetup: 'test/helpers/programs_built.ts',
    pool: 'forks',
    maxWorkers: 3,
    sequence: { sequencer: LongestFirst },
    testTimeout: 30_000,
    hookTimeout: 30_000,
  },
});
