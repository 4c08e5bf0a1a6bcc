/** `node portcall.js PORT TEXT`: sends one message through the kit, checks the reply and ends. */
import { MicroClient } from '../../../lib/micro_client.ts';

const [port, text = ''] = process.argv.slice(2);
const reply = await new MicroClient(Number(port)).sendMessage(text);
if (reply !== text) process.exitCode = 1;
