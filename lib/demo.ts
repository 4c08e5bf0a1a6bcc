/** What `up --demo` shows: each service of the kit, asked for real. One row of DEMOS a service. */
import { MicroClient, MicroServer, stopOnSignals } from './index.ts';
import type { Address, Service } from './index.ts';

export interface Demo {
  key: string;
  create(): Promise<Service>;
  exchanges: readonly Exchange[];
}

export interface Exchange {
  message: string;
  /** What a right reply is, in words. */
  expected: string;
  right(reply: string): boolean;
}

export const DEMOS: readonly Demo[] = [
  {
    key: 'LIFE_GEN',
    create: async () => (await import('../services/life_gen.ts')).createLifeGen(),
    exchanges: [
      { message: 'music', expected: 'a line', right: (reply) => !reply.startsWith('Cannot') },
      {
        message: 'space 2',
        expected: 'a JSON array of two different lines',
        right: (reply) => new Set(JSON.parse(reply) as string[]).size === 2,
      },
      {
        message: 'categories',
        expected: 'a JSON array with "music" and "space"',
        right: (reply) => ['music', 'space'].every((name) => JSON.parse(reply).includes(name)),
      },
      {
        message: 'weather',
        expected: 'what there is instead',
        right: (reply) => reply.startsWith('Cannot find category "weather". Known: '),
      },
    ],
  },
];

export type Step =
  | { key: string; listening: string }
  | { key: string; message: string; reply: string; right: boolean; expected: string }
  | { key: string; tryIt: readonly string[] };

export interface DemoOptions {
  demos?: readonly Demo[];
  /** On free ports, and stopped at the end. Else on those of ports.json, until SIGINT or SIGTERM. */
  once: boolean;
  /** Told of each thing as it happens. */
  show(step: Step): void;
  /** The shell's words for the command line of this kit. */
  self: string;
}

/**
 * Starts each service and asks it what its row says, over a real connection.
 *
 * @returns Whether each reply was right.
 * @throws {MicroError} A service can't listen (`PORT_IN_USE`) or doesn't answer; then none is left
 *   running.
 */
export async function runDemos({ demos = DEMOS, once, show, self }: DemoOptions): Promise<boolean> {
  const ended = new AbortController();
  if (!once) for (const name of ['SIGINT', 'SIGTERM']) process.once(name, () => ended.abort());
  const servers: MicroServer[] = [];
  const stopAll = () => Promise.all(servers.map((server) => server.stop()));
  const tries: Step[] = [];
  let allRight = true;
  try {
    for (const { key, create, exchanges } of demos) {
      const server = new MicroServer(await create(), key, once ? { ports: { [key]: 0 } } : {});
      servers.push(server);
      const address = await server.startListening();
      if (!once) stopOnSignals(server);
      show({ key, listening: address.url });
      const client = new MicroClient(address.url);
      for (const { message, expected, right: check } of exchanges) {
        const reply = await client.sendMessage(message);
        const right = holds(check, reply);
        allRight &&= right;
        show({ key, message, reply, right, expected });
      }
      await client.close();
      tries.push({ key, tryIt: waysToTry(key, address, exchanges[0]?.message ?? 'hello', self) });
    }
  } catch (error) {
    if (ended.signal.aborted) return allRight; // stopped half-way, as asked: that is no failure
    await stopAll();
    throw error;
  }
  if (once) await stopAll();
  else if (!ended.signal.aborted) tries.forEach(show);
  return allRight;
}

/** A step in words. */
export function tellStep(step: Step): string {
  if ('listening' in step) return `${step.key} listens on ${step.listening}`;
  if ('tryIt' in step) {
    return ['', `${step.key} serves until Ctrl+C. Ask it from another terminal:`, '',
      ...step.tryIt.map((line) => `  ${line}`)].join('\n');
  }
  const { message, reply, right, expected } = step;
  return `client → ${message}\nserver → ${reply}${right ? '' : `\nwrong, expected ${expected}`}`;
}

function holds(check: (reply: string) => boolean, reply: string): boolean {
  try {
    return check(reply);
  } catch {
    return false; // such as JSON.parse of what is no JSON
  }
}

/** Commands for a shell, each on one line, so that pasting them can't break their blanks. */
function waysToTry(key: string, { host, port }: Address, message: string, self: string): string[] {
  const text = /^[\w.-]+$/.test(message) ? message : `'${message.replaceAll("'", "'\\''")}'`;
  const send = `${self} send ${key} ${text}`;
  if (port === undefined) return [send];
  const python = `import socket; s = socket.create_connection(("${host}", ${port})); ` +
    `s.sendall(${JSON.stringify(`${message}\n`)}.encode()); ` +
    'print(s.makefile(encoding="utf-8").readline(), end="")';
  return [
    `echo ${text} | nc -N ${host} ${port}   # ncat, and nc of macOS: without -N`,
    `python3 -c '${python.replaceAll("'", "'\\''")}'`,
    send,
  ];
}
