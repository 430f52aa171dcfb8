// Ranks alive of how many, and each as a cell: by colour and by shape, whether it reports, lags, or is silent.
import type { Overview } from "../api/types";
import { many, whole } from "../ui/format";

/** Steps behind the first that a rank may be and still count as reporting, as the server has it. */
const BEHIND = 2;
const MOST_CELLS = 256;

export function Ranks({ told }: { told: Overview }) {
  const steps = Object.entries(told.ranks).map(([rank, step]) => [Number(rank), step] as const);
  const first = Math.max(0, ...steps.map(([, step]) => step));
  const known = new Map(steps);
  const running = told.state === "running";
  const cells = Array.from({ length: Math.min(MOST_CELLS, Math.max(told.ranks_of, known.size)) }, (_, rank) => {
    const step = known.get(rank);
    const state = step === undefined ? "gone" : !running ? "done" : first - step > BEHIND ? "late" : "alive";
    const says = step === undefined ? "no row of it" : `step ${whole(step)}${state === "late" ? `, ${first - step} behind` : ""}`;
    return { rank, state, says };
  });
  const hidden = told.ranks_of - cells.length;
  return (
    <div class={`tile ${running && told.step > 0 && told.reporting < told.ranks_of ? "warned" : ""}`}>
      <h2>Ranks</h2>
      <p class="figure">
        {running ? whole(told.reporting) : whole(told.ranks_of)}
        <small> {running ? `of ${whole(told.ranks_of)} alive` : "at the end"}</small>
      </p>
      <ul class="ranks" aria-label="Ranks">
        {cells.map((cell) => (
          <li key={cell.rank} class={cell.state} title={`rank ${cell.rank}: ${cell.says}`}>
            {cells.length <= 32 ? cell.rank : ""}
            <span class="sr">{cells.length <= 32 ? `: ${cell.says}` : `rank ${cell.rank}: ${cell.says}`}</span>
          </li>
        ))}
      </ul>
      <p class="note">{hidden > 0 ? `and ${many(hidden, "more")}` : told.watched ? "watched by the monitor" : running ? "no monitor watches" : ""}</p>
    </div>
  );
}
