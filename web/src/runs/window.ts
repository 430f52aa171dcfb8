// Which rows of a long table are in sight. Rows have one height, which is measured, so that the spacers before and after are exact.
import { useEffect, useRef, useState } from "preact/hooks";

const SPARE = 12;

export function useWindow(count: number) {
  const body = useRef<HTMLTableSectionElement>(null);
  const [height, setHeight] = useState(44);
  const [range, setRange] = useState<[number, number]>([0, 60]);
  useEffect(() => {
    let frame = 0;
    const look = (): void => {
      frame = 0;
      const box = body.current;
      if (!box) return;
      const measured = box.querySelector("tr.run")?.getBoundingClientRect().height;
      const tall = measured || height;
      if (measured && Math.abs(measured - height) > 0.5) setHeight(measured);
      const above = Math.max(0, -box.getBoundingClientRect().top);
      const first = Math.max(0, Math.floor(above / tall) - SPARE);
      const last = Math.min(count, Math.ceil((above + innerHeight) / tall) + SPARE);
      setRange((was) => (was[0] === first && was[1] === last ? was : [first, last]));
    };
    const soon = (): void => {
      frame ||= requestAnimationFrame(look);
    };
    look();
    window.addEventListener("scroll", soon, { passive: true });
    window.addEventListener("resize", soon);
    return () => {
      cancelAnimationFrame(frame);
      window.removeEventListener("scroll", soon);
      window.removeEventListener("resize", soon);
    };
  }, [count, height]);
  const first = Math.min(range[0], Math.max(0, count - 1));
  const last = Math.min(count, Math.max(range[1], first));
  return { body, first, last, before: first * height, after: Math.max(0, count - last) * height, height };
}
