// One metric on a canvas (uPlot): the band between the lowest and the highest rank, the value, a smoothed line over it, marks of alerts and events, and
// the cross-hair that all panels share. A plot knows nothing of where its data comes from; `show` draws a course, `see` moves the axis.
import uPlot from "uplot";
import type { Course } from "../api/series";
import { colour, rem } from "../app/theme";
import { axisValue, si } from "../ui/format";
import { type Axis, columnOf } from "./clock";
import { gestures, type Gestures } from "./gestures";
import { fillBetween, line } from "./dense";
import { drawMarks, type Placed } from "./draw-marks";
import { Slide } from "./slide";
import { smoothed } from "./smooth";
import type { Actor, Stage } from "./stage";

export interface PlotWishes extends Gestures {
  unit: string;
  axis: Axis;
  log: boolean;
  band: boolean;
  /** The row under the cross-hair, and how far from the left it is in pixels; null when there is none. */
  hover: (row: number | null, left: number, own: boolean) => void;
}

const LOW = 1,
  HIGH = 2,
  RAW = 3,
  MAIN = 4;
const FEW = 40;
/** Pixels from a mark at which it is told of. */
const REACH = 7;

export class Plot implements Actor {
  private readonly u: uPlot;
  private readonly sliding: Slide;
  private course: Course | null = null;
  private marks: Placed[] = [];
  private inside = false;

  constructor(
    private readonly host: HTMLElement,
    private readonly wishes: PlotWishes,
    private readonly stage: Stage,
  ) {
    this.u = new uPlot(this.options(), [[], [], [], [], []], host);
    this.u.over.addEventListener("mouseenter", () => {
      this.inside = true;
    });
    this.u.over.addEventListener("mouseleave", () => {
      this.inside = false;
    });
    this.sliding = new Slide(this.u);
    gestures(this.u, wishes);
  }

  show(course: Course, beta: number, sight: [number, number]): void {
    this.course = course;
    const clean = (column: Float32Array): (number | null)[] =>
      Array.from(column, (value) => (Number.isFinite(value) && (!this.wishes.log || value > 0) ? value : null));
    const value = clean(course.value);
    this.stage.done(this);
    this.u.batch(() => {
      this.u.setData([columnOf(course, this.wishes.axis), clean(course.low), clean(course.high), value, beta ? smoothed(value, beta) : value], false);
      this.u.setSeries(RAW, { show: beta > 0 });
      this.u.setScale("x", { min: sight[0], max: sight[1] });
    });
  }

  /** Show another span of x: at once by moving the picture, drawn anew when the stage has room. */
  see(sight: [number, number]): void {
    const { min, max } = this.u.scales.x!;
    if (this.course && (this.sliding.on || min !== sight[0] || max !== sight[1])) this.stage.move(this, sight);
  }

  slide(sight: [number, number]): void {
    this.sliding.to(sight);
  }

  draw(sight: [number, number]): void {
    this.u.setScale("x", { min: sight[0], max: sight[1] });
  }

  onScreen(): boolean {
    const { top, bottom } = this.host.getBoundingClientRect();
    return bottom > 0 && top < innerHeight;
  }

  mark(marks: Placed[]): void {
    this.marks = marks;
    if (this.course) this.u.redraw(false);
  }

  /** The marks within reach of the pointer, in words, the loudest first. */
  marksAt(left: number): string {
    return this.marks
      .filter((one) => Math.abs(this.u.valToPos(one.x, "x") - left) < REACH)
      .map((one) => one.text)
      .reverse()
      .join("\n");
  }

  resize(): void {
    const { clientWidth: width, clientHeight: height } = this.host;
    if (width && height && (width !== this.u.width || height !== this.u.height)) this.u.setSize({ width, height });
  }

  /** The drawn canvas. */
  get canvas(): HTMLCanvasElement {
    return this.u.ctx.canvas;
  }

  destroy(): void {
    this.stage.done(this);
    this.u.destroy();
  }

  private options(): uPlot.Options {
    const { unit, axis, log, band } = this.wishes;
    const size = rem(),
      font = `${0.6875 * size}px system-ui, sans-serif`;
    const main = colour("--c0"),
      fill = colour("--band"),
      soft = colour("--soft"),
      rule = colour("--rule");
    const grid = { stroke: rule, width: 1 },
      ticks = { show: false };
    const edge: uPlot.Series = { points: { show: false }, show: band, paths: () => null };
    const few: uPlot.Series.Points.Show = (_, __, first, last) => last - first < FEW;
    return {
      width: this.host.clientWidth || 300,
      height: this.host.clientHeight || 150,
      padding: [0.5 * size, 0.75 * size, 0, 0],
      legend: { show: false },
      scales: { x: { time: axis === "time" }, y: { distr: log ? 3 : 1 } },
      axes: [
        {
          stroke: soft,
          grid,
          ticks,
          font,
          size: 1.5 * size,
          gap: 0.3 * size,
          space: 5.2 * size,
          ...(axis === "time" ? {} : { values: (_: uPlot, splits: number[]) => splits.map((value) => si(value)) }),
        },
        {
          stroke: soft,
          grid,
          ticks,
          font,
          size: 3.6 * size,
          gap: 0.3 * size,
          space: 2 * size,
          values: (_, splits) => splits.map((value) => (value === null ? "" : axisValue(value, unit))),
        },
      ],
      series: [
        {},
        { ...edge },
        { ...edge },
        { stroke: colour("--raw"), paths: line(1), show: false, points: { show: false } },
        { stroke: main, paths: line(Math.max(1.5, size / 10.5)), points: { show: few, size: size / 3.2, fill: main, stroke: main } },
      ],
      cursor: {
        y: false,
        sync: { key: "explore", setSeries: false, scales: ["x", null] },
        drag: { x: true, y: false, setScale: false },
        points: { size: size / 2, show: (_, series) => dot(series, main) },
      },
      hooks: {
        setCursor: [(u) => this.wishes.hover(u.cursor.left! < 0 ? null : (u.cursor.idx ?? null), u.cursor.left ?? -1, this.inside)],
        drawAxes: [(u) => band && fillBetween(u, u.data[LOW]!, u.data[HIGH]!, fill)],
        draw: [
          (u) => {
            this.sliding?.drawn();
            if (this.course) drawMarks(u, this.marks, columnOf(this.course, axis), this.course.value);
          },
        ],
      },
    };
  }
}

/** The dot of the cross-hair, on the value's line alone. */
function dot(series: number, paint: string): HTMLElement {
  const point = document.createElement("div");
  point.style.background = paint;
  point.hidden = series !== MAIN;
  return point;
}
