// The pixels of a step's timeline: a band of three lanes for each rank, phases on top, pipeline actions in the middle, waits below. Bars narrower than a
// pixel are drawn as one pixel, so that what happened is seen; names are written where there is room.
export interface Bar {
  kind: string;
  text: string;
  start: number;
  seconds: number;
  lane: 0 | 1 | 2;
  look: number;
  says: string;
}
export interface Lane {
  name: string;
  bars: Bar[];
}

/** Share of a band that each lane takes, from its top, where there are pipeline actions and where not. */
const WITH: readonly [number, number][] = [
  [0.04, 0.18],
  [0.26, 0.48],
  [0.78, 0.14],
];
const WITHOUT: readonly [number, number][] = [
  [0.1, 0.56],
  [0.1, 0.56],
  [0.7, 0.2],
];
export const sharesOf = (piped: boolean): readonly [number, number][] => (piped ? WITH : WITHOUT);

export interface View {
  from: number;
  to: number;
}
export interface Look {
  band: number;
  piped: boolean;
  colours: string[];
  ink: string;
  soft: string;
  rule: string;
  font: number;
}

export function drawLanes(canvas: HTMLCanvasElement, lanes: Lane[], view: View, wide: number, look: Look): void {
  const dpr = devicePixelRatio,
    tall = look.band * lanes.length;
  canvas.width = Math.round(wide * dpr);
  canvas.height = Math.round(tall * dpr);
  const ctx = canvas.getContext("2d")!;
  ctx.scale(dpr, dpr);
  ctx.font = `600 ${look.font}px system-ui, sans-serif`;
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  const scale = wide / (view.to - view.from),
    shares = sharesOf(look.piped);
  lanes.forEach((lane, row) => {
    ctx.fillStyle = look.rule;
    ctx.fillRect(0, (row + 1) * look.band - 1, wide, 1);
    for (const bar of lane.bars) {
      const x = (bar.start - view.from) * scale,
        w = Math.max(1, bar.seconds * scale);
      if (x + w < 0 || x > wide) continue;
      const [top, height] = shares[bar.lane]!,
        y = (row + top) * look.band,
        h = height * look.band;
      ctx.fillStyle = look.colours[bar.look % look.colours.length]!;
      ctx.globalAlpha = bar.lane === 2 ? 0.75 : 1;
      ctx.fillRect(x, y, w > 3 ? w - 0.75 : w, h);
      ctx.globalAlpha = 1;
      const room = ctx.measureText(bar.text).width + 4;
      if (bar.text && w > room && h > look.font) {
        ctx.fillStyle = look.ink;
        ctx.fillText(bar.text, Math.max(x, 0) + (Math.min(x + w, wide) - Math.max(x, 0)) / 2, y + h / 2 + 0.5);
      }
    }
  });
}

/** The bar at a place: `row` of lanes with its share from the top, and a time. */
export function barAt(lanes: Lane[], row: number, share: number, time: number, slack: number, piped: boolean): Bar | null {
  const shares = sharesOf(piped);
  const inLane = (bar: Bar): boolean => share >= shares[bar.lane]![0] && share <= shares[bar.lane]![0] + shares[bar.lane]![1];
  return lanes[row]?.bars.find((bar) => inLane(bar) && time >= bar.start - slack && time <= bar.start + bar.seconds + slack) ?? null;
}
