/** The client's process: `node client.js PEER`. */
import { once } from 'node:events';
import net from 'node:net';
import { answer } from './child.ts';
import { Load, numbered, texts, type Connection, type LoadOptions, type Peer } from './load.ts';

const DIALS_AT_ONCE = 50;
const GREETING = 'hello from a raw socket 12345678';

const connections: Connection[] = [];
const held: net.Socket[] = [];
let next: () => string;

const commands = {
  async connect({ port, load }: { port: number; load: LoadOptions }): Promise<void> {
    const { peer } = (await import(`./peers/${process.argv[2]}.js`)) as { peer: Peer };
    for (let i = 0; i < load.connections; i++) connections.push(await peer.connect(port, load));
    next = texts(load.textBytes);
  },

  /** Drives the connections for so long, then waits for what is still in flight. */
  async run({ ms, inFlight }: { ms: number; inFlight: number }) {
    const load = new Load(next);
    const cpuBefore = process.cpuUsage();
    const startedAt = performance.now();
    setTimeout(() => { load.over = true; }, ms);
    await Promise.all(connections.map((connection) => connection.run(inFlight, load)));
    const elapsedMs = performance.now() - startedAt;
    const cpu = process.cpuUsage(cpuBefore);
    return { replies: load.replies, elapsedMs, cpuMicros: cpu.user + cpu.system };
  },

  /** How long one text takes there and back, in milliseconds, for each of so many. */
  async time({ textBytes, times }: { textBytes: number; times: number }): Promise<number[]> {
    const took: number[] = [];
    for (let i = 0; i < times; i++) {
      const text = numbered(i, textBytes);
      const load: Load = new Load(() => {
        load.over = true; // after this one
        return text;
      });
      const startedAt = performance.now();
      await connections[0]?.run(1, load);
      took.push(performance.now() - startedAt);
    }
    return took;
  },

  /** Opens sockets that know nothing of the peer, and keeps them. */
  async hold({ port, sockets, speak }: { port: number; sockets: number; speak: boolean }): Promise<void> {
    for (let i = 0; i < sockets; i += DIALS_AT_ONCE) {
      const count = Math.min(DIALS_AT_ONCE, sockets - i);
      held.push(...await Promise.all(Array.from({ length: count }, () => dial(port, speak))));
    }
  },

  /** The server must neither have spoken first nor have closed one: a refused socket is a cheap one. */
  release(): void {
    const lost = held.filter((socket) => socket.destroyed).length;
    if (lost > 0) throw new Error(`Cannot count idle sockets: ${lost} of ${held.length} were not left alone`);
    for (const socket of held.splice(0)) socket.destroy();
  },
};
export type ClientCommands = typeof commands;

async function dial(port: number, speak: boolean): Promise<net.Socket> {
  const socket = net.connect({ port, host: '127.0.0.1' });
  await once(socket, 'connect');
  if (speak) await greet(socket);
  socket.on('data', () => socket.destroy());
  return socket;
}

async function greet(socket: net.Socket): Promise<void> {
  socket.setEncoding('utf8');
  socket.write(`${GREETING}\n`);
  for (let reply = ''; reply !== `${GREETING}\n`;) {
    const [chunk] = (await once(socket, 'data')) as [string];
    reply += chunk;
    if (!`${GREETING}\n`.startsWith(reply)) {
      throw new Error(`Cannot hold a socket: it was answered "${reply}"`);
    }
  }
}

answer(commands);
