// What the Explore view shows, in the address, so that a copied link shows the same: search, axis, range (steps), smoothing, log scale, closed groups,
// pins. Pins are kept in the browser too, for the next run. The range while one drags is a signal of its own, written to the address when it rests.
import { signal } from "@preact/signals";
import { query, setQuery } from "../app/route";
import { type Axis, AXES } from "./clock";
import type { Range } from "./queue";

export interface View {
  search: string;
  axis: Axis;
  smooth: number;
  log: boolean;
  band: boolean;
  closed: string[];
  pins: string[];
}

const KEY = "penstock.pins";
const WRITE_MS = 250;

export const view = signal<View>(read());
/** Steps in sight; null: all, and what comes. */
export const range = signal<Range | null>(readRange());
let timer = 0;

function read(): View {
  const asked = query.peek();
  const axis = asked.get("x") as Axis;
  const smooth = Number(asked.get("smooth") ?? 0);
  return {
    search: asked.get("q") ?? "",
    axis: AXES.includes(axis) ? axis : "step",
    smooth: smooth >= 0 && smooth < 1 ? smooth : 0,
    log: asked.get("log") === "1",
    band: asked.get("band") !== "0",
    closed: asked.getAll("closed"),
    pins: asked.has("pin") ? asked.getAll("pin") : keptPins(),
  };
}

function readRange(): Range | null {
  const asked = query.peek();
  if (!asked.has("from") && !asked.has("to")) return null;
  const from = Number(asked.get("from") ?? 0),
    to = Number(asked.get("to") ?? Infinity);
  return from < to ? { from, to } : null;
}

function keptPins(): string[] {
  try {
    const kept: unknown = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(kept) ? kept.filter((name) => typeof name === "string") : [];
  } catch {
    return [];
  }
}

/** Take up what the address says: on arriving, and when one goes back. */
export function arriveExplore(): void {
  view.value = read();
  range.value = readRange();
}

export function change(part: Partial<View>): void {
  view.value = { ...view.peek(), ...part };
  if (part.pins)
    try {
      localStorage.setItem(KEY, JSON.stringify(part.pins));
    } catch {
      /* no storage: the address has them */
    }
  write();
}

export function look(at: Range | null): void {
  range.value = at;
  write();
}

export function togglePin(name: string): void {
  const { pins } = view.peek();
  change({ pins: pins.includes(name) ? pins.filter((one) => one !== name) : [...pins, name] });
}

function write(): void {
  clearTimeout(timer);
  timer = window.setTimeout(() => {
    const { search, axis, smooth, log, band, closed, pins } = view.peek();
    const at = range.peek();
    setQuery((asked) => {
      const put = (name: string, value: string | null): void => (value ? asked.set(name, value) : asked.delete(name));
      put("q", search);
      put("x", axis === "step" ? null : axis);
      put("from", at && at.from > 0 ? String(Math.round(at.from * 100) / 100) : null);
      put("to", at && Number.isFinite(at.to) ? String(Math.round(at.to * 100) / 100) : null);
      put("smooth", smooth ? String(smooth) : null);
      put("log", log ? "1" : null);
      put("band", band ? null : "0");
      for (const [name, values] of [
        ["closed", closed],
        ["pin", pins],
      ] as const) {
        asked.delete(name);
        values.forEach((value) => asked.append(name, value));
      }
    });
  }, WRITE_MS);
}

/** The timer must not write to another view's address. */
export const leaveExplore = (): void => clearTimeout(timer);
