/**
 * Calendars in processes of their own that start quickly, to be killed hundreds of times: all that a
 * child loads is made one file of plain JavaScript before, by the esbuild that tsx brings.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { CalendarOptions } from '../../services/calendar.ts';
import { within } from './deadline.ts';
import { esbuild } from './transpile.ts';

export interface CalendarSetUp extends Omit<CalendarOptions, 'clock' | 'log'> {
  folder: string;
  /** Default: any free one. */
  port?: number;
}

const START_MS = 15_000;
const alive = new Set<ChildProcess>();
process.on('exit', () => { for (const child of alive) child.kill('SIGKILL'); });

/** Makes the program; resolves with its path in `folder`. */
export async function buildCalendar(folder: string): Promise<string> {
  const outfile = join(folder, 'calendar.mjs');
  await esbuild().build({ entryPoints: [fileURLToPath(new URL('./programs/calendar.ts', import.meta.url))],
    loader: { '.md': 'empty' }, // it takes a computed import for one of each file there
    outfile, bundle: true, platform: 'node', format: 'esm', target: 'node20', logLevel: 'error' });
  return outfile;
}

export class CalendarProcess {
  readonly process: ChildProcess;
  readonly exited: Promise<number | null>;
  port = 0;
  stderr = '';

  private constructor(program: string, setUp: CalendarSetUp) {
    this.process = spawn(process.execPath, [program, JSON.stringify(setUp)], { stdio: ['ignore', 'pipe', 'pipe'] });
    alive.add(this.process);
    this.exited = once(this.process, 'close').then(([code]) => {
      alive.delete(this.process);
      return code as number | null;
    });
    this.process.stderr?.setEncoding('utf8').on('data', (text: string) => { this.stderr += text; });
  }

  /** Resolves when it listens; rejects with what it said if it doesn't. */
  static async start(program: string, setUp: CalendarSetUp): Promise<CalendarProcess> {
    const calendar = new CalendarProcess(program, setUp);
    const ended = calendar.exited.then((code) => {
      throw new Error(`Cannot start the calendar: it ended with ${code}: ${calendar.stderr}`);
    });
    const first = once(calendar.process.stdout!.setEncoding('utf8'), 'data') as Promise<[string]>;
    try {
      const [line] = await within(START_MS, Promise.race([first, ended]), 'the first line of the calendar');
      calendar.port = (JSON.parse(line) as { port: number }).port;
    } catch (error) {
      await calendar.kill();
      throw error;
    }
    return calendar;
  }

  async kill(): Promise<void> {
    this.process.kill('SIGKILL');
    await this.exited;
  }
}
