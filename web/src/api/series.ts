// Courses of metrics as columns: the binary answer decoded, and new rows of the live stream appended. A course of 1,000 rows is 44 kB; a view of
// twenty panels thus decodes in a few milliseconds, where the same as JSON takes a hundred.
import { type LiveRows, number } from "./types";

export interface Course {
  name: string;
  unit: string;
  rows: number;
  measured: number;
  step: Float64Array;
  time: Float64Array;
  tokens: Float64Array;
  value: Float32Array;
  low: Float32Array;
  high: Float32Array;
  lowRank: Int32Array;
  highRank: Int32Array;
}
export interface Answer {
  courses: Map<string, Course>;
  through: number;
  missing: string[];
}

interface Header {
  courses: { name: string; unit: string; rows: number; measured: number; offset: number }[];
  through: number | null;
  missing?: string[];
}

/** The answer of `series`: a length, a JSON header, and the columns of each course at its offset. */
export function decodeSeries(body: ArrayBuffer): Answer {
  const length = new DataView(body).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(body, 4, length))) as Header;
  const courses = new Map(header.courses.map((told) => [told.name, decodeCourse(body, told)]));
  return { courses, through: header.through ?? 0, missing: header.missing ?? [] };
}

function decodeCourse(body: ArrayBuffer, told: Header["courses"][number]): Course {
  let at = told.offset;
  const take = (bytes: number): ArrayBuffer => {
    const part = body.slice(at, at + bytes * told.rows);
    at += bytes * told.rows;
    return part;
  };
  return {
    name: told.name,
    unit: told.unit,
    rows: told.rows,
    measured: told.measured,
    step: new Float64Array(take(8)),
    time: new Float64Array(take(8)),
    tokens: new Float64Array(take(8)),
    value: new Float32Array(take(4)),
    low: new Float32Array(take(4)),
    high: new Float32Array(take(4)),
    lowRank: new Int32Array(take(4)),
    highRank: new Int32Array(take(4)),
  };
}

function joined<T extends Float64Array | Float32Array | Int32Array>(before: T, after: number[]): T {
  const all = new (before.constructor as new (length: number) => T)(before.length + after.length);
  all.set(before);
  all.set(after, before.length);
  return all;
}

/** A course and the new rows after its last; rows that it has already are left out. */
export function appended(course: Course, rows: LiveRows["courses"][string]): Course {
  const last = course.rows ? course.step[course.rows - 1]! : -Infinity;
  const first = rows.step.findIndex((step) => step > last);
  if (first < 0) return course;
  const tail = (column: (number | "nan" | "inf" | "-inf" | null)[] | undefined): number[] => (column ?? []).slice(first).map(number);
  const step = rows.step.slice(first);
  const ranks = (column: number[] | undefined): number[] => (column ? column.slice(first) : step.map(() => -1));
  return {
    ...course,
    rows: course.rows + step.length,
    measured: course.measured + step.length,
    step: joined(course.step, step),
    time: joined(course.time, tail(rows.time)),
    tokens: joined(course.tokens, tail(rows.tokens)),
    value: joined(course.value, tail(rows.value)),
    low: joined(course.low, tail(rows.low)),
    high: joined(course.high, tail(rows.high)),
    lowRank: joined(course.lowRank, ranks(rows.low_rank)),
    highRank: joined(course.highRank, ranks(rows.high_rank)),
  };
}
