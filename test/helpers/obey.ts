/** A callback that does what it is told, in whatever thread it is. */
import type { Context } from '../../lib/micro_server.ts';

let produced = 0;
/** Parts of streams that were asked of this thread's callback, all told. */
async function* stream(count: number, bytes: number): AsyncGenerator<string> {
  for (let at = 0; at < count; at++) {
    produced++;
    yield `${at} `.padEnd(bytes, 'x');
  }
}

/** `wait MS`, `never`, `stream COUNT BYTES`, `produced`; anything else is echoed. */
export function obey(message: string, { signal }: Context): string | Promise<string> | AsyncIterable<string> {
  const [word, first, second] = message.split(' ', 3);
  if (word === 'stream') return stream(Number(first), Number(second));
  if (word === 'produced') return String(produced);
  if (word === 'never') return new Promise((_, reject) => { signal.addEventListener('abort', reject); });
  if (word !== 'wait') return message;
  return new Promise((resolve) => { setTimeout(resolve, Number(first), message); });
}
