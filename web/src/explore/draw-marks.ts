// What is drawn over a course: a dashed line with a glyph on top for each alert and event (their shape tells them apart, not only their colour), and a
// cross at the foot where a value was measured that is no number.
import type uPlot from "uplot";
import { colour, rem } from "../app/theme";
import type { Mark } from "./marks";

export interface Placed extends Mark {
  x: number;
}

export function drawMarks(u: uPlot, marks: Placed[], xs: Float64Array, values: Float32Array): void {
  const { ctx } = u;
  const { left, top, width, height } = u.bbox;
  const size = 0.3 * rem() * devicePixelRatio;
  const paint = { critical: colour("--critical"), warning: colour("--warning"), notice: colour("--notice"), event: colour("--soft") };
  ctx.save();
  ctx.beginPath();
  ctx.rect(left, 0, width, top + height);
  ctx.clip();
  for (const mark of marks) {
    const x = u.valToPos(mark.x, "x", true);
    if (x < left - size || x > left + width + size) continue;
    ctx.strokeStyle = ctx.fillStyle = paint[mark.look];
    ctx.globalAlpha = 0.75;
    ctx.lineWidth = Math.max(1, size / 5);
    ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
    ctx.beginPath();
    ctx.moveTo(x, top + size);
    ctx.lineTo(x, top + height);
    ctx.stroke();
    ctx.globalAlpha = 1;
    glyph(ctx, mark.look, x, top + size * 0.4, size);
  }
  ctx.setLineDash([]);
  ctx.strokeStyle = paint.critical;
  ctx.lineWidth = 1.5 * devicePixelRatio;
  ctx.beginPath();
  for (let row = 0; row < values.length; row++) {
    if (Number.isFinite(values[row]!)) continue;
    const x = u.valToPos(xs[row]!, "x", true),
      y = top + height - 1.6 * size,
      arm = size * 0.7;
    ctx.moveTo(x - arm, y - arm);
    ctx.lineTo(x + arm, y + arm);
    ctx.moveTo(x + arm, y - arm);
    ctx.lineTo(x - arm, y + arm);
  }
  ctx.stroke();
  ctx.restore();
}

/** Octagon: critical; triangle: warning; disc: notice; diamond: event. */
function glyph(ctx: CanvasRenderingContext2D, look: Mark["look"], x: number, y: number, size: number): void {
  const corners = { critical: 8, warning: 3, notice: 24, event: 4 }[look];
  const turn = { critical: Math.PI / 8, warning: -Math.PI / 2, notice: 0, event: 0 }[look];
  ctx.beginPath();
  for (let corner = 0; corner < corners; corner++) {
    const angle = turn + (corner / corners) * 2 * Math.PI;
    ctx.lineTo(x + size * Math.cos(angle), y + size * Math.sin(angle));
  }
  ctx.closePath();
  ctx.fill();
}
