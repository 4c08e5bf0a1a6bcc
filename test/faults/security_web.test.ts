/** Group D: web pages of a browser on this machine, whose requests reach every port of it. */
import { connect as connectHttp2 } from 'node:http2';
import { once } from 'node:events';
import { join } from 'node:path';
import { describe, expect } from 'vitest';
import { Trial, NONE } from '../helpers/backups.ts';
import { callsThatSay, pagesThatSay, type Page } from '../helpers/browser.ts';
import { pause, within } from '../helpers/deadline.ts';
import { FURTHER_NAMES, sized } from '../helpers/dialects.ts';
import { fault } from '../helpers/faults.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { scratch } from '../helpers/scratch.ts';
import type { ServerSetUp } from '../helpers/server_process.ts';
import { stillServes } from '../helpers/still_serves.ts';
import { watched } from '../helpers/watched.ts';

const newFolder = scratch('web');
const FORGED = '{"action":"timestamp","clientID":"TaskTracker","eventName":"forged"}';
/** What does something at one of the services, in one of the dialects. */
const COMMANDS = [FORGED, 'Q', 'backup', 'Backup', 'revert', 'verify', 'exit', '0 0 5', '$stats', `\x01portcall/1\n0 ${FORGED}`,
  sized(FORGED)];
const REFUSED = /^HTTP\/1\.1 400 [^]*Connection: close[^]*portcall/;
const CLOSED_MS = 2_000;

const CALENDAR = { callback: 'never', service: { file: 'calendar.ts', create: 'createCalendar',
  options: { folder: '', allowQuit: true } } } as const satisfies Partial<ServerSetUp>;
const calendarIn = (folder: string) => ({ ...CALENDAR,
  service: { ...CALENDAR.service, options: { ...CALENDAR.service.options, folder } } });
const EVENTS = '{"action":"events"}';

/** Sends it as a browser does, which keeps its side open; gives what is answered up to the server's FIN. */
const visit = (port: number, { name, bytes }: Page): Promise<string> => RawClient.with(port, async (client) => {
  const began = performance.now();
  await client.write(bytes);
  const answer = await client.readToFin(CLOSED_MS, `FIN, ${name}`);
  expect(performance.now() - began, `ms to FIN, ${name}`).toBeLessThan(CLOSED_MS);
  return answer.toString();
});

async function allRefused(port: number): Promise<void> {
  await Promise.all(pagesThatSay(COMMANDS, port).map(async (page) =>
    expect(await visit(port, page), page.name).toMatch(REFUSED)));
  await Promise.all(callsThatSay(COMMANDS).map(async (call) =>
    expect(await visit(port, call), call.name).toMatch(/^ERR PROTOCOL_ERROR [^\n]*\n$/)));
}

describe('a web page', () => {
  fault('D01', 'no echo: HTTP of every kind, TURN, TLS, on a port with all dialects', () =>
    watched({ dialects: FURTHER_NAMES, record: join(newFolder(), 'runs') }, async (server) => {
      expect(await server.runsOf(() => allRefused(server.port)), 'run').toEqual([]);
      await stillServes(server, { ask: 'fine' });
    }));

  fault('D01', 'no event: HTTP of every kind to the calendar', () =>
    watched(calendarIn(newFolder()), async (server) => {
      await allRefused(server.port);
      const events = () => RawClient.with(server.port, (client) => client.ask(EVENTS));
      expect(await events()).toBe('{"status":200,"message":"events","events":[],"cursor":0,"more":false}\n');
      await RawClient.with(server.port, (client) => client.ask(FORGED.replace('forged', 'meant')));
      expect(await events(), 'a good one is stored').toMatch(/"events":\[[^\]]*"eventName":"meant"[^\]]*\],"cursor":1,/);
    }));

  fault('D01', 'no backup: HTTP of every kind to BACKUP', () => Trial.with({}, async (trial) => {
    await allRefused(trial.server.port);
    expect(trial.files()).toEqual([]);
    expect(await trial.ask('revert')).toBe(NONE);
    expect(await trial.ask('backup'), 'a good one is made').toBe('Backup completed');
    expect(trial.files()).toHaveLength(1);
  }));

  fault('D01', 'no backup later: the interval does not begin with a web page', () =>
    Trial.alone({ everyMs: 150, settleMs: 1 }, async (trial) => {
      const { port } = await trial.start(); // and no monitor, which would be a client
      await allRefused(port);
      await pause(600);
      expect(trial.files()).toEqual([]);
      await stillServes(trial.server);
      await trial.backedUp('first', 5_000);
    }));

  fault('D01', 'fetch and HTTP/2 of programs: they are told, and their page reads that nothing was run', () =>
    watched({ record: join(newFolder(), 'runs') }, async (server) => {
      const url = `http://127.0.0.1:${server.port}/`;
      const runs = await server.runsOf(async () => {
        for (const method of ['GET', 'POST', 'PUT', 'OPTIONS', 'DELETE']) {
          const body = method === 'GET' ? null : COMMANDS.join('\n');
          const reply = await fetch(url, { method, body, headers: { 'content-type': 'text/plain' } });
          expect(reply.status, method).toBe(400);
          expect(reply.headers.get('access-control-allow-origin'), 'no page of another site may read it').toBeNull();
          expect(await reply.text(), method).toMatch(/portcall[^]*nothing was run/);
        }
        const session = connectHttp2(url);
        const failed = once(session, 'error');
        session.request({ ':method': 'POST' }).on('error', () => {}).end(COMMANDS.join('\n'));
        await within(CLOSED_MS, failed, 'the end of the HTTP/2 session');
        session.destroy();
      });
      expect(runs, 'run').toEqual([]);
    }));

  fault('D01', 'a body that never ends, and one of 8 MiB: closed, nothing run, nothing kept', () =>
    watched({ record: join(newFolder(), 'runs') }, async (server) => {
      const head = `POST / HTTP/1.1\r\nHost: 127.0.0.1:${server.port}\r\nContent-Length: 8388608\r\n\r\n`;
      const runs = await server.runsOf(() => Promise.all([1, 2, 3, 4].map(() => RawClient.with(server.port, async (client) => {
        await client.write(head);
        const body = Buffer.from('run me\n'.repeat(1024 * 128));
        void (async () => { for (let at = 0; at < 9 && !client.socket.closed; at++) await client.write(body); })();
        expect((await client.readBytes(12)).toString()).toBe('HTTP/1.1 400');
        await within(CLOSED_MS, Promise.race([client.ended, client.closed]), 'the end');
      }))));
      expect(runs, 'run').toEqual([]);
      await stillServes(server, { ask: 'fine' });
    }));
});

describe('a request line that is too long to be read', () => {
  fault('D01', 'is HTTP still: headers and body behind it are not run', () =>
    watched({ record: join(newFolder(), 'runs'), options: { maxMessageBytes: 1_024 } }, async (server) => {
      const long = 'a'.repeat(3_000);
      const pages = [`GET /${long} HTTP/1.1\r\n`, `POST /${long} HTTP/1.1\r\nAccept: */*\r\nHost: a\r\n\r\n`,
        `POST /\xff${long} HTTP/1.1\r\nAccept: */*\r\n\r\n`, 'POST /\xff HTTP/1.1\r\nAccept: */*\r\n\r\n', `\r\nPUT /${long}\r\n`];
      const runs = await server.runsOf(() => Promise.all(pages.map(async (head) => {
        const bytes = Buffer.concat([Buffer.from(head, 'latin1'), Buffer.from(COMMANDS.join('\r\n'))]);
        expect(await visit(server.port, { name: head.slice(0, 20), bytes }), head.slice(0, 20)).toMatch(REFUSED);
      })));
      expect(runs, 'run').toEqual([]);
      await stillServes(server, { ask: 'fine' });
    }));
});
