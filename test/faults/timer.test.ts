/** Group G, timers: right to the tick, and never early, whatever they are asked and whatever time it is. */
import { readFileSync } from 'node:fs';
import { afterEach, expect, vi } from 'vitest';
import { MicroClient, type Client, type Context } from '../../lib/index.ts';
import { createTimer } from '../../services/timer.ts';
import { FakeClock } from '../helpers/fake_clock.ts';
import { fault, FULL } from '../helpers/faults.ts';
import { FUZZ_SEED, seeded } from '../helpers/random.ts';
import { RawClient } from '../helpers/raw_client.ts';
import { stillServes } from '../helpers/still_serves.ts';
import { watched } from '../helpers/watched.ts';

afterEach(() => { vi.useRealTimers(); });

const newContext = (): Context => ({ client: { state: new Map() } as unknown as Client }) as Context;
const BAD = ['-1', '0 0 -1', '-1 0 0', '1000000000 0 0', '1e9 0 0', '0 0 1e9', 'NaN', '0 0 NaN', '0 0 0 5', '0 0', '100 0 0',
  '0 60 0', '0 0 60', '0.5', 'Infinity', '99:59:60', '99:60:00', '100:00:00', ':', '::'];
const format = (seconds: number): string => [seconds / 3600, seconds / 60 % 60, seconds % 60]
  .map((value) => String(Math.floor(value)).padStart(2, '0')).join(':');

fault('G13', 'timers of 0, of 99:59:59 and between, by a clock that is turned', async () => {
  const random = seeded();
  const lengths = [0, 1, 59, 60, 3_599, 3_600, 359_999,
    ...Array.from({ length: FULL ? 200 : 20 }, () => random.int(360_000))];
  for (const seconds of lengths) {
    const lateMs = random.int(90); // as a busy machine is
    const clock = new FakeClock(lateMs);
    const service = createTimer({ clock });
    const context = newContext();
    const how = `${format(seconds)}, ticks ${lateMs} ms late (FUZZ_SEED=${FUZZ_SEED})`;
    expect(await service.callback(format(seconds), context), how).toBe(format(seconds));
    await clock.advance(Math.max(0, seconds * 1_000 - random.between(2_000, 5_000)));
    const leftMs = seconds * 1_000 - clock.now();
    const told: [string, number][] = [];
    const end = (async () => {
      for await (const part of service.callback('stream', context) as AsyncIterable<string>) told.push([part, clock.now()]);
    })();
    await clock.advance(leftMs + 1_000);
    await end;
    const first = Math.ceil(leftMs / 1_000);
    expect(told.map(([part]) => part), how).toEqual(
      [...Array.from({ length: first }, (_, at) => format(first - at)), 'done']);
    for (const [index, [part, at]] of told.entries()) {
      const rightMs = seconds * 1_000 - (part === 'done' ? 0 : (first - index) * 1_000);
      if (index > 0) expect(at, `${how}: ${part} is not early`).toBeGreaterThanOrEqual(rightMs);
      if (index > 0) expect(at - rightMs, `${how}: ${part} is not late`).toBeLessThanOrEqual(100);
    }
    expect(clock.waiting, `${how}: waits for nothing more`).toBe(0);
  }
});

fault('G13', 'what is no time: one line over lines, frames and in parts; $ping between parts', () =>
  watched({ callback: 'timer' }, async (server) => {
    await RawClient.with(server.port, async (client) => {
      const answer = await client.ask(`${BAD.join('\n')}\n`);
      const heard = answer.split('\n');
      expect(heard.length, 'lines').toBe(BAD.length + 1);
      BAD.forEach((text, at) => expect(heard[at], text).toMatch(/^Cannot start a timer: ./));
    });
    const client = new MicroClient(server.port);
    for (const text of ['', ...BAD]) {
      expect(await client.sendMessage(text), JSON.stringify(text)).toMatch(/^Cannot start a timer: [^\n]+$/);
    }
    expect(JSON.parse(await client.sendMessage('status')), 'none was started').toEqual([]);
    for (const texts of [['0', '0', '0', '5'], ['0', '0'], ['0', '', '5'], ['0', '0', '-1']]) {
      const context = { ...newContext(), parts: texts.map((text) => Buffer.from(text)) } as Context;
      expect(createTimer().callback('', context), texts.join('|')).toMatch(/^Cannot start a timer: [^\n]+$/);
    }
    await RawClient.with(server.port, async (other) => {
      expect(await other.ask('0\n$ping\n0\n$ping\n5\n$ping\n')).toBe('0\npong\n0\npong\n5\npong\n');
    });
    expect(JSON.parse(await client.sendMessage('status')), 'one of 5 s').toMatchObject([{ totalMs: 5_000 }]);
    await client.close();
    await stillServes(server);
  }));

fault('G13', '100 timers and streams that count by the second: none early, CPU < 20 %', () =>
  watched({ callback: 'timer' }, async (server) => {
    const client = new MicroClient(server.port);
    for (let count = 0; count < 100; count++) await client.sendMessage('99:59:59');
    const cpuBefore = cpuMs(server.pid);
    const began = performance.now();
    await Promise.all(Array.from({ length: 20 }, async () => {
      const startedAt = performance.now();
      const told: [string, number][] = [];
      for await (const part of client.streamMessage('stream 0 0 3')) told.push([part, performance.now() - startedAt]);
      expect(told.map(([part]) => part)).toEqual(['00:00:03', '00:00:02', '00:00:01', 'done']);
      told.forEach(([part, at], index) => expect(at, part).toBeGreaterThanOrEqual(1_000 * index - 0.5));
    }));
    const share = (cpuMs(server.pid) - cpuBefore) / (performance.now() - began);
    expect(share, 'of one core').toBeLessThan(0.2);
    await client.close();
    await stillServes(server);
  }));

fault('G12', 'time of day ±1 h: no timer early or late', async () => {
  for (const hours of [1, -1]) {
    vi.useFakeTimers({ toFake: ['Date'], now: Date.now() });
    const service = createTimer();
    const began = performance.now();
    const stream = service.callback('stream 0 0 1', newContext()) as AsyncIterable<string>;
    const told: string[] = [];
    for await (const part of stream) {
      told.push(part);
      vi.setSystemTime(Date.now() + hours * 3_600_000);
    }
    const ms = performance.now() - began;
    expect(told).toEqual(['00:00:01', 'done']);
    expect(ms).toBeGreaterThanOrEqual(999.5);
    expect(ms, 'ms to done').toBeLessThan(1_250);
    vi.useRealTimers();
  }
});

/** Milliseconds of CPU that a process has had, in ticks of 10 ms. */
function cpuMs(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'latin1').replace(/^.*\) /, '').split(' ');
  return 10 * (Number(fields[11]) + Number(fields[12]));
}
