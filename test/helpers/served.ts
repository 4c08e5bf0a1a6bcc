/** `portcall serve …` as a process of its own, as an operator starts it. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { within } from './deadline.ts';
import { built } from './programs_built.ts';

const START_MS = 20_000;

/** Starts it on a free port, does `task` to that, and ends it. */
export async function withServed<T>(words: readonly string[], task: (port: number) => Promise<T>): Promise<T> {
  const child = spawn(process.execPath, [built('lib/cli.ts'), 'serve', ...words, '--port', '0'],
    { cwd: fileURLToPath(new URL('../..', import.meta.url)), stdio: ['ignore', 'pipe', 'pipe'] });
  const ended = once(child, 'close');
  const said = { stdout: '', stderr: '' };
  const port = new Promise<number>((resolve, reject) => {
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      said.stdout += text;
      const [, digits] = /^listening on tcp:\/\/127\.0\.0\.1:(\d+) /.exec(said.stdout) ?? [];
      if (digits !== undefined) resolve(Number(digits));
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => { said.stderr += text; });
    void ended.then(() => reject(new Error(`Cannot serve ${words.join(' ')}: ${said.stdout}${said.stderr}`)));
  });
  try {
    return await task(await within(START_MS, port, `the first line of serve ${words.join(' ')}`));
  } finally {
    child.kill('SIGKILL');
    await ended;
  }
}
