// Which plots are drawn in a frame while the axis moves. Each frame all that are on the screen slide to what is in sight, and one of them, in turn, is
// drawn anew; when the axis rests, the others are, a few a frame. So a frame costs about the same with three panels as with forty.

export interface Actor {
  slide(sight: [number, number]): void;
  draw(sight: [number, number]): void;
  onScreen(): boolean;
}

/** After so long without a move, the axis rests. */
const REST_MS = 120;
const PER_FRAME = 3;

export class Stage {
  private readonly due = new Map<Actor, [number, number]>();
  private frame = 0;
  private movedAt = 0;

  /** The axis moved for a plot. */
  move(actor: Actor, sight: [number, number]): void {
    this.due.delete(actor);
    this.due.set(actor, sight);
    this.movedAt = performance.now();
    this.soon();
  }

  /** A plot was drawn for another reason, or is gone. */
  done(actor: Actor): void {
    this.due.delete(actor);
  }

  private soon(): void {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.play();
    });
  }

  private play(): void {
    const resting = performance.now() - this.movedAt > REST_MS;
    let left = resting ? PER_FRAME : 1;
    for (const [actor, sight] of [...this.due]) {
      const seen = actor.onScreen();
      if (left > 0 && (seen || resting)) {
        left--;
        this.due.delete(actor);
        actor.draw(sight);
      } else if (seen && !resting) actor.slide(sight);
    }
    if (this.due.size) this.soon();
  }
}
