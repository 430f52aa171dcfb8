// Spans of x and ranges of steps: turned into each other, and kept within the run.
import type { Course } from "../api/series";
import type { Clock } from "./clock";
import type { Range } from "./queue";

/** The steps that a span of x stands for; null if it is the whole run. */
export function asSteps(clock: Clock | null, base: Course | null, from: number, to: number): Range | null {
  if (!clock || !base?.rows) return null;
  const first = base.step[0]!,
    last = base.step[base.rows - 1]!;
  let low = clock.toStep(from),
    high = clock.toStep(to);
  if (low < first) {
    high += first - low;
    low = first;
  }
  if (high > last) {
    low = Math.max(first, low - (high - last));
    high = last;
  }
  const least = Math.min(2, last - first);
  if (high - low < least) {
    const middle = (low + high) / 2;
    low = middle - least / 2;
    high = middle + least / 2;
  }
  return high - low >= (last - first) * 0.999 ? null : { from: low, to: high };
}

/** A range moved by a share of its width, or made wider or narrower around its middle. */
export function moved(clock: Clock | null, base: Course | null, range: Range | null, by: number, factor: number): Range | null {
  if (!clock || !base?.rows) return null;
  const from = clock.toX(range?.from ?? base.step[0]!),
    to = clock.toX(Math.min(range?.to ?? Infinity, base.step[base.rows - 1]!));
  const half = ((to - from) / 2) * factor,
    middle = (from + to) / 2 + by * (to - from);
  return asSteps(clock, base, middle - half, middle + half);
}
