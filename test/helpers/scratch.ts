/** Folders for a test's files, removed when its file of tests is over. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll } from 'vitest';

/** Call once, at the top of a file of tests: gives a new, empty folder each time. */
export function scratch(name: string): () => string {
  const root = mkdtempSync(join(tmpdir(), `portcall-${name}-`));
  afterAll(() => rmSync(root, { recursive: true, force: true }));
  let count = 0;
  return () => mkdtempSync(join(root, `${++count}-`));
}
