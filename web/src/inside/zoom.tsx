// A timeline that people zoom into: by dragging over a stretch, by the wheel with Control, by keys when it has the focus, and by buttons.
import { useEffect, useRef, useState } from "preact/hooks";
import { colour, painted, rem } from "../app/theme";
import { seconds } from "../ui/format";
import { type Bar, type Lane, type View, barAt, drawLanes } from "./lanes";

interface Props {
  lanes: Lane[];
  length: number;
  piped: boolean;
  view: View;
  zoom: (view: View) => void;
  label: string;
  show?: (value: number) => string;
}

export function Timeline({ lanes, length, piped, view, zoom, label, show = seconds }: Props) {
  const host = useRef<HTMLDivElement>(null),
    canvas = useRef<HTMLCanvasElement>(null),
    begun = useRef<number | null>(null);
  const [wide, setWide] = useState(0),
    [at, setAt] = useState<Bar | null>(null),
    [drawn, setDrawn] = useState<[number, number] | null>(null);
  const paint = painted.value,
    size = rem(),
    band = Math.round((piped ? 2.9 : 2.1) * size),
    tall = band * lanes.length;
  useEffect(() => {
    const watch = new ResizeObserver(([entry]) => setWide(Math.floor(entry!.contentRect.width)));
    watch.observe(host.current!);
    return () => watch.disconnect();
  }, []);
  useEffect(() => {
    const colours = Array.from({ length: 8 }, (_, i) => colour(`--c${i}`));
    if (canvas.current && wide)
      drawLanes(canvas.current, lanes, view, wide, {
        band,
        piped,
        colours: [...colours, colour("--raw")],
        ink: colour("--card"),
        soft: colour("--soft"),
        rule: colour("--rule"),
        font: 0.6875 * size,
      });
  }, [lanes, view, wide, band, piped, paint]);
  useEffect(() => {
    const wheel = (event: WheelEvent): void => {
      if (event.ctrlKey || event.metaKey) {
        event.preventDefault();
        zoom(zoomed(view, length, event.deltaY < 0 ? 0.7 : 1 / 0.7, share(event)));
      }
    };
    const node = canvas.current!;
    node.addEventListener("wheel", wheel, { passive: false });
    return () => node.removeEventListener("wheel", wheel);
  });
  const share = (event: MouseEvent): number => {
    const box = canvas.current!.getBoundingClientRect();
    return Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
  };
  const move = (event: MouseEvent): void => {
    const box = canvas.current!.getBoundingClientRect(),
      here = share(event),
      y = (event.clientY - box.top) / band;
    if (begun.current !== null) setDrawn([Math.min(begun.current, here), Math.max(begun.current, here)]);
    setAt(barAt(lanes, Math.floor(y), y % 1, view.from + here * (view.to - view.from), (1.5 / Math.max(1, wide)) * (view.to - view.from), piped));
  };
  const release = (): void => {
    if (drawn && drawn[1] - drawn[0] > 0.01)
      zoom({ from: view.from + drawn[0] * (view.to - view.from), to: view.from + drawn[1] * (view.to - view.from) });
    begun.current = null;
    setDrawn(null);
  };
  const press = (event: KeyboardEvent): void => {
    const step = { ArrowLeft: -0.2, ArrowRight: 0.2 }[event.key];
    if (step) zoom(panned(view, length, step));
    else if (event.key === "+" || event.key === "=") zoom(zoomed(view, length, 0.7));
    else if (event.key === "-") zoom(zoomed(view, length, 1 / 0.7));
    else if (event.key === "0") zoom({ from: 0, to: length });
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  const ticks = Array.from({ length: 5 }, (_, i) => view.from + ((view.to - view.from) * i) / 4);
  return (
    <figure class="heat lanes">
      <div class="heat-rows" aria-hidden="true" style={{ height: `${tall}px` }}>
        {lanes.map((lane, row) => (
          <span key={lane.name} style={{ top: `${row * band}px`, height: `${band}px` }}>
            {lane.name}
          </span>
        ))}
      </div>
      <div ref={host} class="heat-box" style={{ height: `${tall}px` }}>
        <canvas
          ref={canvas}
          tabIndex={0}
          role="img"
          aria-label={`${label}. Keys: plus and minus zoom, arrows move, 0 shows all.`}
          onMouseMove={move}
          onMouseLeave={() => {
            setAt(null);
            release();
          }}
          onMouseDown={(event) => {
            begun.current = share(event);
          }}
          onMouseUp={release}
          onDblClick={() => zoom({ from: 0, to: length })}
          onKeyDown={press}
        />
        {drawn && <i class="lanes-drawn" style={{ left: `${drawn[0] * 100}%`, width: `${(drawn[1] - drawn[0]) * 100}%` }} />}
      </div>
      <div class="heat-axis" aria-hidden="true">
        {ticks.map((tick, i) => (
          <span key={i}>{show(tick)}</span>
        ))}
      </div>
      <figcaption>{at ? at.says : label}</figcaption>
    </figure>
  );
}

/** A view that shows so much of what it did, around a place in it. */
export function zoomed(view: View, length: number, by: number, around = 0.5): View {
  const wide = Math.min(length, Math.max(length / 500, (view.to - view.from) * by)),
    middle = view.from + around * (view.to - view.from);
  return placed(middle - around * wide, wide, length);
}

export const panned = (view: View, length: number, by: number): View => placed(view.from + by * (view.to - view.from), view.to - view.from, length);

function placed(from: number, wide: number, length: number): View {
  const start = Math.max(0, Math.min(length - wide, from));
  return { from: start, to: start + wide };
}
