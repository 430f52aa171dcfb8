// One live stream of a run (server-sent events) that outlives what breaks it: a server that restarts, a network that goes, a laptop that sleeps.
//
// The browser's own reconnecting is not used, because it gives up on an answer that is an error and knows nothing of sleep: here a stream that errs, or
// says nothing for `SILENT_MS` though the server pings every 15 s, is closed and opened again after 0.5, 1, 2 … 15 s. A page out of sight closes its
// stream after a while (browsers allow six connections to a host) and catches up when it is looked at again. Whoever listens is told to `refetch` when
// rows may have been missed.
import { computed, signal } from "@preact/signals";
import { api, frozen } from "./client";
import type { Alert, LiveRows, Overview } from "./types";

export type Link = "connecting" | "live" | "reconnecting" | "paused" | "frozen";
export interface Listener {
  overview(told: Overview): void;
  rows(told: LiveRows): void;
  alerts(told: Alert[]): void;
  /** Rows may have been missed, or the run went back. */
  refetch(): void;
}

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 15_000;
const SILENT_MS = 40_000;
const HIDDEN_MS = 60_000;
const RENAME_MS = 300;

export class Live {
  readonly link = signal<Link>(frozen ? "frozen" : "connecting");
  /** When the stream last said anything (ms); 0: never. */
  readonly heard = signal(0);
  readonly up = computed(() => this.link.value === "live");

  private source: EventSource | null = null;
  private names: string[] = [];
  /** The last position that was told of: a step, or what the stream calls it. */
  private after: number | string | null = null;
  private wait = FIRST_WAIT_MS;
  private timers: Record<"retry" | "silent" | "hidden" | "rename", number> = { retry: 0, silent: 0, hidden: 0, rename: 0 };
  private missed = false;

  constructor(
    private readonly id: string,
    private readonly listener: Listener,
  ) {
    if (frozen) return;
    document.addEventListener("visibilitychange", this.seen);
    window.addEventListener("online", this.wake);
    window.addEventListener("offline", this.doubt);
    window.addEventListener("pageshow", this.wake);
    this.open();
  }

  /** Bring rows of these metrics from now on, those after the step `after` first. */
  want(names: string[], after: number | null): void {
    const sorted = [...names].sort();
    if (frozen || sorted.join("\n") === this.names.join("\n")) return;
    this.names = sorted;
    this.after = after;
    clearTimeout(this.timers.rename);
    this.timers.rename = window.setTimeout(() => {
      if (this.link.value !== "paused") this.open();
    }, RENAME_MS);
  }

  close(): void {
    document.removeEventListener("visibilitychange", this.seen);
    window.removeEventListener("online", this.wake);
    window.removeEventListener("offline", this.doubt);
    window.removeEventListener("pageshow", this.wake);
    Object.values(this.timers).forEach((timer) => clearTimeout(timer));
    this.source?.close();
    this.source = null;
  }

  private open(): void {
    clearTimeout(this.timers.retry);
    this.source?.close();
    const source = new EventSource(api.live(this.id, this.names, this.names.length ? this.after : null));
    this.source = source;
    source.onopen = () => this.alive();
    source.onerror = () => this.broken();
    this.on<Overview>(source, "overview", (told) => this.listener.overview(told));
    this.on<LiveRows>(source, "rows", (told) => this.listener.rows(told));
    this.on<Alert[]>(source, "alerts", (told) => this.listener.alerts(told));
    this.on(source, "reset", () => this.listener.refetch());
    this.on(source, "ping", () => undefined);
    this.listen();
  }

  private on<T>(source: EventSource, kind: string, take: (told: T) => void): void {
    source.addEventListener(kind, (event) => {
      if (source !== this.source) return;
      this.alive();
      const { data: text, lastEventId } = event as MessageEvent<string>;
      if (lastEventId) this.after = lastEventId;
      take((text ? JSON.parse(text) : null) as T);
    });
  }

  private alive(): void {
    this.link.value = "live";
    this.heard.value = Date.now();
    this.wait = FIRST_WAIT_MS;
    this.listen();
    if (this.missed) {
      this.missed = false;
      this.listener.refetch();
    }
  }

  private listen(): void {
    clearTimeout(this.timers.silent);
    this.timers.silent = window.setTimeout(() => this.broken(), SILENT_MS);
  }

  private broken(): void {
    this.source?.close();
    this.source = null;
    if (this.link.value === "paused") return;
    this.link.value = "reconnecting";
    this.missed = true;
    clearTimeout(this.timers.retry);
    this.timers.retry = window.setTimeout(() => this.open(), this.wait * (0.75 + Math.random() / 2));
    this.wait = Math.min(LONGEST_WAIT_MS, this.wait * 2);
  }

  private readonly seen = (): void => {
    clearTimeout(this.timers.hidden);
    if (document.hidden) {
      this.timers.hidden = window.setTimeout(() => {
        this.link.value = "paused";
        this.source?.close();
        this.source = null;
      }, HIDDEN_MS);
    } else this.wake();
  };

  /** The network is said to be gone: a stream over it may hang without an error for long; one to this machine opens again at once. */
  private readonly doubt = (): void => {
    if (this.link.value === "paused") return;
    this.missed = true;
    this.open();
  };

  /** Back from sleep, from the background or from being offline: what is doubtful is opened again at once. */
  private readonly wake = (): void => {
    if (this.source && this.link.value === "live" && Date.now() - this.heard.value < SILENT_MS / 2) return;
    this.missed = true;
    this.wait = FIRST_WAIT_MS;
    if (this.link.value === "paused") this.link.value = "reconnecting";
    this.open();
  };
}
