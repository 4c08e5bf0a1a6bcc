/** What `import … from 'portcall'` gives. */
export { writeFileAtomically } from './atomic_file.ts';
export { raw } from './dialects/raw.ts';
export { sizedHeader } from './dialects/sized_header.ts';
export { zmtp } from './dialects/zmtp.ts';
export { Journal } from './journal.ts';
export type { JournalOptions, JournalRecord } from './journal.ts';
export { Deferred } from './later.ts';
export { ERRORS, MicroClient, MicroError, readPorts, resolveAddress } from './micro_client.ts';
export type {
  Address, Body, CallOptions, ClientOptions, Dialect, ErrorCode, Log, Outcome, Ports, Value,
} from './micro_client.ts';
export { DEFAULT_LIMITS, MicroServer, stopOnSignals } from './micro_server.ts';
export type {
  Callback, Client, Context, Limits, ServeOptions, ServerOptions, Service, Stats,
} from './micro_server.ts';
export { MicroRouter } from './router.ts';
export type { RouterOptions, RouterStats } from './router.ts';
export type { Candidate, Routed, Strategy } from './pool.ts';
export { MicroWorker } from './worker.ts';
export type { WorkerOptions } from './worker.ts';
export { threaded } from './threads.ts';
export type { ThreadOptions } from './threads.ts';
export { strategy as roundRobin } from './routing/round_robin.ts';
export { strategy as leastBusy } from './routing/least_busy.ts';
export { strategy as byKey } from './routing/by_key.ts';
export { EventClient, Events } from './events.ts';
export type { EventHandler, EventTypes } from './events.ts';
export { HeartbeatPort } from './heartbeat_port.ts';
export type { HeartbeatPortOptions, Node } from './heartbeat_port.ts';
export { LogFiles, toLog } from './log_files.ts';
export type { Logger, LogFilesOptions } from './log_files.ts';
export { MONITOR_EVENTS, Monitor } from './monitor.ts';
export type { MonitorEvent, MonitorEventName } from './monitor.ts';
export { helloOf, loadNodeIdentity } from './node_identity.ts';
export type { NodeIdentity } from './node_identity.ts';
