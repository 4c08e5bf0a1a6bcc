/**
 * Least busy: whoever has the fewest requests in flight, so that a slow worker gets fewer. Those that
 * have as many as each other take turns.
 */
import type { Candidate, Strategy } from '../pool.ts';

export function strategy(): Strategy {
  let turn = 0;
  return (workers): Candidate | undefined => {
    const { length } = workers;
    turn = (turn + 1) % length;
    let least: Candidate | undefined;
    for (let at = 0; at < length; at++) {
      const worker = workers[(turn + at) % length] as Candidate;
      if (worker.hasRoom && (least === undefined || worker.inFlight < least.inFlight)) least = worker;
    }
    return least;
  };
}
