/** A service that is a file's default export. */
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { textOf } from './micro_client.ts';
import type { Callback, Service } from './micro_server.ts';

/**
 * @param file A path, or a file URL.
 * @throws {Error} There is no such file, it fails, or it exports neither a callback nor a service.
 */
export async function loadService(file: URL | string): Promise<Service> {
  const isUrl = file instanceof URL || file.startsWith('file:');
  const url = isUrl ? new URL(file) : pathToFileURL(resolve(file));
  const refuse = (why: string, cause?: unknown) =>
    new Error(`Cannot serve "${fileURLToPath(url)}": ${why}`, { cause });
  if (!existsSync(url)) throw refuse('there is no such file');
  let found: unknown;
  try {
    found = (await import(/* @vite-ignore */ url.href) as { default?: unknown }).default;
  } catch (error) {
    const isUnread = (error as NodeJS.ErrnoException).code === 'ERR_UNKNOWN_FILE_EXTENSION';
    throw refuse(isUnread ? 'this Node reads no TypeScript. Use Node 22.18 or newer, or tsx' : textOf(error), error);
  }
  if (typeof found === 'function') return { callback: found as Callback };
  if (typeof (found as Partial<Service> | undefined)?.callback === 'function') return found as Service;
  throw refuse('it has no default export that is a callback or has one');
}
