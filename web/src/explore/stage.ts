// Which plots are drawn while the axis moves. At each move all that are on the screen slide to what is in sight, which costs next to nothing; one of
// them, in turn, is drawn anew at every few moves; when the axis rests, all are, a few a frame. So a frame costs about the same with three panels as
// with forty, and where one stops everything is exact.

export interface Actor {
  /** Show the last drawing moved to what is in sight. */
  slide(sight: [number, number]): void;
  /** Draw what is in sight. */
  draw(sight: [number, number]): void;
  onScreen(): boolean;
}

/** After so long without a move, the axis rests. */
const REST_MS = 120;
const PER_FRAME = 3;
/** A drawing at every so many moves. */
const MOVES = 3;
/** Between two looks at what is on the screen, which make the browser lay out the page. */
const LOOK_MS = 400;

export class Stage {
  private readonly due = new Map<Actor, [number, number]>();
  private seen = new Set<Actor>();
  private moves = 0;
  private moving = false;
  private timer = 0;
  private lookedAt = -Infinity;

  /** The axis moved for a plot; those of one move come together. */
  move(actor: Actor, sight: [number, number]): void {
    this.due.set(actor, sight);
    if (this.moving) return;
    this.moving = true;
    queueMicrotask(() => {
      this.moving = false;
      this.play();
      clearTimeout(this.timer);
      this.timer = window.setTimeout(() => this.rest(this.moves), REST_MS);
    });
  }

  /** A plot was drawn for another reason, or is gone. */
  done(actor: Actor): void {
    this.due.delete(actor);
  }

  private play(): void {
    const now = performance.now();
    if (now - this.lookedAt > LOOK_MS) {
      this.lookedAt = now;
      this.seen = new Set([...this.due.keys()].filter((actor) => actor.onScreen()));
    }
    const shown = [...this.due].filter(([actor]) => this.seen.has(actor));
    const [turn] = ++this.moves % MOVES ? [] : shown;
    for (const [actor, sight] of shown) if (actor !== turn?.[0]) actor.slide(sight);
    if (!turn) return;
    this.due.delete(turn[0]);
    this.due.set(...turn);
    turn[0].draw(turn[1]);
  }

  /** Draw what is due, some a frame, unless the axis moves on. */
  private rest(moves: number): void {
    requestAnimationFrame(() => {
      if (moves !== this.moves) return;
      for (const [actor, sight] of [...this.due].slice(0, PER_FRAME)) {
        this.due.delete(actor);
        actor.draw(sight);
      }
      if (this.due.size) this.rest(moves);
    });
  }
}
