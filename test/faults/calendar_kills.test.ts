/** The calendar is killed again and again under load: what it acknowledged is there, and nothing twice. */
import { expect } from 'vitest';
import { MicroClient, MicroError } from '../../lib/micro_client.ts';
import { buildCalendar, CalendarProcess, type CalendarSetUp } from '../helpers/calendar_process.ts';
import { check, History } from '../helpers/checker.ts';
import { pause } from '../helpers/deadline.ts';
import { range } from '../helpers/ended.ts';
import { fault, FULL } from '../helpers/faults.ts';
import { FUZZ_SEED, seeded } from '../helpers/random.ts';
import { scratch } from '../helpers/scratch.ts';

const KILLS = Number(process.env['KILLS'] ?? (FULL ? 1_000 : 200));
const LANES = 2; // calendars at a time: one a core
const KILLS_A_FOLDER = 25; // then it is checked, and another begun: else each start reads all that came before
const IN_FLIGHT = 16;
const LATEST_KILL_MS = 30;
const TIMEOUT_MS = 5_000;
const newFolder = scratch('calendar-kills');
const random = seeded();

interface Event { eventName: string; timestamp: string }

/** Sends events until told to stop. Those with an id are sent again until their fate is known. */
class Caller {
  readonly history = new History();
  #client: MicroClient | undefined;
  #isOver = false;
  #last = 0;
  #workers: Promise<void>[] = [];
  #arrival = (): void => {};
  #arrived = new Promise<void>((resolve) => { this.#arrival = resolve; });

  constructor() {
    this.#workers = range(IN_FLIGHT).map(() => this.#work());
  }

  /** Where the calendar is from now on. */
  async turnTo(port: number): Promise<void> {
    await this.#client?.close();
    this.#client = new MicroClient(port, { timeoutMs: TIMEOUT_MS, log: () => {} });
    this.#arrival();
  }

  /** Its calendar is gone. */
  turnAway(): void {
    this.#arrived = new Promise((resolve) => { this.#arrival = resolve; });
  }

  async stop(): Promise<void> {
    this.#isOver = true;
    await Promise.all(this.#workers);
    await this.#client?.close();
  }

  async #work(): Promise<void> {
    while (!this.#isOver) {
      await this.#arrived;
      const number = this.#last++;
      const eventName = `event ${number}`;
      const id = number % 2 === 0 ? { id: eventName } : {};
      const text = JSON.stringify({ action: 'timestamp', clientID: 'TaskTracker', eventName, ...id });
      this.history.invoke(eventName);
      let end = await this.#send(text);
      if (end === 'unknown' && 'id' in id) {
        do { // until it is known: a later try that was not sent tells nothing of the first
          await this.#arrived;
          end = await this.#send(text);
        } while (end !== 'ok');
      }
      this.history.end(eventName, end);
    }
  }

  async #send(text: string): Promise<'ok' | 'fail' | 'unknown'> {
    try {
      const reply = await (this.#client as MicroClient).sendMessage(text);
      if (!/^\{"status":200,"message":"timestamp","timestamp":"[^"]+Z"\}$/.test(reply)) throw new Error(reply);
      return 'ok';
    } catch (error) {
      if (!(error instanceof MicroError)) throw error;
      await new Promise((resolve) => { setImmediate(resolve); }); // a refused dial must not spin
      return error.outcome === 'not sent' || error.outcome === 'refused' ? 'fail' : 'unknown';
    }
  }
}

async function eventsOf(client: MicroClient): Promise<Event[]> {
  const all: Event[] = [];
  for (let [after, more] = [0, true]; more;) {
    const page = JSON.parse(await client.sendMessage(JSON.stringify({ action: 'events', after })));
    all.push(...page.events as Event[]);
    ({ cursor: after, more } = page);
  }
  return all;
}

/** @returns How many events were acknowledged, and how many nobody knows of. */
async function killRounds(program: string, kills: number, fsync: NonNullable<CalendarSetUp['fsync']>) {
  const setUp = { folder: newFolder(), fsync };
  const caller = new Caller();
  let calendar = await CalendarProcess.start(program, setUp);
  try {
    for (let kill = 0; kill < kills; kill++) {
      await caller.turnTo(calendar.port);
      await pause(random() * LATEST_KILL_MS); // the moment is the subject
      caller.turnAway();
      await calendar.kill();
      calendar = await CalendarProcess.start(program, setUp);
    }
    await caller.turnTo(calendar.port);
    await caller.stop();
    const client = new MicroClient(calendar.port);
    const events = await eventsOf(client);
    await client.close();
    check(caller.history, events.map(({ eventName }) => eventName));
    const stamps = events.map(({ timestamp }) => timestamp);
    expect(stamps, 'time stamps in order').toEqual(stamps.toSorted());
    return { ok: caller.history.with('ok').size, unknown: caller.history.with('unknown').size };
  } finally {
    await calendar.kill();
  }
}

fault('E01', `kill -9 ×${KILLS} at random moments under load`, async () => {
  const program = await buildCalendar(newFolder());
  const ways = ['interval', 'always', 'never'] as const;
  let [left, folders, ok, unknown] = [KILLS, 0, 0, 0];
  await Promise.all(range(LANES).map(async () => {
    while (left > 0) {
      const kills = Math.min(left, KILLS_A_FOLDER);
      left -= kills;
      const told = await killRounds(program, kills, ways[folders++ % ways.length] as 'interval');
      ok += told.ok;
      unknown += told.unknown;
    }
  }));
  expect(ok, `acknowledged events, FUZZ_SEED=${FUZZ_SEED}`).toBeGreaterThan(5 * KILLS);
  expect(unknown, 'events lost in flight').toBeGreaterThan(KILLS / 10);
}, { timeoutMs: 60_000 + KILLS * 600 });
