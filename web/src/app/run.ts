// What is known of the run that is looked at, shared by its views: how it stands, its alerts, its metrics, and the live stream that keeps them true.
import { computed, signal } from "@preact/signals";
import { api, ApiError, frozen } from "../api/client";
import { Live } from "../api/live";
import type { Alert, LiveRows, Metric, Overview } from "../api/types";

/** Seconds by which an answer may be older than what is shown; beyond them the server's clock was set back. */
const LATE_S = 60;

export class RunModel {
  readonly overview = signal<Overview | null>(null);
  readonly error = signal<Error | null>(null);
  readonly alerts = signal<Alert[]>([]);
  readonly metrics = signal<Metric[] | null>(null);
  readonly live: Live;
  readonly running = computed(() => this.overview.value?.state === "running");
  /** Seconds that this browser's clock is ahead of the server's, so that ages are true on either. */
  readonly ahead = signal(0);

  private readonly control = new AbortController();
  private readonly rowListeners = new Set<(rows: LiveRows) => void>();
  private readonly resetListeners = new Set<() => void>();

  constructor(readonly id: string) {
    this.live = new Live(id, {
      overview: (told) => this.take(told),
      rows: (told) => this.rowListeners.forEach((listener) => listener(told)),
      alerts: () => void this.readAlerts(),
      refetch: () => this.refetch(),
    });
    this.read();
  }

  /** Be told of new rows, and of when all that is held must be fetched again; returns how to stop. */
  listen(rows: (told: LiveRows) => void, reset: () => void): () => void {
    this.rowListeners.add(rows);
    this.resetListeners.add(reset);
    return () => {
      this.rowListeners.delete(rows);
      this.resetListeners.delete(reset);
    };
  }

  read(): void {
    api.overview(this.id, this.control.signal).then(
      (told) => this.take(told),
      (error: Error) => this.failed(error),
    );
    this.readAlerts();
    this.readMetrics();
  }

  async readMetrics(): Promise<void> {
    try {
      this.metrics.value = await api.metrics(this.id, this.control.signal);
    } catch {
      this.metrics.value ??= [];
    }
  }

  async readAlerts(): Promise<void> {
    try {
      this.alerts.value = await api.alerts(this.id, this.control.signal);
    } catch {
      /* the overview carries the open ones */
    }
  }

  close(): void {
    this.live.close();
    this.control.abort();
  }

  private take(told: Overview): void {
    const before = this.overview.peek();
    const late = before ? before.time - told.time : 0;
    if (late > 0 && late < LATE_S) return; // an answer that was made before what the stream has told since
    this.overview.value = told;
    this.error.value = null;
    if (!frozen) this.ahead.value = Date.now() / 1000 - told.time;
    if (before && before.step === 0 && told.step > 0) void this.readMetrics();
  }

  private failed(error: Error): void {
    if (this.control.signal.aborted) return;
    this.error.value = error;
    if (error instanceof ApiError && error.status === 404) this.live.close();
  }

  private refetch(): void {
    this.read();
    this.resetListeners.forEach((listener) => listener());
  }
}

export const current = signal<RunModel | null>(null);
