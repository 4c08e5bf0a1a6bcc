/** A port for a server that is started again on it. */
import { once } from 'node:events';
import { createServer } from 'node:net';

/**
 * Nobody listens there, and no outgoing connection is given it by chance while the server is down:
 * it lies below the range of those.
 */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = 20_000 + Math.floor(Math.random() * 12_000);
    const server = createServer();
    const isFree = await new Promise<boolean>((resolve) => {
      server.once('listening', () => resolve(true)).once('error', () => resolve(false));
      server.listen(port, '127.0.0.1');
    });
    if (!isFree) continue;
    server.close();
    await once(server, 'close');
    return port;
  }
}
