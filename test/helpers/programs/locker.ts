/** Takes a folder's lock, when asked or again and again; notes whether another had it meanwhile. */
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { lockFolder, type FolderLock } from '../../../lib/folder_lock.ts';
import { answer, given, ready } from '../child.ts';
import { pause } from '../deadline.ts';

const { folder } = given<{ folder: string }>();
const witness = join(folder, 'witness'); // names who believes to have the lock
let lock: FolderLock | undefined;

async function take(): Promise<string> {
  try {
    lock = await lockFolder(folder);
    return 'taken';
  } catch (error) {
    return (error as Error).message;
  }
}

function isAlive(pid: number): boolean {
  try {
    const [, state = 'X'] = /^.*\) (\w)/.exec(readFileSync(`/proc/${pid}/stat`, 'latin1')) ?? [];
    return state !== 'Z' && state !== 'X';
  } catch {
    return false;
  }
}

/** Two at a time would show: each leaves its pid while it has the lock, and finds no living one. */
async function contend({ ms }: { ms: number }): Promise<{ wins: number; clashes: string[] }> {
  const clashes: string[] = [];
  let wins = 0;
  for (const end = performance.now() + ms; performance.now() < end;) {
    const said = await take();
    if (said !== 'taken') {
      if (!/holds it|others took/.test(said)) clashes.push(said);
      continue;
    }
    try {
      writeFileSync(witness, String(process.pid), { flag: 'wx' });
    } catch {
      const other = Number(readFileSync(witness, 'latin1'));
      if (isAlive(other)) clashes.push(`pid ${other} had it too`);
      writeFileSync(witness, String(process.pid));
    }
    wins++;
    await pause(Math.random() * 3);
    if (readFileSync(witness, 'latin1') !== String(process.pid)) clashes.push('another took it from under');
    rmSync(witness);
    await lock?.release();
  }
  return { wins, clashes };
}

answer({ take, contend, release: () => lock?.release(), isInPlace: () => lock?.isInPlace() });
ready({});
