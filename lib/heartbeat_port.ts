/**
 * A port for heartbeats alone, as ZeroMQ frameworks have it: DEALER sockets send `''`, `heartbeat`
 * and JSON to it, and never read. So it answers nothing; who listens to it hears of nodes instead.
 */
import { EventEmitter } from 'node:events';
import { zmtp } from './dialects/zmtp.ts';
import { Events } from './events.ts';
import { Heartbeat, type HeartbeatOptions } from './heartbeat.ts';
import { MicroError, logToStderr, now, positive, quoted, textOf, type Address } from './micro_client.ts';
import { MicroServer, type Context, type ServerOptions } from './micro_server.ts';
import { NodeSessions } from './node_identity.ts';

export interface HeartbeatPortOptions
  extends HeartbeatOptions, Pick<ServerOptions, 'ports' | 'host' | 'insecure' | 'log'> {
  maxNodes?: number; // that are known at a time; those past it are not heard; default 10,000
}

/** A node as its newest heartbeat told it; the router judges by when it came, not by what it says. */
export interface Node {
  readonly nodeId: string; readonly sessionId: string;
  readonly nodeType: string; // `WORKER`, `CLIENT`, …
  readonly address: string;
  readonly missedCount: number; // by its own count
}

/**
 * Emits `joined` at a node's first heartbeat and when it is back, `restarted` at the first of a new
 * session, `lost` once it has been silent for `intervalMs × maxMissed + timeoutMs`, and `double` when
 * two nodes use one id: of these the session that began last is heard, the other is not.
 */
export class HeartbeatPort
  extends EventEmitter<Record<'joined' | 'restarted' | 'lost' | 'double', [Node]>> {
  readonly #server: MicroServer;
  readonly #judge: Heartbeat<string>;
  readonly #sessions: NodeSessions;
  readonly #nodes = new Map<string, Node>();
  readonly #maxNodes: number;
  readonly #log: NonNullable<ServerOptions['log']>;
  #ticks: NodeJS.Timeout | undefined;

  /**
   * @param key A name in ports.json, a port or an address.
   * @throws {TypeError | RangeError} Wrong options.
   */
  constructor(key: string | number, options: HeartbeatPortOptions = {}) {
    super();
    const { intervalMs: _, timeoutMs: __, maxMissed: ___, maxNodes: ____, ...shared } = options;
    this.#maxNodes = positive(options, 'maxNodes', 10_000);
    this.#judge = new Heartbeat(options);
    this.#sessions = new NodeSessions({ maxNodes: this.#maxNodes });
    this.#log = options.log ?? logToStderr;
    const { callback } = new Events().on('heartbeat', (data, context) => this.#beat(data, context));
    this.#server = new MicroServer(async (message, context) => {
      try {
        await callback(message, context);
        return null;
      } catch (error) {
        this.#tellOnce(context, textOf(error));
        throw error;
      }
    }, key, { ...shared, dialects: [zmtp({ oneWay: true })] });
  }

  /** The nodes that are alive. */
  get nodes(): Node[] {
    return [...this.#nodes.values()];
  }

  /** @throws {MicroError} As a server: `PORT_IN_USE`, `BAD_ADDRESS`, … */
  async startListening(): Promise<Address> {
    const address = await this.#server.startListening();
    this.#ticks ??= setInterval(() => this.#tick(), this.#judge.intervalMs).unref();
    return address;
  }

  async stop(): Promise<void> {
    clearInterval(this.#ticks);
    this.#ticks = undefined;
    await this.#server.stop({ graceMs: 0 });
  }

  /** Something else came of a node: any traffic counts as much as a heartbeat. */
  heard(nodeId: string): void {
    if (this.#nodes.has(nodeId)) this.#judge.heard(nodeId);
  }

  #beat(data: unknown, context: Context): void {
    const node = nodeOf(data, context.client.address);
    const { nodeId, sessionId } = node;
    if (!this.#nodes.has(nodeId) && this.#nodes.size >= this.#maxNodes) {
      const why = `${this.#maxNodes} are known already. Raise maxNodes`;
      throw new MicroError('SERVER_BUSY', `Cannot hear node ${quoted(nodeId)}: ${why}`);
    }
    const what = this.#sessions.heard(nodeId, sessionId);
    if (what === 'double') {
      this.emit('double', node);
      const why = 'another of its id began later. Give each a config.json of its own';
      return this.#tellOnce(context, `Cannot hear node ${quoted(nodeId)} at ${node.address}: ${why}`);
    }
    this.#nodes.set(nodeId, node);
    const isNew = this.#judge.heard(nodeId);
    if (what === 'restarted') this.emit('restarted', node);
    else if (isNew) this.emit('joined', node);
  }

  #tick(): void {
    for (const nodeId of this.#judge.tick(now())) {
      const node = this.#nodes.get(nodeId) as Node;
      this.#judge.leave(nodeId);
      this.#nodes.delete(nodeId);
      this.emit('lost', node);
    }
  }

  /** Once a connection: a node that is wrong is so with each of its heartbeats. */
  #tellOnce({ client: { state, address } }: Context, text: string): void {
    if (state.has(this)) return;
    state.set(this, true);
    this.#log('warn', `Of the heartbeats of ${address}: ${text}`);
  }
}

/** @throws {MicroError} `BAD_MESSAGE`: it is no heartbeat. */
function nodeOf(data: unknown, address: string): Node {
  const fields = typeof data === 'object' && data !== null ? data as Record<string, unknown> : {};
  const text = (name: string, standard?: string): string => {
    const value = fields[name] ?? standard;
    if (typeof value === 'string' && value.length <= 128) return value;
    const why = `its ${name} is ${quoted(value)}, expected up to 128 letters`;
    throw new MicroError('BAD_MESSAGE', `Cannot read a heartbeat: ${why}`);
  };
  return { nodeId: text('node_id'), sessionId: text('session_id'), nodeType: text('node_type', ''),
    address, missedCount: Number(fields['missed_count']) || 0 };
}
