/** A TCP proxy that treats what it carries badly: cuts it small, slows it down, resets it halfway. */
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { setImmediate as turn, setTimeout as pause } from 'node:timers/promises';

/** From the client to the server, or back. */
export type Way = 'up' | 'down';

interface ProxyOptions {
  /** Size of the next write, in bytes; each is a packet of its own. Left out: as it came. */
  sliceBytes?: () => number;
  /** Each way by itself. */
  bytesPerSecond?: number;
  /** Resets both sides once so many bytes have gone that way; the bytes before are delivered. */
  resetAt?: { way: Way; bytes: number };
  /** How many connections are reset so. Default: every one. */
  resets?: number;
}

export class Proxy {
  /** Connections so far. */
  connections = 0;
  readonly carried = { up: 0, down: 0 };
  readonly #server: Server;
  readonly #options: ProxyOptions;
  readonly #sockets = new Set<Socket>();
  #resetsLeft: number;

  private constructor(server: Server, options: ProxyOptions) {
    this.#server = server;
    this.#options = options;
    this.#resetsLeft = options.resets ?? Infinity;
  }

  /** Listens on a free port of 127.0.0.1 in front of another one. */
  static async start(targetPort: number, options: ProxyOptions = {}): Promise<Proxy> {
    const server = createServer({ allowHalfOpen: true, noDelay: true });
    const proxy = new Proxy(server, options);
    server.on('connection', (client) => proxy.#accept(client, targetPort));
    await once(server.listen(0, '127.0.0.1'), 'listening');
    return proxy;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** Resets every connection there is; new ones are taken as before. */
  reset(): void {
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  async close(): Promise<void> {
    this.reset();
    const closed = once(this.#server, 'close');
    this.#server.close();
    await closed;
  }

  #accept(client: Socket, targetPort: number): void {
    this.connections++;
    const server = connect({ port: targetPort, host: '127.0.0.1', allowHalfOpen: true, noDelay: true });
    const both = [client, server];
    for (const socket of both) {
      this.#sockets.add(socket);
      socket.on('error', () => { for (const each of both) each.resetAndDestroy(); });
      socket.on('close', () => {
        this.#sockets.delete(socket);
        for (const each of both) if (socket.errored !== null || !socket.readableEnded) each.resetAndDestroy();
      });
    }
    const { resetAt } = this.#options;
    const isReset = resetAt !== undefined && this.#resetsLeft-- > 0;
    const resetAll = () => { for (const each of both) each.resetAndDestroy(); };
    if (isReset && resetAt.bytes === 0) return resetAll();
    const limit = (way: Way) => (isReset && resetAt.way === way ? resetAt.bytes : Infinity);
    void this.#carry('up', client, server, limit('up'), resetAll);
    void this.#carry('down', server, client, limit('down'), resetAll);
  }

  /** One way of one connection, from its first byte to the FIN or the reset. */
  async #carry(way: Way, from: Socket, to: Socket, limit: number, resetAll: () => void): Promise<void> {
    const { sliceBytes, bytesPerSecond } = this.#options;
    let left = limit;
    let dueAt = performance.now();
    try {
      for await (const chunk of from.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
        for (let at = 0; at < chunk.length && left > 0;) {
          const share = bytesPerSecond === undefined ? chunk.length : Math.ceil(bytesPerSecond / 100);
          const slice = chunk.subarray(at, at + Math.min(sliceBytes?.() ?? share, share, left));
          at += slice.length;
          left -= slice.length;
          this.carried[way] += slice.length;
          if (!to.write(slice)) await once(to, 'drain');
          if (bytesPerSecond !== undefined) {
            dueAt = Math.max(dueAt, performance.now() - 100) + (slice.length * 1000) / bytesPerSecond;
            const waitMs = dueAt - performance.now();
            if (waitMs > 0) await pause(waitMs);
          } else if (sliceBytes !== undefined) await turn();
        }
        if (left === 0) return resetAll();
      }
      to.end();
    } catch {
      resetAll();
    }
  }
}
