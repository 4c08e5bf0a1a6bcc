/**
 * Calls once, closes nothing, and must end by itself: an idle client keeps no process alive. Where
 * nobody else can serve it, it serves itself, and stops that.
 */
import { once } from 'node:events';
import { MicroClient } from '../../../lib/micro_client.ts';
import { MicroServer } from '../../../lib/micro_server.ts';
import { startThread } from '../thread.ts';

const [address = '', how = 'elsewhere'] = process.argv.slice(2);
let server: MicroServer | undefined;
if (how === 'here') await (server = new MicroServer((message) => message, address)).startListening();
if (how === 'thread') {
  await import('../../../lib/transports/inproc.ts'); // names are kept here
  const thread = startThread('thread_server.ts', { address, options: {} });
  await once(thread, 'message');
  thread.unref();
}
process.stdout.write(`${await new MicroClient(address).sendMessage('once')}\n`);
await server?.stop();
