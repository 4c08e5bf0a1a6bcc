/** Makes plain JavaScript of TypeScript files, by the esbuild that tsx brings: no loader is started or measured. */
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

export const ROOT = fileURLToPath(new URL('../../', import.meta.url));

interface Esbuild {
  transformSync(source: string, options: object): { code: string };
  build(options: object): Promise<unknown>;
}

/** Found when it is asked for: the programs, which load this file too, lie where no tsx is. */
export function esbuild(): Esbuild {
  return createRequire(createRequire(import.meta.url).resolve('tsx'))('esbuild') as Esbuild;
}

/** Writes each file under the folder, laid out as in the repository. */
export function transpile(files: readonly string[], folder: string): void {
  const { transformSync } = esbuild();
  for (const file of files) {
    const { code } = transformSync(readFileSync(file, 'utf8'), {
      loader: 'ts', format: 'esm', target: 'node20', sourcefile: file,
    });
    const target = join(folder, relative(ROOT, file)).replace(/\.ts$/, '.js');
    mkdirSync(dirname(target), { recursive: true });
    writeFileSync(target, code.replace(/(from |import ?\(?)"(\.[^"]*)\.ts"/g, '$1"$2.js"'));
  }
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }\n');
}

/** All TypeScript files of a folder of the repository, and of those in it if so asked. */
export function typeScriptFiles(place: string, recursive = false): string[] {
  return readdirSync(join(ROOT, place), { recursive, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts')).map((name) => join(ROOT, place, name));
}
