/** How long a server waits for its token: `partialTimeoutMs` from the start, whatever else comes. */
import { onTestFinished, expect, it } from 'vitest';
import { zmtp } from '../lib/dialects/zmtp.ts';
import { MicroServer } from '../lib/micro_server.ts';
import { pause, within } from './helpers/deadline.ts';
import { RawClient } from './helpers/raw_client.ts';

const WAIT_MS = 400, LATE_MS = 250;

async function serve(): Promise<{ server: MicroServer; port: number }> {
  const server = new MicroServer((text) => text, 0,
    { token: 'secret', partialTimeoutMs: WAIT_MS, dialects: [zmtp()], log() {} });
  const { port = 0 } = await server.startListening();
  onTestFinished(() => within(2_000, server.stop({ graceMs: 0 }), 'the stop'));
  return { server, port };
}

/** Greeting and READY of a DEALER, up to its first message. */
const ZMTP_OPENING = Buffer.concat([
  Buffer.from(`ff00000000000000017f03004e554c4c${'00'.repeat(48)}`, 'hex'),
  Buffer.from('\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER', 'latin1'),
]);

/** Who keeps the connection busy without ever saying the token: first this, then those in turn, over and over. */
const IDLERS: Readonly<Record<string, readonly [first: string | Buffer, ...then: string[]]>> = {
  'says nothing': ['', ''],
  'sends empty lines': ['', '\r', '\n'],
  'sends a line letter by letter': ['$token ', 'x'],
  'sends a hello letter by letter': ['\x01portcall/1 token=', 'x'],
  'sends ZMTP\'s PINGs in two packets': [ZMTP_OPENING, '\x04\x07\x04P', 'ING\0\0'],
};

it('ends the connection of who keeps it busy without a token', async () => {
  const { server, port } = await serve();
  await Promise.all(Object.entries(IDLERS).map(([who, [first, ...then]]) => RawClient.with(port, async (client) => {
    const began = performance.now();
    await client.write(first);
    const isOver = client.readToFin(3 * WAIT_MS, `FIN to who ${who}`).then(String);
    let turn = 0;
    const next = (): string => then[turn++ % then.length] as string;
    const drip = setInterval(() => { client.write(next()).catch(() => {}); }, WAIT_MS / 10);
    const said = await isOver.finally(() => clearInterval(drip));
    expect(said, who).toMatch(/ERR TIMEOUT |goodbye TIMEOUT r: /);
    expect(said, who).toMatch(/Cannot wait longer than \d+ ms for a token\n?$/);
    expect(performance.now() - began, who).toBeGreaterThan(WAIT_MS - 10);
    expect(performance.now() - began, who).toBeLessThan(WAIT_MS + LATE_MS);
  })));
  expect(server.stats().limits).toEqual({ partialTimeoutMs: Object.keys(IDLERS).length });
});

it('keeps who says it in time, and begins to wait anew for the rest behind it', async () => {
  const { server, port } = await serve();
  await Promise.all(([
    ['$token secret\n', 'late\n', /^ok\nlate\nlater\n$/, 'later\n'],
    ['\x01portcall/1 token=secret\n', '0 late\n', /^\x01portcall\/1[^\n]*\n0 late\n1 later\n$/, '1 later\n'],
  ] as const).map(([token, message, said, next]) => RawClient.with(port, async (client) => {
    await pause(WAIT_MS * 0.75);
    await client.write(token + message.slice(0, 3));
    await pause(WAIT_MS * 0.75);
    await client.write(message.slice(3));
    await pause(WAIT_MS * 1.5); // who is let in may be silent
    expect(await client.ask(next)).toMatch(said);
  })));
  expect(server.stats().limits).toEqual({});
});
