// Layers × time: one quantity of every layer, so that a fault that begins in one layer is seen to spread.
import { useEffect, useMemo } from "preact/hooks";
import { api, MOST_NAMES } from "../api/client";
import type { Course } from "../api/series";
import type { Metric } from "../api/types";
import type { RunModel } from "../app/run";
import { query, setQuery } from "../app/route";
import { Failed, Message, Waiting } from "../ui/bits";
import { useLoad } from "../ui/load";
import { capital, inUnit, whole, words } from "../ui/format";
import { HeatMap } from "./heat";
import { type Cells, cellsOf } from "./paint";

const POINTS = 400;
const LAYER = /^([^/]+)\/layer\.(\d+)(\..+)?$/;

interface Quantity {
  id: string;
  names: string[];
  layers: string[];
  unit: string;
  meaning: string;
}

/** Quantities that several layers have: `grad_norm`, `activation_norm … attention`, and so on. */
function quantities(metrics: Metric[]): Quantity[] {
  const found = new Map<string, Quantity>();
  for (const metric of metrics) {
    const parts = LAYER.exec(metric.name);
    if (!parts) continue;
    const id = parts[1]! + (parts[3] ?? "");
    const one = found.get(id) ?? { id, names: [], layers: [], unit: metric.unit, meaning: metric.meaning };
    one.names.push(metric.name);
    one.layers.push(parts[2]!);
    found.set(id, one);
  }
  return [...found.values()].filter((one) => one.names.length > 1);
}

export function Layers({ run }: { run: RunModel }) {
  const metrics = run.metrics.value;
  const all = useMemo(() => quantities(metrics ?? []), [metrics]);
  const asked = query.value.get("quantity"),
    log = query.value.get("log") === "1";
  const one = all.find((quantity) => quantity.id === asked) ?? all[0];
  const step = run.overview.value?.step ?? 0;
  const fresh = Math.floor(step / 20);
  const courses = useLoad(
    async (signal) => {
      const names = one?.names ?? [];
      const parts = await Promise.all(
        Array.from({ length: Math.ceil(names.length / MOST_NAMES) }, (_, at) =>
          api.series(run.id, names.slice(at * MOST_NAMES, (at + 1) * MOST_NAMES), { points: POINTS }, signal),
        ),
      );
      return names.map((name) => parts.map((part) => part.courses.get(name)).find((course) => course) ?? null);
    },
    [run.id, one?.id ?? ""],
  );
  useEffect(() => {
    if (fresh) courses.again();
  }, [fresh]);
  const shown = useMemo(() => (courses.value ? grid(courses.value) : null), [courses.value]);
  if (!metrics) return <Waiting what="the run's metrics" />;
  if (!one)
    return (
      <Message title="No layer was measured">
        <p>This run keeps no metrics by layer.</p>
      </Message>
    );
  if (courses.error) return <Failed error={courses.error} again={courses.again} />;
  return (
    <section class="card" aria-label="Layers over time">
      <header>
        <h2>{capital(words(one.id))} by layer</h2>
        <label>
          Quantity{" "}
          <select value={one.id} onChange={(event) => setQuery((now) => now.set("quantity", event.currentTarget.value))}>
            {all.map((quantity) => (
              <option key={quantity.id} value={quantity.id}>
                {words(quantity.id)}
              </option>
            ))}
          </select>
        </label>
        <button type="button" aria-pressed={log} onClick={() => setQuery((now) => (log ? now.delete("log") : now.set("log", "1")))}>
          log
        </button>
      </header>
      <p class="soft">{one.meaning}</p>
      {shown ? (
        <HeatMap
          cells={shown.cells}
          rowNames={one.layers.map((layer) => `layer ${layer}`)}
          columnName={(column) => `step ${whole(shown.steps[column] ?? NaN)}`}
          show={(value) => inUnit(value, one.unit)}
          log={log}
          label={`${words(one.id)} of ${one.layers.length} layers, steps ${whole(shown.steps[0] ?? NaN)} to ${whole(shown.steps.at(-1) ?? NaN)}`}
        />
      ) : (
        <Waiting what="the layers" />
      )}
    </section>
  );
}

/** Courses as rows over common columns, evenly spaced in steps; each cell is the value that is nearest before its column. */
function grid(courses: (Course | null)[]): { cells: Cells; steps: number[] } {
  const there = courses.filter((course) => course !== null && course.rows > 0) as Course[];
  const first = Math.min(...there.map((course) => course.step[0]!)),
    last = Math.max(...there.map((course) => course.step[course.rows - 1]!));
  const columns = Math.max(1, Math.min(POINTS, last - first + 1));
  const steps = Array.from({ length: columns }, (_, column) => Math.round(first + ((last - first) * column) / Math.max(1, columns - 1)));
  const values = new Float32Array(courses.length * columns),
    absent = new Uint8Array(courses.length * columns);
  courses.forEach((course, row) => {
    let at = 0;
    for (let column = 0; column < columns; column++) {
      while (course && at + 1 < course.rows && course.step[at + 1]! <= steps[column]!) at++;
      const known = course && course.rows && course.step[at]! <= steps[column]!;
      values[row * columns + column] = known ? course.value[at]! : 0;
      absent[row * columns + column] = known ? 0 : 1;
    }
  });
  return { cells: cellsOf(courses.length, columns, values, absent), steps };
}
