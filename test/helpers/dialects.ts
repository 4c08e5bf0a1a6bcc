/** The dialects that there are, as the tests have them on. A row each. */
import type { Dialect } from '../../lib/micro_client.ts';
import { frames } from '../../lib/micro_client.ts';
import { raw } from '../../lib/dialects/raw.ts';
import { sizedHeader } from '../../lib/dialects/sized_header.ts';
import { zmtp } from '../../lib/dialects/zmtp.ts';
import { lines } from '../../lib/micro_server.ts';

/** The words that the raw dialect of these tests declares. */
export const WORDS = ['revert', 'é'];

/** Those that a server has on only where it is told so. */
export const FURTHER = {
  raw: () => raw({ words: WORDS }),
  sized: sizedHeader,
  zmtp,
} as const satisfies Record<string, () => Dialect>;
export type Further = keyof typeof FURTHER;
export const FURTHER_NAMES = Object.keys(FURTHER) as Further[];

export const DIALECTS = { lines, frames, ...FURTHER } as const satisfies Record<string, () => Dialect>;

export const isFurther = (name: string): name is Further => Object.hasOwn(FURTHER, name);

/** A text as the sized header sends it. */
export const sized = (text: string): string => String(Buffer.byteLength(text)).padEnd(64) + text;
