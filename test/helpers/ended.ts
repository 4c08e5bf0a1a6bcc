/** How calls end, and when. */
import { MicroError } from '../../lib/micro_client.ts';

export interface Ended {
  reply?: string;
  error?: MicroError;
  /** Milliseconds from the moment that it was asked for. */
  ms: number;
}

/** Resolves when the call has ended, well or not. Rejects where it fails with what is no `MicroError`. */
export async function ended(call: Promise<string>): Promise<Ended> {
  const began = performance.now();
  try {
    const reply = await call;
    return { reply, ms: performance.now() - began };
  } catch (error) {
    if (!(error instanceof MicroError)) throw error;
    return { error, ms: performance.now() - began };
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
