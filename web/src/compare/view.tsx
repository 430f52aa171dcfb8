// Compare: one metric of several runs over each other, live where they train, what of their settings and results differs, and for each run against the first whether the
// difference over the last part is more than chance.
import { useEffect, useMemo, useState } from "preact/hooks";
import { api } from "../api/client";
import type { Course } from "../api/series";
import { number, type Comparison } from "../api/types";
import { query, runPath, setQuery } from "../app/route";
import { painted, colour } from "../app/theme";
import { Lines, type Line } from "../charts/lines";
import { type Axis, AXES, columnOf } from "../explore/clock";
import { smoothed } from "../explore/smooth";
import { Failed, Message } from "../ui/bits";
import { A } from "../ui/link";
import { useEvery, useLoad } from "../ui/load";
import { inUnit, NONE, plain, seconds, si } from "../ui/format";
import { Against } from "./against";
import { ASK_MS, useCourses } from "./follow";
import { valueAt } from "./stats";
import { Smoothing } from "../ui/slider";

const COLOURS = 8;

export function CompareView({ ids }: { ids: string[] }) {
  useEffect(() => {
    document.title = "Compare · Penstock";
  }, []);
  const asked = query.value;
  const metric = asked.get("metric") ?? "loss/total",
    axis = AXES.includes(asked.get("x") as Axis) ? (asked.get("x") as Axis) : "tokens";
  const smooth = Math.min(0.99, Number(asked.get("smooth") ?? 0) || 0),
    log = asked.get("log") === "1";
  const put = (name: string, value: string | null): void => setQuery((now) => (value ? now.set(name, value) : now.delete(name)));
  const names = useLoad(
    async (signal) => [...new Set((await Promise.all(ids.map((id) => api.metrics(id, signal)))).flat().map((one) => one.name))].sort(),
    [ids],
  );
  const table = useLoad((signal) => api.compare(ids, signal), [ids]);
  const running = (table.value?.runs ?? []).filter((one) => one.state === "running").map((one) => one.id);
  const courses = useCourses(ids, metric, running);
  useEvery(ASK_MS, () => {
    if (running.length) table.again();
  });
  if (ids.length < 2)
    return (
      <Message title="Nothing to compare yet">
        <p>
          Choose two runs or more in the list of <A to="/">all runs</A>.
        </p>
      </Message>
    );
  if (courses.error && !courses.value) return <Failed error={courses.error} again={courses.again} />;
  return (
    <div class="compare">
      <div class="tools" role="toolbar" aria-label="What is compared">
        <Chooser names={names.value ?? []} metric={metric} choose={(name) => put("metric", name)} />
        <div class="segments" role="group" aria-label="Aligned by">
          {AXES.map((one) => (
            <button key={one} type="button" aria-pressed={axis === one} onClick={() => put("x", one === "tokens" ? null : one)}>
              {one}
            </button>
          ))}
        </div>
        <Smoothing value={smooth} change={(share) => put("smooth", share ? String(share) : null)} />
        <button type="button" aria-pressed={log} onClick={() => put("log", log ? null : "1")}>
          log
        </button>
        {courses.link && (
          <span class={`link ${courses.link}`} title="Runs that train are followed">
            <i aria-hidden="true" />
            <b role="status">{courses.link}</b>
          </span>
        )}
      </div>
      {courses.value ? (
        <Overlay ids={ids} courses={courses.value} metric={metric} axis={axis} smooth={smooth} log={log} />
      ) : (
        <section class="card">
          <div class="plot big" />
        </section>
      )}
      {courses.value && (
        <Against
          ids={ids}
          courses={courses.value}
          axis={axis}
          better={table.value?.results.find((one) => one.name === metric)?.better ?? (/loss|time|wait|memory/.test(metric) ? "low" : null)}
        />
      )}
      {table.error && !table.value ? <Failed error={table.error} again={table.again} /> : courses.value && table.value && <Tables told={table.value} ids={ids} />}
    </div>
  );
}

function Chooser({ names, metric, choose }: { names: string[]; metric: string; choose: (name: string) => void }) {
  const [text, setText] = useState(metric);
  useEffect(() => setText(metric), [metric]);
  const write = (value: string): void => {
    setText(value);
    if (names.includes(value)) choose(value);
  };
  return (
    <label class="search wide">
      Metric
      <input
        list="metric-names"
        value={text}
        aria-label="Metric"
        onInput={(event) => write(event.currentTarget.value)}
        onChange={(event) => write(event.currentTarget.value)}
        onBlur={() => setText(metric)}
      />
      <datalist id="metric-names">
        {names.map((name) => (
          <option key={name} value={name} />
        ))}
      </datalist>
    </label>
  );
}

const paintOf = (index: number): string => colour(`--c${index % COLOURS}`);

function Overlay({
  ids,
  courses,
  metric,
  axis,
  smooth,
  log,
}: {
  ids: string[];
  courses: (Course | null)[];
  metric: string;
  axis: Axis;
  smooth: number;
  log: boolean;
}) {
  const paint = painted.value;
  const [at, setAt] = useState<number | null>(null);
  const begin = courses.map((course) => (axis === "time" && course?.rows ? course.time[0]! : 0));
  const lines = useMemo(
    () =>
      courses.flatMap((course, index): Line[] => {
        if (!course) return [];
        const x = Array.from(columnOf(course, axis), (value) => value - begin[index]!);
        const clean = Array.from(course.value, (value) => (Number.isFinite(value) && (!log || value > 0) ? value : null));
        const line = { name: ids[index]!, x, colour: paintOf(index), dashed: index >= 4 };
        return [{ ...line, y: smooth ? smoothed(clean, smooth) : clean }];
      }),
    [courses, axis, smooth, log, paint],
  );
  const unit = courses.find((course) => course)?.unit ?? "";
  return (
    <section class="card" aria-label={metric}>
      <h2>
        {metric}
        <span class="soft"> by {axis === "time" ? "seconds since the first row" : axis}</span>
      </h2>
      {lines.length ? (
        <Lines
          lines={lines}
          unit={unit}
          time={false}
          log={log}
          label={`${metric} of ${ids.length} runs; the last values stand below`}
          point={setAt}
        />
      ) : (
        <Message title="Not measured">
          <p>None of these runs measured {metric}.</p>
        </Message>
      )}
      <p class="soft at">
        {at === null ? "last values" : `at ${axis === "time" ? seconds(at) : `${si(at)} ${axis === "step" ? "steps" : "tokens"}`}`}
      </p>
      <ul class="legend">
        {ids.map((id, index) => {
          const course = courses[index],
            last = course?.rows ? course.value[course.rows - 1]! : NaN;
          const value = at !== null && course ? valueAt(course, axis, at + begin[index]!) : last;
          return (
            <li key={id}>
              <i class={`swatch p${index % COLOURS} ${index >= 4 ? "dashed" : ""}`} aria-hidden="true" />
              <A to={runPath(id, "overview")}>{id}</A>{" "}
              <b>{!course ? "not measured" : value === null ? NONE : Number.isNaN(value) ? "NaN" : inUnit(value, unit)}</b>
            </li>
          );
        })}
      </ul>
    </section>
  );
}

function Tables({ told, ids }: { told: Comparison; ids: string[] }) {
  const head = (what: string) => (
    <thead>
      <tr>
        <th scope="col">{what}</th>
        {ids.map((id, index) => (
          <th scope="col" key={id} class="right">
            <i class={`swatch p${index % COLOURS}`} aria-hidden="true" />
            {id}
          </th>
        ))}
      </tr>
    </thead>
  );
  return (
    <>
      <section class="card scroll" aria-label="Results" tabIndex={0}>
        <h2>Results</h2>
        <table class="differences">
          {head("Figure")}
          <tbody>
            {told.results.map((row) => {
              const values = row.values.map(number),
                finite = values.filter(Number.isFinite);
              const best = row.better && new Set(finite).size > 1 ? (row.better === "low" ? Math.min(...finite) : Math.max(...finite)) : NaN;
              return (
                <tr key={row.name}>
                  <th scope="row">{row.name}</th>
                  {values.map((value, index) => (
                    <td key={index} class={`right ${value === best ? "best" : ""}`}>
                      {inUnit(value, row.unit)}
                      {value === best && <span class="sr"> best</span>}
                    </td>
                  ))}
                </tr>
              );
            })}
          </tbody>
        </table>
      </section>
      <section class="card scroll" aria-label="Settings that differ" tabIndex={0}>
        <h2>Settings that differ</h2>
        {told.settings.length ? (
          <table class="differences">
            {head("Setting")}
            <tbody>
              {told.settings.map((row) => (
                <tr key={row.key}>
                  <th scope="row">
                    <code>{row.key}</code>
                  </th>
                  {row.values.map((value, index) => (
                    <td key={index} class="right">
                      {plain(value)}
                    </td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        ) : (
          <p class="soft">All settings are the same.</p>
        )}
      </section>
    </>
  );
}
