// Courses of many metrics for a view, read again now and then while the run goes on.
import { useCallback } from "preact/hooks";
import { api, frozen, MOST_NAMES } from "../api/client";
import type { Course } from "../api/series";
import type { RunModel } from "../app/run";
import { type Loaded, useEvery, useLoad } from "../ui/load";

/** Milliseconds after which a view of a running run is read again. */
const FRESH_MS = 5000;

export type Courses = Map<string, Course>;

export function useCourses(run: RunModel, names: string[], points: number): Loaded<Courses> {
  const found = useLoad(
    async (signal) => {
      const parts = Array.from({ length: Math.ceil(names.length / MOST_NAMES) }, (_, at) => names.slice(at * MOST_NAMES, (at + 1) * MOST_NAMES));
      const answers = await Promise.all(parts.map((part) => api.series(run.id, part, { points }, signal)));
      return new Map(answers.flatMap((answer) => [...answer.courses]));
    },
    [run.id, names.join("\n"), points],
  );
  useFresh(run, found.again);
  return found;
}

/** Ask again every few seconds while the run goes on. */
export function useFresh(run: RunModel, again: () => void): void {
  useEvery(
    FRESH_MS,
    useCallback(() => {
      if (!frozen && run.running.peek()) again();
    }, [run, again]),
  );
}

/** The value of a course's last row. */
export const lastOf = (course: Course | undefined): number => (course?.rows ? course.value[course.rows - 1]! : NaN);
export const lastStep = (course: Course | undefined): number => (course?.rows ? course.step[course.rows - 1]! : NaN);
