/** Groups A and D where raw, sized header and lines share a port: what time and first bytes decide. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect } from 'vitest';
import { pause } from '../helpers/deadline.ts';
import { FURTHER_NAMES, sized } from '../helpers/dialects.ts';
import { fault, FULL, some } from '../helpers/faults.ts';
import { monitored } from '../helpers/monitor.ts';
import { everyCut } from '../helpers/packets.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { ServerProcess } from '../helpers/server_process.ts';
import { stillServes } from '../helpers/still_serves.ts';

const folder = mkdtempSync(join(tmpdir(), 'portcall-raw-'));
/** All dialects at once; what it runs is in a file. */
let server: ServerProcess;
beforeAll(async () => {
  server = await ServerProcess.start({ dialects: FURTHER_NAMES, record: join(folder, 'runs') });
});
afterAll(async () => {
  await server?.kill();
  rmSync(folder, { recursive: true, force: true });
});

/** Writes texts, waits where a number stands, and gives what comes up to `quietMs` after the last. */
async function say(steps: readonly (string | Buffer | number)[], quietMs = 300):
  Promise<{ heard: string; firstMs: number }> {
  return RawClient.with(server.port, async (client) => {
    let heard = '';
    let firstMs = NaN;
    let writtenAt = 0;
    client.socket.on('data', (bytes: Buffer) => {
      if (heard === '') firstMs = performance.now() - writtenAt;
      heard += bytes.toString('latin1');
    });
    for (const step of steps) {
      if (typeof step === 'number') await pause(step);
      else {
        await client.write(step);
        writtenAt = performance.now();
      }
    }
    await pause(quietMs);
    return { heard, firstMs };
  });
}

fault('A13', 'raw: a word, a word in two pieces, a word with LF behind it', () => monitored(server, {}, async () => {
  const rows: [steps: (string | number)[], reply: string][] = [
    [['revert'], 'revert'],
    [['rev', 100, 'ert'], 'revert'],
    [['revert', 5, '\n'], 'revert\n'],
    [['r', 20, 'e', 20, 'v', 20, 'e', 20, 'r', 20, 't'], 'revert'],
    [['Revert'], 'Revert'], // no word here: 200 ms
  ];
  const runs = await server.runsOf(() => Promise.all(rows.map(async ([steps, reply]) => {
    const { heard, firstMs } = await say(steps);
    expect(heard, JSON.stringify(steps)).toBe(reply);
    expect(firstMs, `${JSON.stringify(steps)}: ms to its reply`).toBeLessThan(1_000);
  })));
  expect(runs.sort()).toEqual(['Revert', 'revert', 'revert', 'revert', 'revert']);
  await stillServes(server, { ask: 'fine' });
}));

fault('A13', 'raw: two connections at once, each its own silence', () => monitored(server, {}, async () => {
  const texts = Array.from({ length: 50 }, (_, at) => `text ${at}`);
  const runs = await server.runsOf(async () => {
    const told = await Promise.all(texts.map((text, at) => say([text.slice(0, 4), 10 + at, text.slice(4)])));
    expect(told.map(({ heard }) => heard)).toEqual(texts);
  });
  expect(runs.sort()).toEqual([...texts].sort());
  await stillServes(server, { ask: 'fine' });
}));

fault('A15', '__proto__, constructor over raw and sized header', () => monitored(server, {}, async () => {
  const before = (await server.vitals()).prototypeNames;
  const names = ['__proto__', 'constructor', 'prototype', '{"__proto__":{"action":"ping"}}'];
  const runs = await server.runsOf(() => Promise.all(names.map(async (name) => {
    expect((await say([name])).heard, 'raw').toBe(name);
    const answer = await RawClient.with(server.port, (client) => client.ask(sized(name)));
    expect(answer, 'sized').toBe(sized(name));
  })));
  expect(runs.sort()).toEqual([...names, ...names].sort());
  expect((await server.vitals()).prototypeNames).toEqual(before);
  await stillServes(server, { ask: 'fine' });
}));

fault('A20', 'hello, sized header, line and raw text after one another', () => monitored(server, {}, async () => {
  const header = '1'.padEnd(64);
  const rows: { name: string; steps: (string | Buffer | number)[]; heard: RegExp; runs: string[] }[] = [
    { name: 'hello after raw', steps: ['one', 300, '\x01portcall/1\n0 two\n'],
      heard: /^one\x01portcall\/1\n0 two\n$/, runs: ['one', '\x01portcall/1', '0 two'] },
    { name: 'sized header after a line', steps: [`one\n${header}x\n`],
      heard: /^one\n1 +x\n$/, runs: ['one', `${header}x`] },
    { name: 'sized header after raw', steps: ['one', 300, `${header}x`],
      heard: /^one1 +x$/, runs: ['one', `${header}x`] },
    { name: 'line after a sized header', steps: [`${header}xone\n`],
      heard: /^1 +x\d+ +ERR PROTOCOL_ERROR /, runs: ['x'] },
    { name: 'hello after a sized header', steps: [`${header}x\x01portcall/1\n0 two\n`],
      heard: /^1 +x\d+ +ERR PROTOCOL_ERROR /, runs: ['x'] },
    { name: 'raw after a hello', steps: ['\x01portcall/1\n0 one\n', 'two', 300, '\n1 three\n'],
      heard: /^\x01portcall\/1[^\n]*\n0 one\n! PROTOCOL_ERROR r: [^\n]*\n1 three\n$/, runs: ['one', 'three'] },
    { name: 'ZMTP greeting after raw', steps: ['one', 300, Buffer.from('ff00000000000000017f0300', 'hex'), 300, 'two'],
      heard: /^oneERR BAD_MESSAGE [^\n]*two$/, runs: ['one', 'two'] },
    { name: 'ZMTP greeting after a sized header',
      steps: [`${header}x`, Buffer.from('ff00000000000000017f0300', 'hex')],
      heard: /^1 +x\d+ +ERR PROTOCOL_ERROR /, runs: ['x'] },
  ];
  const run = await server.runsOf(() => Promise.all(rows.map(async ({ name, steps, heard }) =>
    expect((await say(steps)).heard, name).toMatch(heard))));
  expect(run.sort(), 'run, and nothing twice').toEqual(rows.flatMap(({ runs }) => runs).sort());
  await stillServes(server, { ask: 'fine' });
}));

/** What a browser or a proxy says first, its body a command. */
const FOREIGN = [
  'POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\nContent-Length: 8\r\n\r\nrevert\r\n',
  'GET /revert HTTP/1.1\r\nHost: a\r\n\r\n',
  'PUT / HTTP/1.0\r\n\r\nrevert\n',
  'OPTIONS * HTTP/1.1\r\n\r\nrevert\n',
  'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nrevert\n',
  'CONNECT 127.0.0.1:80 HTTP/1.1\r\n\r\nrevert\n',
  'Host: a\r\nPOST / HTTP/1.1\r\n\r\nrevert\n',
  '\r\nDELETE http://a/ HTTP/1.1\r\n\r\nrevert\n',
  'SSH-2.0-client\r\nrevert\n',
];
const PAUSE_MS = 300;

fault('D02', `HTTP and SSH cut at every byte, ${PAUSE_MS} ms apart, on a port with raw and sized header`, () =>
  monitored(server, {}, async () => {
    const rows = FOREIGN.flatMap((text) => everyCut(Buffer.from(text)).map((at) => [text, at] as const));
    const runs = await server.runsOf(() => Promise.all(some(rows, 150).map(([text, at]) =>
      RawClient.with(server.port, async (client) => {
        const how = `${JSON.stringify(text.slice(0, 20))} cut at ${at}`;
        await client.write(text.slice(0, at));
        await pause(PAUSE_MS);
        client.fin(text.slice(at));
        const answer = await client.readToFin(2_000, `FIN, ${how}`);
        expect(answer.toString(), how).toMatch(/^HTTP\/1\.1 400 [^]*portcall/);
      }))));
    expect(runs, 'run').toEqual([]);
    await stillServes(server, { ask: 'fine' });
  }));

fault('D02', 'HTTP a byte at a time, a silence behind each, up to where it is refused', () =>
  monitored(server, { mayStayOpen: true }, async () => {
    const texts = FULL ? FOREIGN : some(FOREIGN, 3);
    const runs = await server.runsOf(() => Promise.all(texts.map((text) => RawClient.with(server.port, async (client) => {
      for (const byte of text) {
        if (client.bytesRead > 0) break;
        await client.write(byte);
        await pause(FULL ? PAUSE_MS : 210); // 200 end a text
      }
      client.fin();
      expect((await client.readToFin(2_000, `FIN, ${text}`)).toString(), text).toMatch(/^HTTP\/1\.1 400 /);
    }))));
    expect(runs, 'run').toEqual([]);
    await stillServes(server, { ask: 'fine' });
  }));

fault('D04', 'TLS hello, FF FE, control bytes first, on a port with raw and sized header', () =>
  monitored(server, {}, async () => {
    const controls = Array.from({ length: 32 }, (_, byte) => byte).filter((byte) => ![1, 9, 10, 13].includes(byte));
    const begins = [Buffer.from('1603010200010001fc0303', 'hex'), Buffer.from('fffe', 'hex'),
      ...controls.map((byte) => Buffer.of(byte)), Buffer.from('0161', 'hex')];
    const runs = await server.runsOf(() => Promise.all(begins.flatMap((begin) => [0, PAUSE_MS].map((ms) =>
      RawClient.with(server.port, async (client) => {
        await client.write(begin);
        if (ms > 0) await pause(ms);
        client.fin('\nrevert\n');
        const how = `${begin.toString('hex')}, ${ms} ms before the rest`;
        expect((await client.readToFin(2_000, `FIN, ${how}`)).toString(), how).toMatch(/^ERR PROTOCOL_ERROR [^\n]*\n$/);
      })))));
    expect(runs, 'run').toEqual([]);
    await stillServes(server, { ask: 'fine' });
  }));
