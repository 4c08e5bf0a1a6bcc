/** Three workers on the two cores that this must pass on: much of a test's time is waiting. With four, nothing is won. */
import { defineConfig } from 'vitest/config';

// Where a machine sets it, each of some 600 node processes reads these certificates at its start, for
// 60 ms of CPU; nothing here dials a host that would show one.
delete process.env['NODE_EXTRA_CA_CERTS'];

export default defineConfig({
  root: new URL('..', import.meta.url).pathname,
  test: {
    include: ['test/**/*.test.ts'],
    exclude: ['**/node_modules/**', 'dist/**'],
    globalSetup: 'test/helpers/programs_built.ts',
    pool: 'forks',
    maxWorkers: 3,
    testTimeout: 30_000,
    hookTimeout: 30_000,
  },
});
