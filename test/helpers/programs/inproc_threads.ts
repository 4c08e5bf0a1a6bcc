/** A server in a thread, before anything of the main thread uses inproc; asked from here and from another thread. */
import { once } from 'node:events';
import { MicroClient, MicroError } from '../../../lib/micro_client.ts';
import { answer, ready } from '../child.ts';
import { startThread } from '../thread.ts';

const server = startThread('thread_server.ts', { address: 'inproc://one', options: {} });
await once(server, 'message');
answer({
  async ask(address: string) {
    const call = new MicroClient(address).sendMessage('hello');
    return call.catch(({ code, outcome }: MicroError) => `${code}, ${outcome}`);
  },
  async askFromThread(address: string) {
    const [said] = await once(startThread('thread_client.ts', { address }), 'message') as [string];
    return said;
  },
  end: () => server.terminate(),
});
ready({});
