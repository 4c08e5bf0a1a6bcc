/** Several dialects on one port: the first bytes tell them apart, whatever packets they come in. */
import { describe, expect, it, vi } from 'vitest';
import { frames, type Dialect } from '../lib/micro_client.ts';
import { raw } from '../lib/dialects/raw.ts';
import { sizedHeader } from '../lib/dialects/sized_header.ts';
import { MicroServer, lines, type Callback } from '../lib/micro_server.ts';
import { DIALECTS, FURTHER, FURTHER_NAMES, sized } from './helpers/dialects.ts';
import { FUZZ_SEED } from './helpers/random.ts';
import { RawClient } from './helpers/raw_client.ts';
import { stillServes } from './helpers/still_serves.ts';
import { askDuplex, splits } from './helpers/vectors.ts';

vi.setConfig({ testTimeout: 20_000 });

/** What each dialect's client sends, and what an echo answers, in latin1. */
const TALKS: Readonly<Record<keyof typeof DIALECTS, { sent: string; heard: RegExp }>> = {
  lines: { sent: 'hello\n12\n', heard: /^hello\n12\n$/ },
  frames: { sent: '\x01portcall/1\n0 hello\n', heard: /^\x01portcall\/1[^\n]*\n(?:ping 0\n)?0 hello\n$/ },
  raw: { sent: 'hello', heard: /^hello$/ },
  sized: { sent: sized('hello') + sized(''), heard: /^5 {63}hello0 {63}$/ },
};

/** An echo that notes what it ran and over which dialect. */
function echo(dialects: readonly Dialect[]) {
  const ran: string[] = [];
  const callback: Callback = (message, { client }) => {
    ran.push(`${client.dialect}: ${message}`);
    return message;
  };
  return { ran, server: new MicroServer(callback, 0, { dialects, log() {} }) };
}

const pairs = FURTHER_NAMES.flatMap((one) => FURTHER_NAMES.map((other) => [one, other] as const))
  .filter(([one, other]) => one !== other);
const PORTS = [...FURTHER_NAMES.map((name) => [name]), ...pairs.map((pair) => [...pair])];

describe.each(PORTS.map((names) => [names.join(' and '), names] as const))('a port with %s', (_, names) => {
  const on = ['lines', 'frames', ...names] as (keyof typeof DIALECTS)[];
  it.each(on.filter((name) => !names.includes('raw') || name !== 'lines'))('takes %s, in any split', async (name) => {
    const { server, ran } = echo(names.map((one) => FURTHER[one]()));
    const { sent, heard } = TALKS[name];
    for (const [how, pieces] of splits(Buffer.from(sent, 'latin1'), FUZZ_SEED, 3)) {
      expect((await askDuplex(server, pieces)).toString('latin1'), how).toMatch(heard);
    }
    expect(new Set(ran.map((one) => one.split(':')[0]))).toEqual(new Set([name]));
  });
  it('takes lines, in any split', async () => {
    const { server } = echo(names.map((one) => FURTHER[one]()));
    for (const [how, pieces] of splits(Buffer.from(TALKS.lines.sent), FUZZ_SEED, 3)) {
      expect(String(await askDuplex(server, pieces)), how).toMatch(TALKS.lines.heard);
    }
  });

  it.each([['HTTP', 'POST / HTTP/1.1\r\nHost: a\r\n\r\nhello\n', /^HTTP\/1\.1 400 /], ['SSH', 'SSH-2.0-a\r\nhello\n', /^HTTP/],
    ['TLS', '\x16\x03\x01\x02\0\x01\0\nhello\n', /^ERR PROTOCOL_ERROR /], ['noise', '\0\x02\x7f\nhello\n', /^ERR PROTOCOL_ERROR /],
    ['FF', '\xff\xfe\nhello\n', /^ERR PROTOCOL_ERROR /]])('runs nothing of %s', async (_name, text, heard) => {
    const { server, ran } = echo(names.map((one) => FURTHER[one]()));
    for (const [how, pieces] of splits(Buffer.from(text, 'latin1'), FUZZ_SEED, 3)) {
      expect(String(await askDuplex(server, pieces, false)), how).toMatch(heard);
    }
    expect(ran).toEqual([]);
  });
});

describe('first bytes that several may claim', () => {
  const both = () => [raw(), sizedHeader()];
  it.each([
    ['12', 'raw: 12', '12'], ['1', 'raw: 1', '1'], ['12 ', 'raw: 12 ', '12 '], ['12\n', 'raw: 12', '12\n'],
    ['12  x\n', 'raw: 12  x', '12  x\n'], ['1'.repeat(21), `raw: ${'1'.repeat(21)}`, '1'.repeat(21)],
    [' 12\n', 'raw:  12', ' 12\n'], ['12'.padEnd(63), `raw: ${'12'.padEnd(63)}`, '12'.padEnd(63)],
    [sized('x'), 'sized: x', sized('x')],
  ])('%j and FIN', async (text, run, heard) => {
    for (const dialects of [both(), both().reverse()]) {
      const { server, ran } = echo(dialects);
      for (const [how, pieces] of splits(Buffer.from(text), FUZZ_SEED, 3)) {
        expect(String(await askDuplex(server, pieces)), how).toBe(heard);
        expect(ran.splice(0), how).toEqual([run]);
      }
    }
  });

  it('digits wait for more while they may be a sized header, and no longer than a message may take', async () => {
    const server = new MicroServer((message) => message, 0, { dialects: both(), partialTimeoutMs: 400 });
    const { port } = await server.startListening();
    const began = performance.now();
    await RawClient.with(port as number, async (client) => {
      await client.write('12');
      expect(String(await client.readToFin())).toMatch(/^ERR TIMEOUT /);
      expect(performance.now() - began).toBeGreaterThan(390);
    });
    await stillServes({ port: port as number }, { ask: 'fine' });
    await server.stop();
  });
  it('where the sized header is off, digits are a raw text', async () => {
    const server = new MicroServer((message) => message, 0, { dialects: [raw({ silenceMs: 20 })] });
    const { port } = await server.startListening();
    await RawClient.with(port as number, async (client) => {
      await client.write('12');
      expect(String(await client.readBytes(2))).toBe('12');
    });
    await server.stop();
  });
});

it('no dialect claims bytes that a longer run of them refuses', () => {
  const heads = [...Object.values(TALKS).map(({ sent }) => sent), 'POST / HTTP/1.1', '\x01port', '7'.repeat(30)];
  for (const open of [lines, frames, ...Object.values(FURTHER)]) {
    for (const head of heads.map((text) => Buffer.from(text, 'latin1'))) {
      const answers = Array.from(head, (_, at) => open().matches(head.subarray(0, at + 1)));
      const settled = answers.findIndex((answer) => answer !== 'more');
      if (settled === -1 || (open().name === 'raw' && head[0] === 53)) continue; // 5: the sized header's at byte 64
      expect(new Set(answers.slice(settled)).size, `${open().name}: ${head} → ${answers}`).toBe(1);
    }
  }
});
