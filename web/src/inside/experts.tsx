// Experts × time: how many tokens each expert of a layer gets over the mean, so that idle and crowded ones stand out; and layers × time of the crowding.
import { useMemo } from "preact/hooks";
import type { RunModel } from "../app/run";
import { query, setQuery } from "../app/route";
import { Failed, Message, Waiting } from "../ui/bits";
import { digits, whole } from "../ui/format";
import { block, columnsOf } from "./columns";
import { useCourses } from "./courses";
import { HeatMap } from "./heat";
import { Choice, Panel } from "./panel";
import { cellsOf } from "./paint";

const POINTS = 400;
const EXPERT = /^expert_load\/layer\.(\d+)\.expert\.(\d+)$/,
  FIGURE = /^expert_load\/layer\.(\d+)\.(max|min|dead|entropy)$/;
const FIGURES = [
  ["max", "busiest"],
  ["min", "idlest"],
  ["dead", "share without tokens"],
  ["entropy", "evenness"],
] as const;
type Figure = (typeof FIGURES)[number][0];
const MEANS: Record<Figure, string> = {
  max: "The busiest expert’s tokens over the mean of its layer: 1 is even.",
  min: "The idlest expert’s tokens over the mean of its layer: 1 is even, 0 is dead.",
  dead: "Share of a layer’s experts that got no token.",
  entropy: "Entropy of the experts’ shares over its largest value: 1 is even.",
};

export function Experts({ run }: { run: RunModel }) {
  const metrics = run.metrics.value;
  const names = useMemo(() => (metrics ?? []).map((one) => one.name).filter((name) => name.startsWith("expert_load/layer.")), [metrics]);
  if (!metrics) return <Waiting what="the run's metrics" />;
  if (!names.length)
    return (
      <Message title="This run has no experts">
        <p>
          Its layers are dense: every token goes through the same weights. <code>model.moe.experts = 8</code>, or the preset <code>tiny-moe</code>,
          makes a mixture of experts.
        </p>
      </Message>
    );
  return (
    <>
      <OfLayer run={run} names={names} />
      <OfAll run={run} names={names} />
    </>
  );
}

function OfLayer({ run, names }: { run: RunModel; names: string[] }) {
  const found = useMemo(() => names.map((name) => EXPERT.exec(name)).filter((parts) => parts !== null), [names]);
  const layers = [...new Set(found.map((parts) => parts[1]!))].sort(),
    asked = query.value.get("layer"),
    layer = layers.includes(asked ?? "") ? asked! : layers[0];
  const own = found.filter((parts) => parts[1] === layer).sort((a, b) => Number(a[2]) - Number(b[2]));
  if (layer === undefined)
    return (
      <Panel title="Experts of a layer">
        <p class="nothing">
          Each expert has a course of its own in models of at most 256 experts in all layers together; this one has more, or was trained before that
          was kept. Below is how uneven they are.
        </p>
      </Panel>
    );
  const controls = (
    <label>
      Layer{" "}
      <select value={layer} onChange={(event) => setQuery((now) => now.set("layer", event.currentTarget.value))}>
        {layers.map((one) => (
          <option key={one} value={one}>
            {one}
          </option>
        ))}
      </select>
    </label>
  );
  return (
    <Panel
      title={`Experts of layer ${layer}`}
      controls={controls}
      about="Tokens of each expert over the mean of its layer: 1 is even, 0 is an expert that nobody uses."
    >
      <Map
        run={run}
        names={own.map((parts) => parts[0]!)}
        rows={own.map((parts) => `expert ${Number(parts[2])}`)}
        label={`Load of ${own.length} experts of layer ${layer}`}
      />
    </Panel>
  );
}

function OfAll({ run, names }: { run: RunModel; names: string[] }) {
  const asked = query.value.get("figure"),
    figure: Figure = FIGURES.find(([id]) => id === asked)?.[0] ?? "max";
  const own = names
    .map((name) => FIGURE.exec(name))
    .filter((parts) => parts !== null && parts[2] === figure)
    .sort((a, b) => Number(a![1]) - Number(b![1]));
  const controls = (
    <Choice
      label="Figure"
      value={figure}
      options={FIGURES}
      choose={(id) => setQuery((now) => (id === "max" ? now.delete("figure") : now.set("figure", id)))}
    />
  );
  return (
    <Panel title="All layers" controls={controls} about={MEANS[figure]}>
      {own.length ? (
        <Map
          run={run}
          names={own.map((parts) => parts![0]!)}
          rows={own.map((parts) => `layer ${parts![1]}`)}
          label={`${MEANS[figure]} ${own.length} layers`}
        />
      ) : (
        <p class="nothing">This was not measured.</p>
      )}
    </Panel>
  );
}

function Map({ run, names, rows, label }: { run: RunModel; names: string[]; rows: string[]; label: string }) {
  const courses = useCourses(run, names, POINTS);
  const shown = useMemo(() => {
    if (!courses.value) return null;
    const found = columnsOf(
        names.map((name) => courses.value!.get(name)),
        POINTS,
      ),
      cells = block(found.values, found.absent);
    return { steps: found.steps, cells: cellsOf(names.length, found.steps.length, cells.values, cells.absent) };
  }, [courses.value, names.join()]);
  if (courses.error && !shown) return <Failed error={courses.error} again={courses.again} />;
  if (!shown) return <Waiting what="the experts" />;
  return (
    <HeatMap
      cells={shown.cells}
      rowNames={rows}
      columnName={(column) => `step ${whole(shown.steps[column] ?? NaN)}`}
      show={(value) => digits(value, 3)}
      label={label}
    />
  );
}
