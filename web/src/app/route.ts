// Where in the page one is: a path and a query of the History API; in a frozen report, which is a file, the same path behind `#`.
import { signal } from "@preact/signals";
import { frozen, frozenRuns } from "../api/client";

export type Tab = "overview" | "explore" | "inside" | "history" | "facts";
export const TABS: readonly Tab[] = ["overview", "explore", "inside", "history", "facts"];
export type Route = { page: "runs" } | { page: "run"; id: string; tab: Tab } | { page: "compare"; ids: string[] } | { page: "nowhere" };

const here = (): URL => new URL(frozen ? location.hash.slice(1) || "/" : location.href, "http://page");

export const route = signal<Route>(read(here()));
/** The query of the address. Views write to it with `setQuery`, so that a copied link shows what they show. */
export const query = signal(here().searchParams);

function read(url: URL): Route {
  const parts = url.pathname.split("/").filter(Boolean).map(decodeURIComponent);
  if (parts[0] === "r" && parts[1] !== undefined) {
    const tab = (parts[2] ?? "overview") as Tab;
    return TABS.includes(tab) ? { page: "run", id: parts[1], tab } : { page: "nowhere" };
  }
  if (parts[0] === "compare") return { page: "compare", ids: url.searchParams.getAll("run") };
  if (parts.length) return { page: "nowhere" };
  const [only] = frozenRuns();
  return only === undefined ? { page: "runs" } : { page: "run", id: only, tab: "overview" };
}

/** An address as an `href`. */
export const href = (path: string): string => (frozen ? `#${path}` : path);
export const runPath = (id: string, tab: Tab): string => `/r/${encodeURIComponent(id)}/${tab}`;

export function go(path: string): void {
  history.pushState(null, "", href(path));
  arrived();
  window.scrollTo(0, 0);
  document.getElementById("main")?.focus({ preventScroll: true });
}

/** Change the query of the address in place; empty values are left out. */
export function setQuery(change: (query: URLSearchParams) => void): void {
  const url = here();
  change(url.searchParams);
  const text = url.searchParams.toString();
  const path = url.pathname + (text ? `?${text}` : "");
  history.replaceState(null, "", href(path));
  query.value = new URLSearchParams(text);
}

function arrived(): void {
  const url = here();
  query.value = url.searchParams;
  route.value = read(url);
}

window.addEventListener("popstate", arrived);
window.addEventListener("hashchange", () => {
  if (frozen) arrived();
});
