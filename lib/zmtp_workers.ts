/**
 * A ZeroMQ framework's workers at a router's back: DEALER sockets that dial, and are sent
 * `[client id, '', event, json]`. What they get for a client id is the slot of the request.
 *
 * Whether one is alive is seen by ZMTP's own pings, which libzmq has answered since 4.2; an idle
 * worker of an older one is taken for silent.
 */
import { eventCodec } from './dialects/zmtp_events.ts';
import { zmtp } from './dialects/zmtp.ts';
import type { Dialect } from './micro_client.ts';
import { WorkerLink, type LinkOwner } from './worker_link.ts';

/** A dialect of the back, beside the one of our own workers. Without a token: they can't say one. */
export function zmtpWorkers(owner: LinkOwner): Dialect {
  const plain = zmtp();
  return {
    ...plain, name: 'zmtp worker',
    open({ maxMessageBytes, hello = {} }) {
      const codec = eventCodec(plain.open({ side: 'accepted', role: 'client', maxMessageBytes, hello }));
      const link = new WorkerLink(owner, codec);
      const inner = link.asCodec();
      let hasJoined = false;
      return {
        ...inner,
        get heldBytes() { return codec.heldBytes; },
        start(sink) {
          inner.start?.(sink);
          codec.start?.(link);
        },
        receive(chunk, sink) {
          inner.receive(chunk, sink);
          if (hasJoined || codec.heldBytes > 0) return; // it holds one byte until it was greeted
          hasJoined = true;
          link.hello({ role: 'worker' });
        },
      };
    },
  };
}
