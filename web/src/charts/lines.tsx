// Several lines over one axis, or one with a band, as a canvas (uPlot): what Compare draws with. Lines differ by colour and, beyond the first four, by
// dashes; the figures under the picture say it in words.
import { useEffect, useMemo, useRef } from "preact/hooks";
import uPlot from "uplot";
import { colour, painted, rem } from "../app/theme";
import { axisValue, si } from "../ui/format";

export interface Line {
  name: string;
  x: ArrayLike<number>;
  y: ArrayLike<number | null>;
  colour: string;
  faint?: boolean;
  dashed?: boolean;
}
interface Props {
  lines: Line[];
  band?: { x: number[]; low: (number | null)[]; high: (number | null)[] } | undefined;
  unit: string;
  time: boolean;
  log: boolean;
  label: string;
  zero?: boolean;
  point?: (x: number | null) => void;
}

export function Lines({ lines, band, unit, time, log, label, zero, point }: Props) {
  const host = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const told = useRef(point);
  told.current = point;
  const paint = painted.value;
  const data = useMemo(() => joined(lines, band), [lines, band]);
  /** What the plot is made for; new rows alone need none. */
  const made = JSON.stringify([
    lines.map((line) => [line.colour, line.faint, line.dashed]),
    data !== null && band !== undefined,
    data !== null,
    unit,
    time,
    log,
    zero,
    paint,
  ]);
  useEffect(() => {
    if (!data) return undefined;
    const box = host.current!;
    const wishes = options(box, lines, band !== undefined, unit, time, log, zero ?? false);
    const setCursor = [(u: uPlot) => told.current?.(u.cursor.left! < 0 ? null : u.posToVal(u.cursor.left!, "x"))];
    const u = new uPlot({ ...wishes, hooks: { setCursor } }, data, box);
    plot.current = u;
    const size = new ResizeObserver(() => {
      if (box.clientWidth !== u.width || box.clientHeight !== u.height) u.setSize({ width: box.clientWidth, height: box.clientHeight });
    });
    size.observe(box);
    return () => {
      size.disconnect();
      u.destroy();
      plot.current = null;
    };
  }, [made]);
  useEffect(() => {
    if (data && plot.current && plot.current.data !== data) renew(plot.current, data);
  }, [data]);
  return <div class="plot big" role="img" aria-label={label} ref={host} />;
}

/** Draw other rows; who has zoomed in stays where they are. */
function renew(u: uPlot, data: uPlot.AlignedData): void {
  const { min, max } = u.scales.x!,
    [before] = u.data;
  const zoomed = min! > before[0]! || max! < before[before.length - 1]!;
  u.setData(data, !zoomed);
  if (zoomed) u.setScale("x", { min: min!, max: max! });
}

/** Lines and band over one column of x; null where there is nothing. */
function joined(lines: Line[], band: Props["band"]): uPlot.AlignedData | null {
  const tables = [
    ...lines.map((line) => [toArray(line.x), toArray(line.y)]),
    ...(band
      ? [
          [band.x, band.low],
          [band.x, band.high],
        ]
      : []),
  ] as uPlot.AlignedData[];
  if (!tables.some((table) => table[0].length)) return null;
  if (tables.length === 1) return tables[0]!;
  return uPlot.join(
    tables,
    tables.map((table) => table.slice(1).map(() => 2)),
  );
}

const toArray = <T,>(values: ArrayLike<T>): T[] =>
  Array.from(values, (value) => (typeof value === "number" && !Number.isFinite(value) ? null : value) as T);

function options(box: HTMLElement, lines: Line[], band: boolean, unit: string, time: boolean, log: boolean, zero: boolean): uPlot.Options {
  const size = rem(),
    soft = colour("--soft"),
    font = `${0.6875 * size}px system-ui, sans-serif`;
  const axis = { stroke: soft, grid: { stroke: colour("--rule"), width: 1 }, ticks: { show: false }, font, gap: 0.3 * size };
  const edge: uPlot.Series = { stroke: "transparent", width: 0, points: { show: false } };
  return {
    width: box.clientWidth || 600,
    height: box.clientHeight || 300,
    padding: [0.6 * size, 0.8 * size, 0, 0],
    legend: { show: false },
    scales: {
      x: { time },
      y: {
        distr: log ? 3 : 1,
        ...(zero
          ? {
              range: (_: uPlot, low: number, high: number): uPlot.Range.MinMax => {
                const most = Math.max(Math.abs(low), Math.abs(high), 1e-12) * 1.1;
                return [-most, most];
              },
            }
          : {}),
      },
    },
    axes: [
      { ...axis, size: 1.6 * size, space: 5 * size, ...(time ? {} : { values: (_: uPlot, splits: number[]) => splits.map((value) => si(value)) }) },
      { ...axis, size: 4.2 * size, space: 2.2 * size, values: (_, splits) => splits.map((value) => (value === null ? "" : axisValue(value, unit))) },
    ],
    series: [
      {},
      ...lines.map((line): uPlot.Series => ({
        stroke: line.colour,
        width: line.faint ? 1 : Math.max(1.6, size / 9),
        spanGaps: true,
        points: { show: false },
        ...(line.dashed ? { dash: [8, 5] } : {}),
      })),
      ...(band ? [edge, edge] : []),
    ],
    bands: band ? [{ series: [lines.length + 2, lines.length + 1], fill: colour("--band") }] : [],
    cursor: { y: false, drag: { x: true, y: false } },
  };
}
