/** How the tests address each transport, serve on it, and take a server away from it. */
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { connect } from 'node:net';
import type { Duplex } from 'node:stream';
import { MicroError, loadTransport, type Address } from '../../lib/micro_client.ts';
import { MicroServer, type ServerOptions } from '../../lib/micro_server.ts';
import { within } from './deadline.ts';
import { freePort } from './free_port.ts';
import { obey } from './obey.ts';
import { ServerProcess } from './server_process.ts';
import { scratch } from './scratch.ts';
import { startThread } from './thread.ts';

const WAIT_MS = 10_000;

/** A server that is told by calls what to do, wherever it runs. */
export interface Served {
  readonly address: Address;
  stop(): Promise<void>;
}

interface Killable extends Served { kill(): Promise<unknown> }

interface Subject {
  name: string;
  /** An address that nobody has. */
  address(): Promise<string>;
  serve(address: string, options?: ServerOptions): Promise<Served>;
  /** Where the server of an idle client is: `elsewhere`, `here` or in a `thread`. */
  idle: string;
  /** Serves where it can be ended, or its connections broken off, without a word. */
  killable(address: string): Promise<Killable>;
}

async function serveHere(address: string, options: ServerOptions = {}): Promise<Served> {
  const server = new MicroServer(obey, address, options);
  return { address: await server.startListening(), stop: () => server.stop() };
}

async function serveInThread(address: string, options: ServerOptions = {}): Promise<Killable> {
  const worker = startThread('thread_server.ts', { address, options });
  const told = async <T>(what: string): Promise<T> => {
    const [{ error, value }] = await within(WAIT_MS, once(worker, 'message'), what) as [{ error?: MicroError; value: T }];
    if (error !== undefined) throw new MicroError(error.code, error.message, error);
    return value;
  };
  try {
    return {
      address: await told<Address>('the address of a thread'),
      async stop() {
        worker.postMessage('stop');
        await told('the stop of a thread');
        await worker.terminate();
      },
      kill: () => worker.terminate(),
    };
  } catch (error) {
    await worker.terminate();
    throw error;
  }
}

async function serveInProcess(address: string): Promise<Killable> {
  const server = await ServerProcess.start({ callback: 'never', address });
  return { address: server.address, stop: () => server.stop(), kill: () => server.kill() };
}

/** Nothing but the thread itself can be killed here: so connections are broken off, and the name given up. */
async function serveFragile(url: string): Promise<Killable> {
  const [server, ends] = [new MicroServer(obey, url), new Set<Duplex>()];
  const { listen } = await loadTransport('inproc');
  const listener = await listen!({ url, scheme: 'inproc' }, {}, (end) => { ends.add(end); server.serve(end); }, () => {});
  return {
    address: listener.address,
    async stop() { await listener.close(); await server.stop(); },
    async kill() { await listener.close(); for (const end of ends) end.destroy(); },
  };
}

let names = 0;
/** What is to be tested, and how: a transport is added by a line here. */
export function subjects(): Subject[] {
  const folder = scratch('transports');
  const inproc = async () => `inproc://tested-${process.pid}-${++names}`;
  return [
    { name: 'tcp', idle: 'elsewhere', address: async () => `tcp://127.0.0.1:${await freePort()}`, serve: serveHere, killable: serveInProcess },
    { name: 'ipc', idle: 'elsewhere', address: async () => `ipc://${folder()}/s`, serve: serveHere, killable: serveInProcess },
    { name: 'inproc', idle: 'here', address: inproc, serve: serveHere, killable: serveFragile },
    { name: 'inproc between threads', idle: 'thread', address: inproc, serve: serveInThread, killable: serveInThread },
  ];
}

/** Transports that nobody told how to test. */
export function untold(): string[] {
  const told = subjects().map(({ name }) => name.split(' ')[0]);
  return readdirSync(new URL('../../lib/transports', import.meta.url)).map((file) => file.replace(/\.\w+$/, ''))
    .filter((name) => !told.includes(name));
}

/** A connection and nothing on it yet. */
export async function dial({ scheme, host, port, path, ...rest }: Address): Promise<Duplex> {
  if (scheme === 'tcp' || scheme === 'ipc') {
    const socket = connect({ ...(scheme === 'ipc' ? { path: path as string } : { host, port: port as number }),
      allowHalfOpen: true });
    await within(WAIT_MS, once(socket, 'connect'), 'a connection');
    return socket;
  }
  const { dial: open } = await loadTransport(scheme);
  return within(WAIT_MS, new Promise<Duplex>((resolve, reject) => {
    const duplex = open?.({ ...rest, scheme }, { options: {}, ready: () => resolve(duplex as Duplex), receive() {} });
    duplex?.once('error', reject);
  }), 'a connection');
}
