/** What may go wrong over ZMTP: the faults of groups A, B and D that are told apart by dialect. */
import { afterAll, expect } from 'vitest';
import { fault } from '../helpers/faults.ts';
import { MIB, monitored } from '../helpers/monitor.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { ServerProcess } from '../helpers/server_process.ts';
import { stillServes } from '../helpers/still_serves.ts';
import { watched } from '../helpers/watched.ts';
import { command, greetingOf, message, messagesOf, opening, property } from '../helpers/zmtp_wire.ts';

const HELLO = '\x01portcall/1\n';
const NAMES = ['__proto__', 'constructor', 'prototype', 'toString', 'hasOwnProperty'];
const record = await ServerProcess.start({ callback: 'obey', dialects: ['zmtp'] });
afterAll(() => record.kill());

const runs = async (): Promise<number> => (await record.vitals()).runs;
/** Messages that come back, behind the server's greeting. */
const heard = (bytes: Buffer): string[][] =>
  messagesOf(bytes.subarray(64)).filter(([name = '']) => !/^\/(READY|PING)$/.test(name));
const ask = async (...bytes: Buffer[]): Promise<string[][]> =>
  heard(await RawClient.with(record.port, async (client) => {
    client.fin(Buffer.concat(bytes));
    return client.readToFin();
  }));

fault('A15', '__proto__ and constructor as names and values, ZMTP', () => monitored(record, {}, async () => {
  const before = (await record.vitals()).prototypeNames;
  for (const name of NAMES) {
    const properties = [property('Socket-Type', 'DEALER'), property('Identity', name),
      property(name, name), property(`X-${name}`, name), property('X-timeout', name)];
    const ready = command('READY', Buffer.concat(properties));
    const json = `{"${name}":{"reply":"x"}}`;
    expect(await ask(opening(), ready, message(name, '', name), message('', json), message(name, name)))
      .toEqual([[name, '', name], ['', json], [`${name}\n${name}`]]);
    expect(await ask(greetingOf(name), message('', name)), `socket type ${name}`)
      .toEqual([['/ERROR', expect.stringMatching(/^ERR PROTOCOL_ERROR /)]]);
    expect(await ask(greetingOf('REQ'), command(name, name), message('', name)), `command ${name}`)
      .toEqual([['', name]]);
  }
  expect((await record.vitals()).prototypeNames, 'Object.prototype in the server').toEqual(before);
  await stillServes(record, { ask: 'fine' });
}));

fault('A20', 'a line or a hello after ZMTP, ZMTP after either, where it is enabled', () =>
  monitored(record, {}, async () => {
    const zmtp = Buffer.concat([greetingOf('DEALER'), message('zmtp')]);
    const rows: [name: string, bytes: Buffer, expected: (string | RegExp)[], ran: number][] = [
      ['a line, then ZMTP', Buffer.concat([Buffer.from('one\n'), zmtp, Buffer.from('\ntwo\n')]),
        ['one', /^ERR BAD_MESSAGE /, 'two'], 2],
      ['a hello, then ZMTP', Buffer.concat([Buffer.from(`${HELLO}0 one\n`), zmtp, Buffer.from('\n1 two\n')]),
        [/^\x01portcall\/1/, '0 one', /^! (PROTOCOL_ERROR|BAD_MESSAGE) r: /, '1 two'], 2],
    ];
    for (const [name, bytes, expected, ran] of rows) {
      for (const pieceBytes of [bytes.length, 1, 7]) {
        const [how, count] = [`${name}, ${pieceBytes} bytes a packet`, await runs()];
        await RawClient.with(record.port, async (client) => {
          await client.writeSlices(bytes, pieceBytes, pieceBytes === 1 ? undefined : () => record.hasRead());
          client.fin();
          const lines = (await client.readToFin()).toString().trimEnd().split('\n')
            .filter((line) => !line.startsWith('ping '));
          expect(lines.length, `${how}: ${JSON.stringify(lines)}`).toBe(expected.length);
          for (const [at, line] of expected.entries()) {
            expect(lines[at], how).toMatch(typeof line === 'string' ? new RegExp(`^${line}$`) : line);
          }
        });
        expect(await runs() - count, `${how}: run`).toBe(ran);
      }
    }
    for (const behind of ['line\n', HELLO, '0 one\n', 'POST / HTTP/1.1\r\n\r\n']) {
      for (const start of [greetingOf('DEALER'), zmtp, opening()]) {
        const count = await runs();
        const replies = await ask(start, Buffer.from(behind));
        const [own, last] = [start === zmtp ? [['zmtp']] : [], replies.at(-1)];
        expect(replies.slice(0, own.length)).toEqual(own);
        // Refused, or the beginning of a frame of which the rest never came.
        if (replies.length > own.length) expect(last?.join(' '), behind).toMatch(/ERR PROTOCOL_ERROR /);
        expect(await runs() - count, `${JSON.stringify(behind)}: run`).toBe(own.length);
      }
    }
    await stillServes(record, { ask: 'fine' });
  }));

fault('B02', '500 ms callback, half-close at once; ZMTP', () =>
  watched({ callback: 'obey', dialects: ['zmtp'] }, async (server) => {
    const order = (reply: string, times: number) => JSON.stringify({ waitMs: 500, reply, times });
    const began = performance.now();
    const bytes = Buffer.concat([greetingOf('DEALER'), message('1', '', order('whole ', 50_000)),
      message('2', '', 'second'), message('', order('é', 1))]);
    const answer = await RawClient.with(server.port, async (client) => {
      client.fin(bytes);
      return client.readToFin();
    });
    expect(performance.now() - began).toBeGreaterThan(490);
    expect(heard(answer).sort()).toEqual([['', 'é'], ['1', '', 'whole '.repeat(50_000)], ['2', '', 'second']]);
    await stillServes(server, { ask: 'm' });
  }));

fault('D04', 'TLS hello, FF FE, control bytes first, then LF + a command, where ZMTP is enabled', () =>
  monitored(record, {}, async () => {
    const before = await runs();
    const firsts = ['fffe', 'ffff', 'ff01', 'ff7f', '160301', '16030100c8010000c40303', '0100', '0101', '0000', '0400',
      '0500', 'feff', 'ff00fe', 'ff0000000000000000', 'ff00000000000000007e', 'ff00000000000000007f00',
      'ff00000000000000007f02', `ff00000000000000007f0301${'00'.repeat(52)}`];
    for (const first of firsts) {
      for (const pieceBytes of [1_000, 1]) {
        await RawClient.with(record.port, async (client) => {
          const bytes = Buffer.concat([Buffer.from(first, 'hex'), Buffer.from('\nrun me\n{"reply":"x"}\n')]);
          await client.writeSlices(bytes, pieceBytes);
          if (bytes.length < 64 || first === 'feff') client.fin(); // may yet become a greeting; is a line
          const began = performance.now();
          await client.readToFin(2_000, `FIN after ${first}`);
          expect(performance.now() - began).toBeLessThan(2_000);
        });
      }
    }
    // FE FF is no control byte: what is behind its line is a line, as it always is.
    expect(await runs() - before, 'run').toBe(2 * 2);
    await stillServes(record, { ask: 'fine' });
  }));

fault('A09', 'ZMTP frames of MAX and MAX+1 bytes, and lengths up to 2^64-1', () =>
  watched({ callback: 'echo', dialects: ['zmtp'], options: { maxMessageBytes: MIB } }, async (server) => {
    const tell = (bytes: Buffer) => RawClient.with(server.port, async (client) => {
      await client.write(Buffer.concat([greetingOf('REQ'), bytes]));
      client.fin();
      return heard(await client.readToFin());
    });
    expect(await tell(message('', 'x'.repeat(MIB)))).toEqual([['', 'x'.repeat(MIB)]]);
    const tooLarge = [['', expect.stringMatching(/^ERR MESSAGE_TOO_LARGE /)]];
    expect(await tell(message('', 'x'.repeat(MIB + 1)))).toEqual(tooLarge);
    for (const length of ['0000000000100001', '00000000ffffffff', '001fffffffffffff', '7fffffffffffffff', 'ffffffffffffffff']) {
      expect(await tell(Buffer.from(`010002${length}`, 'hex')), length).toEqual(tooLarge);
    }
    expect((await server.stats()).limits.maxMessageBytes).toBe(6);
    await stillServes(server, { ask: 'fine' });
  }));

fault('C06', 'ZMTP greetings and frames of which the rest never comes', () =>
  watched({ callback: 'echo', dialects: ['zmtp'], options: { partialTimeoutMs: 300 } }, async (server) => {
    const unfinished = [Buffer.of(0xff, 0), opening().subarray(0, 10), opening().subarray(0, 63), opening(),
      greetingOf('REQ').subarray(0, 70), Buffer.concat([greetingOf('REQ'), message('', 'a').subarray(0, 3)])];
    await Promise.all(unfinished.map((bytes) => RawClient.with(server.port, async (client) => {
      await client.write(bytes);
      await client.readToFin(5_000, `FIN after ${bytes.length} bytes`);
    })));
    await stillServes(server, { ask: 'fine' });
  }));
