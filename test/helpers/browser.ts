/**
 * What a web page can make a browser send to a port of this machine: the bytes as Chromium writes them,
 * for pages of another site and, by DNS rebinding, for one that passes as the port's own.
 */
export interface Page {
  name: string;
  bytes: Buffer;
}

const AGENT = 'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36';

/** @param lines What the page wants run: it gets into each place that a page has a say in. */
export function pagesThatSay(lines: readonly string[], port: number): Page[] {
  const crlf = `${lines.join('\r\n')}\r\n`;
  const lf = `${lines.join('\n')}\n`;
  const path = `/${encodeURIComponent(lf)}?${encodeURIComponent(crlf)}`;
  const rebound = `rebound.example:${port}`; // resolves to 127.0.0.1 by now
  const request = (line: string, more: readonly string[], body = '', host = `127.0.0.1:${port}`): Buffer =>
    Buffer.from([line, `Host: ${host}`, 'Connection: keep-alive', ...(body === '' ? [] : [`Content-Length: ${Buffer.byteLength(body)}`]),
      `User-Agent: ${AGENT}`, 'Accept: */*', ...more, 'Accept-Encoding: gzip, deflate', 'Accept-Language: en-US,en;q=0.9',
      '', body].join('\r\n'));
  const plain = 'Content-Type: text/plain';
  const foreign = ['Origin: https://evil.example', 'Sec-Fetch-Site: cross-site', 'Referer: https://evil.example/'];
  const own = [`Origin: http://${rebound}`, 'Sec-Fetch-Site: same-origin'];
  const pages: Record<string, Buffer> = {
    'form POST, text/plain': request('POST / HTTP/1.1', [...foreign, plain, 'Upgrade-Insecure-Requests: 1'], `x=${crlf}${crlf}`),
    'form POST, its field a command': request('POST / HTTP/1.1', [...foreign, plain], crlf),
    'form POST, multipart': request('POST / HTTP/1.1', [...foreign, 'Content-Type: multipart/form-data; boundary=b'],
      `--b\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n${plain}\r\n\r\n${crlf}--b--\r\n`),
    'fetch POST, no-cors': request('POST / HTTP/1.1', [...foreign, plain, 'Sec-Fetch-Mode: no-cors'], lf),
    'sendBeacon': request(`POST ${path} HTTP/1.1`, [...foreign, `${plain};charset=UTF-8`], lf),
    'fetch GET': request('GET / HTTP/1.1', foreign),
    'image': request(`GET ${path} HTTP/1.1`, [...foreign, 'Sec-Fetch-Dest: image']),
    'GET, 64 KiB of path': request(`GET /${'a'.repeat(65_536)} HTTP/1.1`, foreign),
    'preflight of a PUT': request('OPTIONS / HTTP/1.1', [...foreign, 'Access-Control-Request-Method: PUT']),
    'PUT, rebound': request('PUT / HTTP/1.1', [...own, plain], lf, rebound),
    'a method of its own, rebound': request(`${'revert'} ${path} HTTP/1.1`, [...own, plain], lf, rebound),
    'headers of its own, rebound': request('POST / HTTP/1.1', [...own, plain, ...lines.map((line) => `X-Say: ${line}`)], lf, rebound),
    'HEAD': request('HEAD / HTTP/1.1', foreign),
    'WebSocket': request(`GET ${path} HTTP/1.1`, ['Upgrade: websocket', 'Origin: https://evil.example', 'Sec-WebSocket-Version: 13',
      'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=='], ''),
    'as its proxy': request(`GET http://evil.example${path} HTTP/1.1`, ['Proxy-Connection: keep-alive'], '', 'evil.example'),
    'as its proxy, CONNECT': request('CONNECT evil.example:443 HTTP/1.1', ['Proxy-Connection: keep-alive'], '', 'evil.example:443'),
    'HTTP/2 by prior knowledge': Buffer.concat([Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'),
      Buffer.from('000000040000000000', 'hex'), Buffer.from(lf)]), // the preface, an empty SETTINGS frame: RFC 9113, 3.4
    'HTTP/1.0': Buffer.from(`POST / HTTP/1.0\r\n${plain}\r\n\r\n${crlf}`),
    'Host first': Buffer.from(`Host: 127.0.0.1:${port}\r\n${plain}\r\n\r\n${crlf}`),
    'host in small letters, first': Buffer.from(`host:127.0.0.1\r\n\r\n${crlf}`),
    'LF alone': Buffer.from(`POST / HTTP/1.1\nHost: a\n\n${lf}`),
    'behind an empty line': Buffer.from(`\r\nPOST / HTTP/1.1\r\nHost: a\r\n\r\n${crlf}`),
  };
  return Object.entries(pages).map(([name, bytes]) => ({ name, bytes }));
}

/** Of pages too, but no HTTP: what begins with a control byte. */
export function callsThatSay(lines: readonly string[]): Page[] {
  const said = Buffer.from(`\n${lines.join('\n')}\n`);
  const padded = Buffer.concat([said, Buffer.alloc((4 - said.length % 4) % 4, 32)]);
  const uint16 = (value: number) => Buffer.of(value >> 8, value & 255);
  const attribute = Buffer.concat([uint16(6), uint16(said.length), padded]); // USERNAME, of the page's choice
  const stun = (type: number) => Buffer.concat([uint16(type), uint16(attribute.length), Buffer.from('2112a442', 'hex'),
    Buffer.alloc(12, 10), attribute]); // RFC 8489, 5
  const name = Buffer.from('evil.example');
  return [
    { name: 'TURN over TCP, allocate', bytes: stun(3) },
    { name: 'ICE over TCP, framed', bytes: Buffer.concat([uint16(stun(1).length), stun(1)]) }, // RFC 4571, 2
    { name: 'https', bytes: Buffer.concat([Buffer.from('1603010200010001fc0303', 'hex'), Buffer.alloc(32, 10), name, said]) },
  ];
}
