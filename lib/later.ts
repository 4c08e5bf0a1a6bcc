/**
 * A reply to come, at less than a promise costs: no microtasks, no closures. What answers thousands of
 * requests at a time returns it from its callback: a router, a journal.
 */
import type { Value } from './micro_client.ts';
import { Later, type Settling } from './micro_server.ts';

/** One that can be awaited too, in place of the server. */
export abstract class Awaitable<T extends Value = Value> extends Later implements PromiseLike<T> {
  abstract override tell(whom: { resolve(value: T): void; reject(error: unknown): void }): void;
  then<A = T, B = never>(
    onValue?: ((value: T) => A | PromiseLike<A>) | null,
    onError?: ((error: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    return new Promise<T>((resolve, reject) => this.tell({ resolve, reject })).then(onValue, onError);
  }
}

/** Settle it once, and tell or await it once. */
export class Deferred extends Awaitable implements Settling {
  // Plain fields: one is made a message.
  whom: Settling | undefined = undefined;
  #early: (() => void) | undefined = undefined; // what came before anybody asked
  tell(whom: Settling): void {
    this.whom = whom;
    this.#early?.();
  }
  resolve(value: Value): void {
    if (this.whom === undefined) this.#early ??= () => this.resolve(value);
    else this.whom.resolve(value);
  }
  reject(error: unknown): void {
    if (this.whom === undefined) this.#early ??= () => this.reject(error);
    else this.whom.reject(error);
  }
}
