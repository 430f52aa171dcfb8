// A slider with its words before it and its value behind; and the one for smoothing, which Explore and Compare offer alike.
import { digits } from "./format";

interface Props {
  words: string;
  /** What a screen reader says of it. */
  label: string;
  title?: string;
  least: number;
  most: number;
  step: number;
  value: number;
  shown: string;
  change: (value: number) => void;
}

export function Slider({ words, label, title, least, most, step, value, shown, change }: Props) {
  return (
    <label class="slider" title={title}>
      {words}
      <input
        type="range"
        min={least}
        max={most}
        step={step}
        value={value}
        aria-label={label}
        onInput={(event) => change(Number(event.currentTarget.value))}
      />
      <output>{shown}</output>
    </label>
  );
}

export function Smoothing({ value, change }: { value: number; change: (value: number) => void }) {
  const title = "Smoothing: share of the old in a moving mean";
  return (
    <Slider words="Smooth" label="Smoothing" title={title} least={0} most={0.99} step={0.01} value={value} shown={digits(value, 2)} change={change} />
  );
}
