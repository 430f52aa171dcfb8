// Every call the page makes, in one place. In a frozen report (`penstock report RUN`) the answers lie in the page itself, in the element `#frozen`, and
// nothing goes over the network. Errors of the server are one sentence, which `ApiError` carries; a call that gets no answer in time is an error too.
import { signal } from "@preact/signals";
import type { Alert, Comparison, Differences, History, Me, Metric, Outcome, Overview, RunFacts, RunList } from "./types";
import { type Answer, decodeSeries } from "./series";

const PREFIX = "/api/v1";
const DEADLINE_MS = 30_000;
const ACTION_DEADLINE_MS = 180_000;

export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message);
  }
}

/** Whether the server wants its token even for looking, which it does unless it listens on this machine alone. */
export const locked = signal(false);

type Frozen = Record<string, unknown>;
const thawed = await thaw(document.getElementById("frozen")?.textContent);
/** The answers that a frozen report carries; null on a live page. */
export const frozen: Frozen | null = thawed?.answers ?? null;

/** What a frozen report says of itself: how many points a course has at most, and which metrics were measured at more steps. */
export const frozenAbout = (frozen?.["/frozen"] ?? null) as { points: number; thinned: string[] } | null;

/** Ids of the runs that a frozen report holds. */
export function frozenRuns(): string[] {
  const ids = Object.keys(frozen ?? {}).map((key) => /^\/api\/v1\/runs\/([^/?]+)\/overview/.exec(key)?.[1]);
  return ids.filter((id) => id !== undefined).map(decodeURIComponent);
}

const of = (id: string): string => `/runs/${encodeURIComponent(id)}`;

async function call(path: string, signal?: AbortSignal, init: RequestInit = {}, deadline = DEADLINE_MS): Promise<Response> {
  const limits = [AbortSignal.timeout(deadline), ...(signal ? [signal] : [])];
  let response: Response;
  try {
    response = await fetch(PREFIX + path, { ...init, credentials: "same-origin", signal: AbortSignal.any(limits) });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("The dashboard's server does not answer. Is `penstock dashboard` still running?", 0);
  }
  if (response.ok) return response;
  if (response.status === 401 && init.method !== "POST") locked.value = true;
  const told = (await response.json().catch(() => null)) as { error?: unknown } | null;
  throw new ApiError(typeof told?.error === "string" ? told.error : `The server answered ${response.status}.`, response.status);
}

async function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  if (frozen) {
    const found = frozen[PREFIX + path] ?? frozen[PREFIX + path.split("?")[0]];
    if (found === undefined) throw new ApiError("This report was frozen without that.", 404);
    return found as T;
  }
  return (await (await call(path, signal)).json()) as T;
}

async function post<T>(path: string, body: unknown, deadline?: number): Promise<T> {
  if (frozen) throw new ApiError("A frozen report cannot act on a run.", 403);
  const init = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await call(path, undefined, init, deadline);
  return (response.status === 204 ? {} : await response.json().catch(() => ({}))) as T;
}

export interface SeriesQuery {
  from?: number;
  to?: number;
  points: number;
}

/** The most names that one call of series may have. */
export const MOST_NAMES = 64;
export const MOST_POINTS = 4000;

/** What a frozen report carries: base64 of gzip of the length of some JSON, the JSON, and the courses of all metrics (`dashboard/frozen.py`). */
async function thaw(text: string | null | undefined): Promise<{ answers: Frozen; courses: Answer } | null> {
  if (!text) return null;
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const all = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  const end = 4 + new DataView(all).getUint32(0, true);
  return { answers: JSON.parse(new TextDecoder().decode(new Uint8Array(all, 4, end - 4))) as Frozen, courses: decodeSeries(all.slice(end)) };
}

async function series(id: string, names: string[], query: SeriesQuery, signal?: AbortSignal): Promise<Answer> {
  if (thawed) return thawed.courses;
  const asked = new URLSearchParams(names.map((name) => ["name", name]));
  if (query.from !== undefined) asked.set("from", String(Math.floor(query.from)));
  if (query.to !== undefined) asked.set("to", String(Math.ceil(query.to)));
  asked.set("points", String(Math.min(MOST_POINTS, Math.round(query.points))));
  return decodeSeries(await (await call(`${of(id)}/series?${asked}`, signal)).arrayBuffer());
}

export const api = {
  runs: (search: string, limit: number, offset: number, signal?: AbortSignal) =>
    get<RunList>(`/runs?${new URLSearchParams({ search, limit: String(limit), offset: String(offset) })}`, signal),
  facts: (id: string, signal?: AbortSignal) => get<RunFacts>(of(id), signal),
  overview: (id: string, signal?: AbortSignal) => get<Overview>(`${of(id)}/overview`, signal),
  metrics: async (id: string, signal?: AbortSignal) => (await get<{ metrics: Metric[] }>(`${of(id)}/metrics`, signal)).metrics,
  alerts: async (id: string, signal?: AbortSignal) => (await get<{ alerts: Alert[] }>(`${of(id)}/alerts`, signal)).alerts,
  history: (id: string, signal?: AbortSignal) => get<History>(`${of(id)}/history`, signal),
  series,
  diff: (id: string, before: string, after: string, signal?: AbortSignal) =>
    get<Differences>(`${of(id)}/diff?${new URLSearchParams({ before, after })}`, signal),
  compare: (ids: string[], signal?: AbortSignal) => get<Comparison>(`/compare?${new URLSearchParams(ids.map((id) => ["run", id]))}`, signal),
  me: (signal?: AbortSignal) => get<Me>("/me", signal),
  login: (token: string) => post<unknown>("/login", { token }),
  act: (id: string, action: Record<string, unknown>) => post<Outcome>(`${of(id)}/actions`, action, ACTION_DEADLINE_MS),
  /** Any read below a run, for views that bring their own types (`inside/…`). */
  inside: <T>(id: string, path: string, signal?: AbortSignal) => get<T>(`${of(id)}/inside/${path}`, signal),
  /** Where the live stream of a run is. */
  live: (id: string, names: string[], after: number | string | null) => {
    const asked = new URLSearchParams(names.map((name) => ["name", name]));
    if (after !== null) asked.set("after", String(after));
    return `${PREFIX}${of(id)}/live?${asked}`;
  },
};
