// The list of runs. Thousands of rows are fine: only those in sight are in the page, between two spacers.
import { useCallback, useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { RunRow } from "../api/types";
import { go, query, runPath, setQuery } from "../app/route";
import { useKeys } from "../app/keys";
import { me } from "../app/me";
import { Command, Failed, Message, StateBadge, Waiting } from "../ui/bits";
import { Icon } from "../ui/icon";
import { A } from "../ui/link";
import { useEvery, useNow } from "../ui/load";
import { many, whole } from "../ui/format";
import { COLUMNS } from "./columns";
import { choose, chosen, listed, MOST, readRuns, refreshRuns } from "./store";
import { useWindow } from "./window";

const REFRESH_MS = 5000;

export function RunsView() {
  const search = query.value.get("q") ?? "";
  const { rows, total, error, done } = listed.value;
  const remote = total > MOST ? search : "";
  useEffect(() => {
    document.title = "Runs · Penstock";
    const control = new AbortController();
    const timer = setTimeout(() => void readRuns(remote, control.signal), remote ? 200 : 0);
    return () => {
      clearTimeout(timer);
      control.abort();
    };
  }, [remote]);
  useEvery(
    REFRESH_MS,
    useCallback(() => void refreshRuns(remote), [remote]),
  );
  if (error && !rows.length) return <Failed error={error} again={() => void readRuns(remote)} />;
  if (!rows.length && !done) return <Waiting what="runs" />;
  if (!rows.length && !search) return <Empty />;
  return <Table rows={rows} total={total} search={search} error={error} />;
}

function Empty() {
  return (
    <Message title="No runs yet">
      <p>
        There are no runs in <code>{me.value?.runs_dir ?? "the runs folder"}</code>. This makes one; it takes a minute or two on a laptop:
      </p>
      <Command text="penstock train demo" />
      <p class="soft">
        This page shows it as soon as it begins. For runs that lie elsewhere: <code>penstock dashboard RUNS_DIR</code>.
      </p>
    </Message>
  );
}

interface Sorting {
  key: string;
  down: boolean;
}

function found(row: RunRow, words: string[]): boolean {
  const text = `${row.name} ${row.id} ${row.state} ${row.label ?? ""}`.toLowerCase();
  return words.every((word) => text.includes(word));
}

function Table({ rows, total, search, error }: { rows: RunRow[]; total: number; search: string; error: Error | null }) {
  const now = useNow(5000);
  const field = useRef<HTMLInputElement>(null);
  const [sorting, setSorting] = useState<Sorting | null>(null);
  const [at, setAt] = useState(-1);
  const shown = useMemo(() => {
    const words = search.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = words.length ? rows.filter((row) => found(row, words)) : rows;
    const column = sorting && COLUMNS.find((one) => one.key === sorting.key);
    if (!column) return kept;
    const sign = sorting.down ? -1 : 1;
    return [...kept].sort((a, b) => {
      const x = column.sort(a),
        y = column.sort(b);
      return x < y ? -sign : x > y ? sign : 0;
    });
  }, [rows, search, sorting]);
  const { body, first, last, before, after, height } = useWindow(shown.length);
  const move = (by: number): void => {
    const next = Math.max(0, Math.min(shown.length - 1, at + by));
    setAt(next);
    const top = (body.current?.getBoundingClientRect().top ?? 0) + window.scrollY + next * height;
    if (top < window.scrollY + 120 || top > window.scrollY + innerHeight - 80) window.scrollTo({ top: top - innerHeight / 2 });
  };
  const compare = (): void => {
    if (chosen.value.length > 1) go(`/compare?${new URLSearchParams(chosen.value.map((id) => ["run", id]))}`);
  };
  useKeys(
    [
      { keys: "/", what: "search", act: () => field.current?.focus() },
      { keys: "j", what: "next run", act: () => move(1) },
      { keys: "k", what: "previous run", act: () => move(-1) },
      {
        keys: "Enter",
        what: "open the run",
        act: () => {
          const row = shown[at];
          if (row) go(runPath(row.id, "overview"));
        },
      },
      {
        keys: "x",
        what: "choose the run for a comparison",
        act: () => {
          const row = shown[at];
          if (row) choose(row.id);
        },
      },
      { keys: "c", what: "compare what is chosen", act: compare },
    ],
    [shown, at],
  );
  const sort = (key: string): void => setSorting((was) => (was?.key !== key ? { key, down: true } : was.down ? { key, down: false } : null));
  return (
    <div class="runs">
      <h1 class="sr">Runs</h1>
      <div class="tools">
        <label class="search">
          <Icon name="search" />
          <input
            ref={field}
            type="search"
            placeholder="Search runs"
            aria-label="Search runs"
            value={search}
            onInput={(event) => {
              const { value } = event.currentTarget;
              setAt(-1);
              setQuery((asked) => (value ? asked.set("q", value) : asked.delete("q")));
            }}
          />
        </label>
        <span class="soft" role="status">
          {shown.length === total ? many(total, "run") : `${whole(shown.length)} of ${many(total, "run")}`}
        </span>
        {error && (
          <span class="bad-text" role="alert">
            {error.message}
          </span>
        )}
        <span class="grow" />
        {chosen.value.length > 0 && (
          <button
            type="button"
            class="quiet"
            onClick={() => {
              chosen.value = [];
            }}
          >
            clear
          </button>
        )}
        <button
          type="button"
          class="main"
          disabled={chosen.value.length < 2}
          title={chosen.value.length < 2 ? "Choose two runs or more" : "Compare (c)"}
          onClick={compare}
        >
          Compare{chosen.value.length ? ` ${chosen.value.length}` : ""}
        </button>
      </div>
      <table aria-rowcount={shown.length + 1} aria-label="Runs">
        <thead>
          <tr>
            <th class="pick">
              <span class="sr">Choose</span>
            </th>
            <th class="name">Run</th>
            {COLUMNS.map((column) => (
              <th
                key={column.key}
                class={`w${column.wide} c-${column.key} ${column.right ? "right" : ""}`}
                aria-sort={sorting?.key === column.key ? (sorting.down ? "descending" : "ascending") : undefined}
              >
                <button type="button" onClick={() => sort(column.key)}>
                  {column.title}
                  <span aria-hidden="true" class="sort">
                    {sorting?.key === column.key ? (sorting.down ? "↓" : "↑") : ""}
                  </span>
                </button>
              </th>
            ))}
          </tr>
        </thead>
        <tbody ref={body}>
          {before > 0 && (
            <tr aria-hidden="true" style={{ height: `${before}px` }}>
              <td colSpan={COLUMNS.length + 2} />
            </tr>
          )}
          {shown.slice(first, last).map((row, index) => (
            <Row key={row.id} row={row} now={now} place={first + index} marked={first + index === at} />
          ))}
          {after > 0 && (
            <tr aria-hidden="true" style={{ height: `${after}px` }}>
              <td colSpan={COLUMNS.length + 2} />
            </tr>
          )}
        </tbody>
      </table>
      {!shown.length && (
        <Message title="No run fits">
          <p>
            Nothing is called “{search}”.{" "}
            <button type="button" onClick={() => setQuery((asked) => asked.delete("q"))}>
              Show all
            </button>
          </p>
        </Message>
      )}
    </div>
  );
}

function Row({ row, now, place, marked }: { row: RunRow; now: number; place: number; marked: boolean }) {
  const open = (event: MouseEvent): void => {
    if (!(event.target as HTMLElement).closest("a, input, label")) go(runPath(row.id, "overview"));
  };
  return (
    <tr class={`run ${marked ? "marked" : ""}`} aria-rowindex={place + 2} onClick={open}>
      <td class="pick">
        <label>
          <input type="checkbox" checked={chosen.value.includes(row.id)} aria-label={`Choose ${row.name}`} onChange={() => choose(row.id)} />
        </label>
      </td>
      <td class="name">
        <A to={runPath(row.id, "overview")} title={row.id}>
          {row.name}
        </A>
        <span class="small-state">
          <StateBadge state={row.state} />
        </span>
        {row.error ? (
          <small class="bad-text" title={row.error}>
            {row.error}
          </small>
        ) : row.label && row.label !== row.name ? (
          <small class="soft">{row.label}</small>
        ) : null}
      </td>
      {COLUMNS.map((column) => (
        <td key={column.key} class={`w${column.wide} c-${column.key} ${column.right ? "right" : ""}`}>
          {column.show(row, now)}
        </td>
      ))}
    </tr>
  );
}
