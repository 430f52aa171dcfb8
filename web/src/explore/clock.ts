// Steps, tokens and time as one axis. The range that is looked at is kept in steps; a table of (step, tokens, time), taken from a course of the whole
// run, turns it into the other two and back, so that changing the axis keeps what is in sight.
import type { Course } from "../api/series";

export type Axis = "step" | "tokens" | "time";
export const AXES: readonly Axis[] = ["step", "tokens", "time"];

/** The column of a course that is its x. Time is in seconds since the run began. */
export function columnOf(course: Course, axis: Axis): Float64Array {
  return axis === "step" ? course.step : axis === "tokens" ? course.tokens : course.time;
}

export class Clock {
  private constructor(
    private readonly step: ArrayLike<number>,
    private readonly x: ArrayLike<number>,
  ) {}

  static of(course: Course, axis: Axis): Clock {
    return new Clock(course.step, columnOf(course, axis));
  }

  toX(step: number): number {
    return between(this.step, this.x, step);
  }
  toStep(x: number): number {
    return between(this.x, this.step, x);
  }
}

/** `to` at `value` of `from`, which rises; beyond the ends it goes on as at the end. */
function between(from: ArrayLike<number>, to: ArrayLike<number>, value: number): number {
  const count = from.length;
  if (count < 2) return count ? to[0]! + (value - from[0]!) : value;
  let low = 0,
    high = count - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (from[middle]! <= value) low = middle;
    else high = middle;
  }
  const span = from[high]! - from[low]!;
  return span ? to[low]! + ((value - from[low]!) / span) * (to[high]! - to[low]!) : to[low]!;
}
