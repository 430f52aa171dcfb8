// Instant search over names and meanings. Every word must be found: in the name (best at the beginning of a part), as letters of the name in their order
// (`lsm` finds `loss/micro`), or in the meaning. 500 metrics take well under a millisecond.
import type { Metric } from "../api/types";

/** Letters in their order: each as the next one, else at the beginning of a part, else anywhere, which costs what is skipped. */
function subsequence(text: string, word: string): number {
  let at = -1,
    skipped = 0;
  for (const letter of word) {
    if (text[at + 1] === letter) {
      at++;
      continue;
    }
    let next = text.indexOf(letter, at + 1);
    const anywhere = next;
    while (next >= 0 && !/[/._]/.test(text[next - 1] ?? "/")) next = text.indexOf(letter, next + 1);
    if (next < 0) {
      skipped += anywhere - at - 1;
      next = anywhere;
    }
    if (next < 0) return 0;
    at = next;
  }
  return skipped <= 2 * word.length ? 12 - Math.min(10, skipped) : 0;
}

function score(metric: Metric, word: string): number {
  const name = metric.name.toLowerCase();
  if (name === word) return 100;
  const at = name.indexOf(word);
  if (at === 0) return 60;
  if (at > 0) return /[/._]/.test(name[at - 1]!) ? 50 : 40;
  if (metric.meaning.toLowerCase().includes(word)) return 20;
  return word.length > 1 ? subsequence(name, word) : 0;
}

/** Metrics that fit, the best first; with nothing to look for, all in their order. */
export function search(metrics: Metric[], text: string): Metric[] {
  const asked = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (!asked.length) return metrics;
  const scored: [number, Metric][] = [];
  for (const metric of metrics) {
    let sum = 0;
    for (const word of asked) {
      const points = score(metric, word);
      if (!points) {
        sum = 0;
        break;
      }
      sum += points;
    }
    if (sum) scored.push([sum, metric]);
  }
  return scored.sort((a, b) => b[0] - a[0]).map(([, metric]) => metric);
}
