// What is to be fetched, and in which order: what is on the screen before what is next to it, a few names a call and two calls at a time, so that the
// first panels are drawn while the others are still on their way; whole courses at once, finer ones when the range has rested.

export interface Range {
  from: number;
  to: number;
}
interface Wish {
  name: string;
  range: Range | null;
  /** Whether it is on the screen; asked when a call goes out, as looking makes the browser lay out the page. */
  urgent: () => boolean;
}

const NAMES = 6;
const CALLS = 2;
const FRAME_MS = 16;
const REST_MS = 150;

const place = (range: Range | null): string => (range ? `${range.from}:${range.to}` : "");

export class Queue {
  private readonly wishes = new Map<string, Wish>();
  private readonly flying = new Set<string>();
  private calls = 0;
  private timer = 0;

  constructor(private readonly fetch: (names: string[], range: Range | null) => Promise<void>) {}

  /** Wish for a metric's course; of one metric only the newest range counts. */
  add(wish: Wish): void {
    const key = `${wish.name} ${place(wish.range)}`;
    if (this.flying.has(key)) return;
    if (wish.range) for (const [other, one] of this.wishes) if (one.name === wish.name && one.range) this.wishes.delete(other);
    this.wishes.set(key, wish);
    if (this.timer && !wish.range) return;
    clearTimeout(this.timer);
    this.timer = window.setTimeout(
      () => {
        this.timer = 0;
        this.go();
      },
      wish.range ? REST_MS : FRAME_MS,
    );
  }

  drop(name: string): void {
    for (const [key, wish] of this.wishes) if (wish.name === name) this.wishes.delete(key);
  }

  close(): void {
    clearTimeout(this.timer);
    this.wishes.clear();
  }

  private go(): void {
    while (this.calls < CALLS && this.wishes.size) {
      const all = [...this.wishes.values()];
      const urgent = new Set(all.filter((wish) => wish.urgent()));
      const first = all.find((wish) => urgent.has(wish)) ?? all[0]!;
      const some = all.filter((wish) => urgent.has(wish) === urgent.has(first) && place(wish.range) === place(first.range)).slice(0, NAMES);
      const keys = some.map((wish) => `${wish.name} ${place(wish.range)}`);
      keys.forEach((key) => {
        this.wishes.delete(key);
        this.flying.add(key);
      });
      this.calls++;
      void this.fetch(
        some.map((wish) => wish.name),
        first.range,
      ).finally(() => {
        this.calls--;
        keys.forEach((key) => this.flying.delete(key));
        if (!this.timer) this.go();
      });
    }
  }
}
