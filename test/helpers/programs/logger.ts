/** A LogFiles as a process of its own, so that the system can limit what it may write. */
import { LogFiles } from '../../../lib/log_files.ts';
import { answer, given, ready } from '../child.ts';

const { path } = given<{ path: string }>();
const files = new LogFiles(path);
answer({
  log(count: number) {
    for (let at = 0; at < count; at++) files.log('info', `line ${at} ${'x'.repeat(90)}`);
    return files.dropped;
  },
});
ready({});
