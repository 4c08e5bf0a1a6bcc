/**
 * The standing monitor's control client, in a process of its own so that a busy test is not taken for
 * a slow server. Asks at a steady rate over one connection of lines; notes what is wrong or late.
 */
import { readFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { answer, ready } from '../child.ts';
import type { ControlReport, Watch } from '../monitor.ts';

const MOST_BREACHES = 5;
const CLOSE_MS = 2_000;
const NEVER_MS = 5_000; // an answer that is not there by then will not come

class Control {
  readonly #watch: Watch;
  #socket: Socket | undefined;
  #timer: NodeJS.Timeout | undefined;
  #pending: { reply: string; at: number; waits: number }[] = [];
  #held = '';
  #suspended = false;
  #report: ControlReport = { asked: 0, slowestMs: 0, breaches: [], breachCount: 0 };
  #answered = (): void => {};

  constructor(watch: Watch) {
    this.#watch = watch;
  }

  /** Connects; resolves when the first answer is there. */
  async start(): Promise<void> {
    this.#suspended = false;
    this.#pending = [];
    this.#held = '';
    const { port, greeting, hz } = this.#watch;
    const where = typeof port === 'string' ? { path: port } : { host: '127.0.0.1', port };
    const socket = connect({ ...where, noDelay: true });
    this.#socket = socket;
    socket.setEncoding('utf8').on('data', (text: string) => this.#read(text));
    socket.on('error', (error) => this.#breach(`its connection failed: ${error.message}`));
    socket.on('close', () => { if (this.#socket === socket) this.#breach('its connection was closed'); });
    if (greeting !== undefined) {
      socket.write(`${greeting}\n`);
      this.#pending.push({ reply: 'ok', at: performance.now(), waits: this.#waits() });
    }
    this.#ask();
    this.#timer = setInterval(() => this.#ask(), 1000 / hz);
    await this.#settled();
  }

  async suspend(): Promise<void> {
    if (this.#suspended) return;
    clearInterval(this.#timer);
    await this.#settled();
    this.#suspended = true;
    const socket = this.#socket;
    this.#socket = undefined;
    if (socket === undefined || socket.closed) return;
    const giveUp = setTimeout(() => socket.destroy(), CLOSE_MS); // who doesn't close is told of elsewhere
    await new Promise((resolve) => socket.once('close', resolve).end());
    clearTimeout(giveUp);
  }

  async finish(): Promise<ControlReport> {
    await this.suspend();
    return this.#report;
  }

  /** Resolves when nothing is awaited any more: answered, or far too late. */
  async #settled(): Promise<void> {
    const end = performance.now() + NEVER_MS;
    while (this.#pending.length > 0 && performance.now() < end && this.#socket?.closed === false) {
      await new Promise<void>((resolve) => {
        this.#answered = resolve;
        setTimeout(resolve, end - performance.now()).unref();
      });
    }
    if (this.#pending.length > 0) this.#breach(`${this.#pending.length} questions had no answer`);
    this.#pending = [];
  }

  #ask(): void {
    if (this.#socket === undefined || !this.#socket.writable) return;
    const number = String(++this.#report.asked);
    const { ask, reply } = this.#watch;
    this.#pending.push({ reply: reply.replaceAll('#', number), at: performance.now(), waits: this.#waits() });
    this.#socket.write(`${ask.replaceAll('#', number)}\n`);
  }

  #read(text: string): void {
    const lines = (this.#held + text).split('\n');
    this.#held = lines.pop() ?? '';
    for (const line of lines) {
      const question = this.#pending.shift();
      const told = `it was told ${JSON.stringify(line.slice(0, 100))}`;
      if (question === undefined) this.#breach(`${told}, having asked nothing`);
      else if (question.reply !== line) this.#breach(`${told}, expected ${JSON.stringify(question.reply)}`);
      else this.#judge(question);
    }
    if (this.#pending.length === 0) this.#answered();
  }

  #judge({ at, waits }: { at: number; waits: number }): void {
    let ms = performance.now() - at;
    if (ms <= this.#report.slowestMs) return;
    if (ms >= this.#watch.answerMs) ms -= this.#waits() - waits;
    this.#report.slowestMs = Math.max(this.#report.slowestMs, ms);
    if (ms >= this.#watch.answerMs) this.#breach(`an answer came after ${Math.round(ms)} ms`);
  }

  /** Milliseconds that either process was ready to run but had no core: the machine's fault, not the server's. */
  #waits(): number {
    let nanoseconds = 0;
    for (const pid of [this.#watch.pid, process.pid]) {
      try {
        nanoseconds += Number(readFileSync(`/proc/${pid}/schedstat`, 'latin1').split(' ')[1]);
      } catch {} // no Linux: nothing is excused
    }
    return nanoseconds / 1e6;
  }

  #breach(text: string): void {
    if (this.#suspended) return;
    this.#report.breachCount++;
    if (this.#report.breaches.length < MOST_BREACHES) this.#report.breaches.push(`the control client: ${text}`);
    this.#answered();
  }
}

const controls = new Map<number, Control>();
let lastId = 0;
const control = (id: number): Control => controls.get(id) as Control;

answer({
  async watch(watch: Watch) {
    controls.set(++lastId, new Control(watch));
    const id = lastId;
    await control(id).start();
    return id;
  },
  suspend: (id: number) => control(id).suspend(),
  resume: (id: number) => control(id).start(),
  async finish(id: number) {
    const report = await control(id).finish();
    controls.delete(id);
    return report;
  },
});
ready({});
