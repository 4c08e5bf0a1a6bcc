/**
 * `node --import tsx test/bench/scripts/zmtp.ts [ROUNDS]`: the echo service over ZMTP against a bare
 * ROUTER of pyzmq, by the same client in Python: 64 requests in flight, and 100 MiB there and back.
 */
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { zmtp } from '../../../lib/dialects/zmtp.ts';
import { MicroServer } from '../../../lib/micro_server.ts';
import { createEcho } from '../../../services/echo.ts';
import { NO_PYZMQ, PYTHON } from '../../helpers/pyzmq.ts';

const MIB = 1024 * 1024;
const script = fileURLToPath(new URL('./zmtp.py', import.meta.url));
const [mode = '5'] = process.argv.slice(2);

if (mode === 'serve') { // a process of its own, as the ROUTER is
  const server = new MicroServer(createEcho(), 0,
    { dialects: [zmtp()], maxMessageBytes: 128 * MIB, maxOutputBytes: 256 * MIB });
  console.log((await server.startListening()).port);
} else if (NO_PYZMQ !== undefined) {
  console.log(`Cannot measure: ${NO_PYZMQ}`);
  process.exitCode = 1;
} else {
  const start = (command: string, words: readonly string[]) => {
    const child = spawn(command, words, { stdio: ['ignore', 'pipe', 'inherit'] });
    return { child, lines: createInterface(child.stdout)[Symbol.asyncIterator]() };
  };
  const servers = [start(process.execPath, ['--import', 'tsx', fileURLToPath(import.meta.url), 'serve']),
    start(PYTHON as string, [script, 'router'])];
  const ports = await Promise.all(servers.map(async ({ lines }) => String((await lines.next()).value)));
  const measured = start(PYTHON as string, [script, 'measure', mode, ...ports]);
  const ratios: { rate: number; ms: number }[] = [];
  for await (const line of measured.lines) {
    const { rates: [own = 0, bare = 0], ms: [ownMs = 0, bareMs = 0] } = JSON.parse(line) as Record<'rates' | 'ms', number[]>;
    ratios.push({ rate: own / bare, ms: ownMs / bareMs });
    console.log(`${own.toFixed(0)} and ${bare.toFixed(0)} replies/s: ${(own / bare).toFixed(2)};   ` +
      `100 MiB in ${ownMs.toFixed(0)} and ${bareMs.toFixed(0)} ms: ${(ownMs / bareMs).toFixed(2)}`);
  }
  for (const { child } of servers) child.kill();
  const median = (values: number[]): string => (values.sort((a, b) => a - b)[values.length >> 1] ?? NaN).toFixed(2);
  console.log(`median of ${ratios.length} rounds: ${median(ratios.map(({ rate }) => rate))} of its rate, ` +
    `${median(ratios.map(({ ms }) => ms))} of its time for 100 MiB`);
}
