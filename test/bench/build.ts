/** Makes plain JavaScript of the programs and of lib, so that no loader is measured. */
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const BENCH = join(ROOT, 'test', 'bench');

interface Esbuild {
  transformSync(source: string, options: object): { code: string };
}

/** Writes them under the folder, laid out as here, and tells where a program of this one then lies. */
export function build(folder: string): (program: string) => string {
  const esbuild = loadEsbuild();
  const programs = ['.', 'peers', 'scripts'].flatMap((place) => typeScriptFiles(join(BENCH, place)));
  const lib = ['.', 'routing'].flatMap((place) => typeScriptFiles(join(ROOT, 'lib', place)));
  for (const file of [...lib, ...programs]) {
    const { code } = esbuild.transformSync(readFileSync(file, 'utf8'), {
      loader: 'ts', format: 'esm', target: 'node20', sourcefile: file,
    });
    const target = join(folder, relative(ROOT, file)).replace(/\.ts$/, '.js');
    mkdirSync(dirname(target), { recursive: true });
    writeFileSync(target, code.replace(/(from |import ?\(?)"(\.[^"]*)\.ts"/g, '$1"$2.js"'));
  }
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }\n');
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

/** The one that tsx itself runs on. */
function loadEsbuild(): Esbuild {
  const tsx = createRequire(import.meta.url).resolve('tsx');
  return createRequire(tsx)('esbuild') as Esbuild;
}

function typeScriptFiles(folder: string): string[] {
  return readdirSync(folder).filter((name) => name.endsWith('.ts')).map((name) => join(folder, name));
}
