/**
 * Who a node is, over its restarts: `config.json` keeps its `node_id`, and each start has a
 * `session_id` of its own.
 */
import { randomUUID } from 'node:crypto';
import { constants } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { writeFileAtomically } from './atomic_file.ts';
import { lockFolder } from './folder_lock.ts';
import { quoted, textOf } from './micro_client.ts';
import { openPlainFile } from './plain_file.ts';

export interface NodeIdentity {
  /** What a router knows a worker by: `new MicroWorker(callback, back, { id: nodeId })`. */
  readonly nodeId: string;
  /** Of this start: another one with the same node id is either its past or its double. */
  readonly sessionId: string;
}

const MOST_BYTES = 1024 * 1024;
const LOCK_WAIT_MS = 5_000; // for another that is about to write the same file
const NODE_ID = /^[^\p{Cc}\p{Zl}\p{Zp}]{1,128}$/u;

/**
 * Reads a node's id, or makes one and keeps it. Other fields of the file stay as they are, and of
 * several starts at once all get the same id.
 *
 * @param path A JSON object, made if it is missing. Default `config.json` in the working folder.
 * @throws {Error} It is malformed, which is never overwritten; or it can't be read or written.
 */
export async function loadNodeIdentity(path = 'config.json'): Promise<NodeIdentity> {
  const identity = (nodeId: string): NodeIdentity => ({ nodeId, sessionId: randomUUID() });
  const known = nodeIdOf(await readConfig(path), path);
  if (known !== undefined) return identity(known);
  const folder = dirname(path);
  await mkdir(folder, { recursive: true });
  const lock = await lockPatiently(folder, `.${basename(path)}.lock`);
  try {
    const config = await readConfig(path); // another may have been quicker
    const nodeId = nodeIdOf(config, path) ?? randomUUID();
    if (nodeIdOf(config, path) === undefined) {
      await writeFileAtomically(path, `${JSON.stringify({ ...config, node_id: nodeId }, undefined, 2)}\n`);
    }
    return identity(nodeId);
  } finally {
    await lock.release();
  }
}

/** What a connection says of its node in its hello. */
export function helloOf({ nodeId, sessionId }: NodeIdentity): { node: string; session: string } {
  return { node: nodeId, session: sessionId };
}

/**
 * Tells two nodes of one id from one that was started again. Of the latter, the old session is never
 * heard again; of the former, it is.
 */
export class NodeSessions {
  readonly #sessions = new Map<string, { now: string; before: Set<string> }>();
  readonly #maxNodes: number;

  /** @param options.maxNodes That are remembered; the longest known is forgotten first. Default 10,000. */
  constructor({ maxNodes = 10_000 }: { maxNodes?: number } = {}) {
    this.#maxNodes = maxNodes;
  }

  /** What a node is, by what was heard of its id so far. A `double` is to be refused. */
  heard(nodeId: string, sessionId: string): 'new' | 'same' | 'restarted' | 'double' {
    const known = this.#sessions.get(nodeId);
    if (known?.now === sessionId) return 'same';
    if (known?.before.has(sessionId) === true) return 'double';
    if (known !== undefined) {
      known.before.add(known.now);
      known.now = sessionId;
      if (known.before.size > 16) known.before.delete(known.before.values().next().value as string);
      return 'restarted';
    }
    this.#sessions.set(nodeId, { now: sessionId, before: new Set() });
    if (this.#sessions.size > this.#maxNodes) {
      this.#sessions.delete(this.#sessions.keys().next().value as string);
    }
    return 'new';
  }
}

type Config = Readonly<Record<string, unknown>>;

function nodeIdOf(config: Config, path: string): string | undefined {
  if (!Object.hasOwn(config, 'node_id')) return undefined;
  const id = config['node_id'];
  if (typeof id === 'string' && NODE_ID.test(id)) return id;
  throw malformed(path, `its node_id is ${quoted(id)}, expected 1 to 128 letters`);
}

const malformed = (path: string, why: string, cause?: unknown) =>
  new Error(`Cannot read ${quoted(path)}: ${why}. Mend it, or delete it for a new identity`, { cause });

/** Empty, where there is no such file. */
async function readConfig(path: string): Promise<Config> {
  let text: string;
  try {
    const file = await openPlainFile(path, constants.O_RDONLY);
    try {
      const { size } = await file.stat();
      if (size > MOST_BYTES) throw malformed(path, `it has ${size} bytes, expected at most ${MOST_BYTES}`);
      text = await file.readFile('utf8');
    } finally {
      await file.close();
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return {};
    throw error;
  }
  const expected = 'an object such as {"node_id":"a"}';
  let config: unknown;
  try {
    config = JSON.parse(text);
  } catch (cause) {
    throw malformed(path, `${textOf(cause)}, expected ${expected}`, cause);
  }
  if (typeof config === 'object' && config !== null && !Array.isArray(config)) return config as Config;
  throw malformed(path, `it is ${quoted(text)}, expected ${expected}`);
}

async function lockPatiently(folder: string, name: string): ReturnType<typeof lockFolder> {
  for (const until = performance.now() + LOCK_WAIT_MS; ; await pause(5 + 10 * Math.random())) {
    try {
      return await lockFolder(folder, { name });
    } catch (error) {
      if (!/ holds it\./.test(textOf(error)) || performance.now() > until) throw error;
    }
  }
}
