/** Bytes through a MessagePort: how a thread is spoken to as if it were a process. */
import { Duplex } from 'node:stream';
import type { MessagePort, Worker } from 'node:worker_threads';

export class PortDuplex extends Duplex {
  readonly #port: MessagePort | Worker;
  constructor(port: MessagePort | Worker) {
    super();
    this.#port = port;
    const onMessage = (chunk: Uint8Array | null) => this.push(chunk);
    (port as MessagePort).on('message', onMessage);
  }
  override _read(): void {}
  override _write(chunk: Buffer, _encoding: BufferEncoding, done: () => void): void {
    const own = new Uint8Array(chunk); // a view of a larger buffer would take that along
    this.#port.postMessage(own, [own.buffer]);
    done();
  }
  override _final(done: () => void): void {
    this.#port.postMessage(null);
    done();
  }
}
