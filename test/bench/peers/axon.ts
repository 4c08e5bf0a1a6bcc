/** Request and reply over npm's `axon`, whose own framing (AMP) is the only one it has. */
import { once, type EventEmitter } from 'node:events';
import type { AddressInfo, Socket } from 'node:net';
import { byCallback, type Peer } from '../load.ts';

/** As much of `axon` as is used here; it brings no types. */
interface Rep extends EventEmitter {
  bind(port: number, host: string): void;
  address(): AddressInfo;
}
interface Req extends EventEmitter {
  connect(port: number, host: string): void;
  send(text: string, take: (reply: string) => void): void;
}
interface Axon {
  socket(type: 'rep'): Rep;
  socket(type: 'req'): Req;
}

const { default: axon } = (await import(process.env['BENCH_PACKAGE'] ?? 'axon')) as { default: Axon };

export const peer: Peer = {
  async listen() {
    const rep = axon.socket('rep');
    rep.on('connect', (socket: Socket) => socket.setNoDelay(true)); // a req does so by itself
    rep.on('message', (text: string, reply: (text: string) => void) => reply(text));
    rep.bind(0, '127.0.0.1');
    await once(rep, 'bind');
    return rep.address().port;
  },

  async connect(port) {
    const req = axon.socket('req');
    req.connect(port, '127.0.0.1');
    await once(req, 'connect');
    return byCallback((text, take) => req.send(text, take));
  },
};
