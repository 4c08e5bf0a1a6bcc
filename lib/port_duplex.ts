/** Bytes through a MessagePort: how a thread is spoken to as if it were a process. */
import { Duplex } from 'node:stream';
import type { MessagePort, Worker } from 'node:worker_threads';

/**
 * Letters of one byte each cross as a string: a tenth less processor time a small request than bytes
 * in a buffer of their own, which has to be made, handed over and collected.
 */
export class PortDuplex extends Duplex {
  readonly #port: MessagePort | Worker;
  constructor(port: MessagePort | Worker) {
    super({ decodeStrings: false });
    this.#port = port;
    const onMessage = (chunk: Uint8Array | string | null) =>
      this.push(typeof chunk === 'string' ? Buffer.from(chunk, 'latin1') : chunk);
    (port as MessagePort).on('message', onMessage);
  }
  override _read(): void {}
  override _write(chunk: Buffer | string, encoding: BufferEncoding, done: () => void): void {
    if (typeof chunk === 'string' && encoding === 'latin1') this.#port.postMessage(chunk);
    else {
      const bytes = typeof chunk === 'string' ? Buffer.from(chunk, encoding) : chunk;
      const own = new Uint8Array(bytes); // a view of a larger buffer would take that along
      this.#port.postMessage(own, [own.buffer]);
    }
    done();
  }
  override _final(done: () => void): void {
    this.#port.postMessage(null);
    done();
  }
}
