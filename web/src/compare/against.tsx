// Each run against the first, over the last part of both: the mean difference, its 95 % interval, and a picture of how it went.
import { useMemo, useState } from "preact/hooks";
import type { Course } from "../api/series";
import { colour, painted } from "../app/theme";
import { Lines } from "../charts/lines";
import type { Axis } from "../explore/clock";
import { digits, inUnit, percent } from "../ui/format";
import { Slider } from "../ui/slider";
import { difference } from "./stats";

interface Props {
  ids: string[];
  courses: (Course | null)[];
  axis: Axis;
  better: "low" | "high" | null;
}

export function Against({ ids, courses, axis, better }: Props) {
  const [share, setShare] = useState(0.25);
  const [base, ...others] = courses;
  const own = axis === "time" ? "step" : axis;
  if (!base) return null;
  return (
    <section class="card" aria-label="Differences">
      <header>
        <h2>Against {ids[0]}</h2>
        <Slider
          words="over the last"
          label="Share of the run"
          least={0.05}
          most={1}
          step={0.05}
          value={share}
          shown={percent(share, 2)}
          change={setShare}
        />
      </header>
      <p class="soft">Mean difference with a 95 % interval from ten stretches of the course, since steps are not independent. Aligned by {own}.</p>
      <div class="against">
        {others.map(
          (course, index) =>
            course && (
              <One key={ids[index + 1]} id={ids[index + 1]!} a={base} b={course} axis={own} share={share} better={better} place={index + 1} />
            ),
        )}
      </div>
    </section>
  );
}

function One({
  id,
  a,
  b,
  axis,
  share,
  better,
  place,
}: {
  id: string;
  a: Course;
  b: Course;
  axis: Axis;
  share: number;
  better: "low" | "high" | null;
  place: number;
}) {
  const paint = painted.value;
  const told = useMemo(() => difference(a, b, axis, share), [a, b, axis, share]);
  const lines = useMemo(() => {
    const own = colour(`--c${place % 8}`);
    return [
      { name: "each", x: told.x, y: told.each, colour: colour("--raw"), faint: true },
      { name: "mean", x: told.x, y: told.mean, colour: own },
    ];
  }, [told, paint]);
  const band = useMemo(() => ({ x: told.x, low: told.low, high: told.high }), [told]);
  const sure = Number.isFinite(told.half) && Math.abs(told.whole) > told.half;
  const word = told.broken
    ? "ended as no number"
    : !told.rows
      ? "no rows in common"
      : !Number.isFinite(told.half)
        ? "too few rows to tell"
        : !sure
          ? "no difference that is sure"
          : better
            ? (better === "low") === told.whole < 0
              ? "better"
              : "worse"
            : told.whole > 0
              ? "higher"
              : "lower";
  const figures = told.rows
    ? `${told.whole < 0 ? "−" : "+"}${inUnit(Math.abs(told.whole), a.unit)}${Number.isFinite(told.half) ? ` ± ${digits(told.half, 2)}` : ""}`
    : "";
  return (
    <figure>
      <figcaption>
        <b>{id}</b> <span class={`tag ${told.broken ? "worse" : word}`}>{word}</span> <span class="figure-text">{figures}</span>
      </figcaption>
      {told.rows > 1 && (
        <Lines lines={lines} band={band} unit={a.unit} time={false} log={false} zero label={`${id} minus the first run: ${figures}, ${word}`} />
      )}
    </figure>
  );
}
