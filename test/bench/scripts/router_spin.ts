/** A service that keeps a processor busy, some millisecond a reply: as long as the work takes, not a clock. */
import type { Service } from '../../../lib/micro_server.ts';

export function createSpin({ rounds = 1_000_000 }: { rounds?: number }): Service {
  let mixed = 1;
  return {
    callback(message) {
      for (let round = 0; round < rounds; round++) mixed = Math.imul(mixed ^ round, 0x01000193);
      return mixed === 0 ? '' : message;
    },
  };
}
