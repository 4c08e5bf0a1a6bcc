/** A journal under test in a process of its own. */
import { existsSync, readFileSync } from 'node:fs';
import type { JournalOptions } from '../../lib/journal.ts';
import { Child, withChild, type ChildOptions } from './child.ts';

export interface JournalSetUp {
  options: Omit<JournalOptions, 'onRecord' | 'log'>;
  /** A file that gets a line for each record that was acknowledged: number, blank, text. */
  acks?: string;
  /** Appended one after the other once it has started; then it closes and ends. */
  own?: readonly string[];
}

export interface Appended { number?: number; error?: string }

export class JournalProcess extends Child {
  readonly setUp: JournalSetUp;
  /** What its start told. */
  told: string[] = [];

  constructor(setUp: JournalSetUp, options: ChildOptions = {}) {
    super('journal.ts', setUp, options);
    this.setUp = setUp;
  }

  /** Rejects with the journal's own words when it can't be opened. */
  static async start(setUp: JournalSetUp, options: ChildOptions = {}): Promise<JournalProcess> {
    const child = new JournalProcess(setUp, options);
    const { told, error } = await child.ready<{ told: string[]; error?: string }>();
    child.told = told;
    if (error === undefined) return child;
    await child.kill();
    throw new Error(error);
  }

  static with<T>(setUp: JournalSetUp, task: (child: JournalProcess) => Promise<T>,
    options: ChildOptions = {}): Promise<T> {
    return withChild(JournalProcess.start(setUp, options), task);
  }

  append(texts: readonly string[], { together = false } = {}): Promise<Appended[]> {
    return this.ask<Appended[]>('append', { texts, together });
  }

  acknowledged(): Map<number, string> {
    return readAcks(this.setUp.acks);
  }
}

/** By number. The last line of a killed process may be torn: it was told to nobody. */
export function readAcks(path: string | undefined): Map<number, string> {
  if (path === undefined || !existsSync(path)) return new Map();
  return new Map(readFileSync(path, 'utf8').split('\n').slice(0, -1).map((line) => {
    const blank = line.indexOf(' ');
    return [Number(line.slice(0, blank)), line.slice(blank + 1)];
  }));
}
