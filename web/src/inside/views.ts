// The views of the inside of the machine, in the order of their tabs. A new one is a component in this folder and a line here; its part of the address
// is `?view=ID`, its data comes by `api.inside(…)` or by the series that every view can read.
import type { ComponentType } from "preact";
import type { RunModel } from "../app/run";
import { Communication } from "./comm";
import { Experts } from "./experts";
import { Layers } from "./layers";
import { LayoutView } from "./layout";
import { Memory } from "./memory";
import { Ranks } from "./ranks";
import { PipelineView } from "./timeline";

export interface InsideTab {
  id: string;
  title: string;
  view: ComponentType<{ run: RunModel }>;
}

export const VIEWS: readonly InsideTab[] = [
  { id: "ranks", title: "Ranks", view: Ranks },
  { id: "layers", title: "Layers", view: Layers },
  { id: "pipeline", title: "Pipeline", view: PipelineView },
  { id: "communication", title: "Communication", view: Communication },
  { id: "memory", title: "Memory", view: Memory },
  { id: "experts", title: "Experts", view: Experts },
  { id: "layout", title: "Layout", view: LayoutView },
];
