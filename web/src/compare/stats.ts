// Whether one run is better than another, over the last part of both: the mean difference and how sure it is.
//
// Steps are not independent: the loss of one step says much of the next. So the difference is cut into `BLOCKS` stretches, whose means are nearly
// independent, and the interval comes from their spread (batch means; Law and Kelton, "Simulation Modeling and Analysis", 9.5): mean ± t · s / √n with
// Student's t of n − 1 degrees of freedom. When not to believe it: with fewer than about 200 rows in the part, or where both runs still fall fast.
import type { Course } from "../api/series";
import { type Axis, columnOf } from "../explore/clock";

const BLOCKS = 10;
/** 97.5 % quantile of Student's t with BLOCKS − 1 degrees of freedom. */
const T = 2.262;

export interface Difference {
  x: number[];
  each: (number | null)[];
  mean: (number | null)[];
  low: (number | null)[];
  high: (number | null)[];
  whole: number;
  half: number;
  rows: number;
  /** The last that was measured of `b` is no number. */
  broken: boolean;
}

/** A course at any x, between its rows; null outside. */
export function valueAt(course: Course, axis: Axis, x: number): number | null {
  const xs = columnOf(course, axis);
  if (!course.rows || x < xs[0]! || x > xs[course.rows - 1]!) return null;
  let low = 0,
    high = course.rows - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle]! <= x) low = middle;
    else high = middle;
  }
  const span = xs[high]! - xs[low]!,
    a = course.value[low]!,
    b = course.value[high]!;
  const value = span ? a + ((x - xs[low]!) / span) * (b - a) : a;
  return Number.isFinite(value) ? value : null;
}

/** `b` minus `a` over the last `share` of what both have: each row, a moving mean with its 95 % band, and the mean of all with half its interval. */
export function difference(a: Course, b: Course, axis: Axis, share: number): Difference {
  const xs = columnOf(a, axis),
    ys = columnOf(b, axis);
  const begin = Math.max(xs[0] ?? 0, ys[0] ?? 0),
    end = Math.min(xs[a.rows - 1] ?? 0, ys[b.rows - 1] ?? 0);
  const from = end - (end - begin) * share;
  const x: number[] = [],
    each: (number | null)[] = [];
  for (let row = 0; row < a.rows; row++) {
    const at = xs[row]!;
    if (at < from || at > end) continue;
    const other = valueAt(b, axis, at),
      own = a.value[row]!;
    x.push(at);
    each.push(other !== null && Number.isFinite(own) ? other - own : null);
  }
  const known = each.filter((value) => value !== null),
    ended = b.rows > 0 && !Number.isFinite(b.value[b.rows - 1]!);
  const total = interval(known);
  return { x, each, ...moving(each), whole: total.mean, half: total.half, rows: known.length, broken: ended };
}

function interval(values: number[]): { mean: number; half: number } {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  if (values.length < 2 * BLOCKS) return { mean, half: NaN };
  const size = Math.floor(values.length / BLOCKS),
    first = values.length - size * BLOCKS;
  const blocks = Array.from(
    { length: BLOCKS },
    (_, block) => values.slice(first + block * size, first + (block + 1) * size).reduce((sum, value) => sum + value, 0) / size,
  );
  const centre = blocks.reduce((sum, value) => sum + value, 0) / BLOCKS;
  const spread = Math.sqrt(blocks.reduce((sum, value) => sum + (value - centre) ** 2, 0) / (BLOCKS - 1));
  return { mean, half: (T * spread) / Math.sqrt(BLOCKS) };
}

function moving(each: (number | null)[]): Pick<Difference, "mean" | "low" | "high"> {
  const reach = Math.max(2 * BLOCKS, Math.floor(each.length / 8));
  const told = each.map((_, row) => {
    const values = each.slice(Math.max(0, row - (reach >> 1)), row + (reach >> 1) + 1).filter((value) => value !== null);
    return values.length ? interval(values) : { mean: NaN, half: NaN };
  });
  const plain = (value: number): number | null => (Number.isFinite(value) ? value : null);
  return {
    mean: told.map(({ mean }) => plain(mean)),
    low: told.map(({ mean, half }) => plain(mean - half)),
    high: told.map(({ mean, half }) => plain(mean + half)),
  };
}
