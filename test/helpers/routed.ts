/** A router, its workers and its clients in this process, all gone after the test. */
import { onTestFinished } from 'vitest';
import { MicroClient, type ClientOptions, type MicroError } from '../../lib/micro_client.ts';
import type { Callback, Service } from '../../lib/micro_server.ts';
import { MicroRouter, type RouterOptions } from '../../lib/router.ts';
import { MicroWorker, type WorkerOptions } from '../../lib/worker.ts';
import { until, within } from './deadline.ts';
import { RawClient } from './raw_client.ts';

export interface Routed {
  router: MicroRouter;
  front: number;
  back: number;
  /** What the router and the workers said, a line each. */
  log: string[];
  /** Starts a worker; resolves when it has joined. */
  join(service: Callback | Service, options?: WorkerOptions): Promise<MicroWorker>;
  dial(options?: ClientOptions): MicroClient;
  /** Resolves when so many workers are there and take requests. */
  joined(count: number): Promise<void>;
}

export async function routed(options: Partial<RouterOptions> = {}): Promise<Routed> {
  const log: string[] = [];
  const note = (level: string, text: string) => void log.push(`${level} ${text}`);
  const router = new MicroRouter({ front: 0, back: 0, log: note, ...options });
  const bound = await router.startListening();
  const [front, back] = [bound.front.port as number, bound.back.port as number];
  onTestFinished(() => within(5_000, router.stop({ graceMs: 0 }), 'the stop of the router'));
  return {
    router, front, back, log,
    async join(service, workerOptions = {}) {
      const worker = new MicroWorker(service, back, { log: note, ...workerOptions });
      onTestFinished(() => within(5_000, worker.stop({ graceMs: 0 }), 'the stop of a worker'));
      await within(5_000, worker.start(), 'that a worker joins');
      return worker;
    },
    dial(clientOptions = {}) {
      const client = new MicroClient(front, { log: () => {}, ...clientOptions });
      onTestFinished(() => client.close());
      return client;
    },
    joined: async (count) => {
      const are = () => router.stats().workers.filter(({ state }) => state === 'joined').length === count;
      await until(are, 5_000, `that ${count} workers are there`);
    },
  };
}

/** What a call failed with; an answer is a failure of the test. */
export async function failure(call: Promise<unknown>): Promise<MicroError> {
  return call.then((value) => {
    throw new Error(`Expected a failure, got ${JSON.stringify(value)}`);
  }, (error: unknown) => error as MicroError);
}

/** A worker that does what the test says, byte by byte; it has joined, and read the router's hello. */
export async function rawWorker(back: number, id: string): Promise<RawClient> {
  const raw = await RawClient.connect(back);
  onTestFinished(() => void raw.socket.destroy());
  await raw.write(`\x01portcall/1 role=worker node=${id}\n`);
  await raw.readLine();
  return raw;
}
