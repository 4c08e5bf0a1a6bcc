/**
 * The chaos checker: holds what callers were told against what was done. A caller notes `invoke` before
 * it sends, and `ok`, `fail` (known not to have run) or `unknown` after.
 */
import { MicroError } from '../../lib/micro_client.ts';

type End = 'ok' | 'fail' | 'unknown';

/** What callers were told, each event under a name that is used once. */
export class History {
  readonly #events = new Map<string, End | 'pending'>();

  invoke(event: string): void {
    if (this.#events.has(event)) throw new Error(`Cannot invoke "${event}" twice`);
    this.#events.set(event, 'pending');
  }

  end(event: string, end: End): void {
    const before = this.#events.get(event);
    if (before === 'pending') this.#events.set(event, end);
    else throw new Error(`Cannot end "${event}" with ${end}: it is ${before ?? 'not invoked'}`);
  }

  /** Invokes, calls, and notes the end. Resolves with it; what is no `MicroError` rejects. */
  async call(event: string, send: () => Promise<unknown>): Promise<End> {
    this.invoke(event);
    let end: End = 'ok';
    try {
      await send();
    } catch (error) {
      if (!(error instanceof MicroError)) throw error;
      end = error.outcome === 'not sent' || error.outcome === 'refused' ? 'fail' : 'unknown';
    }
    this.end(event, end);
    return end;
  }

  with(end: End | 'pending'): Set<string> {
    return new Set([...this.#events].filter(([, found]) => found === end).map(([event]) => event));
  }

  get invoked(): ReadonlySet<string> {
    return new Set(this.#events.keys());
  }
}

/**
 * What is wrong, a sentence each. None if invoked = ok + fail + unknown, ok ⊆ journal ⊆ invoked,
 * fail ∩ journal = ∅, and nothing is there twice.
 */
export function faultsOf(history: History, journal: readonly string[]): string[] {
  const { invoked } = history;
  const failed = history.with('fail');
  const done = new Set<string>();
  const faults = [...history.with('pending')].map((event) => `"${event}" never ended`);
  for (const event of journal) {
    if (done.has(event)) faults.push(`"${event}" was doubled`);
    else if (!invoked.has(event)) faults.push(`"${event}" was invented`);
    else if (failed.has(event)) faults.push(`"${event}" was done, yet its caller was told that it was not`);
    done.add(event);
  }
  for (const event of history.with('ok')) {
    if (!done.has(event)) faults.push(`"${event}" was acknowledged, yet lost`);
  }
  return faults;
}

/** Throws if callers were told what is not so. */
export function check(history: History, journal: readonly string[]): void {
  const faults = faultsOf(history, journal);
  if (faults.length === 0) return;
  const more = faults.length > 10 ? `; … ${faults.length} in all` : '';
  throw new Error(`The checker found that ${faults.slice(0, 10).join('; ')}${more}`);
}
