// The views of the inside of the machine, in the order of their tabs. A new one is a component in this folder and a line here; its part of the address
// is `?view=ID`, its data comes by `api.inside(…)` or by the series that every view can read.
import type { ComponentType } from "preact";
import type { RunModel } from "../app/run";
import { Layers } from "./layers";

export interface InsideTab {
  id: string;
  title: string;
  view: ComponentType<{ run: RunModel }>;
}

export const VIEWS: readonly InsideTab[] = [{ id: "layers", title: "Layers", view: Layers }];
