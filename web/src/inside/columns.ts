// Courses laid on common columns, evenly spaced in steps, so that they can be stacked or shown as rows of one picture.
import type { Course } from "../api/series";

export interface Columns {
  steps: number[];
  /** For each course its value at each column; NaN: no number was measured. */ values: Float32Array[];
  absent: Uint8Array[];
}

/** A course that was measured in fewer than this share of the steps happens seldom. */
const SELDOM = 0.5;

/** Each cell is the value that is nearest before its column. Without `hold`, what happens seldom counts in the columns alone in whose steps it did. */
export function columnsOf(courses: (Course | null | undefined)[], most: number, hold = true): Columns {
  const there = courses.filter((course) => course && course.rows > 0) as Course[];
  if (!there.length) return { steps: [], values: courses.map(() => new Float32Array()), absent: courses.map(() => new Uint8Array()) };
  const first = Math.min(...there.map((course) => course.step[0]!)),
    last = Math.max(...there.map((course) => course.step[course.rows - 1]!));
  const count = Math.max(1, Math.min(most, last - first + 1));
  const steps = Array.from({ length: count }, (_, column) => Math.round(first + ((last - first) * column) / Math.max(1, count - 1)));
  const values: Float32Array[] = [],
    absent: Uint8Array[] = [];
  for (const course of courses) {
    const row = new Float32Array(count),
      none = new Uint8Array(count);
    const kept = hold || !course || course.measured >= SELDOM * (last - first + 1);
    let at = 0;
    for (let column = 0; column < count; column++) {
      while (course && at + 1 < course.rows && course.step[at + 1]! <= steps[column]!) at++;
      const known = course && course.rows && course.step[at]! <= steps[column]! && (kept || course.step[at]! > (steps[column - 1] ?? -1));
      row[column] = known ? course.value[at]! : 0;
      none[column] = known ? 0 : 1;
    }
    values.push(row);
    absent.push(none);
  }
  return { steps, values, absent };
}

/** Rows of numbers as one block. */
export function block(rows: Float32Array[], absent: Uint8Array[]): { values: Float32Array; absent: Uint8Array } {
  const wide = rows[0]?.length ?? 0,
    values = new Float32Array(rows.length * wide),
    none = new Uint8Array(rows.length * wide);
  rows.forEach((row, at) => {
    values.set(row, at * wide);
    none.set(absent[at]!, at * wide);
  });
  return { values, absent: none };
}
