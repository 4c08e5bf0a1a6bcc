/** `node bare.js PORT TEXT`: sends one line over `node:net`, checks the reply and ends. */
import net from 'node:net';

const [port, text] = process.argv.slice(2);
const socket = net.connect({ port: Number(port), host: '127.0.0.1', noDelay: true });
let reply = '';
socket.setEncoding('utf8');
socket.write(`${text}\n`);
socket.on('data', (chunk: string) => {
  reply += chunk;
  if (!reply.endsWith('\n')) return;
  if (reply !== `${text}\n`) process.exitCode = 1;
  socket.destroy();
});
