#!/usr/bin/env node
/**
 * The command line: `portcall serve FILE`, `portcall send K TEXT`. A command is one row of COMMANDS,
 * a service that needs no file is one row of BUILT_INS.
 */
import { existsSync, readFileSync } from 'node:fs';
import { basename, extname } from 'node:path';
import type { Readable } from 'node:stream';
import { parseArgs } from 'node:util';
import {
  HeartbeatPort, MicroClient, MicroError, MicroRouter, MicroServer, MicroWorker, stopOnSignals, threaded,
} from './index.ts';
import type { Callback, Dialect, ErrorCode, Service } from './index.ts';
import { loadService } from './load_service.ts';
import { zmtpEvents } from './dialects/zmtp_events.ts';
import { escapeOf, textOf } from './micro_client.ts';
import { parseDuration, parseSize } from './units.ts';
import type { BackupOptions } from '../services/backup.ts';

/** What to type to run this file again. */
const SELF = import.meta.url.endsWith('.ts') ? 'npx tsx lib/cli.ts' : 'npx portcall';
/** Known before all else, so that wrong use is told as JSON too; behind `--` it is a text to send. */
const asJson = process.argv.find((arg) => arg === '--json' || arg === '--') === '--json';

// ------------------------------------------------------------------------------- What can be asked

interface Option {
  /** What its value looks like in the help; a switch has none. */
  value?: string;
  help: string;
  /** Its name in the options of what it is handed to. Default: the one on the command line. */
  as?: string;
  /** Makes its value of the text, or throws one clear sentence. */
  read?: (text: string) => unknown;
  /** A variable of the environment that gives it too: what is on the command line, all users can see. */
  env?: string;
}
type Options = Readonly<Record<string, Option>>;
type Given = Readonly<Record<string, string | boolean | undefined>>;

interface Command {
  /** The arguments, by the names that the help calls them. */
  takes: readonly string[];
  help: string;
  options: Options;
  /** SIGINT and SIGTERM end it with 0 once all is answered; others end at once, with 130. */
  drains?: true;
  run(takes: readonly string[], given: Given): Promise<void>;
}

interface BuiltIn {
  /** Where it is found unless `--key` says otherwise. */
  key: string;
  /** Where it listens in place of its key's line in ports.json, which ECHO has none of. */
  port?: number;
  options: Options;
  create(options: Readonly<Record<string, unknown>>): Promise<Service>;
}

const BUILT_INS: Readonly<Record<string, BuiltIn>> = {
  backup: {
    key: 'BACKUP',
    options: {
      source: { value: 'FILE', help: 'what to back up' },
      every: { value: '1m', as: 'everyMs', read: parseDuration, help: 'how often; 5 is 5 seconds' },
      folder: { value: 'FOLDER', help: 'where its files go' },
      keep: {
        value: '10', help: 'how many; gfs: of 24 hours, 7 days, 4 weeks and 12 months',
        read: (text) => (text === 'gfs' ? text : Number(text)),
      },
      'start-at-once': { as: 'startAtOnce', help: 'the first now, not one interval after a client came' },
    },
    async create(options) {
      const { createBackup } = await import('../services/backup.ts');
      const service = createBackup(options as unknown as BackupOptions);
      await service.ready;
      return service;
    },
  },
  echo: {
    key: 'ECHO',
    port: 0,
    options: {},
    create: async () => (await import('../services/echo.ts')).createEcho(),
  },
  life_gen: {
    key: 'LIFE_GEN',
    options: { file: { value: 'CSV', help: 'its lines, under the header category,line' } },
    create: async (options) => (await import('../services/life_gen.ts')).createLifeGen(options),
  },
  timer: {
    key: 'TIMER',
    options: {
      'max-timers': {
        value: '1000', as: 'maxTimers', read: parseCount, help: 'how many may run at a time',
      },
    },
    create: async (options) => (await import('../services/timer.ts')).createTimer(options),
  },
  calendar: {
    key: 'CALENDAR',
    options: {
      folder: { value: 'FOLDER', help: 'where events are kept; "calendar" unless given' },
      whitelist: { value: 'A,B', read: readList, help: 'the apps whose events are taken' },
      'whitelist-file': { value: 'JSON', as: 'whitelistFile', help: 'an array of them; [] admits none' },
      'allow-quit': { as: 'allowQuit', help: 'let Q from this machine save event_log.json and stop it' },
      fsync: { value: 'WHEN', help: 'always, interval (of 100 ms, unless given) or never' },
    },
    create: async (options) => (await import('../services/calendar.ts')).createCalendar(options),
  },
};

/** What `--dialects` may name, beside lines and frames. */
const DIALECTS: Readonly<Record<string, () => Promise<Dialect>>> = {
  raw: async () => (await import('./dialects/raw.ts')).raw(),
  sized: async () => (await import('./dialects/sized_header.ts')).sizedHeader(),
  zmtp: async () => (await import('./dialects/zmtp.ts')).zmtp(),
};

const FURTHER: Option = {
  value: 'all', help: `further ones on the same port: all, or ${Object.keys(DIALECTS).join(',')}`,
};
const EVERYWHERE: Options = {
  json: { help: 'print JSON, one value a line' },
  help: { help: 'tell what there is to say' },
};
const TOKEN: Options = {
  token: { value: 'SECRET', env: 'PORTCALL_TOKEN', help: 'what a client must know; or PORTCALL_TOKEN' },
};
const MAX_MESSAGE: Options = {
  'max-message': {
    value: '128MiB', as: 'maxMessageBytes', read: parseSize, help: 'the longest message and reply',
  },
};
const SERVER: Options = {
  host: { value: 'HOST', help: 'where to listen, if not on 127.0.0.1 alone' },
  ...MAX_MESSAGE,
  ...TOKEN,
  insecure: { help: 'listen to other machines without a token' },
};
const WORKER: Options = {
  id: { value: 'ID', help: 'what the router knows it by; default: one by chance' },
  ...MAX_MESSAGE,
  ...TOKEN,
};
const THREADS: Options = {
  threads: { value: 'N', read: parseCount, help: 'run its callback in so many threads' },
};
const CLIENT: Options = {
  timeout: {
    value: '5s', as: 'timeoutMs', read: parseDuration, help: 'how long a reply may take',
  },
  ...MAX_MESSAGE,
  ...TOKEN,
};

const COMMANDS: Readonly<Record<string, Command>> = {
  serve: {
    takes: ['SERVICE'],
    help: `starts ${Object.keys(BUILT_INS).join(', ')}, or a file's default export`,
    options: {
      key: { value: 'KEY', help: 'its name in ports.json' },
      port: { value: 'PORT', help: 'where to listen in place of ports.json; 0 is any free port' },
      dialects: FURTHER,
      ...SERVER,
      ...THREADS,
      ...Object.assign({}, ...Object.values(BUILT_INS).map((builtIn) => builtIn.options)),
    },
    drains: true,
    run: serve,
  },
  send: {
    takes: ['SERVICE', 'TEXT'],
    help: 'prints the reply of a key, a port or an address; -: to each line of stdin',
    options: CLIENT,
    run: send,
  },
  up: {
    takes: [],
    help: 'shows the services of this kit at work, then serves',
    options: {
      demo: { help: 'all of them, each with an exchange' },
      once: { help: 'on free ports, and end: with 0 if each reply was right' },
    },
    drains: true,
    run: up,
  },
  router: {
    takes: [],
    help: 'hands what clients ask at its front to workers at its back',
    options: {
      front: { value: 'FRONT', help: 'where clients call: a key, a port or an address' },
      back: { value: 'BACK', help: 'where workers dial in: likewise' },
      strategy: { value: 'NAME', help: 'round_robin (default), least_busy or by_key' },
      heartbeat: { value: 'PORT', help: 'where heartbeats of a ZeroMQ framework are heard' },
      dialects: FURTHER,
      ...SERVER,
    },
    drains: true,
    run: router,
  },
  worker: {
    takes: ['SERVICE'],
    help: 'serves behind a router: as serve, but it dials',
    options: {
      back: { value: 'BACK', help: 'the back of the router: a key, a port or an address' },
      ...WORKER,
      ...THREADS,
      ...Object.assign({}, ...Object.values(BUILT_INS).map((builtIn) => builtIn.options)),
    },
    drains: true,
    run: worker,
  },
};

/** 1: the service answered an error. 2: wrong use or set-up. 3: not reached, or out of time. */
const EXIT_CODES: Readonly<Record<ErrorCode, 1 | 2 | 3>> = {
  CALLBACK_FAILED: 1, SERVER_BUSY: 1, NO_WORKER: 1, PROTOCOL_ERROR: 1, MESSAGE_TOO_LARGE: 1,
  UNAUTHORIZED: 1,
  UNKNOWN_SERVICE: 2, BAD_PORTS_FILE: 2, BAD_ADDRESS: 2, BAD_MESSAGE: 2, PORT_IN_USE: 2,
  CONNECTION_REFUSED: 3, CONNECT_TIMEOUT: 3, TIMEOUT: 3, CONNECTION_LOST: 3, ABORTED: 3, CLOSED: 3,
};

// ----------------------------------------------------------------------------------- The commands

async function serve([what = '']: readonly string[], given: Given): Promise<void> {
  const { service, builtIn } = await serviceOf(what, given);
  const key = String(given.key ?? builtIn?.key ?? basename(what, extname(what)).toUpperCase());
  const standard = given.key === undefined ? builtIn?.port : undefined;
  const port = given.port === undefined ? standard : parsePort(String(given.port));
  const dialects = await dialectsOf(service, given.dialects);
  const server = new MicroServer(service, key, {
    ...optionsOf(SERVER, given), dialects, ...(port !== undefined && { ports: { [key]: port } }),
  });
  const { url } = await server.startListening().catch(async (error: unknown) => {
    await server.stop(); // the service too: it may have opened something
    throw error;
  });
  stopOnSignals(server);
  print(`listening on ${url} (${calm(key)})`, { listening: url, key });
}

async function router(_: readonly string[], given: Given): Promise<void> {
  const { front, back, strategy, heartbeat } = given;
  if (front === undefined || back === undefined) {
    throw new Error('Cannot route without --front and --back: expected the addresses of both');
  }
  const dialects = await namedDialects(given.dialects);
  const server = new MicroRouter({
    ...optionsOf(SERVER, given), front: String(front), back: String(back),
    // Two parts, an event and its JSON, cross to workers as one text: they may speak anything.
    dialects: dialects.map((one) => (one.name === 'zmtp' ? zmtpEvents() : one)),
    ...(strategy !== undefined && { strategy: String(strategy) }),
  });
  const heartbeats = heartbeat === undefined ? undefined : new HeartbeatPort(String(heartbeat));
  const bound = await server.startListening();
  let heard: string | undefined;
  try {
    heard = (await heartbeats?.startListening())?.url;
  } catch (error) {
    await server.stop();
    throw error;
  }
  stopOnSignals({ stop: async () => { await Promise.all([server.stop(), heartbeats?.stop()]); } });
  print(`routing ${bound.front.url} to workers at ${bound.back.url}` +
    `${heard === undefined ? '' : `, heartbeats at ${heard}`}`,
    { listening: bound.front.url, workers: bound.back.url, heartbeat: heard });
}

async function worker([what = '']: readonly string[], given: Given): Promise<void> {
  if (given.back === undefined) {
    throw new Error('Cannot work without --back: expected the back of a router');
  }
  const { service } = await serviceOf(what, given);
  const member = new MicroWorker(service, String(given.back), optionsOf(WORKER, given));
  stopOnSignals(member);
  try {
    const { url } = await member.start();
    print(`working for ${url} (${calm(member.id)})`, { working: url, id: member.id });
  } catch (error) {
    const isStopped = error instanceof MicroError && error.code === 'CLOSED'; // by a signal
    if (!isStopped) throw error;
  }
}

async function send([key = '', text = '']: readonly string[], given: Given): Promise<void> {
  const client = new MicroClient(key, optionsOf(CLIENT, given));
  for await (const message of text === '-' ? linesOf(process.stdin) : [text]) {
    try {
      for await (const reply of client.streamMessage(message)) print(calm(reply), { reply });
    } catch (error) {
      if (exitCodeOf(error) !== 1) throw error;
      complain(error); // the service's own answer: the lines behind this one may do better
      process.exitCode = 1;
    }
  }
}

async function up(_: readonly string[], given: Given): Promise<void> {
  if (given.demo !== true) {
    throw new Error(`Cannot run "up" alone: it shows the kit's services. Try ${SELF} up --demo`);
  }
  const { runDemos, tellStep } = await import('./demo.ts');
  const show = (step: Parameters<typeof tellStep>[0]) => {
    const text = tellStep(step);
    if (asJson || text !== undefined) print(text ?? '', step);
  };
  if (await runDemos({ once: given.once === true, show, self: SELF })) return;
  complain(new Error('Cannot pass the demo: a service gave another reply than expected'));
  process.exitCode = 1;
}

// ------------------------------------------------------------------------------------- Their parts

/** A built-in, or the service in a user's file; in threads where that is asked for. */
async function serviceOf(what: string, given: Given):
  Promise<{ service: Service; builtIn: BuiltIn | undefined }> {
  const builtIn = Object.hasOwn(BUILT_INS, what) ? BUILT_INS[what] : undefined;
  const own = builtIn?.options ?? {};
  const foreign = Object.keys(given)
    .find((name) => !(name in own) && Object.values(BUILT_INS).some(({ options }) => name in options));
  if (foreign !== undefined) {
    throw new Error(`Cannot serve "${what}" with --${foreign}: that is another service's option`);
  }
  const options = optionsOf(own, given);
  if (given.threads !== undefined) {
    const own = `../services/${what}${extname(import.meta.url)}`;
    const file = builtIn === undefined ? what : new URL(own, import.meta.url);
    const { threads } = optionsOf(THREADS, given) as { threads: number };
    return { service: await threaded(file, { threads, options }), builtIn };
  }
  if (builtIn === undefined && !existsSync(what)) {
    throw new Error(`Cannot serve "${what}": there is no such file, nor a service of that name. ` +
      `Known: ${Object.keys(BUILT_INS).join(', ')}`);
  }
  return { service: await (builtIn?.create(options) ?? loadService(what)), builtIn };
}

/** The service's own, set up as it wants them, and what the command line names besides. */
async function dialectsOf(service: Service | Callback, given: Given[string]): Promise<Dialect[]> {
  const own = typeof service === 'function' ? [] : service.dialects ?? [];
  const further = await namedDialects(given);
  return [...own, ...further.filter(({ name }) => own.every((one) => one.name !== name))];
}

function namedDialects(given: Given[string]): Promise<Dialect[]> {
  const names = given === undefined ? []
    : given === 'all' ? Object.keys(DIALECTS) : String(given).split(',');
  return Promise.all([...new Set(names)].map((name) => {
    const load = Object.hasOwn(DIALECTS, name) ? DIALECTS[name] : undefined;
    if (load !== undefined) return load();
    throw new Error(`Cannot use the dialect "${name}": ` +
      `expected all, or a list of ${Object.keys(DIALECTS).join(',')}`);
  }));
}

/** The lines of a stream as they come, without their `\n` or `\r\n`. */
async function* linesOf(input: Readable): AsyncGenerator<string> {
  let held = '';
  for await (const chunk of input.setEncoding('utf8') as AsyncIterable<string>) {
    const pieces = (held + chunk).split('\n');
    held = pieces.pop() ?? '';
    yield* pieces.map((piece) => piece.replace(/\r$/, ''));
  }
  if (held !== '') yield held;
}

/** Those of `given` that stand in `options`, read and under the names that code has for them. */
function optionsOf(options: Options, given: Given): Record<string, unknown> {
  return Object.fromEntries(Object.entries(options)
    .filter(([name]) => given[name] !== undefined)
    .map(([name, { as = name, read = (text: string): unknown => text }]) =>
      [as, typeof given[name] === 'string' ? read(given[name]) : given[name]]));
}

function parseCount(text: string): number {
  if (/^[1-9]\d{0,8}$/.test(text)) return Number(text);
  throw new Error(`Cannot read "${text}" as a count: expected a whole number from 1 up`);
}

function readList(text: string): string[] {
  return text.split(',').map((name) => name.trim());
}

function parsePort(text: string): number {
  const port = /^\d+$/.test(text) ? Number(text) : NaN;
  if (port <= 65_535) return port;
  throw new Error(`Cannot read "${text}" as a port: expected a whole number from 0 to 65535`);
}

// -------------------------------------------------------------------------------------- In and out

async function main([name = '', ...rest]: readonly string[]): Promise<void> {
  if (name === '--help' || name === '-h') return print(overview());
  if (name === '--version') return print(version());
  const command = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (command === undefined) {
    const what = name === '' ? 'without a command' : `"${name}"`;
    throw new Error(`Cannot run ${what}: expected ${Object.keys(COMMANDS).join(', ')}. ` +
      `Try ${SELF} --help`);
  }
  const { given, takes } = parse(name, command, rest);
  if (given.help === true) return print(helpOf(name, command));
  if (takes.length !== command.takes.length) {
    throw new Error(`Cannot run "${name}" with ${takes.length} arguments: ` +
      `expected ${command.takes.join(' ') || 'none'}. Put quotes around a text with blanks`);
  }
  if (command.drains !== true) process.once('SIGINT', () => process.exit(130));
  await command.run(takes, given);
}

function parse(name: string, command: Command, args: readonly string[]):
  { given: Given; takes: readonly string[] } {
  const known = Object.entries({ ...command.options, ...EVERYWHERE });
  const options = Object.fromEntries(known.map(
    ([option, { value }]) => [option, { type: value === undefined ? 'boolean' : 'string' } as const]));
  const around = known.flatMap(([option, { env = '' }]) =>
    (process.env[env] === undefined ? [] : [[option, process.env[env]]]));
  try {
    const { values, positionals } = parseArgs({ args: [...args], options, allowPositionals: true });
    return { given: { ...Object.fromEntries(around), ...values } as Given, takes: positionals };
  } catch (error) {
    const [why = ''] = textOf(error).split(/\. |\n/); // behind it stands advice of Node's
    throw new Error(`Cannot run "${name}": ${why[0]?.toLowerCase()}${why.slice(1)}. ` +
      `Try ${SELF} ${name} --help`, { cause: error });
  }
}

function overview(): string {
  return [
    'Functions as services on named ports.', '',
    ...Object.entries(COMMANDS).map(([name, { takes, help }]) =>
      `  ${[name, ...takes].join(' ').padEnd(20)}  ${help}`),
    '',
    `What a command can be told: ${SELF} COMMAND --help`,
    'Exit codes: 0 done; 1 the service answered an error; 2 wrong use or set-up; 3 not reached, or out',
    'of time; 130 interrupted.',
  ].join('\n');
}

function helpOf(name: string, { takes, help, options }: Command): string {
  return [
    `${SELF} ${[name, ...takes].join(' ')} [options]`, `  ${help}`, '',
    ...Object.entries({ ...options, ...EVERYWHERE }).map(([option, { value = '', help }]) =>
      `  ${`--${option} ${value}`.padEnd(24)}${help}`),
  ].join('\n');
}

/** From the package.json above `lib`, or above `dist/lib`. */
function version(): string {
  const file = ['../package.json', '../../package.json']
    .map((path) => new URL(path, import.meta.url)).find((url) => existsSync(url));
  return file === undefined ? 'unknown'
    : String((JSON.parse(readFileSync(file, 'utf8')) as { version: unknown }).version);
}

function print(text: string, value: unknown = text): void {
  process.stdout.write(`${asJson ? calm(JSON.stringify(value)) : text}\n`);
}

/** On one line, with what could forge another or steer a terminal spelt out as JSON has it; tabs stay. */
function calm(text: string): string {
  return text.replace(/[\0-\x08\n-\x1f\x7f-\x9f\u2028\u2029]/g,
    (letter) => (letter < ' ' ? JSON.stringify(letter).slice(1, -1) : escapeOf(letter)));
}

/** One line on stderr, whatever the error is. */
function complain(error: unknown): void {
  const { code, outcome } = error instanceof MicroError ? error : {};
  const text = textOf(error).trim().replace(/\s*\n\s*/g, ' ');
  const task = code === 'CALLBACK_FAILED' ? 'get a reply' : 'go on';
  const line = text.startsWith('Cannot ') ? text : `Cannot ${task}: ${text}`;
  process.stderr.write(`${calm(asJson ? JSON.stringify({ error: text, code, outcome })
    : code === undefined ? line : `${line} (${code})`)}\n`);
}

/** What never reached the service was refused by this side, whatever the code's usual meaning. */
function exitCodeOf(error: unknown): 1 | 2 | 3 {
  if (!(error instanceof MicroError)) return 2;
  const exitCode = EXIT_CODES[error.code];
  return exitCode === 1 && error.outcome === 'not sent' ? 2 : exitCode;
}

process.stdout.on('error', () => process.exit()); // nobody reads on: `| head`
process.stderr.on('error', () => {}); // nor here, which is no reason to stop serving
main(process.argv.slice(2)).catch((error: unknown) => {
  complain(error);
  // Nothing that a service opened may keep the process alive now.
  process.stderr.write('', () => process.exit(exitCodeOf(error)));
});
