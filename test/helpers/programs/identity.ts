/** Loads its identity when it is told to, so that many can do so at once. */
import { loadNodeIdentity } from '../../../lib/node_identity.ts';
import { answer, given, ready } from '../child.ts';

const { path } = given<{ path: string }>();
answer({ load: () => loadNodeIdentity(path) });
ready({});
