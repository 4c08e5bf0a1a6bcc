/**
 * Who holds a port: what makes the error of a port in use say `pid 4121 (node) holds it`. Optional: the server loads it
 * only then, and says `another process` where it is missing.
 */
import * as fs from 'node:fs/promises';
import { isIPv4 } from 'node:net';
import { basename } from 'node:path';
import type { Address } from './micro_client.ts';

const MOST_MS = 1_500; // 30 ms on a machine at rest
const UNKNOWN = 'another process';

/** Who listens there, as far as Linux tells: `pid 4121 (node)`. */
export async function findHolder({ host = '', port = 0 }: Address): Promise<string> {
  if (port === 0) return UNKNOWN; // a Unix socket: the system doesn't tell
  const signal = AbortSignal.timeout(MOST_MS);
  const hexHost = host === '::1' ? '01000000' : !isIPv4(host) || host === '0.0.0.0' ? ''
    : Buffer.from(host.split('.').reverse().map(Number)).toString('hex');
  const hexPort = port.toString(16).padStart(4, '0');
  const row = new RegExp(`: (?:0+|\\w*${hexHost}):${hexPort} \\S+ 0A \\S+ \\S+ \\S+ +\\d+ +\\d+ (\\d+)`, 'gi');
  const tables = await Promise.all(['/proc/net/tcp', '/proc/net/tcp6'].map((table) =>
    fs.readFile(table, { encoding: 'latin1', signal }).catch(() => '')));
  const sockets = new Set([...tables.join('').matchAll(row)].map(([, inode]) => `socket:[${inode}]`));
  for (const pid of sockets.size > 0 ? await fs.readdir('/proc') : []) {
    if (signal.aborted) break;
    const fds = await fs.readdir(`/proc/${pid}/fd`).catch(() => []); // others' are not shown
    const links = await Promise.all(fds.map((fd) => fs.readlink(`/proc/${pid}/fd/${fd}`).catch(() => '')));
    if (!links.some((link) => sockets.has(link))) continue;
    const program = basename(await fs.readlink(`/proc/${pid}/exe`).catch(() => ''));
    return `pid ${pid} (${/^[\w.+-]+/.exec(program)?.[0] ?? '?'})`;
  }
  return UNKNOWN;
}
