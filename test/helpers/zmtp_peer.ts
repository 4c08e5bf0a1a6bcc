/** One message to a server, from a DEALER made by hand, and what it answers. */
import { RawClient } from './raw_client.ts';
import { greetingOf, message, messagesOf } from './zmtp_wire.ts';

/** Sends a message of these parts and half-closes; resolves with the parts of the first that comes back. */
export async function exchange(port: number, parts: readonly (string | Uint8Array)[]): Promise<string[]> {
  return RawClient.with(port, async (client) => {
    client.fin(Buffer.concat([greetingOf('DEALER'), message(...parts)]));
    const answer = await client.readToFin();
    const [first = []] = messagesOf(answer.subarray(64)).filter(([name]) => !name?.startsWith('/'));
    return first;
  });
}
