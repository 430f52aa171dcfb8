// A heat-map on a canvas: rows (ranks, layers) × columns (steps), a value by colour. The scale goes from dark blue over green to yellow (cividis, which
// colour-blind people read as others do; Nuñez, Anderton and Renslow 2018); what was no number is hatched in red. The pointer, or the arrow keys when it
// has the focus, choose a cell, whose figures are told in words under the picture.
import { useEffect, useRef, useState } from "preact/hooks";
import { colour, painted, rem } from "../app/theme";
import { drawHeat, type Cells } from "./paint";

export interface HeatProps {
  /** Values row by row: `values[row * columns + column]`; NaN: measured, but no number; `absent`: not measured. */
  cells: Cells;
  rowNames: string[];
  /** What a column is, for people: "step 1,200". */
  columnName: (column: number) => string;
  show: (value: number) => string;
  label: string;
  log?: boolean;
}

export function HeatMap({ cells, rowNames, columnName, show, label, log = false }: HeatProps) {
  const host = useRef<HTMLDivElement>(null),
    canvas = useRef<HTMLCanvasElement>(null);
  const [wide, setWide] = useState(0);
  const [at, setAt] = useState<{ row: number; column: number } | null>(null);
  const paint = painted.value,
    size = rem();
  const band = Math.max(4, Math.min(1.5 * size, (22 * size) / cells.rows));
  const tall = band * cells.rows;
  useEffect(() => {
    const watch = new ResizeObserver(([entry]) => setWide(Math.floor(entry!.contentRect.width)));
    watch.observe(host.current!);
    return () => watch.disconnect();
  }, []);
  useEffect(() => {
    if (canvas.current && wide) drawHeat(canvas.current, cells, wide, tall, log, colour("--critical"), colour("--card"));
  }, [cells, wide, tall, log, paint]);
  const point = (event: MouseEvent): void => {
    const box = canvas.current!.getBoundingClientRect();
    setAt({
      row: within(((event.clientY - box.top) / box.height) * cells.rows, cells.rows),
      column: within(((event.clientX - box.left) / box.width) * cells.columns, cells.columns),
    });
  };
  const press = (event: KeyboardEvent): void => {
    const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    const from = at ?? { row: 0, column: cells.columns - 1 };
    setAt({ row: within(from.row + by[0]!, cells.rows), column: within(from.column + by[1]!, cells.columns) });
  };
  const every = Math.ceil((1.1 * size) / band);
  const value = at && at.row < cells.rows && at.column < cells.columns ? cells.values[at.row * cells.columns + at.column]! : null;
  return (
    <figure class="heat">
      <div class="heat-rows" aria-hidden="true" style={{ height: `${tall}px` }}>
        {rowNames.map(
          (name, row) =>
            row % every === 0 && (
              <span key={name} style={{ top: `${row * band}px`, height: `${band}px` }}>
                {name}
              </span>
            ),
        )}
      </div>
      <div ref={host} class="heat-box" style={{ height: `${tall}px` }}>
        <canvas ref={canvas} tabIndex={0} role="img" aria-label={label} onMouseMove={point} onMouseLeave={() => setAt(null)} onKeyDown={press} />
        {at && (
          <i
            class="heat-at"
            style={{
              left: `${(at.column / cells.columns) * 100}%`,
              top: `${at.row * band}px`,
              width: `${100 / cells.columns}%`,
              height: `${band}px`,
            }}
          />
        )}
      </div>
      <div class="heat-axis" aria-hidden="true">
        <span>{columnName(0)}</span>
        {cells.columns > 2 && <span>{columnName(Math.floor(cells.columns / 2))}</span>}
        {cells.columns > 1 && <span>{columnName(cells.columns - 1)}</span>}
      </div>
      <figcaption>
        {at && value !== null
          ? `${rowNames[at.row]} · ${columnName(at.column)} · ${cells.absent?.[at.row * cells.columns + at.column] ? "not measured" : Number.isNaN(value) ? "not a number" : show(value)}`
          : label}
      </figcaption>
      <Scale cells={cells} show={show} />
    </figure>
  );
}

const within = (value: number, count: number): number => Math.max(0, Math.min(count - 1, Math.floor(value)));

function Scale({ cells, show }: { cells: Cells; show: (value: number) => string }) {
  return (
    <div class="heat-scale">
      <span>{show(cells.low)}</span>
      <i aria-hidden="true" />
      <span>
        {show(cells.high)}
        {cells.beyond ? " and more" : ""}
      </span>
    </div>
  );
}
