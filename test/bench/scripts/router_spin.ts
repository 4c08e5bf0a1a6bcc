/** A service that keeps a processor busy for as many rounds as the message says, whatever the clock. */
import type { Service } from '../../../lib/micro_server.ts';

export function createSpin(): Service & { callback(message: string): string } {
  let mixed = 1;
  return {
    callback(message) {
      const rounds = Number.parseInt(message, 10);
      for (let round = 0; round < rounds; round++) mixed = Math.imul(mixed ^ round, 0x01000193);
      return mixed === 0 ? '' : message;
    },
  };
}
