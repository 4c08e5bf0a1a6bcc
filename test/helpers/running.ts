import { until } from './deadline.ts';
import type { ServerProcess } from './server_process.ts';

/** Resolves when so many calls are in the server's callback. */
export async function running(server: ServerProcess, count: number): Promise<void> {
  await until(async () => (await server.vitals()).running === count, 5_000, `that ${count} calls run`);
}
