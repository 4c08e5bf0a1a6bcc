/** Group D: ports files of every wrong kind, as the command line and the library tell of them. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect } from 'vitest';
import { MicroClient, MicroError, resolveAddress } from '../../lib/micro_client.ts';
import { MicroServer } from '../../lib/micro_server.ts';
import { run, serving } from '../helpers/command.ts';
import { fault, some } from '../helpers/faults.ts';
import { scratch } from '../helpers/scratch.ts';

const newFolder = scratch('ports');

interface Row {
  name: string;
  /** What is in the file; undefined: there is none; null: a folder in its stead. */
  text: string | undefined | null;
  /** Default `LIFE_GEN`. */
  key?: string;
  code?: 'BAD_PORTS_FILE' | 'UNKNOWN_SERVICE';
  /** Behind `Cannot …: `, where that names file and key. */
  says: string;
}
const holding = (value: unknown) => JSON.stringify({ LIFE_GEN: value, OTHER: 5555 });
const PORT = 'expected a whole number from 0 to 65535';
const ADDRESS = 'expected a port, tcp://host:port or ipc:///path';
const ROWS: readonly Row[] = [
  { name: 'broken', text: '{\n  "LIFE_GEN": 5467,\n  "OTHER" 5\n}\n', says: 'line 3, column 11 is "5", expected ":"' },
  { name: 'broken by a comma at the end', text: '{\n  "LIFE_GEN": 5467,\n}\n', says: 'line 3, column 1 is "}", expected a key in double quotes' },
  { name: 'broken off', text: '{\n  "LIFE_GEN": 54', says: 'line 2, column 17 is the end, expected "," or "}"' },
  { name: 'broken by a control letter', text: '{"LIFE_GEN":\x1b[2J 5467}', says: 'line 1, column 13 is "\\u001b", expected a value' },
  { name: 'broken, 1,000 deep', text: `{"LIFE_GEN": ${'['.repeat(1_000)}`, says: 'line 1, column ' },
  { name: 'an array', text: '[5467]', says: 'line 1, column 1 is "[", expected an object such as {"LIFE_GEN": 5467}' },
  { name: 'empty', text: '', says: 'it is empty, expected an object such as {"LIFE_GEN": 5467}' },
  { name: 'blank', text: ' \n\t\n', says: 'it is empty, expected an object' },
  { name: 'a folder', text: null, says: 'it is a folder, looked in "' },
  { name: 'absent', text: undefined, says: 'no such file, looked in "' },
  { name: 'without the key', text: '{"LIFE_GEM": 1, "CALENDAR": 2}', code: 'UNKNOWN_SERVICE', says: 'did you mean "LIFE_GEM"? Known: LIFE_GEM, CALENDAR' },
  { name: 'with nothing like the key', text: '{"A": 1}', code: 'UNKNOWN_SERVICE', says: 'no such key. Known: A' },
  { name: 'without __proto__', text: '{"A": 1}', key: '__proto__', code: 'UNKNOWN_SERVICE', says: 'no such key. Known: A' },
  { name: 'without constructor', text: '{"A": 1}', key: 'constructor', code: 'UNKNOWN_SERVICE', says: 'no such key. Known: A' },
  ...[70_000, -1, 1.5, '70000', '-1', '1.5', 'tcp://h:70000'].map((value) => ({ name: `port ${value}`, text: holding(value),
    says: `port is ${/[\d.-]+$/.exec(String(value))?.[0]}, ${PORT}` })),
  { name: '"x"', text: holding('x'), says: `it is "x", ${ADDRESS}` },
  { name: 'null', text: holding(null), says: `it is null, ${ADDRESS}` },
  { name: 'an object', text: holding({ port: 1 }), says: `it is an object, ${ADDRESS}` },
  { name: 'an object with __proto__', text: '{"LIFE_GEN": {"__proto__": 5}, "A": 1}', says: `it is an object, ${ADDRESS}` },
  { name: '__proto__ "x"', text: '{"__proto__": "x", "A": 1}', key: '__proto__', says: `it is "x", ${ADDRESS}` },
  { name: 'control letters', text: holding('tcp://h\x1b[2J\u2028:1'), says: 'it has a control character, expected none' },
  { name: 'doubled', text: '{"LIFE_GEN": 5467, "OTHER": 5467}', says: '"OTHER" has tcp://127.0.0.1:5467 too, expected an address for each. Change one' },
  { name: 'doubled, as an address', text: '{"LIFE_GEN": 5467, "OTHER": "zmtp+tcp://127.0.0.1:5467"}', says: '"OTHER" has tcp://127.0.0.1:5467 too' },
];

/** Makes the row's file and gives its path. */
function fileOf({ text }: Row): string {
  const file = join(newFolder(), 'ports.json');
  if (text === null) mkdirSync(file);
  else if (text !== undefined) writeFileSync(file, text);
  return file;
}

/** The message, once it is sure that it names file and key, on one line with nothing that steers a terminal. */
function checked(message: string, { name, text, key = 'LIFE_GEN', code, says }: Row, file: string): void {
  const isOfFile = text === null || text === undefined || /^(broken|an array|empty|blank)/.test(name);
  const task = isOfFile || code === 'UNKNOWN_SERVICE' ? `find service "${key}" in "${file}"` : `read "${key}" in "${file}"`;
  expect(message.startsWith(`Cannot ${task}: ${says}`), `${name}: ${message}`).toBe(true);
  expect(message, name).not.toMatch(/[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}]/u);
  expect(message, 'no stack').not.toMatch(/ at |node:|\.ts:\d/);
  expect(message.length, 'short enough to read').toBeLessThan(700);
}

describe('ports.json', () => {
  fault('D16', 'in every wrong way, told by the look-up, by a client and by a server', async () => {
    for (const row of ROWS) {
      const file = fileOf(row);
      const { key = 'LIFE_GEN', code = 'BAD_PORTS_FILE' } = row;
      const failures = [async () => resolveAddress(key, file), () => new MicroClient(key, { ports: file }).sendMessage('x'),
        () => new MicroServer(() => '', key, { ports: file }).startListening()];
      for (const failing of failures) {
        const error = await failing().then(() => undefined, (reason: unknown) => reason);
        expect(error, row.name).toBeInstanceOf(MicroError);
        expect(error, row.name).toMatchObject({ code, outcome: 'not sent' });
        checked((error as MicroError).message, row, file);
      }
    }
    expect(Object.prototype).toEqual({});
  });

  fault('D16', 'in every wrong way, told by the command line: one line, no stack, code 2', async () => {
    const commands = some(ROWS.flatMap((row) => [['send'], ['serve', 'echo', '--key']].map((words) => ({ row, words }))), 8);
    for (let at = 0; at < commands.length; at += 4) { // some at a time: each is a process
      await Promise.all(commands.slice(at, at + 4).map(async ({ row, words }) => {
        const file = fileOf(row);
        const { key = 'LIFE_GEN', code = 'BAD_PORTS_FILE' } = row;
        const args = [...words, key, ...(words[0] === 'send' ? ['x'] : [])];
        const { stderr, ...rest } = await run(args, { env: { PORTCALL_PORTS: file } });
        expect(rest, `${row.name}: ${stderr}`).toEqual({ code: 2, stdout: '' });
        const [, message = ''] = new RegExp(`^(Cannot [^\n]+) \\(${code}\\)\n$`).exec(stderr) ?? [];
        checked(message, row, file);
      }));
    }
  });

  fault('D16', 'found in the folder, or above it: named as it is found', async () => {
    const folder = newFolder();
    mkdirSync(join(folder, 'a/b'), { recursive: true });
    writeFileSync(join(folder, 'ports.json'), '{"LIFE_GEN": 70000, "A": 0}');
    const from = (cwd: string, key: string) => run(['send', key, 'x'], { cwd, env: { PORTCALL_PORTS: '' } });
    expect((await from(folder, 'LIFE_GEN')).stderr).toBe(`Cannot read "LIFE_GEN" in "ports.json": port is 70000, ${PORT} (BAD_PORTS_FILE)\n`);
    expect((await from(join(folder, 'a/b'), 'B')).stderr)
      .toBe('Cannot find service "B" in "../../ports.json": no such key. Known: LIFE_GEN, A (UNKNOWN_SERVICE)\n');
  });

  fault('D16', 'an ephemeral port: a warning that names file and key; __proto__ is a key like any other', async () => {
    const file = join(newFolder(), 'ports.json');
    const port = 60_999;
    const url = `tcp://127.77.0.${1 + Math.floor(Math.random() * 250)}:${port}`; // where outgoing connections have none
    writeFileSync(file, `{"EPHEMERAL": "${url}", "__proto__": 0, "constructor": 0}`);
    const env = { PORTCALL_PORTS: file };
    await serving(['echo', '--key', 'EPHEMERAL'], { env }, async (listening, command) => {
      expect(listening).toBe(url);
      expect(command.stderr).toBe(`portcall: Port ${port} of "EPHEMERAL" in "${file}" may be taken: ` +
        'outgoing connections are given 32768 to 60999\n');
    });
    for (const key of ['__proto__', 'constructor']) {
      await serving(['echo', '--key', key], { env }, async (url, command) => {
        expect(await run(['send', url, 'x'])).toEqual({ code: 0, stdout: 'x\n', stderr: '' });
        expect(command.stderr).toBe('');
        expect(command.stdout).toBe(`listening on ${url} (${key})\n`);
      });
    }
  });
});
