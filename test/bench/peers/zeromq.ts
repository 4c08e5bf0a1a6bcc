/** ZeroMQ through npm's `zeromq` 6: REQ for one message at a time, DEALER for more, to a ROUTER. */
import type { Connection, Load, Peer } from '../load.ts';

/** As much of `zeromq` as is used here; what types it brings are there once it is installed. */
interface Socket extends AsyncIterable<Buffer[]> {
  readonly lastEndpoint: string | null;
  bind(address: string): Promise<void>;
  connect(address: string): void;
  send(message: string | (Buffer | string)[]): Promise<void>;
  receive(): Promise<Buffer[]>;
}
type SocketClass = new (options: { sendHighWaterMark: number; receiveHighWaterMark: number }) => Socket;
type ZeroMq = Record<'Router' | 'Request' | 'Dealer', SocketClass>;

const { default: zmq } = (await import(process.env['BENCH_PACKAGE'] ?? 'zeromq')) as { default: ZeroMq };

/** None, since whoever sends keeps to its own limit: so no send waits for room. */
const NO_LIMITS = { sendHighWaterMark: 0, receiveHighWaterMark: 0 };

export const peer: Peer = {
  async listen() {
    const router = new zmq.Router(NO_LIMITS);
    await router.bind('tcp://127.0.0.1:*');
    void echo(router);
    return Number(new URL(router.lastEndpoint ?? '').port);
  },

  async connect(port, { inFlight }) {
    const socket = inFlight === 1 ? new zmq.Request(NO_LIMITS) : new zmq.Dealer(NO_LIMITS);
    socket.connect(`tcp://127.0.0.1:${port}`);
    return new ZeroMqConnection(socket);
  },
};

/** Its text is made of the message, as everywhere here: a service that only copies has no text. */
async function echo(router: Socket): Promise<void> {
  for await (const parts of router) {
    const text = String(parts.pop());
    await router.send([...parts, text]); // whose it is, and the empty part that a REQ puts there
  }
}

class ZeroMqConnection implements Connection {
  readonly #socket: Socket;

  constructor(socket: Socket) {
    this.#socket = socket;
  }

  /** Not a `Flight`: a socket takes one `send()` at a time. */
  async run(inFlight: number, load: Load): Promise<void> {
    const expected: string[] = []; // a ring: message n is at n % inFlight
    const send = (n: number) => this.#socket.send(expected[n % inFlight] = load.next());
    let sent = 0;
    while (sent < inFlight) await send(sent++);
    for (let answered = 0; answered < sent; answered++) {
      const [reply] = await this.#socket.receive();
      load.check(expected[answered % inFlight], String(reply));
      if (!load.over) await send(sent++);
    }
  }
}
