// Ranks × time: one metric of every rank over the whole run, so that a slow, hot or swelling rank stands out, and when it began.
import { useMemo } from "preact/hooks";
import { api } from "../api/client";
import type { RunModel } from "../app/run";
import { query, setQuery } from "../app/route";
import { Failed, Message, Waiting } from "../ui/bits";
import { useLoad } from "../ui/load";
import { digits, inUnit, many, whole, words } from "../ui/format";
import { useFresh } from "./courses";
import { HeatMap } from "./heat";
import { Choice, Damage, Panel } from "./panel";
import { type Cells, cellsOf } from "./paint";

interface Told {
  names: string[];
  source: "monitor" | "logs" | "none";
  damage: string[];
  through: number;
  ranks_of: number;
  name: string;
  unit: string;
  meaning: string;
  ranks: number;
  per_row: number;
  width: number;
  buckets: [number, number][];
  mean: string;
  most: string;
  there: string;
}

export function Ranks({ run }: { run: RunModel }) {
  const asked = query.value.get("metric") ?? "",
    most = query.value.get("of") === "most",
    log = query.value.get("log") === "1";
  const told = useLoad((signal) => api.inside<Told>(run.id, asked ? `ranks?name=${encodeURIComponent(asked)}` : "ranks", signal), [run.id, asked]);
  useFresh(run, told.again);
  const one = told.value;
  const cells = useMemo(() => (one?.buckets.length ? cellsIn(one, most) : null), [one, most]);
  if (told.error && !one) return <Failed error={told.error} again={told.again} />;
  if (!one) return <Waiting what="the ranks" />;
  if (!cells) return <Empty damage={one.damage} />;
  const controls = (
    <>
      <label>
        Metric{" "}
        <select value={one.name} onChange={(event) => setQuery((now) => now.set("metric", event.currentTarget.value))}>
          {one.names.map((name) => (
            <option key={name} value={name}>
              {name}
            </option>
          ))}
        </select>
      </label>
      <Choice
        label="Of the steps of a cell"
        value={most ? "most" : "mean"}
        options={[
          ["mean", "mean"],
          ["most", "maximum"],
        ]}
        choose={(id) => setQuery((now) => (id === "most" ? now.set("of", id) : now.delete("of")))}
      />
      <button type="button" aria-pressed={log} onClick={() => setQuery((now) => (log ? now.delete("log") : now.set("log", "1")))}>
        log
      </button>
    </>
  );
  const column = (at: number): string => {
    const [first, last] = one.buckets[at] ?? [NaN, NaN];
    return last > first ? `steps ${whole(Math.max(1, first))} to ${whole(last)}` : `step ${whole(first)}`;
  };
  return (
    <Panel title={`${words(one.name)} by rank`} about={one.meaning} controls={controls}>
      <Damage told={one.damage} />
      <p class="finding">{finding(one, cells)}</p>
      <HeatMap
        cells={cells}
        rowNames={rowNames(one)}
        columnName={column}
        show={(value) => inUnit(value, one.unit)}
        log={log}
        label={`${words(one.name)} of ${many(one.ranks, "rank")}, to step ${whole(one.through)}`}
      />
      <p class="soft small">
        {one.width > 1 ? `A cell is ${one.width} steps. ` : "A cell is a step. "}
        {one.per_row > 1 ? `A row is ${one.per_row} ranks, of which it shows the highest. ` : ""}
        {one.source === "logs" ? "No monitor kept this; it is what the ranks’ own logs still hold." : ""}
      </p>
    </Panel>
  );
}

function Empty({ damage }: { damage: string[] }) {
  return (
    <Message title="No rank’s course is kept">
      <Damage told={damage} />
      <p>The monitor of a run keeps what each rank measured over time, from its first step on. It was off here, or the run has taken no step yet.</p>
      <p>
        Set <code>metrics.rows = true</code> and <code>metrics.monitor = true</code> (both are the default) and train.
      </p>
    </Message>
  );
}

function bytes(text: string): ArrayBuffer {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
}

function cellsIn(told: Told, most: boolean): Cells {
  const values = new Float32Array(bytes(most ? told.most : told.mean)),
    there = new Uint8Array(bytes(told.there));
  return cellsOf(
    values.length / told.buckets.length,
    told.buckets.length,
    values,
    there.map((one) => 1 - one),
  );
}

const rowNames = (told: Told): string[] =>
  Array.from({ length: Math.ceil(told.ranks / told.per_row) }, (_, row) => {
    const first = row * told.per_row,
      last = Math.min(told.ranks, first + told.per_row) - 1;
    return last > first ? `${first}–${last}` : `rank ${first}`;
  });

/** Which row stands out in the newest tenth of the run, in words. */
function finding(told: Told, cells: Cells): string {
  const first = Math.floor(cells.columns * 0.9),
    means = Array.from({ length: cells.rows }, (_, row) => {
      let sum = 0,
        count = 0;
      for (let column = first; column < cells.columns; column++) {
        const at = row * cells.columns + column;
        if (!cells.absent?.[at] && Number.isFinite(cells.values[at]!)) {
          sum += cells.values[at]!;
          count++;
        }
      }
      return count ? sum / count : NaN;
    });
  const known = means.filter(Number.isFinite).sort((a, b) => a - b);
  if (known.length < 2) return "";
  const middle = known[Math.floor((known.length - 1) / 2)]!,
    highest = known.at(-1)!,
    row = means.indexOf(highest);
  const name = `${told.per_row > 1 ? "one of ranks " : ""}${rowNames(told)[row]!}`;
  const much = middle > 0 ? highest / middle : 1;
  return much > 1.25
    ? `Lately ${name} has ${digits(much, 3)} times what the middle one has: ${inUnit(highest, told.unit)} against ${inUnit(middle, told.unit)}.`
    : `Lately the ranks are within ${digits(Math.max(0, much - 1) * 100, 2)} % of the middle one, ${inUnit(middle, told.unit)}.`;
}
