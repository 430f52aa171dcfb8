// What the large word of the overview says. The server's `health` counts alerts; here the worst of them speaks, because "1 open alert" tells a person
// who walks by less than "Straggler on rank 3". Silence is a fault too: a run whose ranks, or whose news, stay away is not called healthy.
import type { Alert, Level, Overview } from "../api/types";
import { capital, many, sentence, seconds, words } from "../ui/format";

export type Tone = "good" | "idle" | Level;
export interface Verdict {
  tone: Tone;
  word: string;
  detail: string;
}

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

/** An alert in some words: "Straggler on rank 3", "Rank 3 lost". */
export function titleOf(alert: Alert): string {
  const place = where(alert);
  if (alert.kind === "rank_lost" && alert.rank !== null) return `Rank ${alert.rank} lost`;
  return capital(words(alert.kind)) + (place ? ` on ${place}` : "");
}

export function verdict(told: Overview, silentFor: number, stepSeconds: number): Verdict {
  const bad = counted(told.alerts).filter((alert) => alert.level !== "notice");
  return told.state === "running" ? ofRunning(told, bad, silentFor, stepSeconds) : ofEnded(told, bad);
}

function ofRunning(told: Overview, bad: Alert[], silentFor: number, stepSeconds: number): Verdict {
  const worst = bad[0],
    missing = told.ranks_of - told.reporting;
  if (worst) return { tone: worst.level, word: titleOf(worst), detail: sentences(worst.what, others(bad)) };
  if (!told.step) return { tone: "idle", word: "Starting", detail: "No step is done yet." };
  if (missing > 0) return { tone: "warning", word: `${many(missing, "rank")} silent`, detail: `${told.reporting} of ${told.ranks_of} ranks report.` };
  if (silentFor > Math.max(SILENT_S, SILENT_TIMES * stepSeconds))
    return { tone: "warning", word: "No news", detail: `The last step ended ${seconds(silentFor)} ago.` };
  const notices = told.alerts.filter((alert) => alert.state !== "resolved").length;
  return {
    tone: "good",
    word: "Healthy",
    detail: notices ? `${many(notices, "notice")} below; nothing that needs you.` : "Every rank reports and no alert is open.",
  };
}

function ofEnded(told: Overview, bad: Alert[]): Verdict {
  const failure = told.events.find((event) => event.kind === "failure")?.text;
  const why = bad[0] ? sentences(`${titleOf(bad[0])}: ${bad[0].what}`, others(bad)) : "";
  switch (told.state) {
    case "failed":
      return { tone: "critical", word: "Failed", detail: why || sentences(failure ?? `It ended at step ${told.step}`) };
    case "damaged":
      return { tone: "critical", word: "Damaged", detail: "The run's folder cannot be read in full." };
    case "finished":
      if (why) return { tone: "warning", word: "Finished", detail: sentences("With open alerts", why) };
      return {
        tone: "good",
        word: "Finished",
        detail: told.resolved ? `${many(told.resolved, "alert")} came up and passed.` : "No alert was left open.",
      };
    default:
      return {
        tone: "warning",
        word: told.state === "interrupted" ? "Interrupted" : "Stopped early",
        detail: sentences(why, "`penstock resume` goes on from its newest snapshot"),
      };
  }
}

const others = (bad: Alert[]): string => (bad.length > 1 ? `And ${many(bad.length - 1, "more open alert")}` : "");
const sentences = (...texts: string[]): string => texts.filter(Boolean).map(sentence).join(" ");
