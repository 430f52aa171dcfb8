// A step as ranks ran it: pipeline actions by stage and micro-batch, phases and waits, on one clock; beside it what the pipeline's plan had for them.
import { useEffect, useMemo, useState } from "preact/hooks";
import { api } from "../api/client";
import type { RunModel } from "../app/run";
import { query, setQuery } from "../app/route";
import { Failed, Message, Waiting } from "../ui/bits";
import { useLoad } from "../ui/load";
import { capital, many, percent, seconds, whole, words } from "../ui/format";
import { useFresh } from "./courses";
import type { Bar, Lane, View } from "./lanes";
import { Damage, Keys, Panel, Wide } from "./panel";
import { Timeline, panned, zoomed } from "./zoom";

type Span = [name: string, start: number, seconds: number];
interface Plan {
  kind: string;
  micro_batches: number;
  bubble: number;
  step: number;
  rows: Span[][];
  stages: { first: number; last: number; rank: number }[];
}
interface Row {
  rank: number;
  host: string;
  start: number;
  end: number;
  spans: Span[];
  left_out: number;
}
interface Told {
  steps: { step: number; ranks: number }[];
  step: number | null;
  start: number;
  seconds: number;
  rows: Row[];
  ranks: number;
  first: number;
  plan: Plan | null;
  damage: string[];
}

const WORKS: Record<string, { name: string; look: number }> = {
  F: { name: "forward", look: 0 },
  B: { name: "backward", look: 1 },
  I: { name: "input gradient", look: 1 },
  W: { name: "weight gradient", look: 4 },
};
const ACTION = /^(?:pipeline\.)?(\d+)([FBIW])(\d+)$/;
/** Ranks that the server tells at a time. */
const PAGE = 64;

export function PipelineView({ run }: { run: RunModel }) {
  const step = query.value.get("step"),
    first = Number(query.value.get("first") ?? 0) || 0;
  const asked = [...(step ? [`step=${encodeURIComponent(step)}`] : []), ...(first ? [`first=${first}`] : [])].join("&");
  const told = useLoad((signal) => api.inside<Told>(run.id, asked ? `pipeline?${asked}` : "pipeline", signal), [run.id, asked]);
  useFresh(run, told.again);
  if (told.error && !told.value) return <Failed error={told.error} again={told.again} />;
  if (!told.value) return <Waiting what="the step" />;
  if (!told.value.rows.length) return <Empty damage={told.value.damage} />;
  return <Step told={told.value} key={`${told.value.step}`} />;
}

function Empty({ damage }: { damage: string[] }) {
  return (
    <Message title="No step’s course was kept">
      <Damage told={damage} />
      <p>Ranks keep what they do in steps 1, 2, 4, 8, 16 and every 32nd. This run has taken none, began before that was kept, or did not record.</p>
      <p>
        Set <code>metrics.rows = true</code> (the default) and train; <code>layout.pipeline = 2</code> or more makes it a pipeline.
      </p>
    </Message>
  );
}

function Step({ told }: { told: Told }) {
  const { lanes, piped, length } = useMemo(() => laid(told), [told]);
  const [view, zoom] = useState<View>({ from: 0, to: length });
  useEffect(() => zoom({ from: 0, to: length }), [length]);
  const figures = useMemo(() => figuresOf(told), [told]);
  const bubble = figures.length ? figures.reduce((sum, one) => sum + one.bubble, 0) / figures.length : NaN;
  const controls = (
    <>
      <label>
        Step{" "}
        <select value={String(told.step)} onChange={(event) => setQuery((now) => now.set("step", event.currentTarget.value))}>
          {told.steps.map((one) => (
            <option key={one.step} value={String(one.step)}>
              {whole(one.step)}
            </option>
          ))}
        </select>
      </label>
      <div class="segments" role="group" aria-label="Zoom">
        <button type="button" aria-label="Earlier" onClick={() => zoom(panned(view, length, -0.3))}>
          ←
        </button>
        <button type="button" aria-label="Zoom out" onClick={() => zoom(zoomed(view, length, 2))}>
          −
        </button>
        <button type="button" onClick={() => zoom({ from: 0, to: length })}>
          whole step
        </button>
        <button type="button" aria-label="Zoom in" onClick={() => zoom(zoomed(view, length, 0.5))}>
          +
        </button>
        <button type="button" aria-label="Later" onClick={() => zoom(panned(view, length, 0.3))}>
          →
        </button>
      </div>
    </>
  );
  const plan = told.plan;
  return (
    <>
      <Panel
        title={`Step ${whole(told.step ?? NaN)} as it was run`}
        controls={controls}
        about={
          piped
            ? "What each rank did when: phases on top, the work of its stages in the middle (numbers are micro-batches), waits below. Gaps are bubbles."
            : "What each rank did when: its phases, and below them what it waited for. This run has no pipeline."
        }
      >
        <Damage told={told.damage} />
        {piped && (
          <p class="finding">{`Bubble ${percent(bubble)} of the pass${plan ? `; the plan (${plan.kind}, ${many(plan.micro_batches, "micro-batch").replace("batchs", "batches")}) had ${percent(plan.bubble)}` : ""}.`}</p>
        )}
        <Pages told={told} />
        <Timeline
          lanes={lanes}
          length={length}
          piped={piped}
          view={view}
          zoom={zoom}
          label={`${many(told.rows.length, "rank")}, ${seconds(told.seconds)}`}
        />
        <Keys of={[...(piped ? worksIn(told) : []), ...phasesIn(told)]} />
      </Panel>
      {piped && plan && <Planned plan={plan} />}
      {piped && <Table figures={figures} />}
    </>
  );
}

function Pages({ told }: { told: Told }) {
  if (told.ranks <= PAGE) return null;
  const to = (first: number): void => setQuery((now) => (first > 0 ? now.set("first", String(first)) : now.delete("first")));
  return (
    <p class="pages">
      <button type="button" disabled={told.first <= 0} onClick={() => to(told.first - PAGE)}>
        earlier ranks
      </button>{" "}
      ranks {told.rows[0]!.rank} to {told.rows.at(-1)!.rank} of {whole(told.ranks)}{" "}
      <button type="button" disabled={told.first + PAGE >= told.ranks} onClick={() => to(told.first + PAGE)}>
        later ranks
      </button>
    </p>
  );
}

function Planned({ plan }: { plan: Plan }) {
  const length = Math.max(...plan.rows.flat().map(([, start, took]) => start + took), 1e-9);
  const lanes = useMemo(
    () => plan.rows.map((row, rank): Lane => ({ name: `rank ${rank}`, bars: row.map((span) => bar(span, 0, (value) => percent(value / length))) })),
    [plan],
  );
  const [view, zoom] = useState<View>({ from: 0, to: length });
  return (
    <Panel
      title="The plan"
      about={`The schedule that the stages follow since step ${whole(plan.step)}, by estimated or measured costs: ${plan.kind}, bubble ${percent(plan.bubble)}. Ranks are those of a pipeline; times are shares of the plan’s step.`}
    >
      <Timeline
        lanes={lanes}
        length={length}
        piped
        view={view}
        zoom={zoom}
        label={`${many(plan.rows.length, "rank")} of a pipeline, ${many(plan.stages.length, "stage")}`}
        show={(value) => percent(value / length, 2)}
      />
    </Panel>
  );
}

function Table({ figures }: { figures: Figures[] }) {
  return (
    <Panel title="By rank">
      <Wide label="Seconds by rank">
        <table class="differences">
          <thead>
            <tr>
              <th scope="col">Rank</th>
              <th scope="col">Stages</th>
              {Object.values(WORKS)
                .filter((work) => figures.some((one) => one.by.has(work.name)))
                .map((work) => (
                  <th key={work.name} scope="col" class="right">
                    {capital(work.name)}
                  </th>
                ))}
              <th scope="col" class="right">
                Works
              </th>
              <th scope="col" class="right">
                Idle
              </th>
              <th scope="col" class="right">
                Bubble
              </th>
            </tr>
          </thead>
          <tbody>
            {figures.map((one) => (
              <tr key={one.rank}>
                <th scope="row">{one.rank}</th>
                <td>{one.stages.join(", ")}</td>
                {Object.values(WORKS)
                  .filter((work) => figures.some((other) => other.by.has(work.name)))
                  .map((work) => (
                    <td key={work.name} class="right">
                      {seconds(one.by.get(work.name) ?? 0)}
                    </td>
                  ))}
                <td class="right">{seconds(one.busy)}</td>
                <td class="right">{seconds(one.idle)}</td>
                <td class="right">{percent(one.bubble)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </Wide>
    </Panel>
  );
}

interface Figures {
  rank: number;
  stages: number[];
  by: Map<string, number>;
  busy: number;
  idle: number;
  bubble: number;
}

function figuresOf(told: Told): Figures[] {
  const actions = told.rows
    .map((row) => ({ rank: row.rank, spans: row.spans.filter(([name]) => ACTION.test(name)) }))
    .filter((row) => row.spans.length);
  const start = Math.min(...actions.flatMap((row) => row.spans.map((span) => span[1]))),
    end = Math.max(...actions.flatMap((row) => row.spans.map((span) => span[1] + span[2])));
  return actions.map(({ rank, spans }) => {
    const by = new Map<string, number>(),
      stages = new Set<number>();
    let busy = 0;
    for (const [name, , took] of spans) {
      const [, stage, work] = ACTION.exec(name)!,
        called = WORKS[work!]!.name;
      by.set(called, (by.get(called) ?? 0) + took);
      stages.add(Number(stage));
      busy += took;
    }
    const idle = Math.max(0, end - start - busy);
    return { rank, stages: [...stages].sort((a, b) => a - b), by, busy, idle, bubble: end > start ? idle / (end - start) : 0 };
  });
}

function bar(span: Span, origin: number, show: (value: number) => string, rank?: number): Bar {
  const [name, start, took] = span,
    action = ACTION.exec(name),
    from = start - origin;
  const when = `${show(took)}, from ${show(from)} to ${show(from + took)}`,
    who = rank === undefined ? "" : `rank ${rank} · `;
  if (action) {
    const work = WORKS[action[2]!]!;
    return {
      kind: work.name,
      text: action[3]!,
      start: from,
      seconds: took,
      lane: 1,
      look: work.look,
      says: `${who}${work.name} of stage ${action[1]}, micro-batch ${action[3]} · ${when}`,
    };
  }
  const wait = name.includes(".");
  return {
    kind: name,
    text: wait ? "" : words(name),
    start: from,
    seconds: took,
    lane: wait ? 2 : 0,
    look: wait ? 8 : phaseLook(name),
    says: `${who}${wait ? "waits for " : ""}${words(name)} · ${when}`,
  };
}

const PHASES = ["data", "forward_backward", "exchange", "optimizer"];
const phaseLook = (name: string): number => [6, 2, 3, 5][PHASES.indexOf(name)] ?? 7;

function laid(told: Told): { lanes: Lane[]; piped: boolean; length: number } {
  const piped = told.rows.some((row) => row.spans.some(([name]) => ACTION.test(name)));
  const lanes = told.rows.map((row): Lane => ({
    name: `rank ${row.rank}`,
    bars: row.spans.map((span) => bar(span, told.start, seconds, row.rank)).sort((a, b) => a.lane - b.lane),
  }));
  const length = Math.max(told.seconds, ...lanes.flatMap((lane) => lane.bars.map((one) => one.start + one.seconds)), 1e-9);
  return { lanes, piped, length };
}

function worksIn(told: Told): { name: string; look: number }[] {
  const there = new Set(told.rows.flatMap((row) => row.spans.map(([name]) => ACTION.exec(name)?.[2])));
  return Object.entries(WORKS)
    .filter(([letter]) => there.has(letter))
    .map(([, work]) => work);
}

function phasesIn(told: Told): { name: string; look: number }[] {
  const there = [...new Set(told.rows.flatMap((row) => row.spans.map(([name]) => name)))];
  const phases = there.filter((name) => !name.includes(".") && !ACTION.test(name)).map((name) => ({ name: words(name), look: phaseLook(name) }));
  return there.some((name) => name.includes(".") && !ACTION.test(name)) ? [...phases, { name: "waits for others", look: 8 }] : phases;
}
