/**
 * A backup's name tells all that is known of it, so that file and knowledge come into place in one
 * rename: `notes.5f0c2a91.0000000042.20261121T143517123Z.<sha256>.txt`. In this order: the source's
 * name; its folder, as a hash, since `a/notes.txt` is not `b/notes.txt`; which one it is, the 42nd,
 * whatever a clock says; when it was made; its content's hash; the source's extension.
 */
import { createHash } from 'node:crypto';
import { basename, extname } from 'node:path';

export interface BackupName {
  /** Greater than that of any backup made before. */
  order: number;
  atMs: number;
  sha256: string;
}

export interface BackupNames {
  format(facts: BackupName): string;
  /** Undefined: it is no name of a backup of this source. */
  parse(name: string): BackupName | undefined;
}

const MOST_BYTES = 255; // of a name, in the file systems of today
const MOST_EXTENSION_BYTES = 32;
const OWN_BYTES = '.5f0c2a91.000000000000042.20261121T143517123Z.'.length + 64;
const FACTS =
  /^(\d{10,15})\.(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)(\d{3})Z\.([\da-f]{64})$/;

/** @param source Its absolute path. */
export function namesFor(source: string): BackupNames {
  const extension = extname(source);
  const end = Buffer.byteLength(extension) > MOST_EXTENSION_BYTES ? '' : extension;
  const tag = createHash('sha256').update(source).digest('hex').slice(0, 8);
  const stem = cut(basename(source, end), MOST_BYTES - OWN_BYTES - Buffer.byteLength(end));
  const start = `${stem}.${tag}.`;
  return {
    format({ order, atMs, sha256 }) {
      const time = new Date(atMs).toISOString().replaceAll(/[-:.]/g, '');
      return `${start}${String(order).padStart(10, '0')}.${time}.${sha256}${end}`;
    },
    parse(name) {
      if (!name.startsWith(start) || !name.endsWith(end)) return undefined;
      const [, order, year, month, day, hour, minute, second, ms, sha256] =
        FACTS.exec(name.slice(start.length, name.length - end.length)) ?? [];
      const atMs = Date.parse(`${year}-${month}-${day}T${hour}:${minute}:${second}.${ms}Z`);
      if (sha256 === undefined || Number.isNaN(atMs)) return undefined;
      return { order: Number(order), atMs, sha256 };
    },
  };
}

/** As many whole characters as fit. */
function cut(text: string, bytes: number): string {
  const encoded = Buffer.from(text);
  let end = Math.min(bytes, encoded.length);
  while (end < encoded.length && ((encoded[end] ?? 0) & 0xc0) === 0x80) end--; // inside a character
  return encoded.toString('utf8', 0, end);
}
