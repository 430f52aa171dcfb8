// One panel: a metric's name, its plot, and one line of figures under it: of the row under the cross-hair, else last, lowest and highest, which is also
// what a screen reader is told of the picture. The plot exists only while the panel is in sight.
import { effect } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import type { Course } from "../api/series";
import type { Metric } from "../api/types";
import { painted } from "../app/theme";
import { Icon } from "../ui/icon";
import { digits, inUnit, NONE, whole } from "../ui/format";
import type { Shared } from "./context";
import { savePicture, saveRows } from "./export";
import { Plot } from "./plot";
import { look, range, togglePin, view } from "./state";
import { asSteps } from "./span";

interface Props {
  metric: Metric;
  shared: Shared;
  pinned: boolean;
}

export function Panel({ metric, shared, pinned }: Props) {
  const frame = useRef<HTMLElement>(null);
  const host = useRef<HTMLDivElement>(null);
  const figures = useRef<HTMLElement>(null);
  const plot = useRef<Plot | null>(null);
  const [seen, setSeen] = useState(false);
  const [wide, setWide] = useState(false);
  const [told, setTold] = useState(false);
  const [label, setLabel] = useState("");
  const { axis, log, band } = view.value;
  const paint = painted.value;

  useEffect(() => shared.sight.watch(frame.current!, metric.name, setSeen), [shared, metric.name]);
  useEffect(() => {
    if (!seen) return undefined;
    return draw(metric, shared, host.current!, figures.current!, plot, setLabel);
  }, [seen, shared, metric.name, axis, log, band, paint]);

  const [group, rest] = split(metric);
  return (
    <figure ref={frame} class={`panel ${wide ? "wide" : ""}`} aria-label={`${metric.name}: ${metric.meaning}. ${label}`} data-name={metric.name}>
      <header>
        <h3 title={metric.name}>
          <span class="soft">{group}</span>
          {rest}
        </h3>
        <Button icon="info" label={`What ${metric.name} means`} pressed={told} press={() => setTold(!told)} />
        <Button icon="pin" label={pinned ? `Unpin ${metric.name}` : `Pin ${metric.name}`} pressed={pinned} press={() => togglePin(metric.name)} />
        <Button icon="wide" label={wide ? "Small again" : "Enlarge"} pressed={wide} press={() => setWide(!wide)} />
        <details class="menu">
          <summary aria-label={`Export ${metric.name}`} title="Export">
            <Icon name="more" />
          </summary>
          <div role="group">
            <button
              type="button"
              onClick={(event) => {
                if (plot.current) savePicture(shared.run, metric.name, plot.current.canvas);
                shut(event);
              }}
            >
              Save PNG
            </button>
            <button
              type="button"
              onClick={(event) => {
                void saveRows(shared.run, shared.id, metric.name, range.peek());
                shut(event);
              }}
            >
              Save CSV
            </button>
          </div>
        </details>
      </header>
      <div class="plot" ref={host} />
      <figcaption ref={figures} class="figures" />
      {told && <Meaning metric={metric} close={() => setTold(false)} />}
    </figure>
  );
}

const shut = (event: Event): void => (event.currentTarget as Element).closest("details")?.removeAttribute("open");

function split(metric: Metric): [string, string] {
  const at = metric.name.indexOf("/");
  return at < 0 ? ["", metric.name] : [metric.name.slice(0, at + 1), metric.name.slice(at + 1)];
}

function Button({ icon, label, pressed, press }: { icon: "info" | "pin" | "wide"; label: string; pressed: boolean; press: () => void }) {
  return (
    <button type="button" class="quiet square" aria-label={label} title={label} aria-pressed={pressed} onClick={press}>
      <Icon name={icon} />
    </button>
  );
}

const TOGETHER: Record<string, string> = {
  same: "the same on all ranks",
  spread: "mean of the ranks, with the lowest and the highest",
  sum: "sum over the ranks",
  root: "root of the ranks' squares",
};

function Meaning({ metric, close }: { metric: Metric; close: () => void }) {
  return (
    <div class="meaning" role="note">
      <button type="button" class="quiet square" aria-label="Close" onClick={close}>
        <Icon name="close" />
      </button>
      <p>{metric.meaning || "Nothing is said of what this is."}</p>
      <dl>
        {metric.bad && (
          <div>
            <dt>Bad</dt>
            <dd>{metric.bad}</dd>
          </div>
        )}
        <div>
          <dt>Value</dt>
          <dd>
            {TOGETHER[metric.together] ?? metric.together}
            {metric.unit && metric.unit !== "1" ? `, in ${metric.unit}` : ""}
          </dd>
        </div>
      </dl>
    </div>
  );
}

/** Make the plot and keep it true until it is out of sight; returns how to end it. */
function draw(
  metric: Metric,
  shared: Shared,
  host: HTMLElement,
  figures: HTMLElement,
  plot: { current: Plot | null },
  setLabel: (text: string) => void,
): () => void {
  const { store, clock, span, marks, tip } = shared;
  const wishes = view.peek();
  let shown: Course | null = null,
    row: number | null = null,
    smooth = -1;
  const write = (): void => {
    figures.textContent = shown
      ? row === null
        ? summary(shown, metric.unit)
        : rowText(shown, row, metric.unit)
      : store.missing(metric.name)
        ? "nothing measured"
        : " ";
  };
  const made = new Plot(
    host,
    {
      unit: metric.unit,
      axis: wishes.axis,
      log: wishes.log,
      band: wishes.band && metric.together === "spread",
      sight: () => span.peek() ?? [0, 1],
      span: (from, to) => look(asSteps(clock.peek(), store.base.peek(), from, to)),
      all: () => look(null),
      hover: (at, left, own) => {
        row = at;
        write();
        if (!own) return;
        const near = at === null ? "" : made.marksAt(left);
        const box = host.getBoundingClientRect();
        tip.value = near ? { text: near, left: box.left + left, top: box.top } : null;
      },
    },
    shared.stage,
  );
  plot.current = made;
  const size = new ResizeObserver(() => made.resize());
  size.observe(host);
  const ends = [
    effect(() => {
      store.changed.value;
      const at = range.value,
        sight = span.value,
        beta = view.value.smooth;
      store.need(metric.name, at, () => made.onScreen());
      const course = store.course(metric.name, at);
      if (!course || !sight) {
        write();
        return;
      }
      if (course === shown && beta === smooth) {
        made.see(sight);
        return;
      }
      shown = course;
      smooth = beta;
      made.show(course, beta, sight);
      write();
      setLabel(summary(course, metric.unit));
    }),
    effect(() => {
      const at = clock.value;
      if (at) made.mark(marks.value.map((mark) => ({ ...mark, x: at.toX(mark.step) })));
    }),
  ];
  write();
  return () => {
    store.drop(metric.name);
    ends.forEach((end) => end());
    size.disconnect();
    made.destroy();
    plot.current = null;
    tip.value = null;
  };
}

/** Units that are words stand once in a line of figures. */
const LONG_UNIT = /^(?!bytes$).{3,}/;

function summary(course: Course, unit: string): string {
  let low = Infinity,
    high = -Infinity,
    last = NaN,
    bad = 0;
  for (const value of course.value) {
    if (!Number.isFinite(value)) {
      bad++;
      continue;
    }
    last = value;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (Number.isNaN(last)) return course.rows ? "no number was measured" : "nothing measured";
  const broken = Number.isFinite(course.value[course.rows - 1]!) ? "" : ", now no number";
  const short = LONG_UNIT.test(unit) ? "" : unit;
  return `last ${inUnit(last, short)}${broken} · min ${inUnit(low, short)} · max ${inUnit(high, unit)}${bad ? ` · ${bad} not a number` : ""}`;
}

function rowText(course: Course, row: number, unit: string): string {
  const value = course.value[row]!,
    low = course.low[row]!,
    high = course.high[row]!;
  const rank = (column: Int32Array): string => (column[row]! >= 0 ? ` (rank ${column[row]})` : "");
  const between =
    low !== high && Number.isFinite(low) ? ` · ${inUnit(low, unit)}${rank(course.lowRank)} – ${inUnit(high, unit)}${rank(course.highRank)}` : "";
  return `step ${whole(course.step[row] ?? NaN)} · ${Number.isFinite(value) ? inUnit(value, unit) : Number.isNaN(value) ? "not a number" : digits(value) || NONE}${between}`;
}
