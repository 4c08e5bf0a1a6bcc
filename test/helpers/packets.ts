/** Bytes that reach a server in packets of a test's choice, each read before the next one leaves. */
import { RawClient } from './raw_client.ts';
import type { ServerProcess } from './server_process.ts';

/** So many connections are open at a time, and step from packet to packet together. */
const BATCH = 200;

export interface Packets {
  /** What is written at a time, FIN behind the last. */
  pieces: readonly Buffer[];
  /** For a test's messages. */
  how: string;
}

/** Sends each row over a connection of its own and gives what is answered, up to the server's FIN. */
export async function inPackets<T extends Packets>(server: ServerProcess, rows: readonly T[],
  onAnswer: (answer: Buffer, row: T) => void): Promise<void> {
  for (let from = 0; from < rows.length; from += BATCH) {
    const batch = rows.slice(from, from + BATCH);
    const clients = await Promise.all(batch.map(() => RawClient.connect(server.port)));
    try {
      const steps = Math.max(...batch.map(({ pieces }) => pieces.length));
      for (let step = 0; step < steps; step++) {
        if (step > 0) await server.hasRead();
        await Promise.all(clients.map((client, at) => {
          const { pieces } = batch[at] as T;
          const piece = pieces[step];
          if (step === pieces.length - 1) client.fin(piece);
          else if (piece !== undefined) return client.write(piece);
          return undefined;
        }));
      }
      await Promise.all(clients.map(async (client, at) => {
        const row = batch[at] as T;
        onAnswer(await client.readToFin(5_000, `FIN, ${row.how}`), row);
      }));
    } finally {
      for (const { socket } of clients) socket.destroy();
    }
  }
}

/** In two, at each of `cuts`. */
export function inTwo(bytes: Buffer, cuts: readonly number[]): Packets[] {
  return cuts.map((cut) =>
    ({ pieces: [bytes.subarray(0, cut), bytes.subarray(cut)], how: `cut at ${cut} of ${bytes.length}` }));
}

/** A byte a packet. */
export function inBytes(bytes: Buffer): Packets {
  return { pieces: Array.from(bytes, (_, at) => bytes.subarray(at, at + 1)), how: 'byte by byte' };
}

/** Each place where bytes can be cut in two. */
export function everyCut(bytes: Buffer): number[] {
  return Array.from({ length: Math.max(0, bytes.length - 1) }, (_, at) => at + 1);
}
