// Alerts and events as marks on the axis: where, how loud, and what the pointer is told when it is near.
import type { Alert, RunEvent } from "../api/types";
import { capital, whole, words } from "../ui/format";
import { titleOf } from "../overview/verdict";

export interface Mark {
  step: number;
  look: "critical" | "warning" | "notice" | "event";
  text: string;
}

const LOUD: readonly Mark["look"][] = ["event", "notice", "warning", "critical"];
const SHOWN = new Set(["change", "fork", "resume", "failure", "recovery", "balance", "pipeline", "exchange", "micro_batch"]);

/** Marks, the loudest last, so that it is drawn over the others: one for each alert where it began, and one for each event that changes a run's course. */
export function marksOf(alerts: Alert[], events: RunEvent[]): Mark[] {
  const told = alerts
    .filter((alert) => alert.state !== "silenced")
    .map((alert): Mark => ({
      step: alert.since,
      look: alert.level,
      text: `${titleOf(alert)}, since step ${whole(alert.since)}${alert.state === "resolved" ? " (passed)" : ""}: ${alert.what}`,
    }));
  const happened = events
    .filter((event) => event.step !== null && SHOWN.has(event.kind))
    .map((event): Mark => ({ step: event.step!, look: "event", text: `${capital(words(event.kind))} at step ${whole(event.step!)}: ${event.text}` }));
  return [...happened, ...told].sort((a, b) => LOUD.indexOf(a.look) - LOUD.indexOf(b.look));
}
