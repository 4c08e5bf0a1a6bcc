/** The two files alone, in somebody else's folder: they type-check under strict options and run. */
import { execFile } from 'node:child_process';
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { MicroServer } from '../lib/micro_server.ts';
import { freePort } from './helpers/free_port.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });
const DEADLINE_MS = 30_000; // of one child
const ROOT = fileURLToPath(new URL('..', import.meta.url));
const require = createRequire(import.meta.url);
const TSC = join(dirname(require.resolve('typescript/package.json')), 'bin/tsc');
const folders = {
  pair: mkdtempSync(join(tmpdir(), 'portcall-pair-')),
  client: mkdtempSync(join(tmpdir(), 'portcall-client-')),
};

const SERVER = `import { MicroServer } from './micro_server.ts';
const server = new MicroServer((message) => \`you said: \${message}\`, 'LIFE_GEN');
await server.startListening();
`;
const CLIENT = `import { MicroClient } from './micro_client.ts';
const client = new MicroClient('LIFE_GEN');
console.log(await client.sendMessage('Give me some data back!!'));
`;
/** What a user who cares about types writes. */
const TYPED = `import { MicroError, type ClientOptions, type Value } from './micro_client.ts';
import { MicroServer, stopOnSignals, type Callback, type Context, type Service } from './micro_server.ts';

const callback: Callback = async (message: string, { client, signal, parts }: Context): Promise<Value> => {
  if (signal.aborted || parts !== undefined) return null;
  client.state.set('last', message);
  return message === 'fail' ? Promise.reject(new MicroError('NO_WORKER', 'none')) : count(message.length);
};
async function* count(to: number): AsyncGenerator<string> {
  for (let i = 0; i < to; i++) yield String(i);
}
const service: Service = { callback, connected: ({ id }) => console.error(id), stop: async () => {} };
export const options: ClientOptions = { timeoutMs: 100, log: (level, text) => console.error(level, text) };
export const server = new MicroServer(service, 0, { maxInFlight: 10, token: 'secret', ports: { A: 1 } });
export const undo: () => void = stopOnSignals(server);
`;
const TSCONFIG = {
  compilerOptions: {
    strict: true, exactOptionalPropertyTypes: true, noUncheckedIndexedAccess: true, erasableSyntaxOnly: true,
    noImplicitOverride: true, noImplicitReturns: true, noUnusedLocals: true, noUnusedParameters: true,
    verbatimModuleSyntax: true, isolatedModules: true, allowImportingTsExtensions: true, noEmit: true,
    module: 'nodenext', target: 'es2023', lib: ['es2023'], types: ['node'],
    typeRoots: [join(ROOT, 'node_modules/@types')], skipLibCheck: true,
  },
  include: ['*.ts'],
};

function copy(folder: string, files: Record<string, string>): void {
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }');
  writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify(TSCONFIG));
  for (const [name, text] of Object.entries(files)) {
    if (text === '') copyFileSync(join(ROOT, 'lib', name), join(folder, name));
    else writeFileSync(join(folder, name), text);
  }
}

beforeAll(() => {
  copy(folders.pair, { 'micro_client.ts': '', 'micro_server.ts': '', 'server.ts': SERVER, 'client.ts': CLIENT,
    'typed.ts': TYPED, 'talk.ts': `${SERVER}${CLIENT}await server.stop();\n` });
  copy(folders.client, { 'micro_client.ts': '', 'client.ts': CLIENT });
});
afterAll(() => { for (const folder of Object.values(folders)) rmSync(folder, { recursive: true, force: true }); });

/** All that a program prints on stdout; its failure tells all that it printed. */
function run(folder: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<string> {
  return new Promise((resolve, reject) => {
    execFile(process.execPath, args, { cwd: folder, timeout: DEADLINE_MS,
      env: { ...process.env, NODE_OPTIONS: '', PORTCALL_PORTS: '', ...env } }, (error, stdout, stderr) => {
      if (error === null) resolve(stdout);
      else reject(new Error(`node ${args.join(' ')} ended with ${error.signal ?? error.code} ` +
        `(at most ${DEADLINE_MS} ms):\n${stdout}${stderr}`));
    });
  });
}

describe('copied alone', () => {
  it.each(['pair', 'client'] as const)('the %s type-checks as strictly as can be', async (name) => {
    expect(await run(folders[name], [TSC, '-p', '.'])).toBe('');
  });
  it('a mistake of the user is seen, so this check checks', async () => {
    const file = join(folders.client, 'wrong.ts');
    writeFileSync(file, `import { MicroClient } from './micro_client.ts';
export const wrong: number = await new MicroClient(1).sendMessage('');
`);
    await expect(run(folders.client, [TSC, '-p', '.'])).rejects.toThrow(/wrong\.ts\(2,14\): error TS2322/);
    rmSync(file);
  });

  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
  const stripsTypes = 'typescript' in process.features ? Boolean(process.features.typescript)
    : major > 22 || (major === 22 && minor >= 18);
  const ways: [string, string[]][] = [['tsx', ['--import', import.meta.resolve('tsx')]], ['node itself', []]];
  for (const [way, flags] of ways) {
    const why = way === 'tsx' || stripsTypes ? ''
      : ` (skipped: node ${process.versions.node} strips no types by itself)`;
    it.skipIf(why !== '')(`the pair runs with ${way}${why}`, async () => {
      writeFileSync(join(folders.pair, 'ports.json'), JSON.stringify({ LIFE_GEN: await freePort() }));
      expect(await run(folders.pair, [...flags, 'talk.ts'])).toBe('you said: Give me some data back!!\n');
    });
    it.skipIf(why !== '')(`the client runs with ${way}, and ends by itself${why}`, async () => {
      const server = new MicroServer((message) => `from the repository: ${message}`, 0);
      const { port } = await server.startListening();
      try {
        writeFileSync(join(folders.client, 'ports.json'), JSON.stringify({ LIFE_GEN: port }));
        expect(await run(folders.client, [...flags, 'client.ts'])).toBe('from the repository: Give me some data back!!\n');
      } finally {
        await server.stop();
      }
    });
    it.skipIf(why !== '')(`an address that wants a transport tells which file to copy, with ${way}${why}`, async () => {
      const code = `import { MicroClient } from './micro_client.ts';
        import { MicroServer } from './micro_server.ts';
        const dialled = new MicroClient('nats://127.0.0.1:1/a').sendMessage('a');
        const bound = new MicroServer((text) => text, 'ipc:///tmp/x').startListening();
        for (const task of [dialled, bound]) {
          await task.catch((error: unknown) => console.log((error as { code: string }).code, String(error)));
        }`;
      writeFileSync(join(folders.pair, 'transport.ts'), code);
      const [nats = '', ipc = ''] = (await run(folders.pair, [...flags, 'transport.ts'])).split('\n');
      expect(nats).toMatch(/^BAD_ADDRESS .*Cannot use nats:\/\/: expected .*transports\/nats\.ts.* Copy it/);
      expect(ipc).toMatch(/^BAD_ADDRESS .*Cannot use ipc:\/\/: expected .*transports\/ipc\.ts.* Copy it/);
    });
  }

  it.each(['micro_client.ts', 'micro_server.ts'])('%s names no file beside it but the client', (name) => {
    const text = readFileSync(join(ROOT, 'lib', name), 'utf8');
    const relative = [...text.matchAll(/(?:from|import\()\s*(['"`])(\.{1,2}\/.*?)\1/g)].map(([, , path]) => path);
    expect(relative.filter((path) => path !== './micro_client.ts' && !path?.includes('${'))).toEqual([]);
  });
});
