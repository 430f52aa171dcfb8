// A small line without axes, as SVG: the course of a number beside the number. What a reader needs (last, low, high) is said in words beside it.
import { type Num, number } from "../api/types";

const WIDE = 100;
const TALL = 30;

export function Spark({ values, label, class: look = "" }: { values: Num[]; label: string; class?: string }) {
  const numbers = values.map(number);
  const finite = numbers.filter(Number.isFinite);
  const low = Math.min(...finite),
    span = Math.max(...finite) - low || 1;
  const x = (index: number): number => (numbers.length > 1 ? (index / (numbers.length - 1)) * WIDE : WIDE);
  const y = (value: number): number => TALL - 2 - ((value - low) / span) * (TALL - 4);
  let pen = false;
  const path = numbers
    .map((value, index) => {
      if (!Number.isFinite(value)) {
        pen = false;
        return "";
      }
      const part = `${pen ? "L" : "M"}${x(index).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = true;
      return part;
    })
    .join("");
  return (
    <svg class={`spark ${look}`} viewBox={`0 0 ${WIDE} ${TALL}`} preserveAspectRatio="none" role="img" aria-label={label}>
      {finite.length > 1 && <path class="under" d={`${path}L${WIDE} ${TALL}L0 ${TALL}Z`} />}
      <path d={path} vector-effect="non-scaling-stroke" />
    </svg>
  );
}
