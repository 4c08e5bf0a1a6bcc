/**
 * Clients that others wrote, or would, as programs of their own: what a tutorial tells to type, what a shell has.
 * In `test/interop/clients` nothing is changed to suit a test, and nothing here but the port.
 */
import { execFile, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { NO_PYZMQ, PYTHON } from './pyzmq.ts';

const DEADLINE_MS = 20_000;

export interface Outsider {
  name: string;
  /** Why it can't run here, if so. */
  missing: string | undefined;
  /** Runs it to its end, and gives what it printed. */
  ask(port: number): Promise<string>;
  /** What it prints where each message comes back as it went. */
  echoed: string;
}

interface Ended { code: number; stdout: string; stderr: string }

/** Rejects if it doesn't end by itself in time. */
function run(command: string, words: readonly string[], input = ''): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const env = { ...process.env, PYTHONIOENCODING: 'utf-8' };
    const child = execFile(command, words, { env, timeout: DEADLINE_MS, killSignal: 'SIGKILL' },
      (error, stdout, stderr) => {
        const code = error === null ? 0 : error.code;
        if (typeof code === 'number') return resolve({ code, stdout, stderr });
        reject(new Error(`Cannot run ${command}: ${error?.signal ?? code}, expected its end within ` +
          `${DEADLINE_MS} ms. It said: ${stdout}${stderr}`));
      });
    child.stdin?.on('error', () => {}).end(input); // it may end before it has read all
  });
}

/** Runs it, and gives what it printed; rejects where it failed. */
async function printed(command: string, words: readonly string[], input = ''): Promise<string> {
  const { code, stdout, stderr } = await run(command, words, input);
  if (code === 0) return stdout;
  throw new Error(`Cannot run ${command}: it ended with ${code}, expected 0. It said: ${stdout}${stderr}`);
}

const says = (command: string, words: readonly string[], expected = /(?:)/): boolean => {
  const { error, stdout, stderr } = spawnSync(command, words, { encoding: 'utf8', timeout: 10_000, input: '' });
  return error === undefined && expected.test(stdout + stderr);
};
const lacks = (what: string, isThere: boolean, remedy: string): string | undefined =>
  (isThere ? undefined : `no ${what} here: ${remedy}`);

const ANY_PYTHON = PYTHON ?? 'python3';
const NO_PYTHON = lacks('python3', says(ANY_PYTHON, ['-c', '']), 'apt-get install python3');
const NO_NC = lacks('OpenBSD nc', says('nc', ['-h'], /OpenBSD/), 'apt-get install netcat-openbsd');
const NO_NCAT = lacks('ncat', says('ncat', ['--version']), 'apt-get install ncat');
const NO_SOCAT = lacks('socat', says('socat', ['-V']), 'apt-get install socat');
const NO_BASH = lacks('bash with /dev/tcp',
  says('bash', ['-c', 'exec 3<>/dev/tcp/127.0.0.1/1'], /refused/), 'another is the shell');

/** A program of `test/interop/clients` with its port filled in. */
function source(file: string, usualPort: number, port: number): string {
  const text = readFileSync(new URL(`../interop/clients/${file}`, import.meta.url), 'utf8');
  if (text.split(String(usualPort)).length !== 2) throw new Error(`Cannot find ${usualPort} once in ${file}`);
  return text.replace(String(usualPort), String(port));
}

const PING = '{ "action": "ping" }';
const STAMP = '{ "action": "timestamp", "clientID": "TaskTracker", "eventName": "add.task" }';
const shown = (json: string): string => JSON.stringify(JSON.parse(json))
  .replaceAll('":', '": ').replaceAll('","', '", "');

/** Prints a REQEST and a RESPONSE a call. */
export const calendar: Outsider = {
  name: 'the call() of a pyzmq REQ',
  missing: NO_PYZMQ,
  ask: (port) => printed(ANY_PYTHON, ['-c', `${source('calendar.py', 5555, port)}\ncall(${PING})\ncall(${STAMP})\n`]),
  echoed: ['Client attempting to connect to server...', 'Sending a request...', ...[PING, STAMP].flatMap((json) =>
    [`REQEST : ${shown(json).replaceAll('"', '\'')}`, `RESPONSE: ${shown(json)} `, ''])].join('\n').concat('\n'),
};
/** Prints what each line gives, as Python does where one types. */
export const backup: Outsider = {
  name: 'five lines of Python that send no line end',
  missing: NO_PYTHON,
  ask: (port) => printed(ANY_PYTHON, ['-i', '-q'], source('backup.py', 12345, port)),
  echoed: '6\n\'revert\'\n',
};
/** Sets two timers, and prints the numbers that came back. Ends as it does when nobody types any more. */
export const timer: Outsider = {
  name: 'a pyzmq REQ that sends a number at a time',
  missing: NO_PYZMQ,
  async ask(port) {
    const { stdout, stderr } = await run(ANY_PYTHON, ['-c', source('timer.py', 8888, port)], '0\n0\n5\n1\n2\n3\n');
    if (!/\nEOFError: .*\n$/.test(stderr)) throw new Error(`Cannot set a timer: ${stdout}${stderr}`);
    return stdout.replaceAll(/Enter your time in \w+\./g, '');
  },
  echoed: ['0', '0', '5', '1', '2', '3'].map((number) => `From client: b'${number}'\n`).join(''),
};
export const timerParts: Outsider = {
  name: 'a pyzmq REQ that sends three parts',
  missing: NO_PYZMQ,
  ask: (port) => printed(ANY_PYTHON, ['-c', source('timer_parts.py', 8888, port)]),
  echoed: 'From client: [b\'0\', b\'0\', b\'5\']\n',
};
/** Prints two replies, and what came behind its last word: nothing. */
export const microClient: Outsider = {
  name: 'a Python client with a 64-byte length header',
  missing: NO_PYTHON,
  ask: (port) => printed(ANY_PYTHON, ['-c', source('micro_client.py', 5467, port)]),
  echoed: 'categories\nnaïve ☃\nb\'\'\n',
};

/** What it is piped comes at once with its end: a silence between them would end a raw message. */
const piped = (command: string, missing: string | undefined,
  where = (port: number) => `127.0.0.1 ${port}`): Outsider => ({
  name: command,
  missing,
  ask: (port) => printed('sh', ['-c', `printf 'hello\\nnaïve ☃\\nno line end' | ${command} ${where(port)}`]),
  echoed: 'hello\nnaïve ☃\nno line end\n',
});
/** Those that speak lines, which any service understands. */
export const LINES: readonly Outsider[] = [
  piped('nc -N', NO_NC),
  piped('ncat', NO_NCAT),
  piped('socat', NO_SOCAT, (port) => `- TCP:127.0.0.1:${port}`),
  {
    name: 'bash by /dev/tcp',
    missing: NO_BASH,
    ask: (port) => printed('bash', ['-c', `exec 3<>/dev/tcp/127.0.0.1/${port}
      echo hello >&3; read -r line <&3; echo "$line"`]),
    echoed: 'hello\n',
  },
  {
    name: 'Python by makefile',
    missing: NO_PYTHON,
    ask: (port) => printed(ANY_PYTHON, ['-c', source('makefile.py', 5467, port)]),
    echoed: 'hello\nnaïve ☃\n',
  },
];
export const OUTSIDERS: readonly Outsider[] = [calendar, backup, timer, timerParts, microClient, ...LINES];
