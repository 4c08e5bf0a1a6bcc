/** Events: what crosses, over one text and over two parts, and what is said of those that can't be read. */
import { afterEach, describe, expect, it } from 'vitest';
import { EventClient, Events } from '../lib/events.ts';
import { MicroClient, MicroError, type Dialect } from '../lib/micro_client.ts';
import { MicroServer } from '../lib/micro_server.ts';
import { zmtp } from '../lib/dialects/zmtp.ts';
import { RawClient } from './helpers/raw_client.ts';
import { exchange } from './helpers/zmtp_peer.ts';

type Types = {
  add: { data: number[]; reply: number };
  message: { data: string; reply: unknown };
  nothing: { data: unknown; reply: void };
  fail: { data: string; reply: never };
};
const open: { close?(): Promise<void>; stop?(): Promise<void> }[] = [];
afterEach(async () => { for (const one of open.splice(0).reverse()) await (one.close?.() ?? one.stop?.()); });

async function serve(): Promise<number> {
  const events = new Events<Types>()
    .on('add', (all) => all.reduce((sum, one) => sum + one, 0))
    .on('message', async (text) => (text === 'object' ? { text } : `you said: ${text}`))
    .on('nothing', () => {})
    .on('fail', (text) => { throw text === 'busy' ? new MicroError('SERVER_BUSY', 'later') : new Error(text); });
  const server = new MicroServer(events.callback, 0, { dialects: [zmtp()] });
  open.push(server);
  return (await server.startListening()).port as number;
}
function clientOf(port: number, dialect?: Dialect): EventClient<Types> {
  const client = new EventClient<Types>(port, dialect && { dialect });
  open.push(client);
  return client;
}
const failed = (call: Promise<unknown>): Promise<MicroError> =>
  call.then(() => { throw new Error('it did not fail'); }, (error: MicroError) => error);

describe.each([['frames', undefined], ['zmtp', zmtp()]])('sendEvent over %s', (_name, dialect) => {
  it('resolves with what the handler answered', async () => {
    const client = clientOf(await serve(), dialect);
    expect(await client.sendEvent('add', [1, 2, 39])).toBe(42);
    expect(await client.sendEvent('message', 'naïve\n☃')).toBe('you said: naïve\n☃');
    expect(await client.sendEvent('nothing')).toBe(null);
    expect(await Promise.all(Array.from({ length: 100 }, (_, at) => client.sendEvent('add', [at, 1]))))
      .toEqual(Array.from({ length: 100 }, (_, at) => at + 1));
  });
  it('an unknown event: told by name, and nothing was run', async () => {
    const error = await failed(clientOf(await serve(), dialect).sendEvent('ad\u001bd' as 'add', []));
    expect(error.code).toBe('BAD_MESSAGE');
    expect(error.outcome).toBe('refused');
    expect(error.message).toMatch(/^Cannot handle event "ad\\u001bd": expected one of "add", "message", /);
  });
  it('what a handler throws is the caller\'s error', async () => {
    const client = clientOf(await serve(), dialect);
    expect(await failed(client.sendEvent('fail', 'broken'))).toMatchObject({ code: 'CALLBACK_FAILED', message: 'broken' });
    expect(await failed(client.sendEvent('fail', 'busy'))).toMatchObject({ code: 'SERVER_BUSY', outcome: 'refused' });
  });
  it('a plain text is the event message, and a string comes back as it is', async () => {
    const client = clientOf(await serve(), dialect);
    expect(await client.sendMessage('hello')).toBe('you said: hello');
    expect(await client.sendMessage('object')).toBe('{"text":"object"}');
  });
});

describe('sendEvent', () => {
  it('refuses what JSON can\'t carry before it is sent', async () => {
    const client = clientOf(await serve());
    for (const data of [[1n], Object.assign([], { toJSON() { throw new Error('no'); } })]) {
      expect(await failed(client.sendEvent('add', data as never))).toMatchObject({ code: 'BAD_MESSAGE', outcome: 'not sent' });
    }
  });
  it('tells a service that speaks no events', async () => {
    for (const reply of ['hello', '{"a":1}', '["a"]', '["a",1,2]', '[1,2]', 'null', '3']) {
      const server = new MicroServer(() => reply, 0);
      open.push(server);
      const client = clientOf((await server.startListening()).port as number);
      const { code, outcome, message } = await failed(client.sendEvent('add', []));
      expect([code, outcome]).toEqual(['PROTOCOL_ERROR', 'maybe done']);
      expect(message).toMatch(/^Cannot read the reply to event "add": .*Does the service speak events\?$/);
    }
  });
});

describe('over lines', () => {
  it.each([
    ['["add",[1,2]]', '["add",3]'],
    [' [ "add" , [ 1 ] ] ', '["add",1]'],
    ['["nothing",null]', '["nothing",null]'],
    ['["message","x"]', '["message","you said: x"]'],
    ['{"a":1}', 'you said: {"a":1}'],
  ])('%s is answered by %s', async (line, reply) => {
    expect(await RawClient.with(await serve(), (client) => client.ask(`${line}\n`))).toBe(`${reply}\n`);
  });
  it.each([
    '[', '["add"', '["add"]', '["add",1,2]', '[1,2]', '[]', '[null,null]', '["toString",1]', '["__proto__",{}]',
  ])('%s is refused in one line', async (line) => {
    const reply = await RawClient.with(await serve(), (client) => client.ask(`${line}\n["add",[1]]\n`));
    expect(reply).toMatch(/^ERR BAD_MESSAGE Cannot (read|handle) [^\n]+\n\["add",1\]\n$/);
  });
});

describe('in two parts', () => {
  it('is answered in two parts', async () => {
    expect(await exchange(await serve(), ['', 'add', '[1,2]'])).toEqual(['', 'add', '3']);
    expect(await exchange(await serve(), ['id', '', 'message', '"x"'])).toEqual(['id', '', 'message', '"you said: x"']);
  });
  it.each([
    [['', 'add', '{'], /^ERR BAD_MESSAGE Cannot read the data of event "add": it is "\{", expected JSON$/],
    [['', 'add', ''], /^ERR BAD_MESSAGE Cannot read the data of event "add"/],
    [['', 'sub', '1'], /^ERR BAD_MESSAGE Cannot handle event "sub"/],
    [['', 'add', '[1]', 'more'], /^ERR BAD_MESSAGE Cannot read an event: it has 3 parts, expected 2$/],
    [['', 'add', Buffer.of(0xff)], /^ERR BAD_MESSAGE Cannot read an event: a part is not UTF-8$/],
  ])('%j is refused', async (parts, expected) => {
    expect((await exchange(await serve(), parts))[1]).toMatch(expected);
  });
});

describe('Events', () => {
  it('takes one handler each', () => {
    const events = new Events().on('a', () => 1);
    expect(() => events.on('a', () => 2)).toThrow(/^Cannot handle event "a" twice/);
  });
  it('a client of events is a MicroClient', async () => {
    expect(clientOf(await serve())).toBeInstanceOf(MicroClient);
  });
});
