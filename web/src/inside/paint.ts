// The pixels of a heat-map: one pixel a cell in an image, which the canvas stretches without smoothing; thus 100 × 1,000 cells take about a millisecond.

export interface Cells {
  rows: number;
  columns: number;
  values: Float32Array;
  absent?: Uint8Array;
  low: number;
  high: number;
  /** Whether some values lie beyond the scale. */ beyond: boolean;
}

/** Some colours of cividis, from the low end to the high. */
const CIVIDIS: readonly (readonly [number, number, number])[] = [
  [0, 34, 78],
  [18, 53, 112],
  [59, 73, 108],
  [87, 93, 109],
  [112, 113, 115],
  [138, 134, 120],
  [165, 156, 116],
  [195, 179, 105],
  [225, 204, 85],
  [254, 232, 56],
];

function shade(share: number): readonly [number, number, number] {
  const at = Math.max(0, Math.min(1, share)) * (CIVIDIS.length - 1),
    low = Math.min(CIVIDIS.length - 2, Math.floor(at)),
    part = at - low;
  const a = CIVIDIS[low]!,
    b = CIVIDIS[low + 1]!;
  return [a[0] + (b[0] - a[0]) * part, a[1] + (b[1] - a[1]) * part, a[2] + (b[2] - a[2]) * part];
}

/** Up to how many times the 99th percentile the largest value may be to be the scale's end: a slow rank shall stand out from one that is a little slow. */
const STANDS_OUT = 6;

/** Cells with their scale: from the 1st percentile to the largest value, or to the 99th percentile where the largest would turn all others into one colour. */
export function cellsOf(rows: number, columns: number, values: Float32Array, absent?: Uint8Array): Cells {
  const finite = values.filter((value, at) => Number.isFinite(value) && !absent?.[at]).sort();
  const at = (share: number): number => finite[Math.round(share * (finite.length - 1))] ?? 0;
  const low = at(0.01),
    usual = at(0.99),
    largest = at(1),
    high = largest <= STANDS_OUT * usual ? largest : usual;
  return { rows, columns, values, ...(absent ? { absent } : {}), low, high, beyond: largest > high };
}

export function drawHeat(canvas: HTMLCanvasElement, cells: Cells, wide: number, tall: number, log: boolean, broken: string, empty: string): void {
  const image = new ImageData(cells.columns, cells.rows);
  const scale = (value: number): number => (log ? Math.log(Math.max(value, 1e-30)) : value);
  const low = scale(cells.low),
    span = scale(cells.high) - low || 1;
  const [bad, none] = [rgb(broken), rgb(empty)];
  for (let at = 0; at < cells.values.length; at++) {
    const value = cells.values[at]!;
    const paint = cells.absent?.[at] ? none : Number.isFinite(value) ? shade((scale(value) - low) / span) : bad;
    image.data.set([paint[0], paint[1], paint[2], 255], at * 4);
  }
  const small = document.createElement("canvas");
  small.width = cells.columns;
  small.height = cells.rows;
  small.getContext("2d")!.putImageData(image, 0, 0);
  canvas.width = Math.round(wide * devicePixelRatio);
  canvas.height = Math.round(tall * devicePixelRatio);
  const ctx = canvas.getContext("2d")!;
  ctx.imageSmoothingEnabled = false;
  ctx.drawImage(small, 0, 0, canvas.width, canvas.height);
}

function rgb(hex: string): [number, number, number] {
  const value = parseInt(hex.slice(1), 16);
  return [(value >> 16) & 255, (value >> 8) & 255, value & 255];
}

/** A share of the scale as colours of an element: the ground, and ink that is read on it. */
export function css(share: number): { background: string; color: string } {
  const [r, g, b] = shade(share);
  return { background: `rgb(${r | 0},${g | 0},${b | 0})`, color: 0.299 * r + 0.587 * g + 0.114 * b > 117 ? "#000000" : "#ffffff" };
}
