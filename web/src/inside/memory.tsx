// Memory by kind over time, stacked, against what the device has; and what a step needs at its peak beyond what it holds.
import { useMemo } from "preact/hooks";
import type { RunModel } from "../app/run";
import { Failed, Message, Waiting } from "../ui/bits";
import { percent, si } from "../ui/format";
import { columnsOf } from "./columns";
import { type Courses, lastOf, useCourses } from "./courses";
import { Panel } from "./panel";
import { type Layer, Stack } from "./stack";

const POINTS = 300;
const KINDS = ["weights", "gradients", "moments", "averages", "activations"] as const;
const NAMES = [...KINDS, "allocated", "allocated_peak", "reserved", "device_total", "device_free", "resident"].map((kind) => `memory/${kind}`);

export function Memory({ run }: { run: RunModel }) {
  const metrics = run.metrics.value;
  const names = useMemo(() => {
    const there = new Set((metrics ?? []).map((one) => one.name));
    return [...NAMES, "host/memory_total"].filter((name) => there.has(name));
  }, [metrics]);
  const courses = useCourses(run, names, POINTS);
  if (!metrics) return <Waiting what="the run's metrics" />;
  if (!names.some((name) => name.startsWith("memory/")))
    return (
      <Message title="No memory was measured">
        <p>This run did not record what its ranks measured, or has taken no step yet.</p>
        <p>
          Set <code>metrics.rows = true</code> (the default) and train.
        </p>
      </Message>
    );
  if (courses.error && !courses.value) return <Failed error={courses.error} again={courses.again} />;
  if (!courses.value) return <Waiting what="the memory" />;
  return (
    <>
      <OverTime courses={courses.value} />
      <OfStep courses={courses.value} />
    </>
  );
}

function OverTime({ courses }: { courses: Courses }) {
  const device = courses.has("memory/allocated"),
    whole = courses.get(device ? "memory/allocated" : "memory/resident");
  const { layers, steps } = useMemo(() => {
    const there = KINDS.filter((kind) => courses.get(`memory/${kind}`)?.rows && lastOf(courses.get(`memory/${kind}`)) > 0);
    const found = columnsOf([...there.map((kind) => courses.get(`memory/${kind}`)), whole], POINTS),
      all = found.values.at(-1)!;
    const rows: Layer[] = there.map((kind, i) => ({ name: kind, values: found.values[i]!, look: i }));
    const other = found.steps.map((_, column) =>
      found.absent.at(-1)![column] ? 0 : Math.max(0, all[column]! - there.reduce((sum, _kind, i) => sum + (found.values[i]![column] || 0), 0)),
    );
    return {
      layers: [...rows, { name: device ? "other live tensors" : "other: activations, libraries, buffers", values: other, look: 8 }],
      steps: found.steps,
    };
  }, [courses]);
  const total = lastOf(courses.get("memory/device_total")),
    host = lastOf(courses.get("host/memory_total"));
  const limit = device ? total : host,
    high = whole?.rows ? whole.high[whole.rows - 1]! : NaN,
    rank = whole?.rows ? whole.highRank[whole.rows - 1]! : -1;
  return (
    <Panel
      title="Memory by kind"
      about={
        device
          ? "Of a rank's device, between steps, the mean over ranks: what live tensors take."
          : "Of a rank's process, the mean over ranks; this run has no device memory of its own, so it is the host's."
      }
    >
      {Number.isFinite(high) && (
        <p class="finding">{`Rank ${rank} has most: ${si(high, "B")}${Number.isFinite(limit) && limit > 0 ? `, ${percent(high / limit)} of ${device ? "its device's" : "the host's"} ${si(limit, "B")}` : ""}.`}</p>
      )}
      <Stack
        layers={layers}
        steps={steps}
        limit={Number.isFinite(limit) && limit > 0 ? { name: device ? "device has" : "host has", value: limit } : undefined}
        show={(value) => si(value, "B")}
        label="Memory by kind over the steps, stacked"
      />
    </Panel>
  );
}

/** What a step holds at its highest, as bars: kinds that stay, and what comes and goes. */
function OfStep({ courses }: { courses: Courses }) {
  const peak = lastOf(courses.get("memory/allocated_peak")),
    total = lastOf(courses.get("memory/device_total")),
    reserved = lastOf(courses.get("memory/reserved"));
  if (!Number.isFinite(peak)) {
    return (
      <Panel title="Over a step">
        <p class="nothing">Only a device’s allocator tells what a step needs at its highest, and this run’s ranks compute on the CPU.</p>
      </Panel>
    );
  }
  const held = KINDS.slice(0, 4).map((kind, i) => ({
    name: kind as string,
    value: Math.max(0, lastOf(courses.get(`memory/${kind}`)) || 0),
    look: i,
  }));
  const parts = [
    ...held,
    { name: "activations and buffers at the peak", value: Math.max(0, peak - held.reduce((sum, one) => sum + one.value, 0)), look: 4 },
    { name: "held by the allocator, unused", value: Math.max(0, reserved - peak) || 0, look: 8 },
  ];
  const most = Math.max(
    total || 0,
    parts.reduce((sum, one) => sum + one.value, 0),
  );
  return (
    <Panel
      title="Over a step, at its highest"
      about="The largest number of bytes that were live at once, as the device's allocator counted, mean over ranks."
    >
      <div class="pair long" role="img" aria-label="Memory of a step at its highest, by kind">
        {parts.map((one) => (
          <i key={one.name} class={`p${one.look}`} style={{ width: `${(one.value / most) * 100}%` }} />
        ))}
      </div>
      <ul class="legend">
        {parts.map((one) => (
          <li key={one.name}>
            <i class={`swatch tall p${one.look}`} />
            {one.name} {si(one.value, "B")}
          </li>
        ))}
        {total > 0 && <li>device has {si(total, "B")}</li>}
      </ul>
    </Panel>
  );
}
