/** A Journal as a process of its own, to be killed, or refused by the system: see `../journal_process.ts`. */
import { appendFileSync } from 'node:fs';
import { Journal } from '../../../lib/journal.ts';
import { answer, given, ready } from '../child.ts';
import type { Appended, JournalSetUp } from '../journal_process.ts';

const { options, acks, own } = given<JournalSetUp>();
const told: string[] = [];
let stopped = false;
let invoked = 0;

/** What was acknowledged is noted, by a system call of its own, before anything else happens. */
async function append(journal: Journal, text: string): Promise<Appended> {
  const number = journal.count;
  try {
    await journal.append(text);
  } catch (error) {
    return { error: (error as Error).message };
  }
  if (acks !== undefined) appendFileSync(acks, `${number} ${text}\n`);
  return { number };
}

try {
  const journal = await Journal.open({ ...options, log: (_level, text) => { told.push(text); } });
  answer({
    append: async ({ texts, together = false }: { texts: string[]; together?: boolean }) => {
      if (together) return Promise.all(texts.map((text) => append(journal, text)));
      const outcomes: Appended[] = [];
      for (const text of texts) outcomes.push(await append(journal, text));
      return outcomes;
    },
    /** Appends so many at a time until `stop` or the end. */
    load: ({ name, inFlight }: { name: string; inFlight: number }) => {
      stopped = false;
      const one = async (): Promise<void> => {
        while (!stopped) {
          const { error } = await append(journal, `${name}-${invoked++}`);
          if (error !== undefined) await new Promise(setImmediate); // a failure at once must not starve the rest
        }
      };
      for (let at = 0; at < inFlight; at++) void one();
    },
    stop: () => { stopped = true; },
    invoked: () => invoked,
    told: () => told,
    count: () => journal.count,
    read: ({ from, most }: { from: number; most: number }) => journal.read(from, most),
    close: () => journal.close(),
  });
  ready({ count: journal.count, told });
  for (const text of own ?? []) await append(journal, text);
  if (own !== undefined) {
    await journal.close();
    process.disconnect?.();
  }
} catch (error) {
  ready({ error: (error as Error).message });
}
