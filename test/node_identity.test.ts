/** A node's id: kept over restarts, agreed on by starts at once, and never written over what can't be read. */
import { mkdirSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { MicroWorker } from '../lib/worker.ts';
import { MicroRouter } from '../lib/router.ts';
import { NodeSessions, helloOf, loadNodeIdentity } from '../lib/node_identity.ts';
import { Child } from './helpers/child.ts';
import { until } from './helpers/deadline.ts';
import { scratch } from './helpers/scratch.ts';

const folder = scratch('identity');
const UUID = /^[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}$/;

describe('loadNodeIdentity', () => {
  it('makes an id once, and a session each time', async () => {
    const path = join(folder(), 'deep', 'config.json');
    const first = await loadNodeIdentity(path);
    const second = await loadNodeIdentity(path);
    expect(first.nodeId).toMatch(UUID);
    expect(second.nodeId).toBe(first.nodeId);
    expect(second.sessionId).toMatch(UUID);
    expect(second.sessionId).not.toBe(first.sessionId);
    expect(JSON.parse(readFileSync(path, 'utf8'))).toEqual({ node_id: first.nodeId });
    expect(readdirSync(join(path, '..'))).toEqual(['config.json']);
  });
  it('leaves the other fields of the file as they are, and writes nothing where it has an id', async () => {
    const path = join(folder(), 'config.json');
    writeFileSync(path, '{"port": 5, "nested": {"a": [1]}}');
    const { nodeId } = await loadNodeIdentity(path);
    expect(JSON.parse(readFileSync(path, 'utf8'))).toEqual({ port: 5, nested: { a: [1] }, node_id: nodeId });
    const before = statSync(path, { bigint: true });
    await loadNodeIdentity(path);
    const { ino, mtimeNs } = statSync(path, { bigint: true });
    expect([ino, mtimeNs]).toEqual([before.ino, before.mtimeNs]);
  });
  it.each([
    ['', /Unexpected end/], ['{', /JSON/], ['[]', /it is "\[\]"/], ['null', /expected an object/], ['"a"', /expected an object/],
    ['{"node_id":""}', /its node_id is ""/], ['{"node_id":5}', /its node_id is 5/], ['{"node_id":null}', /its node_id is null/],
    ['{"node_id":"a\\nb"}', /its node_id is "a\\nb"/], [`{"node_id":"${'x'.repeat(129)}"}`, /1 to 128 letters/],
    [`{"a":"${'x'.repeat(1024 * 1024)}"}`, /expected at most 1048576/],
  ])('refuses %j and leaves it alone', async (text, why) => {
    const path = join(folder(), 'config.json');
    writeFileSync(path, text);
    const error: Error = await loadNodeIdentity(path).then(() => { throw new Error('it was read'); }, (reason: Error) => reason);
    expect(error.message).toMatch(/^Cannot read ".*config\.json": .*\. Mend it, or delete it for a new identity$/);
    expect(error.message).toMatch(why);
    expect(readFileSync(path, 'utf8')).toBe(text);
  });
  it('refuses a link and a folder', async () => {
    const at = folder();
    writeFileSync(join(at, 'real.json'), '{}');
    symlinkSync('real.json', join(at, 'link.json'));
    mkdirSync(join(at, 'folder.json'));
    for (const name of ['link.json', 'folder.json']) {
      await expect(loadNodeIdentity(join(at, name))).rejects.toThrow(/expected a plain file/);
    }
    expect(readFileSync(join(at, 'real.json'), 'utf8')).toBe('{}');
  });
  it.each([['no file', undefined], ['a file without an id', '{"port": 5}']])(
    'of many starts at once, in this process and others, all get one id: %s', async (_what, text) => {
      const path = join(folder(), 'config.json');
      if (text !== undefined) writeFileSync(path, text);
      const children = [1, 2].map(() => new Child('identity.ts', { path }));
      try {
        await Promise.all(children.map((child) => child.ready()));
        const all = await Promise.all([...children.map((child) => child.ask<{ nodeId: string }>('load')),
          ...Array.from({ length: 10 }, () => loadNodeIdentity(path))]);
        expect(new Set(all.map(({ nodeId }) => nodeId)).size).toBe(1);
        expect(readdirSync(join(path, '..'))).toEqual(['config.json']);
      } finally {
        await Promise.all(children.map((child) => child.kill()));
      }
    });
});

it('a router refuses a second worker of one node, and tells so', async () => {
  const identity = await loadNodeIdentity(join(folder(), 'config.json'));
  const router = new MicroRouter({ front: 0, back: 0, log() {} });
  const { back } = await router.startListening();
  const said: string[] = [];
  const workers = [1, 2].map(() => new MicroWorker(() => 'x', back.url,
    { id: identity.nodeId, log: (_level, text) => said.push(text) }));
  try {
    for (const worker of workers) void worker.start().catch((error: Error) => said.push(error.message));
    await until(() => said.some((text) => /is here\. Give each an id of its own/.test(text)), 5_000, 'that the second was refused');
    expect(router.stats().workers.length).toBe(1);
  } finally {
    await Promise.all(workers.map((worker) => worker.stop()));
    await router.stop();
  }
});

describe('NodeSessions', () => {
  it('tells a restart from a double', () => {
    const sessions = new NodeSessions();
    expect(sessions.heard('a', '1')).toBe('new');
    expect(sessions.heard('a', '1')).toBe('same');
    expect(sessions.heard('b', '1')).toBe('new');
    expect(sessions.heard('a', '2')).toBe('restarted');
    expect(sessions.heard('a', '2')).toBe('same');
    expect(sessions.heard('a', '1')).toBe('double');
    expect(sessions.heard('a', '2')).toBe('same');
    expect(sessions.heard('a', '3')).toBe('restarted');
  });
  it('remembers maxNodes of them', () => {
    const sessions = new NodeSessions({ maxNodes: 2 });
    for (const id of ['a', 'b', 'c']) sessions.heard(id, '1');
    expect(['a', 'c'].map((id) => sessions.heard(id, '2'))).toEqual(['new', 'restarted']);
  });
  it('is told by a hello', () => {
    expect(helloOf({ nodeId: 'n', sessionId: 's' })).toEqual({ node: 'n', session: 's' });
  });
});
