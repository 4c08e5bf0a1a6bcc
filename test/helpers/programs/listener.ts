/** Listens and takes every connection, but for as long as it is frozen. */
import { once } from 'node:events';
import { createServer, type AddressInfo } from 'node:net';
import { given, ready } from '../child.ts';

const { backlog } = given<{ backlog: number }>();
const server = createServer((socket) => socket.on('error', () => {})).listen({ host: '127.0.0.1', port: 0, backlog });
await once(server, 'listening');
ready({ port: (server.address() as AddressInfo).port });
