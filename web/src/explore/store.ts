// The courses behind the panels. Panels say which metrics are in sight; what they need goes out a few names a call (`queue.ts`). Each metric has its
// whole course, and, when one looks closer, a finer one of a range somewhat wider than what is in sight, so that panning has something to show at once.
// New rows of the live stream are put behind the whole course, which is fetched again, thinned, when it has grown too long.
import { signal } from "@preact/signals";
import { api, MOST_NAMES } from "../api/client";
import { appended, type Course } from "../api/series";
import type { LiveRows } from "../api/types";
import type { RunModel } from "../app/run";
import { Queue, type Range } from "./queue";

interface Held {
  whole: Course | null;
  wholeStale: boolean;
  close: Course | null;
  closeOf: Range | null;
  missing: boolean;
}

const POINTS = 800;
/** Rows in sight below which a finer course is asked for, if there are more measured. */
const COARSE = 500;
const LONGEST = 2600;
/** What could not be fetched is asked for again after so long. */
const RETRY_MS = 3000;
const always = (): boolean => true;

export class Store {
  /** Counts up when courses changed; panels look at their own then. */
  readonly changed = signal(0);
  readonly error = signal<Error | null>(null);
  /** A course of the whole run, for the axes. */
  readonly base = signal<Course | null>(null);
  readonly through = signal(0);

  private held = new Map<string, Held>();
  private wanted = new Set<string>();
  private readonly queue = new Queue((names, range) => this.fetch(names, range));
  /** Rows that came before the course they belong to. */
  private early = new Map<string, LiveRows["courses"][string][]>();
  private retry = 0;
  private control = new AbortController();
  private readonly stop: () => void;

  constructor(private readonly run: RunModel) {
    this.stop = run.listen(
      (rows) => this.take(rows),
      () => this.forget(),
    );
  }

  close(): void {
    this.stop();
    this.control.abort();
    this.queue.close();
    clearTimeout(this.retry);
  }

  missing(name: string): boolean {
    return this.held.get(name)?.missing ?? false;
  }

  /** The best course at hand for what is in sight. */
  course(name: string, range: Range | null): Course | null {
    const held = this.held.get(name);
    if (!held) return null;
    const fits = range && held.close && held.closeOf && held.closeOf.from <= range.from && held.closeOf.to >= range.to;
    return fits ? held.close : held.whole;
  }

  /** The names in sight: their courses are kept true. */
  see(names: string[]): void {
    this.wanted = new Set(names);
    this.run.live.want(names.slice(0, MOST_NAMES), this.through.peek() || null);
  }

  /** Fetch a metric's course, finer if a range is given and what is held is too coarse for it; `urgent`: it is on the screen. */
  need(name: string, range: Range | null, urgent: () => boolean): void {
    const held = this.held.get(name);
    if (!held || held.wholeStale || (!held.whole && !held.missing)) this.queue.add({ name, range: null, urgent });
    if (range && held?.whole && this.coarse(held, range)) this.queue.add({ name, range, urgent });
  }

  /** A metric is out of sight: what of it was not fetched yet need not be. */
  drop(name: string): void {
    this.queue.drop(name);
  }

  private coarse(held: Held, range: Range): boolean {
    const whole = held.whole!;
    if (whole.measured <= whole.rows * 1.02) return false;
    const best = held.close && held.closeOf && held.closeOf.from <= range.from && held.closeOf.to >= range.to ? held.close : whole;
    if (best === held.close && best.measured <= best.rows * 1.02) return false;
    return rowsWithin(best, range) < COARSE;
  }

  private async fetch(names: string[], range: Range | null): Promise<void> {
    const wide = range && { from: Math.max(0, range.from - (range.to - range.from) / 2), to: range.to + (range.to - range.from) / 2 };
    try {
      const answer = await api.series(this.run.id, names, wide ? { ...wide, points: 2 * POINTS } : { points: POINTS }, this.control.signal);
      for (const name of names) this.put(name, answer.courses.get(name) ?? null, wide);
      if (!wide) this.through.value = Math.max(this.through.peek(), answer.through);
      this.error.value = null;
    } catch (error) {
      if (this.control.signal.aborted) return;
      this.error.value = error as Error;
      clearTimeout(this.retry);
      this.retry = window.setTimeout(() => {
        this.changed.value = this.changed.peek() + 1;
      }, RETRY_MS);
      return;
    }
    this.changed.value = this.changed.peek() + 1;
  }

  private put(name: string, course: Course | null, range: Range | null): void {
    const held = this.held.get(name) ?? { whole: null, wholeStale: false, close: null, closeOf: null, missing: false };
    if (!range && course) for (const more of this.early.get(name) ?? []) course = appended(course, more);
    if (!range) this.early.delete(name);
    this.held.set(name, range ? { ...held, close: course, closeOf: range } : { ...held, whole: course, wholeStale: false, missing: !course?.rows });
    if (!range && course && course.rows > (this.base.peek()?.rows ?? 0)) this.base.value = course;
  }

  private take(rows: LiveRows): void {
    for (const [name, more] of Object.entries(rows.courses)) {
      const held = this.held.get(name);
      if (!held?.whole) {
        if (held?.missing) this.queue.add({ name, range: null, urgent: always });
        if (this.wanted.has(name)) this.early.set(name, [...(this.early.get(name) ?? []), more]);
        continue;
      }
      const whole = appended(held.whole, more);
      const followed =
        held.close && held.closeOf && held.closeOf.to >= held.whole.step[held.whole.rows - 1]! ? appended(held.close, more) : held.close;
      this.held.set(name, { ...held, whole, close: followed });
      if (name === this.base.peek()?.name) this.base.value = whole;
      if (whole.rows > LONGEST && this.wanted.has(name)) this.queue.add({ name, range: null, urgent: always });
    }
    this.through.value = Math.max(this.through.peek(), rows.through);
    this.changed.value = this.changed.peek() + 1;
  }

  /** The run went back, or rows were missed: everything is fetched again; what is shown stays until then. */
  private forget(): void {
    for (const [name, held] of this.held) this.held.set(name, { ...held, wholeStale: true, close: null, closeOf: null });
    for (const name of this.wanted) this.queue.add({ name, range: null, urgent: always });
  }
}

function rowsWithin(course: Course, range: Range): number {
  let rows = 0;
  for (let at = 0; at < course.rows; at++) if (course.step[at]! >= range.from && course.step[at]! <= range.to) rows++;
  return rows;
}
