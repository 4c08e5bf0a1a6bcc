/** Services in files, and callbacks that run in threads of their own. */
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { textOf } from './micro_client.ts';
import type { Callback, Service } from './micro_server.ts';

export async function loadService(file: URL | string): Promise<Service> {
  const url = file instanceof URL || file.startsWith('file:') ? new URL(file) : pathToFileURL(resolve(file));
  const refuse = (why: string, cause?: unknown) => new Error(`Cannot serve "${fileURLToPath(url)}": ${why}`, { cause });
  if (!existsSync(url)) throw refuse('there is no such file');
  let found: unknown;
  try {
    found = (await import(/* @vite-ignore */ url.href) as { default?: unknown }).default;
  } catch (error) {
    throw refuse(textOf(error), error);
  }
  if (typeof found === 'function') return { callback: found as Callback };
  if (typeof (found as Partial<Service> | undefined)?.callback === 'function') return found as Service;
  throw refuse('it has no default export that is a callback or has one');
}
export function threaded(_file: URL | string, _options: { threads: number }): Promise<Service> {
  throw new Error('later');
}
