// Communication by axis and purpose: bytes inside nodes and between them, seconds that held up the step and seconds hidden beside the computation.
import { useMemo } from "preact/hooks";
import type { RunModel } from "../app/run";
import { query, setQuery } from "../app/route";
import { Failed, Message, Waiting } from "../ui/bits";
import { seconds, si, whole, words } from "../ui/format";
import { columnsOf } from "./columns";
import { type Courses, lastOf, lastStep, useCourses } from "./courses";
import { Choice, Keys, Panel, Wide } from "./panel";
import { Stack } from "./stack";

const POINTS = 200,
  LAYERS = 6;
const NAME = /^(bytes|calls|wait)\/([^.]+(?:\.[^.]+)?)(?:\.(between|hidden))?$/;
/** What does not belong to one exchange. */
const NOT = /^wait\/(total$|collective\.)/;

interface Way {
  key: string;
  axis: string;
  purpose: string;
  bytes: number;
  inside: number;
  between: number;
  exposed: number;
  hidden: number;
  calls: number;
  step: number;
}

export function Communication({ run }: { run: RunModel }) {
  const metrics = run.metrics.value;
  const names = useMemo(
    () => (metrics ?? []).map((one) => one.name).filter((name) => /^(bytes|calls|wait)\//.test(name) && !NOT.test(name)),
    [metrics],
  );
  const courses = useCourses(run, names, POINTS);
  const ways = useMemo(() => (courses.value ? waysOf(courses.value) : null), [courses.value]);
  if (!metrics) return <Waiting what="the run's metrics" />;
  if (!names.length)
    return (
      <Message title="Nothing was sent">
        <p>This run has one rank, or did not record what its ranks sent to each other.</p>
        <p>
          Train on more (<code>--nproc 2</code>) with <code>metrics.rows = true</code> (the default).
        </p>
      </Message>
    );
  if (courses.error && !courses.value) return <Failed error={courses.error} again={courses.again} />;
  if (!ways || !courses.value) return <Waiting what="the exchanges" />;
  return (
    <>
      <OverTime ways={ways} courses={courses.value} />
      <Table ways={ways} />
    </>
  );
}

function waysOf(courses: Courses): Way[] {
  const found = new Map<string, Way>();
  for (const [name, course] of courses) {
    const parts = NAME.exec(name);
    if (!parts || !course.rows) continue;
    let [, quantity, key, more] = parts;
    if (key === "exchange.exposed" || key === "exchange.hidden") {
      more = key.slice(9) === "hidden" ? "hidden" : "";
      key = "exchange";
    }
    if (quantity !== "wait" && /\.(between|hidden)$/.test(key!)) {
      more = "between";
      key = key!.replace(/\.between$/, "");
    }
    const [axis, purpose] = key!.split(".") as [string, string?];
    const way = found.get(key!) ?? {
      key: key!,
      axis,
      purpose: purpose ?? "all gradients",
      bytes: 0,
      inside: 0,
      between: 0,
      exposed: 0,
      hidden: 0,
      calls: 0,
      step: 0,
    };
    const value = lastOf(course);
    way.step = Math.max(way.step, lastStep(course));
    if (quantity === "calls") way.calls = value;
    else if (quantity === "bytes") way[more === "between" ? "between" : "bytes"] = value;
    else way[more === "hidden" ? "hidden" : "exposed"] = value;
    found.set(key!, way);
  }
  for (const way of found.values()) way.inside = Math.max(0, way.bytes - way.between);
  const last = Math.max(...[...found.values()].map((way) => way.step));
  return [...found.values()].sort(
    (a, b) => Number(b.step === last) - Number(a.step === last) || b.exposed + b.hidden - a.exposed - a.hidden || b.bytes - a.bytes,
  );
}

function Table({ ways }: { ways: Way[] }) {
  const last = Math.max(...ways.map((way) => way.step)),
    most = Math.max(...ways.map((way) => way.bytes), 1),
    longest = Math.max(...ways.map((way) => way.exposed + way.hidden), 1e-12);
  return (
    <Panel
      title={`Exchanges of step ${whole(last)}`}
      about="Bytes are those of all ranks together; seconds are a rank's, the mean over ranks. What happens seldom has the step in which it last did."
    >
      <Keys
        of={[
          { name: "inside nodes, or exposed", look: 0 },
          { name: "between nodes, or hidden", look: 1 },
        ]}
      />
      <Wide label="Exchanges by axis and purpose">
        <table class="differences">
          <thead>
            <tr>
              <th scope="col">Axis</th>
              <th scope="col">Purpose</th>
              <th scope="col" class="right">
                Calls
              </th>
              <th scope="col">Bytes</th>
              <th scope="col" class="right">
                inside
              </th>
              <th scope="col" class="right">
                between
              </th>
              <th scope="col">Seconds</th>
              <th scope="col" class="right">
                exposed
              </th>
              <th scope="col" class="right">
                hidden
              </th>
            </tr>
          </thead>
          <tbody>
            {ways.map((way) => (
              <tr key={way.key} class={way.step < last ? "soft" : ""}>
                <th scope="row">{words(way.axis)}</th>
                <td>
                  {words(way.purpose)}
                  {way.step < last && <small> (step {whole(way.step)})</small>}
                </td>
                <td class="right">{way.calls ? whole(way.calls) : ""}</td>
                <td>
                  <Pair a={way.inside / most} b={way.between / most} looks={[0, 1]} />
                </td>
                <td class="right">{way.inside ? si(way.inside, "B") : "–"}</td>
                <td class="right">{way.between ? si(way.between, "B") : "–"}</td>
                <td>
                  <Pair a={way.exposed / longest} b={way.hidden / longest} looks={[0, 1]} />
                </td>
                <td class="right">{way.exposed ? seconds(way.exposed) : "–"}</td>
                <td class="right">{way.hidden ? seconds(way.hidden) : "–"}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </Wide>
    </Panel>
  );
}

const Pair = ({ a, b, looks }: { a: number; b: number; looks: [number, number] }) => (
  <span class="pair" aria-hidden="true">
    <i class={`p${looks[0]}`} style={{ width: `${a * 100}%` }} />
    <i class={`p${looks[1]}`} style={{ width: `${b * 100}%` }} />
  </span>
);

type Shown = "exposed" | "hidden" | "bytes";
function OverTime({ ways, courses }: { ways: Way[]; courses: Courses }) {
  const asked = query.value.get("shown"),
    shown: Shown = asked === "hidden" || asked === "bytes" ? asked : "exposed";
  const { layers, steps } = useMemo(() => {
    const name = (way: Way): string =>
      shown === "bytes"
        ? `bytes/${way.key}`
        : way.key === "exchange"
          ? `wait/exchange.${shown}`
          : shown === "hidden"
            ? `wait/${way.key}.hidden`
            : `wait/${way.key}`;
    const there = ways.filter(
      (way) => courses.get(name(way))?.rows && !(shown !== "bytes" && way.key === "exchange" && ways.some((other) => other.purpose === "gradients")),
    );
    const size = (way: Way): number => {
      const values = courses.get(name(way))!.value;
      return values.reduce((sum, value) => sum + (Number.isFinite(value) ? value : 0), 0);
    };
    const sorted = there
      .map((way) => ({ way, size: size(way) }))
      .filter((one) => one.size > 0)
      .sort((a, b) => b.size - a.size);
    const found = columnsOf(
      sorted.map((one) => courses.get(name(one.way))),
      POINTS,
      false,
    );
    const main = sorted
      .slice(0, LAYERS)
      .map((one, i) => ({ name: `${words(one.way.axis)}: ${words(one.way.purpose)}`, values: found.values[i]!, look: i }));
    const rest = found.steps.map((_, column) =>
      found.values.slice(LAYERS).reduce((sum, row) => sum + (Number.isFinite(row[column]!) ? row[column]! : 0), 0),
    );
    return { layers: sorted.length > LAYERS ? [...main, { name: "all others", values: rest, look: 8 }] : main, steps: found.steps };
  }, [ways, courses, shown]);
  const show = shown === "bytes" ? (value: number) => si(value, "B") : seconds;
  const controls = (
    <Choice
      label="Over time"
      value={shown}
      options={[
        ["exposed", "seconds exposed"],
        ["hidden", "seconds hidden"],
        ["bytes", "bytes"],
      ]}
      choose={(id) => setQuery((now) => (id === "exposed" ? now.delete("shown") : now.set("shown", id)))}
    />
  );
  return (
    <Panel
      title="Communication over time"
      controls={controls}
      about={
        shown === "exposed"
          ? "Seconds a step that ranks waited for exchanges: what a faster network, or more overlap, would save."
          : shown === "hidden"
            ? "Seconds of exchange a step that ran beside the computation and held up nobody."
            : "Bytes that all ranks sent in a step."
      }
    >
      {layers.length ? (
        <Stack
          layers={layers}
          steps={steps}
          show={show}
          label={`${shown === "bytes" ? "Bytes" : `Seconds ${shown}`} by axis and purpose over the steps`}
        />
      ) : (
        <p class="nothing">
          {shown === "hidden" ? (
            <>
              No exchange ran beside the computation. Gradients do where there are several replicas (<code>layout.replicate</code>), weights where{" "}
              <code>layout.shard</code> is above 1.
            </>
          ) : (
            "There was none."
          )}
        </p>
      )}
    </Panel>
  );
}
