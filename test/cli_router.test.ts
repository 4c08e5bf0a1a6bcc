/** `portcall router` and `portcall worker`, as people start them. */
import { spawn, type ChildProcessWithoutNullStreams } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';
import { zmtp } from '../lib/dialects/zmtp.ts';
import { MicroClient } from '../lib/index.ts';
import { within } from './helpers/deadline.ts';
import { built } from './helpers/programs_built.ts';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const START_MS = 15_000;
const children = new Set<ChildProcessWithoutNullStreams>();
afterAll(() => { for (const child of children) child.kill('SIGKILL'); });

const start = (...args: string[]) => startWith({}, ...args);
/** Starts one; resolves with its first line. */
async function startWith(env: NodeJS.ProcessEnv, ...args: string[]):
  Promise<{ line: string; stop(): Promise<number | null> }> {
  const child = spawn(process.execPath, [built('lib/cli.ts'), ...args], { cwd: ROOT, env: { ...process.env, ...env } });
  children.add(child);
  const ended = once(child, 'exit');
  let said = '';
  child.stderr.setEncoding('utf8').on('data', (piece: string) => { said += piece; });
  const line = once(child.stdout.setEncoding('utf8'), 'data').then(([text]: string[]) => text ?? '');
  const early = ended.then(([code]) => { throw new Error(`Cannot start ${args[0]}: it ended with ${code}: ${said}`); });
  return {
    line: await within(START_MS, Promise.race([line, early]), `the first line of ${args[0]}`),
    async stop() {
      child.kill('SIGTERM');
      const [code] = await within(5_000, ended, `the end of ${args[0]}`) as [number | null];
      children.delete(child);
      return code;
    },
  };
}

describe('portcall', () => {
  it('routes to workers, built-ins and threads included, and each drains on SIGTERM', async () => {
    const router = await start('router', '--front', '0', '--back', '0', '--strategy', 'least_busy', '--json');
    const { listening, workers } = JSON.parse(router.line) as { listening: string; workers: string };
    const plain = await start('worker', 'life_gen', '--back', workers, '--id', 'one');
    expect(plain.line).toBe(`working for ${workers} (one)\n`);
    const client = new MicroClient(listening);
    expect(JSON.parse(await client.sendMessage('categories'))).toContain('music');
    expect(await plain.stop()).toBe(0);
    const threaded = await start('worker', 'echo', '--back', workers, '--threads', '2', '--json');
    expect(JSON.parse(threaded.line)).toEqual({ working: workers, id: expect.any(String) });
    expect(await client.sendMessage('hello')).toBe('hello');
    expect(await threaded.stop()).toBe(0);
    await client.close();
    expect(await router.stop()).toBe(0);
  });
  it('hears heartbeats of a ZeroMQ framework, and takes its dialect', async () => {
    const router = await start('router', '--front', '0', '--back', '0', '--heartbeat', '0', '--dialects', 'zmtp', '--json');
    const { listening, heartbeat } = JSON.parse(router.line) as { listening: string; heartbeat: string };
    expect(heartbeat).toMatch(/^tcp:\/\/127\.0\.0\.1:\d+$/);
    const worker = await start('worker', 'echo', '--back', (JSON.parse(router.line) as { workers: string }).workers);
    expect(await new MicroClient(listening, { dialect: zmtp() }).sendMessage('hello')).toBe('hello');
    expect(await worker.stop()).toBe(0);
    expect(await router.stop()).toBe(0);
  });

  it('takes the token of both from PORTCALL_TOKEN, threads included, and no empty one', async () => {
    const env = { PORTCALL_TOKEN: 'secret' };
    const router = await startWith(env, 'router', '--front', '0', '--back', '0', '--json');
    const { listening, workers } = JSON.parse(router.line) as { listening: string; workers: string };
    const stranger = start('worker', 'echo', '--back', workers);
    await expect(stranger).rejects.toThrow(/it ended with 1: .*UNAUTHORIZED/s);
    const worker = await startWith(env, 'worker', 'echo', '--back', workers, '--threads', '1');
    const [client, other] = [new MicroClient(listening, { token: 'secret' }), new MicroClient(listening)];
    expect(await client.sendMessage('hello')).toBe('hello');
    await expect(other.sendMessage('hello')).rejects.toMatchObject({ code: 'UNAUTHORIZED' });
    expect(await worker.stop()).toBe(0);
    await client.close();
    expect(await router.stop()).toBe(0);
    for (const args of [['router', '--front', '0', '--back', '0'], ['worker', 'echo', '--back', workers]]) {
      await expect(startWith({ PORTCALL_TOKEN: '' }, ...args)).rejects.toThrow(/it ended with 2: Cannot use token "":/);
    }
  });

  it.each([
    [['router', '--front', '0'], 'Cannot route without --front and --back'],
    [['router', '--front', '0', '--back', '0', '--strategy', '../x'], 'Cannot route by'],
    [['worker', 'echo'], 'Cannot work without --back'],
    [['worker', 'echo', '--back', '1', '--threads', '0'], 'Cannot read \\"0\\" as a count'],
    [['worker', 'nothing', '--back', '1'], 'nor a service of that name'],
  ])('refuses %j', async (args, says) => {
    const error: Error = await start(...args, '--json').then(() => expect.unreachable(), (reason) => reason);
    expect(error.message).toContain('it ended with 2: {');
    expect(error.message).toContain(says);
  });
});
