// What all panels of an Explore view share.
import type { ReadonlySignal, Signal } from "@preact/signals";
import type { Clock } from "./clock";
import type { Mark } from "./marks";
import type { Sight } from "./sight";
import type { Stage } from "./stage";
import type { Store } from "./store";

export interface Shared {
  run: string;
  id: string;
  store: Store;
  sight: Sight;
  stage: Stage;
  clock: ReadonlySignal<Clock | null>;
  /** What of x is in sight. */
  span: ReadonlySignal<[number, number] | null>;
  marks: ReadonlySignal<Mark[]>;
  /** What is told beside the pointer. */
  tip: Signal<{ text: string; left: number; top: number } | null>;
}
