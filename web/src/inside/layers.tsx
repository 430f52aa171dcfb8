// Layers × time: one quantity of every layer, so that a fault that begins in one layer is seen to spread.
import { useMemo } from "preact/hooks";
import type { Metric } from "../api/types";
import type { RunModel } from "../app/run";
import { query, setQuery } from "../app/route";
import { Failed, Message, Waiting } from "../ui/bits";
import { capital, inUnit, whole, words } from "../ui/format";
import { HeatMap } from "./heat";
import { block, columnsOf } from "./columns";
import { useCourses } from "./courses";
import { cellsOf } from "./paint";
import { Panel } from "./panel";

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
  const courses = useCourses(run, one?.names ?? [], POINTS);
  const shown = useMemo(() => {
    if (!courses.value || !one) return null;
    const found = columnsOf(
        one.names.map((name) => courses.value!.get(name)),
        POINTS,
      ),
      cells = block(found.values, found.absent);
    return { steps: found.steps, cells: cellsOf(one.names.length, found.steps.length, cells.values, cells.absent) };
  }, [courses.value, one]);
  if (!metrics) return <Waiting what="the run's metrics" />;
  if (!one)
    return (
      <Message title="No layer was measured">
        <p>This run keeps no metrics by layer: its probes are off, or it has one layer.</p>
        <p>
          Set <code>metrics.rows = true</code> and <code>metrics.probe_every</code> above 0 (both are the default).
        </p>
      </Message>
    );
  if (courses.error) return <Failed error={courses.error} again={courses.again} />;
  const controls = (
    <>
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
    </>
  );
  return (
    <Panel title={`${capital(words(one.id))} by layer`} about={one.meaning} controls={controls}>
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
    </Panel>
  );
}
