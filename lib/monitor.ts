/**
 * What happens on the connections of this process, as events: of its clients, servers and routers.
 * Each is a channel of `node:diagnostics_channel`, `portcall:listening` and so on; where nobody
 * listens, that costs a look-up a connection, and nothing a message.
 */
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { EventEmitter } from 'node:events';
import { MicroError, positive, type ErrorCode } from './micro_client.ts';
import type { Client } from './micro_server.ts';

/** Every event, with who tells it (by `publish` of micro_client.ts). */
export const MONITOR_EVENTS = {
  listening: 'a server: it is bound, `key` and `url` tell where',
  connected: 'a client: `key`, `url`',
  disconnected: 'a client, with `url`, or a server, with `client`: a connection has ended',
  retried: 'a client: a call failed with `code`, and is sent again in `waitMs`',
  accepted: 'a server: `client` may ask, and does so for the first time',
  rejected: 'a server: `client` was refused with `code`',
  worker_joined: 'a router: `worker` takes requests from now on',
  worker_lost: 'a router: `worker` is gone, or silent for too long',
} as const;
export type MonitorEventName = keyof typeof MONITOR_EVENTS;

export interface MonitorEvent {
  readonly event: MonitorEventName;
  readonly at: number; // in milliseconds since 1970
  readonly key?: string | number; readonly url?: string; readonly client?: Client;
  readonly code?: ErrorCode; readonly waitMs?: number;
  readonly worker?: string;
}
type Facts = Omit<MonitorEvent, 'event' | 'at'> & { last?: unknown };

/**
 * Hears all that happens until it is closed. Each event is emitted under its own name; as an async
 * iterator it yields those that come while it is iterated, and ends when it is closed.
 *
 * @example
 * const monitor = new Monitor();
 * monitor.on('worker_lost', ({ worker }) => page(`lost ${worker}`));
 * for await (const { event, url } of monitor) note(event, url);
 */
export class Monitor extends EventEmitter<Record<MonitorEventName | 'any', [MonitorEvent]>> {
  readonly #maxWaiting: number;
  readonly #heard: [name: string, onMessage: (facts: unknown) => void][] = [];
  readonly #closed = new AbortController();
  /** Events that a slow loop has missed. */
  missed = 0;

  /** @param options.maxWaiting Events that wait for a loop; past it the oldest are missed. Default 1,000. */
  constructor(options: { maxWaiting?: number } = {}) {
    super();
    this.#maxWaiting = positive(options, 'maxWaiting', 1_000);
    for (const event of Object.keys(MONITOR_EVENTS) as MonitorEventName[]) {
      const name = `portcall:${event}`;
      const onMessage = (facts: unknown) => this.#tell(event, facts as Facts);
      subscribe(name, onMessage);
      this.#heard.push([name, onMessage]);
    }
  }

  /** Hears nothing any more, and ends its loops. */
  close(): void {
    for (const [name, onMessage] of this.#heard.splice(0)) unsubscribe(name, onMessage);
    this.#closed.abort();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<MonitorEvent, void, undefined> {
    const waiting: MonitorEvent[] = [];
    let wake = () => {};
    const onEvent = (event: MonitorEvent): void => {
      if (waiting.length >= this.#maxWaiting) {
        waiting.shift();
        this.missed++;
      }
      waiting.push(event);
      wake();
    };
    const { signal } = this.#closed;
    const onClose = () => wake();
    this.on('any', onEvent);
    signal.addEventListener('abort', onClose);
    try {
      for (;;) {
        for (let next; (next = waiting.shift()) !== undefined;) yield next;
        if (signal.aborted) return;
        await new Promise<void>((resolve) => { wake = resolve; });
      }
    } finally {
      this.off('any', onEvent);
      signal.removeEventListener('abort', onClose);
    }
  }

  #tell(event: MonitorEventName, { last, ...facts }: Facts): void {
    const refusal = event === 'rejected' && {
      code: last instanceof MicroError ? last.code : 'PROTOCOL_ERROR' as const, // an HTTP request
    };
    const told: MonitorEvent = { event, at: Date.now(), ...facts, ...refusal };
    this.emit(event, told);
    this.emit('any', told);
  }
}
