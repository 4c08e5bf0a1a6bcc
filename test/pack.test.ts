/** What `npm pack` makes can be installed in an empty folder, called from plain JavaScript, and type-checks there. */
import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, it } from 'vitest';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const run = promisify(execFile);

const USER_FILE = `
import { MicroClient, MicroServer, type Context } from 'portcall';
const server = new MicroServer((message: string, { client }: Context) => \`\${message} from \${client.dialect}\`, 0);
const { url } = await server.startListening();
console.log(await new MicroClient(url).sendMessage('packed'));
await server.stop();
`;

it('npm pack gives a package that a user can install, type-check and run', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'portcall-pack-'));
  try {
    const { stdout } = await run('npm', ['pack', '--json', '--pack-destination', folder], { cwd: ROOT, timeout: 60_000 });
    const [{ filename, files }] = JSON.parse(stdout.slice(stdout.indexOf('[\n')));
    expect(files.map(({ path }: { path: string }) => path)).toContain('dist/services/life_gen.csv');
    writeFileSync(join(folder, 'package.json'), '{ "type": "module" }');
    await run('npm', ['install', '--offline', '--no-audit', '--no-fund', join(folder, filename)], { cwd: folder, timeout: 60_000 });
    writeFileSync(join(folder, 'user.ts'), USER_FILE);
    const flags = ['--noEmit', '--strict', '--exactOptionalPropertyTypes', '--module', 'nodenext', '--target', 'es2023',
      '--types', 'node', '--typeRoots', join(ROOT, 'node_modules', '@types')];
    await run(process.execPath, [join(ROOT, 'node_modules', 'typescript', 'bin', 'tsc'), ...flags, 'user.ts'],
      { cwd: folder, timeout: 60_000 });
    writeFileSync(join(folder, 'user.js'), USER_FILE.replace(/, type Context|: string|: Context/g, ''));
    expect((await run(process.execPath, ['user.js'], { cwd: folder, timeout: 15_000 })).stdout).toBe('packed from frames\n');
    const help = await run(join(folder, 'node_modules', '.bin', 'portcall'), ['--help'], { cwd: folder, timeout: 15_000 });
    expect(help.stdout).toContain('serve');
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}, 120_000);
