// Which panels are in sight, or nearly: only those are fetched and drawn.
const MARGIN = "300px 0px";
const SETTLE_MS = 120;

export class Sight {
  private readonly seen = new Map<Element, { name: string; turn: (seen: boolean) => void; seen: boolean }>();
  private readonly observer: IntersectionObserver;
  private timer = 0;

  constructor(private readonly changed: (names: string[]) => void) {
    this.observer = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) {
          const one = this.seen.get(entry.target);
          if (one && one.seen !== entry.isIntersecting) {
            one.seen = entry.isIntersecting;
            one.turn(one.seen);
          }
        }
        this.soon();
      },
      { rootMargin: MARGIN },
    );
  }

  watch(element: Element, name: string, turn: (seen: boolean) => void): () => void {
    this.seen.set(element, { name, turn, seen: false });
    this.observer.observe(element);
    return () => {
      this.observer.unobserve(element);
      this.seen.delete(element);
      this.soon();
    };
  }

  close(): void {
    this.observer.disconnect();
    clearTimeout(this.timer);
  }

  private soon(): void {
    clearTimeout(this.timer);
    this.timer = window.setTimeout(
      () => this.changed([...new Set([...this.seen.values()].filter((one) => one.seen).map((one) => one.name))]),
      SETTLE_MS,
    );
  }
}
