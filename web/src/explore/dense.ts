// How much is drawn where there are more rows than pixels. Without a graphics card a browser takes some 5 ms to stroke 800 noisy rows 1.5 pixels wide,
// 0.5 ms at one pixel, and 10 ms to fill the band between two such lines; a panel would take longer to draw than a frame lasts. So a line of many rows
// is one pixel of the screen thin, and the band is filled pixel column by pixel column, each from its lowest to its highest value: no row is left out.
import uPlot from "uplot";

/** Rows a pixel from which a line is thin. */
const DENSE = 0.75;
const linear = uPlot.paths.linear!();

/** Draws a line: `width` CSS pixels wide, or thin where it is dense. */
export function line(width: number): uPlot.Series.PathBuilder {
  return (u, series, first, last) => {
    u.series[series]!.width = (last - first) / u.bbox.width > DENSE ? 1 / devicePixelRatio : width;
    return linear(u, series, first, last);
  };
}

type Values = ArrayLike<number | null | undefined>;

/** Fill between two columns of the plot's data, where both have a value, straight from row to row. */
export function fillBetween(u: uPlot, lows: Values, highs: Values, paint: string): void {
  const { left, top, width, height } = u.bbox,
    xs = u.data[0];
  const columns = Math.ceil(width),
    above = new Float64Array(columns).fill(Infinity),
    below = new Float64Array(columns).fill(-Infinity);
  const take = (column: number, high: number, low: number): void => {
    if (column < 0 || column >= columns) return;
    if (high < above[column]!) above[column] = high;
    if (low > below[column]!) below[column] = low;
  };
  const [first, last] = u.series[0]!.idxs!;
  let before: [number, number, number] | null = null;
  for (let row = Math.max(0, first - 1); row <= Math.min(xs.length - 1, last + 1); row++) {
    const low = lows[row],
      high = highs[row];
    if (typeof low !== "number" || typeof high !== "number") {
      before = null;
      continue;
    }
    const x = u.valToPos(xs[row]!, "x", true) - left,
      above = u.valToPos(high, "y", true),
      below = u.valToPos(low, "y", true);
    take(Math.floor(x), above, below);
    if (before) {
      const [x0, above0, below0] = before;
      for (let column = Math.max(0, Math.ceil(x0)); column < Math.min(columns, x); column++) {
        const share = (column - x0) / (x - x0);
        take(column, above0 + share * (above - above0), below0 + share * (below - below0));
      }
    }
    before = [x, above, below];
  }
  u.ctx.fillStyle = paint;
  for (let column = 0; column < columns; column++) {
    const from = Math.max(top, above[column]!),
      to = Math.min(top + height, below[column]!);
    if (to > from) u.ctx.fillRect(Math.round(left) + column, from, 1, to - from);
  }
}
