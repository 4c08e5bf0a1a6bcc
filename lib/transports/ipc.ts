/**
 * Listening on `ipc:///run/me.sock`, a Unix socket. Loaded when an address asks for it; dialling one
 * needs nothing but `micro_client.ts`.
 */
import { once } from 'node:events';
import * as fs from 'node:fs/promises';
import * as net from 'node:net';
import { dirname, join } from 'node:path';
import type { Transport } from '../micro_client.ts';

export const transport: Transport = {
  async listen({ url, scheme, path = '' }, _options, onDuplex, onError) {
    const server = net.createServer({ allowHalfOpen: true }, (socket) => onDuplex(socket));
    let unlinkOwn: () => Promise<void>;
    try {
      unlinkOwn = await bindFile(server, path);
    } catch (error) {
      server.close();
      throw error;
    }
    server.on('error', onError);
    return {
      address: { url, scheme, path },
      async close() {
        await unlinkOwn(); // while the socket lives: then no other file can have its inode
        server.close();
      },
    };
  },
};

/**
 * Binds in a fresh 0700 folder, so that nobody gets in before its mode is 0600 (a worker thread has
 * no umask), then puts it in place. Resolves with what removes the file if it is still ours.
 */
async function bindFile(server: net.Server, path: string): Promise<() => Promise<void>> {
  const folder = await fs.mkdtemp(join(dirname(path), '.pc-'));
  const file = join(folder, 's');
  try {
    // Too long a name is bound through its folder's number. At close libuv unlinks the name that it
    // bound, so the number stays taken until then, lest it be another folder with an `s` in it.
    const handle = Buffer.byteLength(file) > 103 ? await fs.open(folder) : undefined;
    server.once('close', () => void handle?.close());
    const name = handle ? `/proc/self/fd/${handle.fd}/s` : file;
    await once(server.listen({ path: name, backlog: 1024, exclusive: true }), 'listening');
    await fs.chmod(file, 0o600);
    const own = await look(file);
    await putInPlace(file, path);
    return async () => {
      const now = await look(path);
      if (now?.ino === own?.ino && now?.dev === own?.dev) await fs.unlink(path).catch(() => {});
    };
  } finally {
    await fs.rm(folder, { recursive: true, force: true });
  }
}

const look = (path: string) => fs.lstat(path, { bigint: true }).catch(() => undefined);

/** Only a dead server's socket makes way. `link`, unlike `rename`, never overwrites. */
async function putInPlace(file: string, path: string): Promise<void> {
  for (let tries = 0; tries < 9; tries++) {
    const linked: string = await fs.link(file, path).then(() => '', (error) => error.code);
    if (linked === '') return;
    const there = await look(path);
    if (there === undefined && linked !== 'EEXIST') return fs.rename(file, path); // knows no links
    if (there === undefined) continue;
    if (!there.isSocket()) throw new Error('a file that is no socket is there, left untouched');
    const probe = net.connect(path);
    const answer: string = await once(probe, 'connect').then(() => '', (error) => error.code);
    probe.destroy();
    if (answer !== 'ECONNREFUSED' && answer !== 'ENOENT') break; // it lives, or we may not ask
    // A lock in Linux' abstract space, which no crash litters: of two starts, one clears the way
    const lock = net.createServer().listen({ path: `\0portcall:${there.ino}`, exclusive: true });
    const isFirst = await once(lock, 'listening').catch((error) => error.code !== 'EADDRINUSE');
    if (isFirst && (await look(path))?.ino === there.ino) await fs.unlink(path).catch(() => {});
    lock.close();
  }
  throw Object.assign(new Error('a server is there'), { code: 'EADDRINUSE' });
}
