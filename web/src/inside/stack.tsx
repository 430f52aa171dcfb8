// Courses stacked on each other, as an SVG: what a whole is made of over time. The pointer or the arrow keys choose a step, whose parts are told in words.
import { useState } from "preact/hooks";
import { whole } from "../ui/format";

export interface Layer {
  name: string;
  values: ArrayLike<number>;
  look: number;
}
export interface Limit {
  name: string;
  value: number;
}
interface Props {
  layers: Layer[];
  steps: number[];
  limit?: Limit | undefined;
  show: (value: number) => string;
  label: string;
}

const WIDE = 1000,
  TALL = 240;
const good = (value: number | undefined): number => (value !== undefined && Number.isFinite(value) && value > 0 ? value : 0);

export function Stack({ layers, steps, limit, show, label }: Props) {
  const [at, setAt] = useState<number | null>(null);
  const count = steps.length,
    sums = Array.from({ length: count }, (_, i) => layers.reduce((sum, layer) => sum + good(layer.values[i]), 0));
  const highest = Math.max(...sums, 0) || 1;
  const top = limit && limit.value > highest && limit.value < 3 * highest ? limit.value * 1.04 : highest * 1.06;
  const x = (i: number): number => (count > 1 ? (i / (count - 1)) * WIDE : WIDE / 2),
    y = (value: number): number => TALL - (value / top) * TALL;
  const under = new Float64Array(count);
  const shapes = layers.map((layer) => {
    const below = Array.from(under, (value, i) => `${x(i).toFixed(1)} ${y(value).toFixed(1)}`).reverse();
    for (let i = 0; i < count; i++) under[i]! += good(layer.values[i]);
    return `M${Array.from(under, (value, i) => `${x(i).toFixed(1)} ${y(value).toFixed(1)}`).join("L")}L${below.join("L")}Z`;
  });
  const point = (event: MouseEvent): void => {
    const box = (event.currentTarget as Element).getBoundingClientRect();
    setAt(Math.max(0, Math.min(count - 1, Math.round(((event.clientX - box.left) / box.width) * (count - 1)))));
  };
  const press = (event: KeyboardEvent): void => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    setAt(Math.max(0, Math.min(count - 1, (at ?? count - 1) + by)));
  };
  const here = at !== null && at < count ? at : count - 1;
  return (
    <figure class="stack">
      <div class="stack-scale" aria-hidden="true">
        <span>{show(top)}</span>
        <span>{show(top / 2)}</span>
        <span>{show(0)}</span>
      </div>
      <div class="stack-box" tabIndex={0} role="img" aria-label={label} onMouseMove={point} onMouseLeave={() => setAt(null)} onKeyDown={press}>
        <svg viewBox={`0 0 ${WIDE} ${TALL}`} preserveAspectRatio="none" aria-hidden="true">
          <path class="line" d={`M0 ${TALL / 2}H${WIDE}M0 ${TALL}H${WIDE}`} vector-effect="non-scaling-stroke" />
          {shapes.map((d, i) => (
            <path key={layers[i]!.name} class={`f${layers[i]!.look}`} d={d} />
          ))}
          {limit && limit.value <= top && <path class="limit" d={`M0 ${y(limit.value)}H${WIDE}`} vector-effect="non-scaling-stroke" />}
          {at !== null && <path class="at" d={`M${x(here)} 0V${TALL}`} vector-effect="non-scaling-stroke" />}
        </svg>
      </div>
      <div class="heat-axis" aria-hidden="true">
        <span>step {whole(steps[0] ?? NaN)}</span>
        <span>{count > 2 ? whole(steps[Math.floor(count / 2)]!) : ""}</span>
        <span>{count > 1 ? whole(steps.at(-1)!) : ""}</span>
      </div>
      <figcaption>
        <b>
          step {whole(steps[here] ?? NaN)}: {show(sums[here] ?? NaN)}
        </b>
        <ul class="legend">
          {layers.map((layer) => (
            <li key={layer.name}>
              <i class={`swatch tall p${layer.look}`} />
              {layer.name} {show(layer.values[here] ?? NaN)}
            </li>
          ))}
          {limit && (
            <li>
              <i class="swatch limit" />
              {limit.name} {show(limit.value)}
            </li>
          )}
        </ul>
      </figcaption>
    </figure>
  );
}
