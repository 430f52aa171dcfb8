// Smoothing: an exponential moving mean whose start is debiased, as Adam's moments are (Kingma and Ba 2015): m = β m + (1 − β) v, shown as m / (1 − βⁿ).
// Without that the line would begin at nought. β from the slider counts rows of the course as it is drawn, so a smoothed line looks the same at every zoom.
export function smoothed(values: ArrayLike<number | null>, beta: number): (number | null)[] {
  let mean = 0,
    weight = 0;
  return Array.from(values, (value) => {
    if (value !== null && Number.isFinite(value)) {
      mean = beta * mean + (1 - beta) * value;
      weight = beta * weight + (1 - beta);
    }
    return weight && value !== null ? mean / weight : null;
  });
}
