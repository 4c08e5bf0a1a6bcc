/** Round robin: the workers in turn. One that has all it may have at a time is passed over. */
import type { Candidate, Strategy } from '../pool.ts';

export function strategy(): Strategy {
  let turn = 0;
  return (workers): Candidate | undefined => {
    for (let tries = workers.length; tries > 0; tries--) {
      const worker = workers[turn++ % workers.length];
      if (worker?.hasRoom === true) return worker;
    }
    return undefined;
  };
}
