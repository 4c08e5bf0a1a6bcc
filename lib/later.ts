/**
 * A reply to come, at less than a promise costs: no microtasks, no closures. What answers thousands of
 * requests at a time returns it from its callback: a router, a journal.
 */
import { Later, type Settling } from './micro_server.ts';
import type { Value } from './micro_client.ts';

/** Settle it once. Whoever awaits it may, instead of the server; once. */
export class Deferred extends Later implements Settling, PromiseLike<Value> {
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
  then<A = Value, B = never>(
    onValue?: ((value: Value) => A | PromiseLike<A>) | null,
    onError?: ((error: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    return new Promise<Value>((resolve, reject) => this.tell({ resolve, reject })).then(onValue, onError);
  }
}
