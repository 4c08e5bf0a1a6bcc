/** ECHO: sends back what it is sent. For trying out a connection, a dialect or a client. */
import type { Service } from '../lib/index.ts';

/** The text comes back as it is, and a message of several parts as the same parts. */
export function createEcho(): Service {
  return {
    contract: {
      summary: 'Sends back what it is sent.',
      messages: { anything: { example: 'hello', reply: 'hello' } },
    },
    callback: (message, { parts }) => (parts === undefined ? message : { parts }),
  };
}
