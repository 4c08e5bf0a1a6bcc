/** Makes plain JavaScript of the programs and of lib, so that no loader is measured. */
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { transpile, typeScriptFiles } from '../helpers/transpile.ts';

/** Writes them under the folder, laid out as here, and tells where a program of this one then lies. */
export function build(folder: string): (program: string) => string {
  const programs = ['.', 'peers', 'scripts'].flatMap((place) => typeScriptFiles(join('test/bench', place)));
  transpile([...typeScriptFiles('lib', true), ...programs], folder);
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
