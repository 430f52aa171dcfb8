// A plot while one pans or zooms: its last drawing moved and stretched, instead of drawn again. A drawing costs some 3 ms where there is no graphics
// card, twelve of them far more than a frame has; moving a picture costs a tenth of a millisecond. What comes in at the edge stays empty until the plot
// has its turn to be drawn (`stage.ts`), some frames later. (A copy of its own that the browser moves by a CSS transform costs more: it then puts the
// layers of the whole page together anew in every frame.)
import type uPlot from "uplot";

export class Slide {
  private picture: HTMLCanvasElement | null = null;
  private sight: [number, number] = [0, 1];

  constructor(private readonly u: uPlot) {}

  /** The plot has been drawn: what was kept of it is old. */
  drawn(): void {
    this.picture = null;
  }

  /** Whether what is seen is a drawing that was moved. */
  get on(): boolean {
    return this.picture !== null;
  }

  to(sight: [number, number]): void {
    const { ctx, bbox, scales } = this.u;
    if (!bbox.width || !bbox.height) return;
    const tall = ctx.canvas.height - bbox.top;
    if (!this.picture) {
      this.sight = [scales.x!.min!, scales.x!.max!];
      this.picture = document.createElement("canvas");
      this.picture.width = bbox.width;
      this.picture.height = ctx.canvas.height;
      this.picture.getContext("2d")!.drawImage(ctx.canvas, -bbox.left, 0);
    }
    const [from, to] = this.sight,
      scale = bbox.width / (sight[1] - sight[0]);
    ctx.save();
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.beginPath();
    ctx.rect(bbox.left, 0, bbox.width, bbox.top + tall);
    ctx.clip();
    ctx.clearRect(bbox.left, 0, bbox.width, ctx.canvas.height);
    ctx.imageSmoothingEnabled = false;
    ctx.drawImage(this.picture, bbox.left + (from - sight[0]) * scale, 0, (to - from) * scale, ctx.canvas.height);
    ctx.restore();
  }
}
