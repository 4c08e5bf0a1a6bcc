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

/** Where `ws` lies if it was installed beside this file. */
export function findWs(): string | undefined {
  try {
    return createRequire(import.meta.url).resolve('ws');
  } catch {
    return undefined;
  }
}
