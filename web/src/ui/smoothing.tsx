// The slider for smoothing: the share of the old in a moving mean, which Explore and Compare offer alike.
import { digits } from "./format";

export function Smoothing({ value, change }: { value: number; change: (value: number) => void }) {
  return (
    <label class="slider" title="Smoothing: share of the old in a moving mean">
      Smooth
      <input
        type="range"
        min={0}
        max={0.99}
        step={0.01}
        value={value}
        aria-label="Smoothing"
        onInput={(event) => change(Number(event.currentTarget.value))}
      />
      <output>{digits(value, 2)}</output>
    </label>
  );
}
