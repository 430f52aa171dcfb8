// How one moves along the axis with the pointer: drag to zoom into a span, Shift-drag or the middle button to pan, Ctrl- or ⌘-wheel (a pinch on a
// touchpad) to zoom around the pointer, a sideways wheel to pan, a double click to see all; a finger pans, two zoom. A plain wheel and a finger that
// moves up or down scroll the page. Everything is told as a span of x, at most once a frame.
import type uPlot from "uplot";

export interface Gestures {
  /** What of x is in sight now; the plot itself may be some frames behind. */
  sight: () => [number, number];
  span: (from: number, to: number) => void;
  all: () => void;
}

export function gestures(u: uPlot, { sight: now, span, all }: Gestures): void {
  let frame = 0,
    next: [number, number] | null = null,
    brushing = false;
  const soon = (from: number, to: number): void => {
    next = [from, to];
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      if (next) span(...next);
      next = null;
    });
  };
  const sight = (): [number, number] => next ?? now();

  u.over.addEventListener(
    "mousedown",
    (event) => {
      if (event.shiftKey || event.button === 1) {
        event.preventDefault();
        event.stopImmediatePropagation();
        pan(u, event, sight(), soon);
      } else brushing = event.button === 0;
    },
    true,
  );
  u.hooks.setSelect = [
    ...(u.hooks.setSelect ?? []),
    () => {
      const { left, width } = u.select;
      if (brushing && width > 4) span(u.posToVal(left, "x"), u.posToVal(left + width, "x"));
      brushing = false;
      if (width) u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    },
  ];
  u.over.addEventListener(
    "dblclick",
    (event) => {
      event.stopImmediatePropagation();
      all();
    },
    true,
  );
  u.over.addEventListener(
    "wheel",
    (event) => {
      const [from, to] = sight();
      if (event.ctrlKey || event.metaKey) {
        const at = from + ((to - from) * (event.clientX - u.over.getBoundingClientRect().left)) / u.over.clientWidth;
        const factor = Math.exp(Math.max(-60, Math.min(60, event.deltaY)) / 200);
        soon(at - (at - from) * factor, at + (to - at) * factor);
      } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
        const by = ((event.deltaX || event.deltaY) / u.over.clientWidth) * (to - from);
        soon(from + by, to + by);
      } else return;
      event.preventDefault();
    },
    { passive: false },
  );
  fingers(u, sight, soon);
}

/** Fewer pixels than these between two fingers would zoom in without end. */
const PINCH = 24;

/** What lies under each finger stays under it. */
function fingers(u: uPlot, sight: () => [number, number], soon: (from: number, to: number) => void): void {
  const down = new Map<number, number>();
  let span: [number, number] = [0, 1],
    begin: number[] = [];
  const start = (): void => {
    span = sight();
    begin = [...down.values()];
  };
  const move = (event: PointerEvent): void => {
    if (!down.has(event.pointerId)) return;
    down.set(event.pointerId, event.clientX);
    const [from, to] = span,
      now = [...down.values()],
      { left, width } = u.over.getBoundingClientRect();
    const x = (at: number): number => from + ((at - left) / width) * (to - from);
    const apart = now.length > 1 ? Math.max(PINCH, Math.abs(now[1]! - now[0]!)) : 1;
    const scale = now.length > 1 ? Math.abs(x(begin[1]!) - x(begin[0]!)) / apart : (to - from) / width;
    const middle = (at: number[]): number => at.slice(0, 2).reduce((sum, one) => sum + one, 0) / Math.min(2, at.length);
    const low = x(middle(begin)) - (middle(now) - left) * scale;
    soon(low, low + width * scale);
  };
  const end = (event: PointerEvent): void => {
    if (down.delete(event.pointerId)) start();
  };
  u.over.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "touch") return;
    down.set(event.pointerId, event.clientX);
    start();
  });
  u.over.addEventListener("pointermove", move);
  u.over.addEventListener("pointerup", end);
  u.over.addEventListener("pointercancel", end);
}

function pan(u: uPlot, begin: MouseEvent, [from, to]: [number, number], soon: (from: number, to: number) => void): void {
  const move = (event: MouseEvent): void => {
    const by = ((begin.clientX - event.clientX) / u.over.clientWidth) * (to - from);
    soon(from + by, to + by);
  };
  const end = (): void => {
    window.removeEventListener("mousemove", move);
    window.removeEventListener("mouseup", end);
  };
  window.addEventListener("mousemove", move);
  window.addEventListener("mouseup", end);
}
