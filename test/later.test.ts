/** A callback may answer with a Deferred where it would with a promise. */
import { expect, it } from 'vitest';
import { Deferred } from '../lib/later.ts';
import { MicroClient, MicroError } from '../lib/micro_client.ts';
import { MicroServer, type Callback, type ServerOptions } from '../lib/micro_server.ts';

async function served(callback: Callback, options: ServerOptions, task: (client: MicroClient) => Promise<void>) {
  const server = new MicroServer(callback, 0, options);
  const { url } = await server.startListening();
  const client = new MicroClient(url);
  try {
    await task(client);
  } finally {
    await client.close();
    await server.stop({ graceMs: 0 });
  }
}

it('is answered when it is resolved, in any order', async () => {
  const asked: [string, Deferred][] = [];
  const callback = (text: string) => {
    const reply = new Deferred();
    asked.push([text, reply]);
    if (asked.length === 3) for (const [one, later] of asked.reverse()) later.resolve(`${one}!`);
    return reply;
  };
  await served(callback, {}, async (client) => {
    const replies = ['a', 'b', 'c'].map((text) => client.sendMessage(text));
    expect(await Promise.all(replies)).toEqual(['a!', 'b!', 'c!']);
  });
});

it('may be settled before anybody asks', async () => {
  const callback = (text: string) => {
    const reply = new Deferred();
    if (text === 'good') reply.resolve('early'); else reply.reject(new MicroError('SERVER_BUSY', 'not now'));
    reply.resolve('too late');
    return reply;
  };
  await served(callback, {}, async (client) => {
    expect(await client.sendMessage('good')).toBe('early');
    await expect(client.sendMessage('bad')).rejects.toMatchObject({ code: 'SERVER_BUSY' });
  });
});

it('that is never settled ends at the deadline, and what comes later reaches nobody', async () => {
  const replies: Deferred[] = [];
  const callback = (text: string) => (text === 'never' ? replies[replies.push(new Deferred()) - 1] as Deferred : text);
  await served(callback, { callbackTimeoutMs: 50 }, async (client) => {
    await expect(client.sendMessage('never')).rejects.toMatchObject({ code: 'TIMEOUT' });
    const next = client.sendMessage('next');
    for (const reply of replies) reply.resolve('late');
    expect(await next).toBe('next');
  });
});

it('runs once for one id', async () => {
  let runs = 0;
  const callback = () => {
    const reply = new Deferred();
    const run = `run ${++runs}`;
    setImmediate(() => reply.resolve(run));
    return reply;
  };
  await served(callback, { dedupe: 8 }, async (client) => {
    const twice = [client.sendMessage('a', { id: '1' }), client.sendMessage('a', { id: '1' })];
    expect(await Promise.all(twice)).toEqual(['run 1', 'run 1']);
    expect(await client.sendMessage('a', { id: '1' })).toBe('run 1');
    expect(await client.sendMessage('a', { id: '2' })).toBe('run 2');
  });
});

it('can be awaited in place of a promise', async () => {
  const [good, bad, early] = [new Deferred(), new Deferred(), new Deferred()];
  early.resolve('at once');
  setImmediate(() => { good.resolve('in time'); bad.reject(new Error('no')); });
  await expect(bad).rejects.toThrow('no');
  expect([await good, await early]).toEqual(['in time', 'at once']);
});
