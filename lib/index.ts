/** What `import … from 'portcall'` gives. */
export { writeFileAtomically } from './atomic_file.ts';
export { raw } from './dialects/raw.ts';
export { sizedHeader } from './dialects/sized_header.ts';
export { zmtp } from './dialects/zmtp.ts';
export { Journal } from './journal.ts';
export type { JournalOptions, JournalRecord } from './journal.ts';
export { ERRORS, MicroClient, MicroError, readPorts, resolveAddress } from './micro_client.ts';
export type {
  Address, Body, CallOptions, ClientOptions, Dialect, ErrorCode, Log, Outcome, Ports, Value,
} from './micro_client.ts';
export { DEFAULT_LIMITS, MicroServer, stopOnSignals } from './micro_server.ts';
export type {
  Callback, Client, Context, Limits, ServeOptions, ServerOptions, Service, Stats,
} from './micro_server.ts';
