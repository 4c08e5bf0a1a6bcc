/**
 * The benchmark: `npm run bench`, or `npm run bench -- --help`.
 *
 * Each shape is measured next to a bare `node:net` line echo in the same round, because a machine's
 * speed changes from minute to minute: what counts is the median of the rounds' ratios.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { cpus, loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { build, find } from './build.ts';
import { canPin } from './child.ts';
import {
  PACKAGES, PEER_SHAPES, SHAPES, median,
  type Bar, type Bench, type Shape, type Side, type Unit,
} from './shapes.ts';

const ROUNDS = { full: 5, quick: 2 };
const FULL = { warmUpMs: 1_000, slices: 4, sliceMs: 200, scriptRuns: 15 }; // steady state: compiled, and in flow
const QUICK = { warmUpMs: 150, slices: 2, sliceMs: 90, scriptRuns: 5 };

interface Row {
  shape: string;
  against: Side;
  unit: Unit;
  bar: Bar;
  verdict: 'ok' | 'MISSED' | 'skipped' | 'FAILED' | '';
  reason?: string; // for skipped and FAILED
  rival?: number; // medians of the rounds' figures
  portcall?: number;
  ratio?: { median: number; min: number; max: number; rounds: number[] };
}

// Where a machine sets it, each process reads these certificates at its start: 60 ms in which a script's 12 drown.
delete process.env['NODE_EXTRA_CA_CERTS'];

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      rounds: { type: 'string' }, only: { type: 'string', multiple: true },
      quick: { type: 'boolean', default: false }, json: { type: 'boolean', default: false },
      peers: { type: 'boolean', default: false }, strict: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) return console.log(help());
  const rounds = readRounds(values.rounds, values.quick ? ROUNDS.quick : ROUNDS.full);
  const { peers, only, quick } = values;
  const shapes = peers ? chosen(PEER_SHAPES, only) : chosen(SHAPES, only, quick);
  const tell = values.json ? () => {} : (line: string) => console.log(line);

  const folder = mkdtempSync(join(tmpdir(), 'portcall-bench-'));
  process.once('exit', () => rmSync(folder, { recursive: true, force: true }));
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(130));

  const twoCores = canPin(0, 1);
  const bench: Bench = {
    ...(values.quick ? QUICK : FULL),
    program: build(folder),
    packages: find(PACKAGES),
    pins: {
      two: twoCores ? { server: 0, client: 1 } : {},
      one: canPin(0) ? { server: 0, client: 0 } : {},
      any: {},
    },
  };
  const [core] = cpus();
  const machine = `node ${process.version}, ${cpus().length} × ${core?.model.trim() ?? 'unknown'}`;
  const pinning = twoCores ? 'server on core 0, client on core 1' : 'not pinned: taskset or core 1 is missing';
  const loadBefore = loadavg()[0] ?? 0; // what others do here at the same time falsifies the ratios too
  tell(`${machine}, load average ${loadBefore.toFixed(2)}\n${pinning}; ${rounds} rounds\n\n${HEADING}`);

  const rows: Row[] = [];
  for (const shape of shapes) {
    const measured = await measure(shape, bench, rounds);
    rows.push(...measured);
    for (const row of measured) tell(line(row));
  }
  if (values.json) {
    const settings = values.quick ? QUICK : FULL;
    console.log(JSON.stringify({ machine, loadBefore, pinning, rounds, settings, rows }, null, 2));
  }
  if (rows.some(({ verdict }) => verdict === 'FAILED')) process.exitCode = 1;
  if (values.strict && rows.some(({ verdict }) => verdict === 'MISSED')) process.exitCode = 1;
}

async function measure(shape: Shape, bench: Bench, rounds: number): Promise<Row[]> {
  const against = Object.entries(shape.against) as [Side, Bar][];
  const rows = against.map(([side, bar]): Row => {
    const reason = whyNot(shape, side, bench);
    const row: Row = { shape: shape.name, against: side, unit: shape.unit, bar, verdict: '' };
    return reason === undefined ? row : { ...row, verdict: 'skipped', reason };
  });
  const taken = rows.filter(({ verdict }) => verdict !== 'skipped');
  if (taken.length === 0) return rows;

  const sides: Side[] = [...taken.map((row) => row.against), 'portcall'];
  const figures: Map<Side, number>[] = [];
  try {
    for (let round = 0; round < rounds; round++) { // who comes first takes turns
      figures.push(await shape.round(bench, round % 2 === 0 ? sides : sides.toReversed()));
    }
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    for (const row of taken) Object.assign(row, { verdict: 'FAILED', reason });
    return rows;
  }
  for (const row of taken) Object.assign(row, judge(row, figures));
  return rows;
}

/** Why a rival can't be measured here, if so. */
function whyNot(shape: Shape, side: Side, bench: Bench): string | undefined {
  if (PACKAGES.some((name) => name === side) && !bench.packages.has(side)) {
    return `${side} is not installed: npm ci --prefix test/bench`;
  }
  if (shape.cores === 'one' && bench.pins.one.server === undefined) return 'no taskset here';
  return undefined;
}

function judge({ against, bar }: Row, figures: Map<Side, number>[]): Partial<Row> {
  const of = (side: Side) => figures.map((round) => round.get(side) ?? NaN);
  const rival = of(against);
  const portcall = of('portcall');
  const ratios = portcall.map((figure, round) => figure / (rival[round] ?? NaN));
  const middle = median(ratios);
  return {
    rival: median(rival),
    portcall: median(portcall),
    ratio: { median: middle, min: Math.min(...ratios), max: Math.max(...ratios), rounds: ratios },
    verdict: verdict(middle, bar),
  };
}

function verdict(ratio: number, { atLeast, atMost }: Bar): Row['verdict'] {
  if (atLeast !== undefined) return ratio >= atLeast ? 'ok' : 'MISSED';
  if (atMost !== undefined) return ratio <= atMost ? 'ok' : 'MISSED';
  return '';
}

const WIDTHS = [-17, -8, 10, 10, -11, 7, -17, -8];
const HEADING = cells('shape', 'against', 'theirs', 'portcall', '', 'ratio', '(min–max)', 'bar');

function line({ shape, against, unit, bar, verdict, reason, rival, portcall, ratio }: Row): string {
  if (ratio === undefined) return `${cells(shape, against)} ${verdict}: ${reason?.split('\n', 1)[0]}`;
  const range = `(${figure(ratio.min)}–${figure(ratio.max)})`;
  const figures = [figure(rival), figure(portcall), unit, figure(ratio.median), range];
  return `${cells(shape, against, ...figures, told(bar))} ${verdict}`.trimEnd();
}

function cells(...words: string[]): string {
  return words.map((word, i) => {
    const width = WIDTHS[i] ?? 0;
    return width < 0 ? word.padEnd(-width) : word.padStart(width);
  }).join(' ');
}

/** Three digits that count, or all before the point. */
function figure(number = NaN): string {
  if (number >= 100) return Math.round(number).toLocaleString('en');
  return number >= 10 ? number.toFixed(1) : number.toFixed(2);
}

function told({ atLeast, atMost }: Bar): string {
  if (atLeast !== undefined) return `≥ ${atLeast}`;
  return atMost === undefined ? '' : `≤ ${atMost}`;
}

function readRounds(text: string | undefined, usual: number): number {
  const rounds = text === undefined ? usual : Number(text);
  if (Number.isInteger(rounds) && rounds > 0) return rounds;
  throw new RangeError(`Cannot run "${text}" rounds: expected a whole number from 1 up`);
}

/** A shape by its name, or all whose names begin so. Quick leaves out those without a bar. */
function chosen(all: readonly Shape[], names: string[] | undefined, quick = false): readonly Shape[] {
  if (names === undefined) return quick ? all.filter(hasBar) : all;
  return names.flatMap((name) => {
    const exact = all.filter((shape) => shape.name === name);
    const found = exact.length > 0 ? exact : all.filter((shape) => shape.name.startsWith(name));
    if (found.length > 0) return found;
    const known = all.map((shape) => shape.name).join(', ');
    throw new RangeError(`Cannot find shape "${name}". Known: ${known}`);
  });
}

function hasBar({ against }: Shape): boolean {
  return Object.values(against).some((bar) => told(bar) !== '');
}

function help(): string {
  return `npm run bench -- [options]

  --only NAME   only this shape, or all whose names begin so; may be given again
  --rounds N    rounds, of which the median counts (${ROUNDS.full}; with --quick ${ROUNDS.quick})
  --quick       a first look: shorter, without the shapes that have no bar
  --peers       the plainest shapes, beside what people pick:
                ${PACKAGES.join(', ')}
  --json        the result as JSON
  --strict      exit 1 if a bar was missed, not only if a reply was wrong or a process crashed
  --help        this

shapes, each as portcall's figure divided by its rival's:
${SHAPES.map(({ name, about, against }) => {
    const bars = Object.entries(against).map(([side, bar]) => `${told(bar)} ${side}`.trim());
    return `  ${name.padEnd(17)} ${about} (${bars.join(', ')})`;
  }).join('\n')}

bare is a line echo over node:net with a write a message. The others are npm's:
npm ci --prefix test/bench`;
}

try {
  await main();
} catch (error) {
  const wrongUse = error instanceof RangeError || // ours, and those of parseArgs
    (error instanceof TypeError && 'code' in error && String(error.code).startsWith('ERR_PARSE_ARGS'));
  console.error(wrongUse ? error.message : error);
  process.exitCode = wrongUse ? 2 : 1;
}
