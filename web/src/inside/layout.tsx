// The layout drawn: every rank as a cell in the order of the mesh's axes, the innermost beside each other, coloured by the seconds that it works a step of
// its own, so that a slow rank stands out; and in words what a rank holds. The mesh is one stop of Tab; arrows go from rank to rank.
import { useRef, useState } from "preact/hooks";
import { api } from "../api/client";
import { type Num, number } from "../api/types";
import type { RunModel } from "../app/run";
import { Failed, Message, Waiting } from "../ui/bits";
import { useLoad } from "../ui/load";
import { digits, many, seconds, whole, words } from "../ui/format";
import { useFresh } from "./courses";
import { css } from "./paint";
import { Panel, Wide } from "./panel";

interface Axis {
  name: string;
  size: number;
  meaning: string;
}
interface Stage {
  first: number;
  last: number;
  embedding: boolean;
  head: boolean;
  rank: number;
}
interface Told {
  axes: Axis[];
  ranks: number;
  drawn: number;
  experts: number;
  text: string;
  hosts: string[];
  own: Num[];
  step: number;
  stages: Stage[];
}

/** Ranks beyond which they are drawn small, without their numbers. */
const DENSE = 128;
/** How many times the fastest rank's time the colours' end is at least, so that ranks which differ little look alike. */
const LEAST = 1.5;

export function LayoutView({ run }: { run: RunModel }) {
  const told = useLoad((signal) => api.inside<Told>(run.id, "layout", signal), [run.id]);
  useFresh(run, told.again);
  if (told.error && !told.value) return <Failed error={told.error} again={told.again} />;
  if (!told.value) return <Waiting what="the layout" />;
  if (!told.value.ranks)
    return (
      <Message title="Nothing tells how the ranks lie">
        <p>
          The run’s history has no start yet, and no rank has measured a step. It comes with the first step; <code>layout.pipeline</code>,{" "}
          <code>layout.shard</code>, <code>layout.tensor</code> and others say how ranks are laid out.
        </p>
      </Message>
    );
  return <Drawn told={told.value} />;
}

function Drawn({ told }: { told: Told }) {
  const [at, setAt] = useState<number | null>(null);
  const own = told.own.map(number),
    known = own.filter(Number.isFinite).sort((a, b) => a - b),
    low = known[0] ?? 0,
    high = known.at(-1) ?? 0,
    end = Math.max(high, low * LEAST);
  const middle = known[Math.floor((known.length - 1) / 2)] ?? NaN,
    slow = high > 1.25 * middle ? own.indexOf(high) : -1;
  const paint = (rank: number): { background?: string; color?: string } =>
    Number.isFinite(own[rank] ?? NaN) ? css(end > low ? (own[rank]! - low) / (end - low) : 0) : {};
  const here = at ?? (slow >= 0 ? slow : 0),
    mesh = useRef<HTMLDivElement>(null);
  const press = (event: KeyboardEvent): void => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1, Home: -told.drawn, End: told.drawn }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    mesh.current?.querySelectorAll<HTMLElement>(".mesh-cell")[Math.max(0, Math.min(told.drawn - 1, here + by))]?.focus();
  };
  return (
    <>
      <Panel title={`${many(told.ranks, "rank")} and how they lie`} about={told.text}>
        <dl class="axes">
          {told.axes.map((axis) => (
            <div key={axis.name}>
              <dt>
                <b>{words(axis.name)}</b> × {axis.size}
              </dt>
              <dd>{axis.meaning ? `ranks along it have ${axis.meaning}` : "ranks"}</dd>
            </div>
          ))}
          {told.experts > 1 && (
            <div>
              <dt>
                <b>expert</b> × {told.experts}
              </dt>
              <dd>experts are spread over so many of the data ranks</dd>
            </div>
          )}
        </dl>
        <p class="finding">
          {slow >= 0
            ? `Rank ${slow} is slow: it works ${seconds(high)} a step of its own, ${digits(high / middle, 3)} times the middle one’s ${seconds(middle)} (step ${whole(told.step)}).`
            : known.length
              ? `Ranks work ${seconds(low)} to ${seconds(high)} a step of their own (step ${whole(told.step)}).`
              : "How long ranks work is not known: no monitor kept it (metrics.monitor)."}
        </p>
        <div class={`mesh ${told.drawn > DENSE ? "dense" : ""}`} ref={mesh} onMouseLeave={() => setAt(null)} onKeyDown={press}>
          <Level told={told} axes={told.axes} first={0} paint={paint} slow={slow} at={here} choose={setAt} />
        </div>
        {told.drawn < told.ranks && <p class="soft">The first {whole(told.drawn)} ranks are drawn.</p>}
        <p class="mesh-says" role="status">
          {says(told, here, own)}
        </p>
        {known.length > 0 && (
          <div class="heat-scale plain">
            <span>{seconds(low)}</span>
            <i aria-hidden="true" />
            <span>{seconds(end)}</span>
            <span>own time of a step</span>
          </div>
        )}
      </Panel>
      {told.stages.length > 0 && <Stages told={told} />}
    </>
  );
}

interface LevelProps {
  told: Told;
  axes: Axis[];
  first: number;
  paint: (rank: number) => { background?: string; color?: string };
  slow: number;
  at: number;
  choose: (rank: number | null) => void;
}

/** A box for each place on the outermost axis, and in it the next; the innermost axis is a row of ranks. */
function Level({ told, axes, first, paint, slow, at, choose }: LevelProps) {
  const [axis, ...inner] = axes;
  if (!axis) return <Cell rank={first} {...{ told, paint, slow, at, choose }} />;
  const stride = inner.reduce((product, one) => product * one.size, 1);
  const places = Array.from({ length: axis.size }, (_, place) => place).filter((place) => first + place * stride < told.drawn);
  if (!inner.length)
    return (
      <div class="mesh-row">
        {places.map((place) => (
          <Cell key={place} rank={first + place} {...{ told, paint, slow, at, choose }} />
        ))}
      </div>
    );
  return (
    <div class={`mesh-level ${inner.length > 1 ? "outer" : ""}`}>
      {places.map((place) => (
        <div key={place} class="mesh-box">
          <span class="mesh-name">
            {words(axis.name)} {place}
          </span>
          <Level {...{ told, paint, slow, at, choose }} axes={inner} first={first + place * stride} />
        </div>
      ))}
    </div>
  );
}

function Cell({ rank, paint, slow, at, choose }: Omit<LevelProps, "axes" | "first"> & { rank: number }) {
  return (
    <button
      type="button"
      class={`mesh-cell ${rank === slow ? "slow" : ""}`}
      tabIndex={rank === at ? 0 : -1}
      aria-pressed={rank === at}
      aria-label={`rank ${rank}${rank === slow ? ", slow" : ""}`}
      style={paint(rank)}
      onMouseEnter={() => choose(rank)}
      onFocus={() => choose(rank)}
      onClick={() => choose(rank)}
    >
      {rank}
    </button>
  );
}

function says(told: Told, rank: number, own: number[]): string {
  let rest = rank;
  const places = [...told.axes]
    .reverse()
    .map((axis) => {
      const place = rest % axis.size;
      rest = Math.floor(rest / axis.size);
      return `${words(axis.name)} ${place}`;
    })
    .reverse();
  const pipeline = told.axes[0]?.name === "pipeline" ? Math.floor(rank / (told.ranks / told.axes[0].size)) : 0;
  const held = told.stages
    .map((stage, number) => ({ stage, number }))
    .filter((one) => one.stage.rank === pipeline)
    .map((one) => `stage ${one.number} (${holds(one.stage)})`);
  const host = told.hosts[rank] ? ` on ${told.hosts[rank]}` : "",
    time = Number.isFinite(own[rank] ?? NaN) ? `, works ${seconds(own[rank]!)} a step` : "";
  return `Rank ${rank}${host}: ${places.filter((place) => !place.startsWith("rank")).join(", ") || "the whole model"}${held.length ? `; ${held.join(", ")}` : ""}${time}.`;
}

const holds = (stage: Stage): string =>
  [
    stage.embedding ? "embedding" : "",
    stage.last < stage.first ? "" : stage.last > stage.first ? `layers ${stage.first}–${stage.last}` : `layer ${stage.first}`,
    stage.head ? "head" : "",
  ]
    .filter(Boolean)
    .join(", ");

function Stages({ told }: { told: Told }) {
  return (
    <Panel title="Stages of the pipeline" about="Which layers each stage has, and the rank of the pipeline that runs it.">
      <Wide label="Stages and what they hold">
        <table class="differences">
          <thead>
            <tr>
              <th scope="col">Stage</th>
              <th scope="col">Holds</th>
              <th scope="col">Pipeline rank</th>
            </tr>
          </thead>
          <tbody>
            {told.stages.map((stage, at) => (
              <tr key={at}>
                <th scope="row">{at}</th>
                <td>{holds(stage)}</td>
                <td>{stage.rank}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </Wide>
    </Panel>
  );
}
