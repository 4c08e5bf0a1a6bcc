/** A service out of a file. */
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { textOf } from './micro_client.ts';
import type { Callback, Service } from './micro_server.ts';

/**
 * The default export of a file, a callback or a service; else what its only `createX` makes of options.
 *
 * @param file A path, or a file URL.
 * @throws {Error} There is no such file, it fails, or it exports nothing of that kind.
 */
export async function loadService(file: URL | string, options: object = {}): Promise<Service> {
  const isUrl = file instanceof URL || file.startsWith('file:');
  const url = isUrl ? new URL(file) : pathToFileURL(resolve(file));
  const refuse = (why: string, cause?: unknown) =>
    new Error(`Cannot serve "${isUrl ? fileURLToPath(url) : file}": ${why}`, { cause });
  if (!existsSync(url)) throw refuse('there is no such file');
  let found: unknown;
  try {
    const module = await import(/* @vite-ignore */ url.href) as Record<string, unknown>;
    const [create, ...more] = Object.keys(module).filter((name) => /^create[A-Z]/.test(name));
    const isMade = module['default'] === undefined && create !== undefined && more.length === 0;
    found = isMade ? (module[create] as (options: object) => unknown)(options) : module['default'];
  } catch (error) {
    const isUnread = (error as NodeJS.ErrnoException).code === 'ERR_UNKNOWN_FILE_EXTENSION';
    throw refuse(isUnread ? 'this Node reads no TypeScript. Use Node 22.18 or newer, or ' +
      'NODE_OPTIONS="--import tsx"' : textOf(error), error);
  }
  if (typeof found === 'function') return { callback: found as Callback };
  if (typeof (found as Partial<Service> | undefined)?.callback === 'function') return found as Service;
  throw refuse('it has no default export that is a callback or has one');
}
