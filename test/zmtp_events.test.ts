/** Events of two parts and of one text: the same either way, whole or in any pieces. */
import { describe, expect, it } from 'vitest';
import { partsOf, textOf, zmtpEvents } from '../lib/dialects/zmtp_events.ts';
import type { Message, MicroError, Sink, Tag } from '../lib/micro_client.ts';
import { FUZZ_SEED, fuzzRuns, seeded } from './helpers/random.ts';
import { greetingOf, message, messagesOf } from './helpers/zmtp_wire.ts';

const NAMES = ['add', '', 'a"b', 'a\\', 'naïve ☃', ']', '","', 'a\nb', '__proto__'];
const DATA = [1, null, 'text', ' x ', '"]', [1, [2]], { a: ['b"'] }, '☃\u2028', true, -0.5];

/** What a codec told, a line each, and what it wrote. */
function watching(): { sink: Sink; told: string[]; tags: Tag[]; written: Buffer[] } {
  const [told, tags, written]: [string[], Tag[], Buffer[]] = [[], [], []];
  const sink: Sink = {
    message({ tag, text, oneWay }: Message) { tags.push(tag); told.push(`message ${text}${oneWay ? ' one way' : ''}`); },
    response: (tag, kind, body) => { told.push(`${String(tag)} ${kind} ${String((body as MicroError).message ?? body)}`); },
    error: (code) => { told.push(code); },
    write: (bytes) => { written.push(Buffer.from(bytes as string, typeof bytes === 'string' ? 'latin1' : undefined)); },
    close: () => { told.push('closed'); },
  };
  return { sink, told, tags, written };
}

describe('an event', () => {
  it.each(NAMES)('named %j is the same after both ways', (name) => {
    for (const data of DATA) {
      const text = JSON.stringify([name, data]);
      expect(partsOf(text)).toEqual([name, JSON.stringify(data)]);
      expect(textOf(partsOf(text))).toBe(text);
    }
  });
  it.each(['hello', '', '[', '[1,2]', '["a"]', '{"a":1}', '["a\\"]', ' ["a"'])('%j is no event, and crosses as message', (text) => {
    expect(partsOf(text)).toEqual(['message', JSON.stringify(text)]);
    expect(textOf(partsOf(text), true)).toBe(text);
  });
  it('data that is no string answers a plain text as JSON', () => {
    expect(textOf(['message', '{"a":1}'], true)).toBe('{"a":1}');
    expect(textOf(['message', 'no JSON'], true)).toBe('no JSON');
  });
});

describe('a server\'s codec', () => {
  const bytes = Buffer.concat([greetingOf('DEALER'), message('', 'add', '[1,"☃"]'), message('id', '', 'b', '2'),
    message('', 'a text'), message('', 'a', 'b', 'c'), message('', 'x', Buffer.of(0xff)), message('', 'x', '{')]);
  const expected = ['message ["add",[1,"☃"]]', 'message ["b",2]', 'message a text', 'message a\nb\nc', 'BAD_MESSAGE', 'message ["x",{]'];
  const run = (pieceBytes: () => number) => {
    const { sink, told, tags, written } = watching();
    const codec = zmtpEvents().open({ side: 'accepted', role: 'server', maxMessageBytes: 1024 });
    codec.start?.(sink);
    for (let at = 0; at < bytes.length;) {
      const lent = Buffer.from(bytes.subarray(at, at + pieceBytes()));
      codec.receive(lent, sink);
      at += lent.length;
      lent.fill(0);
    }
    return { codec, told, tags, written };
  };
  it('tells one text each, on any split', () => {
    expect(run(() => bytes.length).told).toEqual(expected);
    expect(run(() => 1).told).toEqual(expected);
    const random = seeded();
    for (let times = 0; times < fuzzRuns(200); times++) {
      expect(run(() => random.between(1, 20)).told, `FUZZ_SEED=${FUZZ_SEED}, run ${times}`).toEqual(expected);
    }
  });
  it('answers in the form that was asked in', () => {
    const { codec, tags } = run(() => bytes.length);
    const replies = ['["add",3]', '["b",null]', 'a reply', 'one\ntwo'].map((reply, at) =>
      messagesOf(Buffer.from(codec.encode('reply', reply, tags[at] as Tag) as string))[0]);
    expect(replies).toEqual([['', 'add', '3'], ['id', '', 'b', 'null'], ['', 'a reply'], ['', 'one\ntwo']]);
  });
});

describe('a client\'s codec', () => {
  it('sends two parts, and tells one text of two', () => {
    const { sink, told, written } = watching();
    const codec = zmtpEvents().open({ side: 'dialled', role: 'client', maxMessageBytes: 1024 });
    codec.start?.(sink);
    codec.receive(greetingOf('DEALER'), sink);
    const sent = ['["add",[1]]', 'hello'].map((text, tag) => messagesOf(Buffer.from(codec.request({ tag, text }) as string))[0]);
    expect(sent).toEqual([['0', '', 'add', '[1]'], ['1', '', 'message', '"hello"']]);
    codec.receive(Buffer.concat([message('1', '', 'message', '"you"'), message('0', '', 'add', '3')]), sink);
    codec.request({ tag: 0, text: '["a",1]' });
    codec.receive(message('0', '', 'one part'), sink);
    codec.request({ tag: 0, text: '["a",1]' });
    codec.receive(message('0', '', 'ERR BAD_MESSAGE no'), sink);
    expect(told).toEqual(['1 reply you', '0 reply ["add",3]', '0 reply one part', '0 error no']);
    expect(written.length).toBeGreaterThan(0);
  });
});
