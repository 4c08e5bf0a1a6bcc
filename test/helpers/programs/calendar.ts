/** A calendar and its server, with nothing around them: see `../calendar_process.ts`. */
import { MicroServer, stopOnSignals } from '../../../lib/micro_server.ts';
import { createCalendar } from '../../../services/calendar.ts';
import { given, ready } from '../child.ts';
import type { CalendarSetUp } from '../calendar_process.ts';

const { port, ...options } = given<CalendarSetUp>();
try {
  const server = new MicroServer(await createCalendar(options), port ?? 0);
  const address = await server.startListening();
  stopOnSignals(server);
  ready({ port: address.port });
} catch (error) {
  process.stderr.write(`${(error as Error).message}\n`);
  process.exitCode = 2;
}
