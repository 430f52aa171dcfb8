// A run's history as a tree: every snapshot has a parent, so a run that went back (a rewind, a resume from an older snapshot) grows a branch. Snapshots
// and events come as two lists and are put together here; long rows of snapshots that retention dropped are folded.
import type { History, RunEvent, Snapshot } from "../api/types";
import { moment, whole } from "../ui/format";

export interface Entry {
  key: string;
  time: number;
  step: number | null;
  kind: string;
  text: string;
  snapshot: Snapshot | null;
  event: RunEvent | null;
  lane: number;
}
export interface Branch {
  lane: number;
  from: { step: number; lane: number } | null;
  steps: number[];
}
export interface Story {
  entries: Entry[];
  branches: Branch[];
  lanes: number;
}
export type Row = { fold: null; entry: Entry } | { fold: Entry[]; entry: Entry };

/** Snapshots by id, and what else happened, oldest first, each on its lane of the tree. */
export function storyOf(told: History): Story {
  const snapshots = new Map(told.snapshots.map((snapshot) => [snapshot.id, snapshot]));
  const entries: Entry[] = told.events.map((event) => {
    const snapshot = event.kind === "snapshot" ? (snapshots.get(String(event.data?.id ?? "")) ?? null) : null;
    if (snapshot) snapshots.delete(snapshot.id);
    return { key: `e${event.seq ?? `${event.time} ${event.text}`}`, time: moment(event.time), step: event.step, kind: event.kind, text: event.text, snapshot, event, lane: 0 };
  });
  for (const snapshot of snapshots.values()) {
    entries.push({
      key: `s${snapshot.id}`,
      time: moment(snapshot.time),
      step: snapshot.step,
      kind: "snapshot",
      text: "",
      snapshot,
      event: null,
      lane: 0,
    });
  }
  entries.sort((a, b) => a.time - b.time || (a.event?.seq ?? 0) - (b.event?.seq ?? 0));
  return { entries, ...grow(entries) };
}

function grow(entries: Entry[]): { branches: Branch[]; lanes: number } {
  const branches: Branch[] = [];
  const placed = new Map<string, { step: number; lane: number }>();
  const heads: (string | null)[] = [];
  let at = 0;
  const branch = (from: Branch["from"]): number => {
    branches.push({ lane: branches.length, from, steps: [] });
    heads.push(null);
    return branches.length - 1;
  };
  branch(null);
  for (const entry of entries) {
    const { snapshot } = entry;
    if (snapshot) {
      const parent = snapshot.parent ? (placed.get(snapshot.parent) ?? null) : null;
      const head = snapshot.parent ? heads.indexOf(snapshot.parent) : -1;
      at = head >= 0 ? head : parent ? branch(parent) : heads[0] === null ? 0 : branch(null);
      heads[at] = snapshot.id;
      placed.set(snapshot.id, { step: snapshot.step, lane: at });
    }
    entry.lane = at;
    if (entry.step !== null) branches[at]!.steps.push(entry.step);
  }
  return { branches, lanes: branches.length };
}

const LEAST_FOLD = 3;

/** Entries as rows of the list, newest first, with long rows of dropped snapshots and of what dropped them as one. */
export function rowsOf(entries: Entry[]): Row[] {
  const rows: Row[] = [];
  let folded: Entry[] = [];
  const flush = (): void => {
    if (folded.length >= LEAST_FOLD) rows.push({ fold: folded, entry: folded[0]! });
    else rows.push(...folded.map((entry): Row => ({ fold: null, entry })));
    folded = [];
  };
  for (const entry of [...entries].reverse()) {
    if (entry.snapshot?.state === "dropped" || entry.kind === "gc") {
      folded.push(entry);
      continue;
    }
    flush();
    rows.push({ fold: null, entry });
  }
  flush();
  return rows;
}

export function foldText(entries: Entry[]): string {
  const dropped = entries.filter((entry) => entry.snapshot).map((entry) => entry.snapshot!.step);
  if (!dropped.length) return `${entries.length} collections of old snapshots`;
  return `${dropped.length} snapshots, steps ${whole(Math.min(...dropped))} – ${whole(Math.max(...dropped))}, dropped by retention`;
}
