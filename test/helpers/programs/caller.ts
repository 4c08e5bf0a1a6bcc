/** MicroClients as a process of their own: see `../caller.ts`, which starts and asks it. */
import { subscribe } from 'node:diagnostics_channel';
import { MicroClient, MicroError } from '../../../lib/micro_client.ts';
import { answer, given, ready } from '../child.ts';
import { pause } from '../deadline.ts';
import { Stopwatch } from '../stopwatch.ts';
import type { Called, CallerSetUp, Order } from '../caller.ts';

const { key, clients = 1, options } = given<CallerSetUp>();
/** Each by a name of its own, and how long it waited before each try. */
const waits = new Map(Array.from({ length: clients }, (_, at) => [`CLIENT_${at}`, [] as number[]]));
const all = [...waits.keys()].map((name) => new MicroClient(name, { ...options, ports: { [name]: key }, log: () => {} }));
subscribe('portcall:retried', (told) => {
  const { key: name, waitMs } = told as { key: string; waitMs: number };
  waits.get(name)?.push(waitMs);
});

async function call(client: MicroClient, { text, options = {} }: Order): Promise<Called> {
  const [began, watch] = [Date.now(), new Stopwatch()];
  const end = (facts: object): Called => ({ ...facts, ms: watch.ms, ownMs: watch.ownMs, began, ended: Date.now() });
  try {
    return end({ reply: await client.sendMessage(text, options) });
  } catch (error) {
    if (!(error instanceof MicroError)) throw error;
    return end({ code: error.code, outcome: error.outcome });
  }
}

answer({
  async call(order: Order) {
    const calls: Promise<Called>[] = [];
    for (let left = order.times ?? 1; left > 0; left--) {
      for (const client of all) calls.push(call(client, order));
      if (left > 1 && order.everyMs !== undefined) await pause(order.everyMs);
    }
    return Promise.all(calls);
  },
  waits: () => [...waits.values()],
  fewestTries: () => Math.min(...[...waits.values()].map(({ length }) => length)),
  close: () => Promise.all(all.map((client) => client.close())),
});
ready({});
