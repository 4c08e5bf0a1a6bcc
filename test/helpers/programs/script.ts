/** A user's script: a call, no `close()`, and nothing behind it. It must end by itself. */
import { MicroClient, type MicroError } from '../../../lib/micro_client.ts';
import { given, ready } from '../child.ts';

const { way, port } = given<{ way: string; port: number }>();
const client = new MicroClient(port);
const slow = JSON.stringify({ waitMs: 200, reply: 'pong' }); // a pending call keeps the process alive
const parts = JSON.stringify({ stream: { parts: 2, everyMs: 100 } });
const failed = (error: MicroError) => error.code;

const WAYS: Record<string, () => Promise<string>> = {
  call: () => client.sendMessage(slow),
  'long deadline': () => client.sendMessage(slow, { timeoutMs: 60_000 }), // its timer is idle from then on
  retry: () => client.sendMessage(slow, { retry: true, timeoutMs: 60_000 }),
  'abort signal': () => client.sendMessage(slow, { signal: AbortSignal.timeout(60_000) }),
  stream: () => client.sendMessage(parts),
  async 'stream left'() {
    for await (const part of client.streamMessage(parts)) return part;
    return 'no part';
  },
  'timed out': () => client.sendMessage(JSON.stringify({ waitMs: 1_000 }), { timeoutMs: 100 }).catch(failed),
  ping: async () => typeof await client.ping(),
  async 'many clients'() {
    const replies = Array.from({ length: 10 }, () => new MicroClient(port).sendMessage(slow));
    return [...new Set(await Promise.all(replies))].join();
  },
  refused: () => client.sendMessage(slow).catch(failed),
  'retried in vain': () => client.sendMessage(slow, { retry: true, timeoutMs: 700 }).catch(failed),
};

ready({ reply: await WAYS[way]?.() });
