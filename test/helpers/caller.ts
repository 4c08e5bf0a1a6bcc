/** Clients in a process of their own: to be killed, to live in another network, to be a thousand. */
import type { CallOptions, ClientOptions } from '../../lib/micro_client.ts';
import { Child, withChild, type ChildOptions } from './child.ts';

export interface CallerSetUp {
  key: string | number;
  /** Default 1. */
  clients?: number;
  options?: Omit<ClientOptions, 'dialect' | 'log'>;
}

export interface Order {
  text: string;
  /** Calls of each client; default 1. */
  times?: number;
  /** Milliseconds from one to the next; default 0, all at once. */
  everyMs?: number;
  options?: Omit<CallOptions, 'signal'>;
}

/** How one call ended. */
export interface Called {
  reply?: string;
  code?: string;
  outcome?: string;
  /** Milliseconds that it took; and less those in which its process had no core, for upper limits. */
  ms: number;
  ownMs: number;
  /** When it began and ended, in milliseconds since 1970. */
  began: number;
  ended: number;
}

export class Caller extends Child {
  /** Starts one and resolves when it can be asked. */
  static async start(setUp: CallerSetUp, options: ChildOptions = {}): Promise<Caller> {
    const caller = new Caller('caller.ts', setUp, options);
    await caller.ready();
    return caller;
  }

  /** Starts one, does `task`, and ends it. */
  static with<T>(setUp: CallerSetUp, task: (caller: Caller) => Promise<T>, options: ChildOptions = {}): Promise<T> {
    return withChild(Caller.start(setUp, options), task);
  }

  /** Resolves when all calls have ended, well or not. */
  call(order: Order, ms = 15_000): Promise<Called[]> {
    return this.ask<Called[]>('call', order, ms);
  }
}
