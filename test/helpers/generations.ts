/** A process that writes generations of a file without a pause: see `programs/writer.ts`. */
import { expect } from 'vitest';
import { Child } from './child.ts';

export interface WriterSetUp {
  file: string;
  bytes: number;
  /** In place; in place once cut to nothing; in place with other lengths between; a new file renamed. */
  way: 'rewrite' | 'truncate' | 'resize' | 'replace';
  /** After each 20th generation it rests, for so long at most. */
  restsMs?: number;
  /** Between two generations. */
  everyMs?: number;
}

/** Writes while `task` goes on; gives the number of the last generation, which is in the file. */
export async function writing(setUp: WriterSetUp, task: () => Promise<unknown>): Promise<number> {
  const writer = new Child('writer.ts', setUp);
  try {
    await writer.ready();
    await writer.ask('start');
    await task();
    return await writer.ask<number>('stop');
  } finally {
    await writer.kill();
  }
}

/** The one generation that a file holds; fails if it is cut off, or a mixture. */
export function generationIn(content: Buffer, bytes: number): number {
  expect(content.length).toBe(bytes);
  const number = content.toString('latin1', 0, 8);
  expect(number).toMatch(/^\d{8}$/);
  expect(content.equals(Buffer.alloc(bytes, `${number}\n`)), `${number} alone`).toBe(true);
  return Number(number);
}
