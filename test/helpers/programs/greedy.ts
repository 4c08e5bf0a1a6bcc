/** A client that asks without end, and reads all that it is told: as fast as the server takes and gives. */
import { connect } from 'node:net';
import { answer, given, ready } from '../child.ts';

const { port, hello = '', requests } = given<{ port: number; hello?: string; requests: string[] }>();
const block = Buffer.from(requests.map((request) => `${request}\n`).join(''));
const socket = connect({ port, host: '127.0.0.1' });
let lines = 0;
let end: string | undefined;
const ask = (): void => { while (socket.write(block)); };
socket.on('drain', ask).on('data', (chunk) => {
  for (let at = chunk.indexOf(10); at !== -1; at = chunk.indexOf(10, at + 1)) lines++;
});
socket.on('error', (error) => { end = error.message; }).on('end', () => { end ??= 'the server sent FIN'; });
socket.once('connect', () => {
  socket.write(hello);
  ask();
});
answer({ heard: () => ({ lines, end }) });
ready({});
