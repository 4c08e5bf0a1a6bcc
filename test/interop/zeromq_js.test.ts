/** ZMTP against the npm package `zeromq`: `npm install --prefix test/interop` brings it. */
import { afterEach, beforeEach, expect, it } from 'vitest';
import { zmtp } from '../../lib/dialects/zmtp.ts';
import { MicroClient } from '../../lib/micro_client.ts';
import { MicroServer } from '../../lib/micro_server.ts';
import { createEcho } from '../../services/echo.ts';
import { within } from '../helpers/deadline.ts';

type Part = string | Uint8Array;
/** What is used of the package, which need not be there when this is checked. */
interface Socket {
  connect(address: string): void;
  bind(address: string): Promise<void>;
  readonly lastEndpoint: string | null;
  send(message: Part | readonly Part[]): Promise<void>;
  receive(): Promise<Buffer[]>;
  close(): void;
}
interface Package { Request: new () => Socket; Dealer: new () => Socket; Reply: new () => Socket; Router: new () => Socket }

const WAIT_MS = 10_000;
const name = 'zeromq'; // computed, so that it may be missing
const [zeromq, missing] = await import(name).then((found) => [found as Package, undefined] as const,
  (error: NodeJS.ErrnoException) => [undefined, `the npm package is not installed: ${error.code}`] as const);
const opened: Socket[] = [];
const servers: MicroServer[] = [];

beforeEach((ctx) => { if (missing !== undefined) ctx.skip(missing); });
afterEach(async () => {
  for (const socket of opened.splice(0)) socket.close();
  await Promise.all(servers.splice(0).map((server) => server.stop({ graceMs: 0 })));
});

function open(kind: keyof Package): Socket {
  const socket = new (zeromq as Package)[kind]();
  opened.push(socket);
  return socket;
}
async function connect(kind: 'Request' | 'Dealer'): Promise<Socket> {
  const server = new MicroServer(createEcho(), 0, { dialects: [zmtp()], maxMessageBytes: 16 * 1024 * 1024 });
  servers.push(server);
  const socket = open(kind);
  socket.connect((await server.startListening()).url);
  return socket;
}
const receive = async (socket: Socket): Promise<string[]> =>
  (await within(WAIT_MS, socket.receive(), 'a message')).map(String);

it('a Request gets what it sends', async () => {
  const request = await connect('Request');
  for (const message of [['hello'], [''], ['naïve ☃'], ['a', '', 'b'], ['x'.repeat(10_000_000)]]) {
    await request.send(message);
    expect(await receive(request)).toEqual(message);
  }
});
it('a Dealer has 1,000 requests under way', async () => {
  const dealer = await connect('Dealer');
  const all = Array.from({ length: 1_000 }, (_, at) => [`id ${at}`, '', `text ${at}`]);
  for (const message of all) await dealer.send(message);
  const replies = [];
  for (const _ of all) replies.push(await receive(dealer));
  expect(new Set(replies.map(String))).toEqual(new Set(all.map(String)));
});
it.each(['Reply', 'Router'] as const)('a MicroClient asks a %s', async (kind) => {
  const socket = open(kind);
  await socket.bind('tcp://127.0.0.1:*');
  void (async () => {
    for (;;) {
      const message = await socket.receive();
      await socket.send([...message.slice(0, -1), `re ${String(message.at(-1))}`]);
    }
  })().catch(() => {}); // until it is closed
  const client = new MicroClient(socket.lastEndpoint as string, { dialect: zmtp() });
  const replies = await Promise.all(Array.from({ length: 100 }, (_, at) => client.sendMessage(`${at}`)));
  expect(replies).toEqual(Array.from({ length: 100 }, (_, at) => `re ${at}`));
  await client.close();
});
