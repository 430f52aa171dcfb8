// All runs of the folder, read page by page so that the first rows are on the screen at once; read again every few seconds while the list is in sight.
import { signal } from "@preact/signals";
import { api } from "../api/client";
import type { RunRow } from "../api/types";

const FIRST = 100;
const PAGE = 500;
/** Rows that are kept here; beyond that the server searches. */
export const MOST = 3000;

export interface Listed {
  rows: RunRow[];
  total: number;
  error: Error | null;
  done: boolean;
}

export const listed = signal<Listed>({ rows: [], total: 0, error: null, done: false });
/** Runs that are ticked for a comparison; kept while one looks elsewhere. */
export const chosen = signal<readonly string[]>([]);

export function choose(id: string): void {
  chosen.value = chosen.value.includes(id) ? chosen.value.filter((one) => one !== id) : [...chosen.value, id];
}

export async function readRuns(search: string, signal?: AbortSignal): Promise<void> {
  try {
    let rows: RunRow[] = [];
    let total = Infinity;
    while (rows.length < Math.min(total, MOST)) {
      const page = await api.runs(search, rows.length ? PAGE : FIRST, rows.length, signal);
      rows = [...rows, ...page.runs];
      total = page.total;
      const kept = listed.peek();
      const done = rows.length >= Math.min(total, MOST) || !page.runs.length;
      if (done || rows.length > kept.rows.length || kept.error) listed.value = { rows, total, error: null, done };
      if (!page.runs.length) break;
    }
  } catch (error) {
    if (!signal?.aborted) listed.value = { ...listed.peek(), error: error as Error, done: true };
  }
}

/** Read again what is new: the first page, put before what is known. */
export async function refreshRuns(search: string): Promise<void> {
  const known = listed.peek();
  if (!known.done) return;
  if (known.error || known.rows.length <= FIRST) return readRuns(search);
  try {
    const page = await api.runs(search, FIRST, 0);
    const fresh = new Set(page.runs.map((row) => row.id));
    listed.value = { ...known, total: page.total, rows: [...page.runs, ...known.rows.filter((row) => !fresh.has(row.id))] };
  } catch (error) {
    listed.value = { ...known, error: error as Error };
  }
}
