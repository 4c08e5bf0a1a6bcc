import { monitored, type Monitor, type MonitorOptions } from './monitor.ts';
import { ServerProcess, type ServerSetUp } from './server_process.ts';

/** Starts a server, does `task` to it under the standing monitor, and ends it. */
export function watched<T>(setUp: Partial<ServerSetUp>, task: (server: ServerProcess, monitor: Monitor) => Promise<T>,
  options: MonitorOptions = {}): Promise<T> {
  return ServerProcess.with(setUp, (server) => monitored(server, options, (monitor) => task(server, monitor)));
}
