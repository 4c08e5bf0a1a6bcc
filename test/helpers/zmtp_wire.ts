/** ZMTP 3.1 by hand, so that what the dialect makes of bytes is told by something else than itself. */

/** A message as the list of its parts; a command as its name behind `/`, and its data. */
export type ZmtpMessage = (string | { starts: string })[];
interface Frame { flags: number; body: Buffer; shown: string; bytes: number }

/** Bytes as a test shows them: as text, or as hex behind `0x` where they are none. */
export function shownPart(bytes: Buffer): string {
  const text = bytes.toString();
  return Buffer.from(text).equals(bytes) ? text : `0x${bytes.toString('hex')}`;
}

/** The whole frames of some bytes. */
export function framesOf(bytes: Buffer): Frame[] {
  const frames: Frame[] = [];
  for (let at = 0; at + 2 <= bytes.length;) {
    const flags = bytes.readUInt8(at);
    const start = at + ((flags & 2) === 0 ? 2 : 9);
    if (start > bytes.length) break;
    const end = start + ((flags & 2) === 0 ? bytes.readUInt8(at + 1) : Number(bytes.readBigUInt64BE(at + 1)));
    if (end > bytes.length) break;
    const body = bytes.subarray(start, end);
    frames.push({ flags, body, shown: shownPart(body), bytes: end - at });
    at = end;
  }
  return frames;
}

/** The whole messages and commands of some bytes. */
export function messagesOf(bytes: Buffer): string[][] {
  const messages: string[][] = [];
  let parts: string[] = [];
  for (const { flags, body, shown } of framesOf(bytes)) {
    const end = 1 + (body[0] ?? 0);
    const name = body.toString('latin1', 1, end);
    const data = body.subarray(name === 'ERROR' ? end + 1 : end); // whose reason has a length
    if ((flags & 4) !== 0) messages.push([`/${name}`, shownPart(data)]);
    else parts.push(shown);
    if ((flags & 5) === 0) { messages.push(parts); parts = []; }
  }
  return messages;
}

export function frame(flags: number, body: string | Uint8Array): Buffer {
  const bytes = Buffer.from(body as Uint8Array);
  const isLong = bytes.length > 255;
  const head = Buffer.alloc(isLong ? 9 : 2);
  head[0] = flags | (isLong ? 2 : 0);
  if (isLong) head.writeBigUInt64BE(BigInt(bytes.length), 1);
  else head[1] = bytes.length;
  return Buffer.concat([head, bytes]);
}

/** One message of these parts. */
export function message(...parts: (string | Uint8Array)[]): Buffer {
  return Buffer.concat(parts.map((part, at) => frame(at < parts.length - 1 ? 1 : 0, part)));
}

export function command(name: string, data: string | Uint8Array = ''): Buffer {
  return frame(4, Buffer.concat([Buffer.of(name.length), Buffer.from(name), Buffer.from(data as Uint8Array)]));
}

export function property(name: string, value: string | Uint8Array): Buffer {
  const bytes = Buffer.from(value as Uint8Array);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length);
  return Buffer.concat([Buffer.of(name.length), Buffer.from(name), length, bytes]);
}

/** The 64 bytes that open a connection, as libzmq has them. */
export function opening({ mechanism = 'NULL', major = 3, minor = 1 } = {}): Buffer {
  const bytes = Buffer.alloc(64);
  bytes.set([0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, major, minor]);
  bytes.write(mechanism, 12, 'latin1');
  return bytes;
}

/** All that a socket of this type says before its first message. */
export function greetingOf(socketType: string, identity: string | Uint8Array = ''): Buffer {
  const properties = [property('Socket-Type', socketType), property('Identity', identity)];
  return Buffer.concat([opening(), command('READY', Buffer.concat(properties))]);
}
