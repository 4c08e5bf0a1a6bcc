import type { ServerProcess } from './server_process.ts';

/** How far a server's memory rose while `task` was done, in bytes: the peak, garbage included. */
export async function peakGrowth(server: ServerProcess, task: () => Promise<unknown>): Promise<number> {
  await server.ask('collect');
  server.forgetPeak();
  const before = server.rssBytes();
  await task();
  return server.peakRssBytes() - before;
}
