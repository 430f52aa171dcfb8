// Several lines over one axis, or one with a band, as a canvas (uPlot): what Compare draws with. Lines differ by colour and, beyond the first four, by
// dashes; the figures under the picture say it in words.
import { useEffect, useRef } from "preact/hooks";
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
  const paint = painted.value;
  useEffect(() => {
    const box = host.current!;
    const tables = [
      ...lines.map((line) => [toArray(line.x), toArray(line.y)]),
      ...(band
        ? [
            [band.x, band.low],
            [band.x, band.high],
          ]
        : []),
    ] as uPlot.AlignedData[];
    if (!tables.some((table) => table[0].length)) return undefined;
    const data =
      tables.length > 1
        ? uPlot.join(
            tables,
            tables.map((table) => table.slice(1).map(() => 2)),
          )
        : tables[0]!;
    const wishes = options(box, lines, band !== undefined, unit, time, log, zero ?? false);
    const u = new uPlot(
      { ...wishes, hooks: { setCursor: [(plot) => point?.(plot.cursor.left! < 0 ? null : plot.posToVal(plot.cursor.left!, "x"))] } },
      data,
      box,
    );
    const size = new ResizeObserver(() => {
      if (box.clientWidth !== u.width || box.clientHeight !== u.height) u.setSize({ width: box.clientWidth, height: box.clientHeight });
    });
    size.observe(box);
    return () => {
      size.disconnect();
      u.destroy();
    };
  }, [lines, band, unit, time, log, zero, paint]);
  return <div class="plot big" role="img" aria-label={label} ref={host} />;
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
