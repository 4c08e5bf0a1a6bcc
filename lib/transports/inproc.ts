/**
 * `inproc://name`: a server and its clients in one process, without a socket. Within a thread both
 * ends are in memory; between threads bytes cross by a MessagePort, about as fast as over tcp.
 *
 * The main thread keeps the names of all threads, since it alone is always there. Others reach it
 * by `postMessageToThread`, which Node has from 20.19 and 22.5 on; where that is missing, a name is
 * known in its own thread alone. A main thread that uses no `inproc://` address itself has to import
 * this file before two others can meet; when it does, it hears of the names that there are.
 *
 * As with a port, who listens and who awaits a reply keeps the process alive; an idle end doesn't.
 */
import { once } from 'node:events';
import { Duplex } from 'node:stream';
import * as threads from 'node:worker_threads';
import { MicroError, type Address, type Transport } from '../micro_client.ts';

type Accept = (duplex: Duplex) => void;
type Done = (error?: Error | null) => void;
/** What another thread asks of the main one. */
interface Question { portcall: 'listen' | 'dial'; name: string; port: threads.MessagePort }

const ROOM_BYTES = 64 * 1024; // that an end holds for its reader, or of its writer
const WINDOW_BYTES = 256 * 1024; // on their way to another thread, not taken there yet
const FOREVER_MS = 0x7fff_ffff;
const HEARING_MS = 200; // from its start on, in which the main thread hears of older names
const CHANNEL = 'portcall:inproc'; // on which it says that it is there
const own = new Map<string, Accept>(); // names of this thread
const others = new Map<string, threads.MessagePort>(); // of the other threads; the main one's alone

export const transport: Transport = {
  async listen({ url, scheme }, _options, onDuplex, onError) {
    const name = nameOf(url);
    if (own.has(name) || others.has(name)) throw inUse();
    own.set(name, onDuplex); // before the wait: of two at once, one gets it
    const alive = setInterval(() => {}, FOREVER_MS); // a thread that only waits for the main one too
    try {
      const tellGone = await tell(name, onDuplex, onError);
      return {
        address: { url, scheme, path: name } satisfies Address,
        async close() {
          own.delete(name);
          await tellGone();
          clearInterval(alive);
        },
      };
    } catch (error) {
      own.delete(name);
      clearInterval(alive);
      throw error;
    }
  },
  dial({ url }, { ready }) {
    const name = nameOf(url);
    if (own.has(name)) return dialNear(name, ready);
    const { port1, port2 } = new threads.MessageChannel();
    const end = new FarEnd(port1, ready);
    const refuse = (why: string) => end.destroy(failure('ECONNREFUSED', why));
    if (threads.isMainThread) passOn(name, port2);
    else {
      void ask('dial', name, port2).then((isAsked) => {
        if (!isAsked) refuse('nobody listens there in this thread, and the main one knows no others');
      });
    }
    return end;
  },
};

function nameOf(url: string): string {
  const name = url.slice('inproc://'.length);
  if (name !== '') return name;
  throw new MicroError('BAD_ADDRESS', 'Cannot use "inproc://": it names nobody, expected inproc://name');
}

const failure = (code: string, why: string) => Object.assign(new Error(why), { code });
const inUse = () => failure('EADDRINUSE', 'a server of this process has that name');
const reset = () => failure('ECONNRESET', 'the other side closed the connection');
const nobody = () => failure('ECONNREFUSED', 'nobody listens there');

// ------------------------------------------------------------------------------------- The ends
/** One end of a connection: a Duplex with what sockets have beyond that. */
abstract class End extends Duplex {
  #timer: NodeJS.Timeout | undefined;

  constructor(allowHalfOpen: boolean) {
    super({ allowHalfOpen, highWaterMark: ROOM_BYTES });
  }

  /** Emits `timeout` when the other side has taken nothing for so long; 0 ends that. */
  setTimeout(ms: number, onTimeout: () => void): this {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (ms === 0) return this.off('timeout', onTimeout);
    this.#timer = setTimeout(() => this.emit('timeout'), ms).unref();
    return this.once('timeout', onTimeout);
  }

  protected hasMoved(): void {
    this.#timer?.refresh();
  }

  override _destroy(error: Error | null, done: Done): void {
    clearTimeout(this.#timer);
    done(error);
  }
}

/** An end whose other end is in this thread. Either is the other's `peer`. */
class NearEnd extends End {
  peer: NearEnd | undefined;
  readonly #later: (task: () => void) => void; // in the order of its calls
  #alive: NodeJS.Timeout | undefined;
  #onTaken: Done | undefined; // of a chunk that the reader has no room behind

  /** @param isDialled Its bytes wait for the next turn of the event loop, so that a program which
   *   does nothing but ask still lets its timers and sockets have theirs; replies do not. */
  constructor(isDialled: boolean) {
    super(!isDialled);
    this.#later = isDialled ? setImmediate : process.nextTick;
    if (isDialled) this.ref();
  }

  ref(): void {
    (this.#alive ??= setInterval(() => {}, FOREVER_MS)).ref();
  }

  unref(): void {
    this.#alive?.unref();
  }

  override _read(): void {
    const onTaken = this.#onTaken;
    this.#onTaken = undefined;
    onTaken?.();
  }

  override _write(chunk: Uint8Array, _encoding: string, done: Done): void {
    const { peer } = this;
    this.#later(() => {
      if (peer === undefined || peer.destroyed) return done(reset());
      this.hasMoved();
      if (peer.push(chunk)) done();
      else peer.#onTaken = done;
    });
  }

  override _final(done: Done): void {
    this.#later(() => {
      if (this.peer?.destroyed === false) this.peer.push(null);
      done();
    });
  }

  override _destroy(error: Error | null, done: Done): void {
    clearInterval(this.#alive);
    const isDone = this.writableFinished && this.#onTaken === undefined;
    if (!isDone) this.#later(() => this.peer?.destroy(reset()));
    super._destroy(error, done);
  }
}

/** An end whose other end is in another thread: bytes, `end` and `reset`, and how many were taken. */
class FarEnd extends End {
  readonly #port: threads.MessagePort;
  #isOpen: boolean; #hasEnded = false; #isGone = false; // the other side: has answered; FIN; no more
  #untold = 0; // bytes that came, and were not acknowledged
  #ahead = 0; // bytes sent that were not acknowledged
  #onTaken: Done | undefined;

  /** @param ready Of who dials: it is called when the other side takes the connection. */
  constructor(port: threads.MessagePort, ready?: () => void) {
    super(ready === undefined);
    this.#port = port;
    this.#isOpen = ready === undefined;
    if (ready === undefined) port.postMessage('open');
    port.on('message', (message: Uint8Array | number | 'open' | 'end' | 'reset') => {
      if (message instanceof Uint8Array) this.#arrive(Buffer.from(message.buffer));
      else if (typeof message === 'number') this.#wasTaken(message);
      else if (message === 'reset') this.destroy(reset());
      else if (message === 'end') {
        this.#hasEnded = true;
        this.push(null);
      } else {
        this.#isOpen = true;
        ready?.();
      }
    });
    port.on('close', () => {
      this.#isGone = true;
      if (!this.#isOpen) this.destroy(nobody());
      else if (!this.#hasEnded || this.#onTaken !== undefined) this.destroy(reset());
    });
  }

  ref(): void {
    this.#port.ref();
  }

  unref(): void {
    this.#port.unref();
  }

  #arrive(chunk: Buffer): void {
    this.#untold += chunk.length;
    if (this.push(chunk)) this._read();
  }

  override _read(): void {
    if (this.#untold < ROOM_BYTES) return;
    this.#port.postMessage(this.#untold);
    this.#untold = 0;
  }

  #wasTaken(bytes: number): void {
    this.#ahead -= bytes;
    this.hasMoved();
    const onTaken = this.#onTaken;
    if (onTaken === undefined || this.#ahead > WINDOW_BYTES) return;
    this.#onTaken = undefined;
    onTaken();
  }

  override _write(chunk: Uint8Array, _encoding: string, done: Done): void {
    if (this.#isGone) return done(reset());
    const copy = new Uint8Array(chunk); // of a view, all that is behind it would cross
    this.#port.postMessage(copy);
    this.#ahead += chunk.length;
    if (this.#ahead > WINDOW_BYTES) this.#onTaken = done;
    else done();
  }

  override _final(done: Done): void {
    this.#port.postMessage('end');
    done();
  }

  override _destroy(error: Error | null, done: Done): void {
    const isDone = this.writableFinished && this.readableLength === 0;
    if (!isDone) this.#port.postMessage('reset');
    this.#port.close();
    super._destroy(error, done);
  }
}

function dialNear(name: string, ready: () => void): Duplex {
  const [dialled, accepted] = [new NearEnd(true), new NearEnd(false)];
  setImmediate(() => {
    const accept = own.get(name);
    if (accept === undefined) return dialled.destroy(nobody());
    [dialled.peer, accepted.peer] = [accepted, dialled];
    accept(accepted);
    return ready();
  });
  return dialled;
}

// ------------------------------------------------------------------------------ Between threads
/** False: the main thread doesn't know of this transport, or Node can't ask it. */
async function ask(what: 'listen' | 'dial', name: string, port: threads.MessagePort): Promise<boolean> {
  const question: Question = { portcall: what, name, port };
  try {
    await threads.postMessageToThread(0, question, [port]);
    return true;
  } catch {
    return false;
  }
}

/** Tells the main thread of a name, now or when it is there; resolves with what takes that back. */
async function tell(
  name: string, accept: Accept, onError: (error: Error) => void,
): Promise<() => Promise<void>> {
  if (threads.isMainThread) return async () => {};
  const channel = new threads.BroadcastChannel(CHANNEL).unref();
  let registered = register(name, accept);
  channel.onmessage = () => {
    registered = registered.then((port) => port ?? register(name, accept));
    registered.catch(onError);
  };
  const isKnown = await registered.catch((error: unknown) => { channel.close(); throw error; });
  if (isKnown) channel.close();
  return async () => {
    channel.close();
    const port = await registered.catch(() => undefined); // told already
    if (port === undefined) return;
    port.ref(); // the next to ask for the name gets it only once this is known
    port.postMessage('gone');
    await once(port, 'close');
  };
}

/** Resolves with the port by which connections come; none, if the main thread can't be asked. */
async function register(name: string, accept: Accept): Promise<threads.MessagePort | undefined> {
  const { port1, port2 } = new threads.MessageChannel();
  const answered = once(port1, 'message') as Promise<[isFree: boolean]>;
  const isAsked = await ask('listen', name, port2);
  const isFree = isAsked && (await answered)[0];
  if (!isFree) port1.close();
  if (isAsked && !isFree) throw inUse();
  if (!isFree) return undefined;
  port1.on('message', (port: threads.MessagePort) => accept(new FarEnd(port)));
  port1.unref();
  return port1;
}

/** Hands a dialler's port to whoever has the name; closed, it is refused. */
function passOn(name: string, port: threads.MessagePort): void {
  const accept = own.get(name);
  const other = others.get(name);
  if (accept !== undefined) accept(new FarEnd(port));
  else if (other !== undefined) other.postMessage(port, [port]);
  else if (performance.now() < heardAll) setTimeout(passOn, 10, name, port);
  else port.close();
}

function answer({ portcall, name, port }: Question): void {
  if (portcall === 'dial') return passOn(name, port);
  const isFree = !own.has(name) && !others.has(name);
  port.postMessage(isFree);
  if (!isFree) return;
  others.set(name, port);
  port.on('message', () => port.close()).on('close', () => others.delete(name)).unref();
}

const heardAll = performance.now() + HEARING_MS;
if (threads.isMainThread) {
  process.on('workerMessage', (message: unknown) => {
    const isOurs = typeof message === 'object' && message !== null && 'portcall' in message;
    if (isOurs) answer(message as Question);
  });
  const channel = new threads.BroadcastChannel(CHANNEL);
  channel.postMessage('the main thread is there');
  channel.close();
}
