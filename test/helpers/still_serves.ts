/** After bad input a good client must be served. */
import { expect } from 'vitest';
import { MicroClient } from '../../lib/micro_client.ts';
import { RawClient } from './raw_client.ts';

interface StillServesOptions {
  /** What a client sends, and what it must hear. By default only pings, which no callback sees. */
  ask?: string;
  reply?: string;
  token?: string;
}

/** Asks over lines and over frames, on connections of their own. */
export async function stillServes({ port }: { port: number },
  { ask, reply = ask, token }: StillServesOptions = {}): Promise<void> {
  await RawClient.with(port, async (client) => {
    if (token !== undefined) {
      await client.write(`$token ${token}\n`);
      expect(await client.readLine(), 'a good client gives the token').toBe('ok');
    }
    await client.write(`${ask ?? '$ping'}\n`);
    expect(await client.readLine(), 'a good client asks over lines').toBe(ask === undefined ? 'pong' : reply);
  });
  const client = new MicroClient(port, token === undefined ? {} : { token });
  try {
    if (ask === undefined) expect(await client.ping(), 'a good client pings').toBeGreaterThan(0);
    else expect(await client.sendMessage(ask), 'a good client asks over frames').toBe(reply);
  } finally {
    await client.close();
  }
}
