/** How calls end, and when. */
import { MicroError } from '../../lib/micro_client.ts';
import { Stopwatch } from './stopwatch.ts';

export interface Ended {
  reply?: string;
  error?: MicroError;
  /** Milliseconds from the moment that it was asked for. */
  ms: number;
  /** Less those in which this process had no core: for upper limits. */
  ownMs: number;
}

/** Resolves when the call has ended, well or not. Rejects where it fails with what is no `MicroError`. */
export async function ended(call: Promise<string>): Promise<Ended> {
  const watch = new Stopwatch();
  try {
    const reply = await call;
    return { reply, ms: watch.ms, ownMs: watch.ownMs };
  } catch (error) {
    if (!(error instanceof MicroError)) throw error;
    return { error, ms: watch.ms, ownMs: watch.ownMs };
  }
}

export function range(count: number): number[] {
  return Array.from({ length: count }, (_, index) => index);
}

/** How many ended how: `{ reply: 3, 'TIMEOUT, maybe done': 2 }`. */
export function tally(ends: readonly { reply?: string; error?: MicroError; code?: string; outcome?: string }[]) {
  const counts: Record<string, number> = {};
  for (const { reply, error, code = error?.code, outcome = error?.outcome } of ends) {
    const name = reply === undefined ? `${code}, ${outcome}` : 'reply';
    counts[name] = (counts[name] ?? 0) + 1;
  }
  return counts;
}
