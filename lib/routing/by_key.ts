/**
 * By key: what has the same key goes to the same worker, as long as that is there; for workers that
 * keep something of their clients or of their data. Unless told otherwise the key is the client.
 *
 * By consistent hashing: when one of n workers joins or leaves, one key in n moves and no other. Each
 * key goes to the worker whose hash together with the key is highest ("rendezvous", Thaler and
 * Ravishankar, 1998): no ring to keep, and the share of one that left is spread over all others.
 */
import type { Candidate, Routed, Strategy } from '../pool.ts';

export interface ByKeyOptions {
  key?: (message: Routed) => string; // default: the client's id
}

export function strategy({ key = ({ client }) => client.id }: ByKeyOptions = {}): Strategy {
  const seeds = new WeakMap<Candidate, number>();
  const seedOf = (worker: Candidate): number => {
    const seed = seeds.get(worker) ?? hash(worker.id, 0);
    seeds.set(worker, seed);
    return seed;
  };
  return (workers, message): Candidate | undefined => {
    const wanted = key(message);
    let [best, highest]: [Candidate | undefined, number] = [undefined, -1];
    for (const worker of workers) {
      const weight = hash(wanted, seedOf(worker));
      if (weight > highest) [best, highest] = [worker, weight];
    }
    return best;
  };
}

/** FNV-1a over UTF-16, then the last steps of MurmurHash3, without which near keys stay near. */
function hash(text: string, seed: number): number {
  let mixed = 0x811c9dc5 ^ seed;
  for (let at = 0; at < text.length; at++) mixed = Math.imul(mixed ^ text.charCodeAt(at), 0x01000193);
  mixed = Math.imul(mixed ^ (mixed >>> 16), 0x85ebca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
  return (mixed ^ (mixed >>> 16)) >>> 0;
}
