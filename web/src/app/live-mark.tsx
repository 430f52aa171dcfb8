// Whether what is shown is live, and how old the last news is.
import type { RunModel } from "./run";
import { useNow } from "../ui/load";
import { ago, clock } from "../ui/format";

export function LiveMark({ run }: { run: RunModel }) {
  const now = useNow(1000);
  const link = run.live.link.value;
  const overview = run.overview.value;
  if (link === "frozen")
    return (
      <span class="link frozen" title={overview ? clock(overview.time) : ""}>
        frozen{overview ? ` ${clock(overview.time)}` : ""}
      </span>
    );
  const age = run.live.heard.value ? ago(run.live.heard.value / 1000, now) : "";
  const word = link === "live" ? (overview && overview.state !== "running" ? "ended" : "live") : link;
  return (
    <span class={`link ${word}`} title="How old the last news from the server is">
      <i aria-hidden="true" />
      <b role="status">{word}</b>
      <span class="live-age">{age}</span>
    </span>
  );
}
