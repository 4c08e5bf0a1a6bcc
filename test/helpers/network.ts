/** Two hosts with a cable between them: network namespaces of Linux, which want root. */
import { spawnSync } from 'node:child_process';

const PREFIX = 'portcall-test-';

export class Network {
  /** Hosts of the two sides, for `Child`'s option `wrapper`. */
  readonly here: readonly string[];
  readonly there: readonly string[];
  readonly hostThere = '10.77.0.2';
  /** An address that the cable leads to and where nobody is: what is sent there is lost. */
  readonly hostLost = '10.77.0.9';
  readonly #names: readonly [string, string];
  readonly #removeAtExit = (): void => this.remove();

  private constructor(number: number) {
    this.#names = [`${PREFIX}${process.pid}-${number}a`, `${PREFIX}${process.pid}-${number}b`];
    this.here = ['ip', 'netns', 'exec', this.#names[0]];
    this.there = ['ip', 'netns', 'exec', this.#names[1]];
  }

  static #count = 0;

  /** Why there can't be one, if so. */
  static missing(): string | undefined {
    if (process.platform !== 'linux' || process.getuid?.() !== 0) return 'needs root on Linux';
    if (spawnSync('ip', ['-V']).error !== undefined) return 'needs the command ip';
    try {
      Network.create().remove();
      return undefined;
    } catch (error) {
      return `needs network namespaces and veth: ${error instanceof Error ? error.message : String(error)}`;
    }
  }

  static create(): Network {
    removeLeftOvers();
    const network = new Network(Network.#count++);
    process.once('exit', network.#removeAtExit);
    const [here, there] = network.#names;
    try {
      ip('netns', 'add', here);
      ip('netns', 'add', there);
      ip('-n', here, 'link', 'add', 'cable', 'type', 'veth', 'peer', 'name', 'cable', 'netns', there);
      ip('-n', here, 'address', 'add', '10.77.0.1/24', 'dev', 'cable');
      ip('-n', there, 'address', 'add', `${network.hostThere}/24`, 'dev', 'cable');
      for (const name of network.#names) {
        ip('-n', name, 'link', 'set', 'lo', 'up');
        ip('-n', name, 'link', 'set', 'cable', 'up');
      }
      ip('-n', here, 'neighbour', 'add', network.hostLost, 'lladdr', '02:00:00:00:00:09', 'dev', 'cable');
    } catch (error) {
      network.remove();
      throw error;
    }
    return network;
  }

  /** Creates one, does `task`, and removes it whatever happens. */
  static async with<T>(task: (network: Network) => Promise<T>): Promise<T> {
    const network = Network.create();
    try {
      return await task(network);
    } finally {
      network.remove();
    }
  }

  /** Pulls the cable out at the far side. */
  down(): void {
    ip('-n', this.#names[1], 'link', 'set', 'cable', 'down');
  }

  up(): void {
    ip('-n', this.#names[1], 'link', 'set', 'cable', 'up');
  }

  remove(): void {
    process.off('exit', this.#removeAtExit);
    for (const name of this.#names) spawnSync('ip', ['netns', 'delete', name]);
  }
}

function ip(...words: string[]): string {
  const { status, stdout, stderr, error } = spawnSync('ip', words, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`Cannot run "ip ${words.join(' ')}": ${(error?.message ?? stderr).trim()}`);
  return stdout;
}

/** Namespaces of runs that were killed before they could clean up. */
function removeLeftOvers(): void {
  for (const [name, pid] of ip('netns', 'list').matchAll(new RegExp(`^${PREFIX}(\\d+)-\\w+`, 'gm'))) {
    try {
      process.kill(Number(pid), 0);
    } catch {
      spawnSync('ip', ['netns', 'delete', name]);
    }
  }
}
