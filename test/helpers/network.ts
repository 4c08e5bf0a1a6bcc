/** Two hosts and a router between them: network namespaces of Linux, which want root. */
import { spawnSync } from 'node:child_process';

const PREFIX = 'portcall-test-';

export class Network {
  /** The two hosts, for `Child`'s option `wrapper`. */
  readonly here: readonly string[];
  readonly there: readonly string[];
  readonly addressThere = '10.77.2.2';
  /** An address that a cable leads to and where nobody is: what is sent there is lost. */
  readonly addressLost = '10.77.1.9';
  readonly #names: readonly [here: string, router: string, there: string];
  readonly #removeAtExit = (): void => this.remove();

  private constructor(number: number) {
    const name = (what: string) => `${PREFIX}${process.pid}-${number}${what}`;
    this.#names = [name('here'), name('router'), name('there')];
    this.here = ['ip', 'netns', 'exec', this.#names[0]];
    this.there = ['ip', 'netns', 'exec', this.#names[2]];
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
    const [here, router, there] = network.#names;
    try {
      for (const name of network.#names) {
        ip('netns', 'add', name);
        ip('-n', name, 'link', 'set', 'lo', 'up');
      }
      for (const [host, cable, subnet, own] of [[here, 'cable1', '10.77.1', 1], [there, 'cable2', '10.77.2', 2]] as const) {
        ip('-n', host, 'link', 'add', 'cable', 'type', 'veth', 'peer', 'name', cable, 'netns', router);
        ip('-n', host, 'address', 'add', `${subnet}.${own}/24`, 'dev', 'cable');
        ip('-n', router, 'address', 'add', `${subnet}.254/24`, 'dev', cable);
        ip('-n', router, 'link', 'set', cable, 'up');
        network.#plug(host, `${subnet}.254`);
      }
      network.forwards(true);
      ip('-n', here, 'neighbour', 'add', network.addressLost, 'lladdr', '02:00:00:00:00:09', 'dev', 'cable');
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

  /** Pulls the far host's cable out, or plugs it in again. */
  pluggedIn(isIn: boolean): void {
    if (isIn) this.#plug(this.#names[2], '10.77.2.254');
    else ip('-n', this.#names[2], 'link', 'set', 'cable', 'down');
  }

  /** Whether the router passes packets on; if not, they are lost without a word. */
  forwards(does: boolean): void {
    ip('netns', 'exec', this.#names[1], 'sh', '-c', `echo ${Number(does)} > /proc/sys/net/ipv4/ip_forward`);
  }

  #plug(host: string, router: string): void {
    ip('-n', host, 'link', 'set', 'cable', 'up');
    ip('-n', host, 'route', 'replace', 'default', 'via', router); // it goes with the cable
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
