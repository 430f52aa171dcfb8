// The courses behind the panels. Panels say which metrics are in sight; what is wanted within one frame goes out as few calls of up to 64 names. Each
// metric has its whole course, and, when one looks closer, a finer one of a range somewhat wider than what is in sight, so that panning has something
// to show at once. New rows of the live stream are put behind the whole course, which is fetched again, thinned, when it has grown too long.
import { signal } from "@preact/signals";
import { api, MOST_NAMES } from "../api/client";
import { appended, type Course } from "../api/series";
import type { LiveRows } from "../api/types";
import type { RunModel } from "../app/run";

export interface Range { from: number; to: number }
interface Held { whole: Course | null; wholeStale: boolean; close: Course | null; closeOf: Range | null; missing: boolean }

const POINTS = 800;
/** Rows in sight below which a finer course is asked for, if there are more measured. */
const COARSE = 500;
const LONGEST = 2600;
const FRAME_MS = 16;
/** A finer course is asked for when the range has rested so long. */
const REST_MS = 150;

export class Store {
  /** Counts up when courses changed; panels look at their own then. */
  readonly changed = signal(0);
  readonly error = signal<Error | null>(null);
  /** A course of the whole run, for the axes. */
  readonly base = signal<Course | null>(null);
  readonly through = signal(0);

  private held = new Map<string, Held>();
  private wanted = new Set<string>();
  private pending = new Map<string, null>();
  /** Rows that came before the course they belong to. */
  private early = new Map<string, LiveRows["courses"][string][]>();
  private flying = new Set<string>();
  private timer = 0;
  private closer = new Map<string, Range>();
  private restTimer = 0;
  private control = new AbortController();
  private readonly stop: () => void;

  constructor(private readonly run: RunModel) {
    this.stop = run.listen((rows) => this.take(rows), () => this.forget());
  }

  close(): void { this.stop(); this.control.abort(); clearTimeout(this.timer); clearTimeout(this.restTimer); }

  missing(name: string): boolean { return this.held.get(name)?.missing ?? false; }

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

  /** Fetch a metric's course, finer if a range is given and what is held is too coarse for it. */
  need(name: string, range: Range | null): void {
    const held = this.held.get(name);
    if (!held?.whole || held.wholeStale) this.ask(name, null);
    if (range && held?.whole && this.coarse(held, range)) this.ask(name, range);
  }

  private coarse(held: Held, range: Range): boolean {
    const whole = held.whole!;
    if (whole.measured <= whole.rows * 1.02) return false;
    const best = held.close && held.closeOf && held.closeOf.from <= range.from && held.closeOf.to >= range.to ? held.close : whole;
    if (best === held.close && best.measured <= best.rows * 1.02) return false;
    return rowsWithin(best, range) < COARSE;
  }

  private ask(name: string, range: Range | null): void {
    if (this.flying.has(key(name, range))) return;
    if (range) {
      this.closer.set(name, range);
      clearTimeout(this.restTimer);
      this.restTimer = window.setTimeout(() => { this.flush(this.closer); this.closer = new Map(); }, REST_MS);
    } else {
      this.pending.set(name, null);
      this.timer ||= window.setTimeout(() => { this.timer = 0; this.flush(this.pending); this.pending = new Map(); }, FRAME_MS);
    }
  }

  private flush(asked: Map<string, Range | null>): void {
    const groups = new Map<string, { range: Range | null; names: string[] }>();
    for (const [name, range] of asked) {
      const group = groups.get(key("", range)) ?? { range, names: [] };
      group.names.push(name);
      groups.set(key("", range), group);
    }
    for (const { range, names } of groups.values()) {
      for (let at = 0; at < names.length; at += MOST_NAMES) void this.fetch(names.slice(at, at + MOST_NAMES), range);
    }
  }

  private async fetch(names: string[], range: Range | null): Promise<void> {
    const wide = range && { from: Math.max(0, range.from - (range.to - range.from) / 2), to: range.to + (range.to - range.from) / 2 };
    names.forEach((name) => this.flying.add(key(name, range)));
    try {
      const answer = await api.series(this.run.id, names, wide ? { ...wide, points: 2 * POINTS } : { points: POINTS }, this.control.signal);
      for (const name of names) this.put(name, answer.courses.get(name) ?? null, wide);
      if (!wide) this.through.value = Math.max(this.through.peek(), answer.through);
      this.error.value = null;
    } catch (error) {
      if (this.control.signal.aborted) return;
      this.error.value = error as Error;
    } finally { names.forEach((name) => this.flying.delete(key(name, range))); }
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
        if (this.wanted.has(name)) this.early.set(name, [...(this.early.get(name) ?? []), more]);
        continue;
      }
      const whole = appended(held.whole, more);
      const followed = held.close && held.closeOf && held.closeOf.to >= held.whole.step[held.whole.rows - 1]! ? appended(held.close, more) : held.close;
      this.held.set(name, { ...held, whole, close: followed });
      if (name === this.base.peek()?.name) this.base.value = whole;
      if (whole.rows > LONGEST && this.wanted.has(name)) this.ask(name, null);
    }
    this.through.value = Math.max(this.through.peek(), rows.through);
    this.changed.value = this.changed.peek() + 1;
  }

  /** The run went back, or rows were missed: everything is fetched again; what is shown stays until then. */
  private forget(): void {
    for (const [name, held] of this.held) this.held.set(name, { ...held, wholeStale: true, close: null, closeOf: null });
    for (const name of this.wanted) this.ask(name, null);
  }
}

const key = (name: string, range: Range | null): string => `${name} ${range ? `${range.from}:${range.to}` : ""}`;

function rowsWithin(course: Course, range: Range): number {
  let rows = 0;
  for (let at = 0; at < course.rows; at++) if (course.step[at]! >= range.from && course.step[at]! <= range.to) rows++;
  return rows;
}
