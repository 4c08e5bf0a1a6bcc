/** ZMTP as a service and a client see it, beyond what its vectors hold. */
import { afterEach, describe, expect, it } from 'vitest';
import { sizedHeader } from '../lib/dialects/sized_header.ts';
import { zmtp, type ZmtpOptions } from '../lib/dialects/zmtp.ts';
import { MicroClient, type ClientOptions, type CodecOptions, type Message, type Sink } from '../lib/micro_client.ts';
import { MicroServer, type Callback, type ServerOptions } from '../lib/micro_server.ts';
import { pause } from './helpers/deadline.ts';
import { RawClient } from './helpers/raw_client.ts';
import { RawServer } from './helpers/raw_server.ts';
import { command, framesOf, frame, greetingOf, message, messagesOf, opening, property } from './helpers/zmtp_wire.ts';

const servers = new Set<MicroServer>();
afterEach(async () => {
  await Promise.all([...servers].map((server) => server.stop({ graceMs: 0 })));
  servers.clear();
});
async function serve(callback: Callback, options: ServerOptions = {}, zmtpOptions?: ZmtpOptions): Promise<number> {
  const server = new MicroServer(callback, 0, { dialects: [zmtp(zmtpOptions)], log() {}, ...options });
  servers.add(server);
  return (await server.startListening()).port as number;
}
/** Says all at once, half-closes, and gives the messages behind the greeting. */
const ask = (port: number, ...bytes: Buffer[]): Promise<string[][]> => RawClient.with(port, async (client) => {
  client.fin(Buffer.concat(bytes));
  return messagesOf((await client.readToFin()).subarray(64)).filter(([name = '']) => !/^\/(READY|PING)$/.test(name));
});
const BAD = Buffer.of(0x61, 0xff);

describe('a service', () => {
  it('sees one text, and the parts', async () => {
    const seen: unknown[] = [];
    const port = await serve((text, { parts }) => { seen.push([text, parts?.map(String)]); return text; });
    await ask(port, greetingOf('DEALER'), message('', 'a'), message('0', '0', '5'), message('id', '', 'b', 'c\nd'));
    expect(seen).toEqual([['a', ['a']], ['0\n0\n5', ['0', '0', '5']], ['b\nc\nd', ['b', 'c\nd']]]);
  });
  it('that takes no context is not run with what is not UTF-8', async () => {
    const seen: string[] = [];
    const port = await serve((text) => { seen.push(text); return text; });
    expect(await ask(port, greetingOf('REQ'), message('', BAD), message('', 'a')))
      .toEqual([['', 'ERR BAD_MESSAGE Cannot read a text that is not UTF-8'], ['', 'a']]);
    expect(seen).toEqual(['a']);
  });
  it('that takes the context has its bytes, or its reply is none', async () => {
    const seen: string[] = [];
    const port = await serve(async (text, context) => {
      seen.push(text);
      return context.client.loopback && seen.length === 1 ? 'blind' : { parts: context.parts ?? [] };
    });
    expect(await ask(port, greetingOf('REQ'), message('', BAD)))
      .toEqual([['', 'ERR BAD_MESSAGE Cannot read a text that is not UTF-8']]);
    expect(await ask(port, greetingOf('REQ'), message('', BAD))).toEqual([['', '0x61ff']]);
    expect(seen).toEqual(['\ufffd\ufffd', '\ufffd\ufffd']);
  });
  it('may answer in parts, of strings and of bytes', async () => {
    const port = await serve(() => ({ parts: ['naïve', Buffer.of(0xff), '', new Uint8Array([0x62])] }));
    expect(await ask(port, greetingOf('REQ'), message('', 'a'))).toEqual([['', 'naïve', '0xff', '', 'b']]);
    const none = await serve(() => ({ parts: [] }));
    expect(await ask(none, greetingOf('REQ'), message('', 'a'))).toEqual([['', '']]);
  });
  it('may say that nothing is answered', async () => {
    const seen: string[] = [];
    const callback: Callback = (text) => {
      seen.push(text);
      if (text === 'throw') throw new Error('no');
      return text === 'nothing' ? null : text;
    };
    const port = await serve(callback, { maxMessageBytes: 100 }, { oneWay: true });
    expect(await ask(port, greetingOf('DEALER'), message('', 'beat', '{}'), message('', 'throw'), message('', 'nothing'),
      message('', BAD), message('', 'x'.repeat(200)))).toEqual([]);
    expect(seen).toEqual(['beat\n{}', 'throw', 'nothing']);
  });
  it('is asked by 2.0', async () => {
    const port = await serve((text) => `re ${text}`);
    await RawClient.with(port, async (client) => {
      await client.write(Buffer.from('ff00000000000000017f', 'hex'));
      expect((await client.readBytes(10)).toString('hex')).toBe('ff00000000000000007f'); // or a 2.0 would wait for ever
      await client.write(Buffer.concat([Buffer.from('0103', 'hex'), frame(0, ''), message('', 'a')]));
      client.fin();
      const rest = await client.readToFin();
      expect(rest.subarray(0, 4).toString('hex')).toBe('03060000'); // version, ROUTER, no identity
      expect(messagesOf(rest.subarray(4))).toEqual([['', 're a']]);
    });
  });
});

describe('a codec', () => {
  const open = (options: Partial<CodecOptions> = {}) =>
    zmtp().open({ side: 'accepted', role: 'server', maxMessageBytes: 200_000, readsParts: true, ...options });
  const sinkOf = (messages: Message[]): Sink => ({ message: (asked) => messages.push(asked),
    response() {}, error() {}, write() {}, close() {} });

  it('owns the parts that it gives, whatever becomes of the chunks', () => {
    const sent = [['a', 'b'], ['x'.repeat(300), '', 'y'], ['z'.repeat(100_000)], ['ü'.repeat(70_000), '1']];
    const bytes = Buffer.concat([greetingOf('DEALER'), ...sent.map((parts) => message('', ...parts))]);
    for (const size of [1, 7, 1_000, 65_536, bytes.length]) {
      const messages: Message[] = [];
      const [codec, sink] = [open(), sinkOf(messages)];
      const lent = Buffer.alloc(size);
      for (let at = 0; at < bytes.length; at += size) {
        const piece = lent.subarray(0, bytes.copy(lent, 0, at));
        codec.receive(piece, sink);
        piece.fill(0x21);
      }
      expect(messages.map(({ parts }) => parts?.map(String)), `${size} bytes a chunk`).toEqual(sent);
      expect(codec.heldBytes).toBe(0);
    }
  });
  it('gives up a peer after the silence that its PING names', () => {
    const closed: unknown[] = [];
    const codec = open();
    const sink: Sink = { ...sinkOf([]), close: (last) => closed.push(last) };
    codec.receive(greetingOf('DEALER'), sink);
    expect(codec.idleMs?.()).toBeUndefined();
    codec.receive(command('PING', Buffer.of(0, 7)), sink);
    expect(codec.idleMs?.()).toBe(700);
    codec.receive(command('PING', Buffer.of(0, 0)), sink);
    expect(codec.idleMs?.()).toBeUndefined();
    codec.idle?.(sink);
    expect(closed).toEqual([undefined]);
  });
  it('pings who knows it: 3.1, or has pinged itself', () => {
    for (const [minor, knows] of [[1, true], [0, false]] as const) {
      const [codec, sink] = [open(), sinkOf([])];
      expect(codec.control?.('ping', 0), 'before it is greeted').toBeUndefined();
      const ready = command('READY', property('Socket-Type', 'REQ'));
      codec.receive(Buffer.concat([opening({ minor }), ready]), sink);
      expect(codec.control?.('ping', 0) !== undefined, `3.${minor}`).toBe(knows);
      codec.receive(command('PING', Buffer.of(0, 0)), sink);
      expect(Buffer.from(codec.control?.('ping', 0) as Buffer)).toEqual(command('PING', Buffer.of(0, 0, 0x30)));
    }
  });
  it('a small message behind a large one is not kept with it', () => {
    const messages: Message[] = [];
    const [codec, sink] = [open(), sinkOf(messages)];
    const bytes = Buffer.concat([greetingOf('DEALER'), message('x'.repeat(150_000)), message('a', 'b')]);
    codec.receive(bytes.subarray(0, 1_000), sink);
    codec.receive(bytes.subarray(1_000), sink);
    expect(messages.length).toBe(2);
    expect(messages[1]?.parts?.[0]?.buffer).not.toBe(messages[0]?.parts?.[0]?.buffer);
  });
});

describe('a client', () => {
  /** A ROUTER that says what it is, and hands over each request as the list of its parts. */
  const router = <T>(onRequest: (parts: string[], reply: (...parts: string[]) => void) => void,
    task: (client: MicroClient) => Promise<T>): Promise<T> =>
    RawServer.with((socket) => {
      let held = Buffer.alloc(0);
      let isGreeted = false;
      socket.write(greetingOf('ROUTER'));
      socket.on('data', (chunk: Buffer) => {
        held = Buffer.concat([held, chunk]);
        if (!isGreeted && held.length < 64) return;
        if (!isGreeted) held = held.subarray(64);
        isGreeted = true;
        const messages = messagesOf(held);
        held = held.subarray(framesOf(held).reduce((sum, { bytes }) => sum + bytes, 0));
        for (const parts of messages) {
          if (parts[0] !== '/READY') onRequest(parts, (...back) => socket.write(message(...back)));
        }
      });
      socket.on('end', () => socket.end());
    }, async ({ port }) => {
      const client = new MicroClient(port, { dialect: zmtp(), timeoutMs: 2_000, log() {} });
      try {
        return await task(client);
      } finally {
        await client.close();
      }
    });

  it('asks a ROUTER one thing at a time, in order', async () => {
    let [under, most] = [0, 0];
    await router((parts, reply) => {
      most = Math.max(most, ++under);
      setTimeout(() => { under--; reply('', `re ${parts.join('|')}`); }, 5);
    }, async (client) => {
      const replies = await Promise.all(['a', 'b', 'c'].map((text) => client.sendMessage(text)));
      expect(replies).toEqual(['re |a', 're |b', 're |c']);
      expect(most).toBe(1);
    });
  });
  it('never takes a late reply for the next call\'s', async () => {
    await router((parts, reply) => {
      setTimeout(() => reply('', `re ${parts.at(-1)}`), parts.at(-1) === 'slow' ? 300 : 0);
    }, async (client) => {
      await expect(client.sendMessage('slow', { timeoutMs: 100 })).rejects.toMatchObject({ code: 'TIMEOUT' });
      expect(await client.sendMessage('a')).toBe('re a');
      await pause(300); // the late one comes
      expect(await client.sendMessage('b')).toBe('re b');
    });
  });
  it('takes back what has not left yet', async () => {
    const asked: string[] = [];
    await router((parts, reply) => {
      asked.push(parts.at(-1) ?? '');
      setTimeout(() => reply('', 'done'), 200);
    }, async (client) => {
      const first = client.sendMessage('first');
      await expect(client.sendMessage('second', { timeoutMs: 50 })).rejects.toMatchObject({ code: 'TIMEOUT' });
      expect(await first).toBe('done');
      await pause(50); // in which the second would come
      expect(asked).toEqual(['first']);
    });
  });
});

describe('an address', () => {
  const dialect: Callback = (_, { client }) => client.dialect;
  async function ask(key: string, options: ClientOptions): Promise<string> {
    const client = new MicroClient(key, options);
    try {
      return await client.sendMessage('a');
    } finally {
      await client.close();
    }
  }

  it('names the dialect that a client speaks, whatever its option says', async () => {
    const port = await serve(dialect, { dialects: [zmtp(), sizedHeader()] });
    const ports = { Z: `zmtp+tcp://127.0.0.1:${port}` };
    expect(await ask('Z', { ports })).toBe('zmtp');
    expect(await ask('Z', { ports, dialect: sizedHeader() })).toBe('zmtp');
    expect(await ask(`sized_header+tcp://127.0.0.1:${port}`, {})).toBe('sized');
    expect(await ask('Z', { ports: { Z: port } })).toBe('frames');
  });
  it('has it on at the server, beside those that are on anyway', async () => {
    const server = new MicroServer(dialect, 'Z', { ports: { Z: 'zmtp+tcp://127.0.0.1:0' }, dialects: [sizedHeader()] });
    servers.add(server);
    const { url } = await server.startListening();
    expect(url).toMatch(/^tcp:/);
    expect(await ask(`zmtp+${url}`, {})).toBe('zmtp');
    expect(await ask(url, { dialect: sizedHeader() })).toBe('sized');
    expect(await ask(url, {})).toBe('frames');
  });
  it('gives way to the server\'s own of that name', async () => {
    const server = new MicroServer(dialect, 'zmtp+tcp://127.0.0.1:0', { dialects: [zmtp({ oneWay: true })], log() {} });
    servers.add(server);
    const { url } = await server.startListening();
    await expect(ask(`zmtp+${url}`, { timeoutMs: 100 })).rejects.toMatchObject({ code: 'TIMEOUT' });
  });
  it('is read again at each start: what it names no more is off', async () => {
    const ports = { Z: 'zmtp+tcp://127.0.0.1:0' };
    const server = new MicroServer(dialect, 'Z', { ports, log() {} });
    servers.add(server);
    await server.startListening();
    await server.stop();
    ports.Z = 'tcp://127.0.0.1:0';
    const { url } = await server.startListening();
    await expect(ask(`zmtp+${url}`, {})).rejects.toMatchObject({ code: 'PROTOCOL_ERROR' });
  });
  it('of raw is for servers: no client can tell where a reply ends', async () => {
    const server = new MicroServer(dialect, 'raw+tcp://127.0.0.1:0');
    servers.add(server);
    const { url, port } = await server.startListening();
    expect(await RawClient.with(port as number, async (client) => {
      await client.write('no line end');
      return String(await client.readBytes(3));
    })).toBe('raw');
    await expect(ask(`raw+${url}`, {})).rejects.toMatchObject({ code: 'PROTOCOL_ERROR', outcome: 'not sent' });
  });
});
