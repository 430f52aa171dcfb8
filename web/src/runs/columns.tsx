// The columns of the list of runs: what each shows, how it sorts, and from which width of the page on there is room for it (`wide` 0 … 3).
import type { ComponentChildren } from "preact";
import { number, type RunRow } from "../api/types";
import { ago, clock, digits, many, NONE, si, whole } from "../ui/format";
import { Icon } from "../ui/icon";
import { StateBadge } from "../ui/bits";

export interface Column {
  key: string;
  title: string;
  wide: 0 | 1 | 2 | 3;
  right?: boolean;
  sort: (row: RunRow) => number | string;
  show: (row: RunRow, now: number) => ComponentChildren;
}

const ORDER = ["running", "failed", "damaged", "interrupted", "unfinished", "finished"];

export const COLUMNS: readonly Column[] = [
  { key: "state", title: "State", wide: 0, sort: (row) => ORDER.indexOf(row.state), show: (row) => <StateBadge state={row.state} /> },
  { key: "step", title: "Step", wide: 0, right: true, sort: (row) => row.step, show: (row) => <Steps row={row} /> },
  { key: "loss", title: "Loss", wide: 0, right: true, sort: (row) => last(number(row.loss)), show: (row) => digits(number(row.loss)) },
  { key: "val", title: "Val. loss", wide: 2, right: true, sort: (row) => last(number(row.val_loss)), show: (row) => digits(number(row.val_loss)) },
  {
    key: "speed",
    title: "Tokens/s",
    wide: 1,
    right: true,
    sort: (row) => number(row.tokens_per_s) || 0,
    show: (row) => si(number(row.tokens_per_s)),
  },
  { key: "tokens", title: "Tokens", wide: 3, right: true, sort: (row) => number(row.tokens) || 0, show: (row) => si(number(row.tokens)) },
  { key: "parameters", title: "Parameters", wide: 3, right: true, sort: (row) => row.parameters ?? 0, show: (row) => si(row.parameters ?? NaN) },
  { key: "ranks", title: "Ranks", wide: 2, right: true, sort: (row) => row.ranks ?? 0, show: (row) => whole(row.ranks ?? NaN) },
  { key: "alerts", title: "Alerts", wide: 1, sort: weight, show: (row) => <Alerts row={row} /> },
  {
    key: "age",
    title: "Updated",
    wide: 1,
    right: true,
    sort: (row) => row.updated ?? 0,
    show: (row, now) => <span title={clock(row.updated ?? NaN)}>{ago(row.updated ?? NaN, now)}</span>,
  },
];

const last = (value: number): number => (Number.isFinite(value) ? value : Infinity);

function weight(row: RunRow): number {
  return row.alerts ? row.alerts.critical * 1e6 + row.alerts.warning * 1e3 + row.alerts.notice : 0;
}

function Steps({ row }: { row: RunRow }) {
  const share = row.steps ? Math.min(1, row.step / row.steps) : 0;
  return (
    <span class="steps">
      <span>
        {whole(row.step)}
        <span class="soft"> / {row.steps ? whole(row.steps) : NONE}</span>
      </span>
      <progress max={1} value={share} aria-label={`step ${row.step} of ${row.steps ?? "unknown"}`} />
    </span>
  );
}

function Alerts({ row }: { row: RunRow }) {
  const all = row.alerts ?? { critical: 0, warning: 0, notice: 0 };
  const there = (["critical", "warning", "notice"] as const).filter((level) => all[level] > 0);
  if (!there.length) return <span class="soft">{NONE}</span>;
  return (
    <>
      {there.map((level) => (
        <span key={level} class={`level ${level} count`} title={many(all[level], `open ${level} alert`)}>
          <Icon name={level} />
          {all[level]}
        </span>
      ))}
    </>
  );
}
