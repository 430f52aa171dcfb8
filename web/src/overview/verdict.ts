// What the large word of the overview says. The server's `health` counts alerts; here the worst of them speaks, because "1 open alert" tells a person
// who walks by less than "Straggler on rank 3". Silence is a fault too: a run whose ranks, or whose news, stay away is not called healthy.
import type { Alert, Level, Overview } from "../api/types";
import { capital, many, seconds, words } from "../ui/format";

export type Tone = "good" | "idle" | Level;
export interface Verdict { tone: Tone; word: string; detail: string }

const RANKING: Record<Level, number> = { critical: 0, warning: 1, notice: 2 };
/** Without a new step for so many times the usual, and at least so many seconds, a running run is called silent. */
const SILENT_TIMES = 20;
const SILENT_S = 60;

export const where = (alert: Alert): string =>
  [alert.rank !== null ? `rank ${alert.rank}` : "", alert.layer !== null ? `layer ${alert.layer}` : ""].filter(Boolean).join(", ");

/** Open alerts that count, the worst first. */
export function counted(alerts: Alert[]): Alert[] {
  const open = alerts.filter((alert) => alert.state === "open" || alert.state === "acknowledged");
  return open.sort((a, b) => RANKING[a.level] - RANKING[b.level] || Number(a.state !== "open") - Number(b.state !== "open") || b.since - a.since);
}

export function verdict(told: Overview, silentFor: number, stepSeconds: number): Verdict {
  const open = counted(told.alerts);
  const bad = open.filter((alert) => alert.level !== "notice");
  const worst = bad[0];
  const others = bad.length > 1 ? ` And ${many(bad.length - 1, "more open alert")}.` : "";
  if (told.state === "failed") return { tone: "critical", word: "Failed", detail: worst ? worst.what + others : told.events.find((event) => event.kind === "failure")?.text ?? `It ended at step ${told.step}.` };
  if (told.state === "damaged") return { tone: "critical", word: "Damaged", detail: "The run's folder cannot be read in full." };
  if (worst) {
    const place = where(worst);
    return { tone: worst.level, word: capital(words(worst.kind)) + (place ? ` on ${place}` : ""), detail: worst.what + others };
  }
  if (told.state === "running") {
    const missing = told.ranks_of - told.reporting;
    if (told.step > 0 && missing > 0) return { tone: "warning", word: `${many(missing, "rank")} silent`, detail: `${told.reporting} of ${told.ranks_of} ranks report.` };
    if (told.step > 0 && silentFor > Math.max(SILENT_S, SILENT_TIMES * stepSeconds)) return { tone: "warning", word: "No news", detail: `The last step ended ${seconds(silentFor)} ago.` };
    if (!told.step) return { tone: "idle", word: "Starting", detail: "No step is done yet." };
    return { tone: "good", word: "Healthy", detail: open.length ? `${many(open.length, "notice")} below; nothing that needs you.` : "Every rank reports and no alert is open." };
  }
  if (told.state === "finished") return { tone: "good", word: "Finished", detail: told.resolved ? `${many(told.resolved, "alert")} came up and passed.` : "No alert was left open." };
  const why = { interrupted: "It was interrupted; `penstock resume` goes on from its newest snapshot.", unfinished: "It stopped without an end; `penstock resume` goes on from its newest snapshot." };
  return { tone: "warning", word: told.state === "interrupted" ? "Interrupted" : "Stopped early", detail: why[told.state] };
}
