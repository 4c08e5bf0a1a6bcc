/**
 * The standing monitor. While a fault is tried on a server, a control client on its own connection is
 * answered right and in time, memory, descriptors and timers come back, and nothing is left uncaught.
 */
import { Child } from './child.ts';
import { until } from './deadline.ts';
import type { ServerProcess, Vitals } from './server_process.ts';

export const MIB = 1024 * 1024;

export interface MonitorOptions {
  /** How much larger the process may be after garbage was collected. Default 32 MiB. */
  rssGrowthBytes?: number;
  /** By when each answer must be there. Default 250. */
  answerMs?: number;
  /** Default 20. */
  hz?: number;
  /**
   * What the control client says, `#` standing for a number, and what it must hear. By default `$ping`;
   * of a server that echoes and records nothing, a text of its own each time.
   */
  ask?: string;
  reply?: string;
  /** Said first, and answered `ok`: `$token SECRET`. */
  greeting?: string;
  /** The task may end the server's process; then nothing is compared at the end. */
  mayEnd?: boolean;
  /** Descriptors and timers need not come back: the task leaves some open by intent. */
  mayStayOpen?: boolean;
}

export interface Watch {
  port: number | string;
  pid: number;
  ask: string;
  reply: string;
  greeting: string | undefined;
  answerMs: number;
  hz: number;
}

export interface ControlReport { asked: number; slowestMs: number; breaches: string[]; breachCount: number }

/** What a task may tell the monitor around it. */
export interface Monitor {
  /** The server is meant to be down, frozen or cut off while `span` lasts. */
  suspended<T>(span: () => Promise<T>): Promise<T>;
}

const BACK_MS = 2_000;
/** The server has one timer for all deadlines, which stays armed till the last one seen: 30 s at most. */
const SHARED_TIMERS = 1;
let control: Promise<Child> | undefined;

/** Does `task` under the monitor; fails if the task does, or if the monitor saw anything. */
export async function monitored<T>(server: ServerProcess, options: MonitorOptions,
  task: (monitor: Monitor) => Promise<T>): Promise<T> {
  const { rssGrowthBytes = 32 * MIB, answerMs = 250, hz = 20, greeting } = options;
  const { mayEnd = false, mayStayOpen = false } = options;
  const echoes = server.setUp.callback === 'echo' && server.setUp.record === undefined;
  const { ask = echoes ? 'monitor #' : '$ping', reply = echoes ? 'monitor #' : 'pong' } = options;
  const client = await (control ??= startControl());
  const port = server.address.path ?? server.port;
  const watch: Watch = { port, pid: server.pid, ask, reply, greeting, answerMs, hz };
  const id = await client.ask<number>('watch', watch);
  const breaches: string[] = [];
  let failure: { error: unknown } | undefined;
  let result: T | undefined;
  const before = await server.vitals({ collected: true });
  const filesBefore = server.openFiles();
  try {
    result = await task({
      async suspended(span) {
        await client.ask('suspend', id);
        const value = await span();
        await client.ask('resume', id);
        return value;
      },
    });
  } catch (error) {
    failure = { error };
  }
  if (server.isAlive) {
    if (!mayStayOpen) breaches.push(...await unreturned(server, before, filesBefore));
    breaches.push(...await grown(server, before, rssGrowthBytes));
    const { troubles } = await server.vitals();
    breaches.push(...troubles.slice(before.troubles.length));
  } else if (!mayEnd) {
    const { code, signal } = await server.exited;
    breaches.push(`the server ended with ${signal ?? code}: ${server.stderr.slice(-2_000)}`);
  }
  const report = await client.ask<ControlReport>('finish', id);
  if (server.isAlive || !mayEnd) breaches.push(...report.breaches);
  if (report.breachCount > report.breaches.length) {
    breaches.push(`the control client: ${report.breachCount} such things in all`);
  }
  if (failure !== undefined) throw withBreaches(failure.error, breaches);
  if (breaches.length > 0) throw new Error(`Under the standing monitor, ${breaches.join('; ')}`);
  return result as T;
}

async function startControl(): Promise<Child> {
  const client = new Child('control_client.ts', {});
  await client.ready();
  client.unref();
  return client;
}

async function unreturned(server: ServerProcess, before: Vitals, filesBefore: number): Promise<string[]> {
  let now = '';
  const isBack = async (): Promise<boolean> => {
    const files = server.openFiles();
    const { timers, resources } = await server.vitals();
    now = `${files} descriptors open (${filesBefore} before), ` +
      `${timers} timers armed (${before.timers} before), resources ${JSON.stringify(resources)}`;
    return files <= filesBefore && timers <= before.timers + SHARED_TIMERS;
  };
  return until(isBack, BACK_MS, 'its return').then(() => [], () => [`${BACK_MS} ms later it still had ${now}`]);
}

async function grown(server: ServerProcess, before: Vitals, mostBytes: number): Promise<string[]> {
  let bytes = 0;
  const isSmall = async (): Promise<boolean> => {
    bytes = (await server.vitals({ collected: true })).rssBytes - before.rssBytes;
    return bytes < mostBytes;
  };
  const mib = (count: number) => `${(count / MIB).toFixed(1)} MiB`;
  return until(isSmall, BACK_MS, 'its size')
    .then(() => [], () => [`the server has grown by ${mib(bytes)}, ${mib(mostBytes)} being the most`]);
}

function withBreaches(error: unknown, breaches: readonly string[]): unknown {
  if (breaches.length > 0 && error instanceof Error) {
    error.message += `\nMeanwhile, under the standing monitor, ${breaches.join('; ')}`;
  }
  return error;
}
