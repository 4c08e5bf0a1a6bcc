/** Writes one file atomically and tells how that went. */
import { writeFileAtomically } from '../../../lib/atomic_file.ts';
import { given, ready } from '../child.ts';

const { path, text } = given<{ path: string; text: string }>();
try {
  await writeFileAtomically(path, text);
  ready({});
} catch (error) {
  ready({ error: (error as NodeJS.ErrnoException).code });
}
