// What the server answers, name by name as its OpenAPI description has it. Numbers that JSON cannot hold come as words (`Num`); `number()` reads them.

export type Num = number | "nan" | "inf" | "-inf" | null;
export type RunState = "running" | "finished" | "interrupted" | "failed" | "unfinished" | "damaged";
export type Level = "critical" | "warning" | "notice";

export interface RunRow {
  id: string;
  name: string;
  state: RunState;
  created: number | null;
  updated: number | null;
  step: number;
  steps: number | null;
  loss: Num;
  val_loss: Num;
  tokens: Num;
  tokens_per_s: Num;
  parameters: number | null;
  ranks: number | null;
  alerts: Record<Level, number> | null;
  label: string | null;
  error?: string | null;
}
export interface RunList {
  total: number;
  runs: RunRow[];
}

export interface RunFacts {
  row: RunRow;
  identity: Record<string, unknown>;
  settings: Record<string, Record<string, unknown>>;
  /** What settings that were changed are by default, by their whole names. */
  defaults: Record<string, unknown>;
  summary: Record<string, unknown> | null;
  layout: { axes?: Record<string, number>; ranks?: number | null; text?: string } | null;
  evals: { step: number; val_loss: Num }[];
  samples: { step: number; prompt: string | null; text: string | null }[];
  links?: Record<string, unknown>;
}

export interface Moved {
  name: string;
  since: number;
  value: Num;
  expected: Num;
  deviations: Num;
  rank: number | null;
}
export interface Alert {
  id: string;
  kind: string;
  level: Level;
  state: "open" | "acknowledged" | "silenced" | "resolved";
  step: number;
  since: number;
  time: number;
  sure: number;
  rank: number | null;
  layer: number | null;
  what: string;
  cause: string;
  advice: string;
  evidence: Moved[];
  also: string[];
  notes: string[];
}
export interface RunEvent {
  seq: number | null;
  time: string | number;
  step: number | null;
  kind: string;
  text: string;
  data?: Record<string, unknown>;
}
export interface Line {
  title: string;
  unit: string;
  values: Num[];
  last: Num;
  low: Num;
  high: Num;
  high_rank: number;
}

export interface Overview {
  run: string;
  state: RunState;
  time: number;
  step: number;
  steps: number;
  loss: Num;
  tokens_per_s: Num;
  eta_s: Num;
  ranks: Record<string, number>;
  reporting: number;
  ranks_of: number;
  watched: boolean;
  resolved: number;
  health: string;
  metrics: Record<string, Line>;
  alerts: Alert[];
  mfu: Num;
  tokens: Num;
  validation: { step: number; loss: Num; lowest: Num } | null;
  cost: { seconds: Num; device_hours: Num; money: Num; money_at_end: Num; currency: string } | null;
  events: RunEvent[];
}

export interface Metric {
  name: string;
  unit: string;
  meaning: string;
  bad: string;
  together: string;
  group: string;
}

export interface Snapshot {
  step: number;
  time: number | string;
  id: string;
  parent: string | null;
  full: boolean;
  loss: Num;
  val_loss: Num;
  state_bytes: number;
  added_bytes: number;
  stored_bytes: number;
  state: "here" | "dropped" | "lost" | "damaged";
  pinned: boolean;
  newest: boolean;
}
/** `run` is the id of a run in this folder; null where it is elsewhere. */
export interface Fork {
  run: string | null;
  step: number | null;
  name: string;
}
export interface History {
  snapshots: Snapshot[];
  events: RunEvent[];
  head: string;
  damage: string[];
  notes: string[];
  left_out: number;
  parent: Fork | null;
  children: Fork[];
}

/** The kinds of tensors between two snapshots. */
export type TensorKind = "equal" | "differ" | "reshaped" | "only_before" | "only_after";
export interface Checkout {
  commit?: string | null;
  branch?: string | null;
  changed?: string[];
  diff?: string | null;
}
export interface Differences {
  parts: { part: string; count: number; values: { key: string; values: [unknown, unknown] }[] }[];
  code: { name: string; same: boolean; before: Checkout | null; after: Checkout | null }[];
  tensors: Record<TensorKind, { count: number; names: string[] }>;
  same_state: boolean;
}

export interface Comparison {
  runs: { id: string; name: string; state: RunState }[];
  settings: { key: string; values: unknown[] }[];
  results: { name: string; unit: string; better: "low" | "high" | null; values: Num[] }[];
  code: unknown;
}
export interface Me {
  may_act: boolean;
  host: string;
  version: string;
  runs_dir: string;
}
export interface Outcome {
  command: string;
  exit: number | null;
  text: string;
}

/** New rows of some metrics, as the live stream brings them. */
export interface LiveRows {
  through: number;
  courses: Record<
    string,
    { step: number[]; time: Num[]; tokens: Num[]; value: Num[]; low: Num[]; high: Num[]; low_rank?: number[]; high_rank: number[] }
  >;
}

/** A number as the server sends it: words stand for what JSON has no numbers for; absent is NaN. */
export function number(value: Num | undefined): number {
  if (typeof value === "number") return value;
  return value === "inf" ? Infinity : value === "-inf" ? -Infinity : NaN;
}
