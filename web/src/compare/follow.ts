// The courses that Compare draws, kept true while runs still train: what is new comes by the live streams that the other views use. A browser opens
// some six connections to one server, so the first few running runs are followed so and the others are asked again every while.
import { useEffect, useRef, useState } from "preact/hooks";
import { api } from "../api/client";
import { type Link, Live } from "../api/live";
import { appended, type Course } from "../api/series";
import type { LiveRows } from "../api/types";
import { type Loaded, useEvery, useLoad } from "../ui/load";

const POINTS = 2000;
/** A course is fetched again, thinned, when it has grown so long. */
const LONGEST = 5000;
const FOLLOWED = 4;
/** New rows are drawn together, so often, and what is not followed is asked for so often. */
const DRAW_MS = 1000;
export const ASK_MS = 15_000;

export interface Followed extends Loaded<(Course | null)[]> {
  /** How the streams are: the worst of them; null where no run trains. */
  link: Link | null;
}

export function useCourses(ids: string[], metric: string, running: string[]): Followed {
  const base = useLoad(
    async (signal) =>
      (await Promise.all(ids.map((id) => api.series(id, [metric], { points: POINTS }, signal)))).map((answer) => answer.courses.get(metric) ?? null),
    [ids, metric],
  );
  const grown = useRef<(Course | null)[] | null>(null);
  const source = useRef<unknown>(null);
  const [, draw] = useState(0);
  const [lives, setLives] = useState<Live[]>([]);
  if (source.current !== base.value) {
    source.current = base.value;
    grown.current = base.value;
  }
  const there = base.value !== null;
  useEffect(() => {
    if (!there) return undefined;
    let timer = 0;
    const take = (at: number, told: LiveRows): void => {
      const rows = told.courses[metric],
        course = grown.current?.[at];
      if (!rows || !grown.current) return;
      const longer = course ? appended(course, rows) : null;
      if (!longer || longer.rows > LONGEST) base.again();
      if (!longer || longer === course) return;
      grown.current = grown.current.map((one, index) => (index === at ? longer : one));
      timer ||= window.setTimeout(() => {
        timer = 0;
        draw((turn) => turn + 1);
      }, DRAW_MS);
    };
    const opened = running.slice(0, FOLLOWED).map((id) => {
      const at = ids.indexOf(id),
        course = grown.current?.[at];
      const live = new Live(id, { rows: (told) => take(at, told), refetch: base.again, overview: () => undefined, alerts: () => undefined });
      live.want([metric], course?.rows ? course.step[course.rows - 1]! : null);
      return live;
    });
    setLives(opened);
    return () => {
      clearTimeout(timer);
      opened.forEach((live) => live.close());
    };
  }, [there, metric, JSON.stringify([ids, running])]);
  useEvery(ASK_MS, () => {
    if (running.length > FOLLOWED) base.again();
  });
  const links = lives.map((live) => live.link.value);
  const link = links.find((one) => one !== "live") ?? links[0] ?? null;
  return { ...base, value: grown.current, link: running.length ? link : null };
}
