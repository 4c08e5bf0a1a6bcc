/**
 * The programs and the command line that tests start as processes, and all that these load, as plain
 * JavaScript, made once a run: tsx would cost each of some two hundred processes 0.25 s of CPU.
 */
import { chmodSync, cpSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ROOT, transpile, typeScriptFiles } from './transpile.ts';

/** Called by vitest before the first test; returns what is done after the last. */
export default function setUp(): () => void {
  const folder = mkdtempSync(join(tmpdir(), 'portcall-programs-'));
  chmodSync(folder, 0o755); // some run as another user
  const places = ['lib', 'services', 'test/helpers'];
  transpile(places.flatMap((place) => typeScriptFiles(place, true)), folder);
  cpSync(join(ROOT, 'services'), join(folder, 'services'), { recursive: true, filter: (file) => !file.endsWith('.ts') });
  process.env['PORTCALL_TEST_PROGRAMS'] = folder;
  return () => rmSync(folder, { recursive: true, force: true });
}

/** Where a file of lib, services or test/helpers lies, as JavaScript: `built('lib/cli.ts')`. */
export function built(file: string): string {
  const folder = process.env['PORTCALL_TEST_PROGRAMS'];
  if (folder === undefined) throw new Error('Cannot start a program of the tests: vitest has not made them');
  return join(folder, file.replace(/\.ts$/, '.js'));
}

/** Where a program of `programs/` lies, as JavaScript. */
export function builtProgram(name: string): string {
  return built(`test/helpers/programs/${name}`);
}
