/** Makes plain JavaScript of the programs and of lib, so that no loader is measured. */
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { ROOT, transpile, typeScriptFiles } from '../helpers/transpile.ts';

/** Writes them under the folder, laid out as here, and tells where a program of this one then lies. */
export function build(folder: string): (program: string) => string {
  const programs = ['.', 'peers', 'scripts'].flatMap((place) => typeScriptFiles(join('test/bench', place)));
  const helpers = [join(ROOT, 'test/helpers/free_port.ts')];
  transpile([...typeScriptFiles('lib', true), ...programs, ...helpers], folder);
  return (program) => join(folder, 'test', 'bench', `${program}.js`);
}

/** The paths of those packages that were installed beside this file. */
export function find<Name extends string>(names: readonly Name[]): Map<Name, string> {
  const { resolve } = createRequire(import.meta.url);
  const found = new Map<Name, string>();
  for (const name of names) {
    try {
      found.set(name, resolve(name));
    } catch {
      // not installed
    }
  }
  return found;
}
