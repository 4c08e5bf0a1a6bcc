/**
 * Who is alive, judged by how long they have been silent. Pure: it is told of peers and of the time,
 * and sends nothing itself. The router judges its workers by it, a worker its router.
 */
import { positive } from './micro_client.ts';

export interface HeartbeatOptions {
  intervalMs?: number; // between two looks, and from one ping to the next; default 1,000
  timeoutMs?: number; // how much longer a peer may take than the pings that it may miss; default 5,000
  maxMissed?: number; // pings that it may miss; default 1
}

interface Pulse { heardAt: number; isOut: boolean }

/**
 * A peer is out when nothing at all was heard of it for `intervalMs × maxMissed + timeoutMs`, and
 * back when it is heard again.
 *
 * Its time is a monotonic one that a stop of this process does not move: of the time between two
 * ticks, two intervals count at most. What a peer said meanwhile is read behind the tick, so that a
 * blocked receiver would else find all of its peers silent.
 *
 * @example
 * const heartbeat = new Heartbeat<Socket>({ intervalMs: 1_000 });
 * heartbeat.heard(socket); // with each chunk
 * setInterval(() => { for (const out of heartbeat.tick(now())) drop(out); }, heartbeat.intervalMs);
 */
export class Heartbeat<Peer> {
  readonly intervalMs: number;
  readonly outAfterMs: number;
  readonly #pulses = new Map<Peer, Pulse>();
  #tickedAt: number | undefined;
  #clock = 0;

  /** @throws {TypeError | RangeError} An option is no number above 0. */
  constructor(options: HeartbeatOptions = {}) {
    this.intervalMs = positive(options, 'intervalMs', 1_000);
    this.outAfterMs = this.intervalMs * positive(options, 'maxMissed', 1) +
      positive(options, 'timeoutMs', 5_000);
  }

  /** Something came of a peer, whatever it was. True if it is new, or was out. */
  heard(peer: Peer): boolean {
    const pulse = this.#pulses.get(peer);
    if (pulse?.isOut === false) pulse.heardAt = this.#clock;
    else this.#pulses.set(peer, { heardAt: this.#clock, isOut: false });
    return pulse?.isOut !== false;
  }

  /** A peer is gone for good, or judged no longer. */
  leave(peer: Peer): void {
    this.#pulses.delete(peer);
  }

  /**
   * To be called each `intervalMs`.
   *
   * @param at Milliseconds of a clock that never goes back.
   * @returns Who is out since the last tick.
   */
  tick(at: number): Peer[] {
    this.#clock += Math.min(at - (this.#tickedAt ?? at), 2 * this.intervalMs);
    this.#tickedAt = at;
    const out: Peer[] = [];
    for (const [peer, pulse] of this.#pulses) {
      if (pulse.isOut || this.#clock - pulse.heardAt < this.outAfterMs) continue;
      pulse.isOut = true;
      out.push(peer);
    }
    return out;
  }

  isOut(peer: Peer): boolean {
    return this.#pulses.get(peer)?.isOut === true;
  }
}
