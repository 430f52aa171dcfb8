// Numbers for people, with their units: SI prefixes, seconds as people say them, four significant digits, words where there is no number.
import { type Num, number } from "../api/types";

const PREFIXES: readonly [number, string][] = [
  [1e15, "P"],
  [1e12, "T"],
  [1e9, "G"],
  [1e6, "M"],
  [1e3, "k"],
];
export const NONE = "–";

/** Significant digits without a trail of noughts. */
export function digits(value: number, count = 4): string {
  if (Number.isNaN(value)) return NONE;
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e15) return value.toExponential(Math.max(0, count - 2)).replace("e+", "e");
  const decimals = Math.max(0, count - 1 - Math.floor(Math.log10(size)));
  return value.toLocaleString("en-US", { maximumFractionDigits: Math.min(decimals, 12), minimumFractionDigits: 0 });
}

/** A value and its prefix: 1.23 M. */
export function si(value: number, unit = "", count = 3): string {
  if (!Number.isFinite(value)) return digits(value);
  const found = PREFIXES.find(([size]) => Math.abs(value) >= size);
  const text = found ? `${digits(value / found[0], count)} ${found[1]}` : digits(value, count);
  return unit ? `${text}${found && unit.length < 3 ? "" : " "}${unit}` : text;
}

/** An amount of money: 1,234.50, and of less than a hundredth what there is of it. */
export const amount = (value: number): string =>
  Math.abs(value) >= 0.01 ? value.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 }) : digits(value, 2);

export const whole = (value: number): string => (Number.isFinite(value) ? Math.round(value).toLocaleString("en-US") : digits(value));
export const percent = (value: number, count = 3): string => (Number.isFinite(value) ? `${digits(value * 100, count)} %` : NONE);

/** Seconds as people say them: 420 µs, 1.2 s, 3 min 20 s, 2 h 5 min, 3 d 4 h. */
export function seconds(value: number): string {
  if (!Number.isFinite(value)) return digits(value);
  const size = Math.abs(value);
  if (size === 0) return "0 s";
  if (size < 1e-3) return `${digits(value * 1e6, 3)} µs`;
  if (size < 1) return `${digits(value * 1e3, 3)} ms`;
  if (size < 60) return `${digits(value, 3)} s`;
  const all = Math.round(size);
  const two = (big: number, bigName: string, small: number, smallName: string): string => {
    const many = Math.floor(all / big),
      rest = Math.floor((all % big) / small);
    return `${value < 0 ? "−" : ""}${many} ${bigName}${rest ? ` ${rest} ${smallName}` : ""}`;
  };
  if (all < 3600) return two(60, "min", 1, "s");
  if (all < 86_400) return two(3600, "h", 60, "min");
  return two(86_400, "d", 3600, "h");
}

/** A metric's value in its unit, as the catalogue names units. */
export function inUnit(value: number, unit: string): string {
  if (!Number.isFinite(value)) return digits(value);
  switch (unit) {
    case "s":
      return seconds(value);
    case "bytes":
      return si(value, "B");
    case "":
    case "1":
      return Math.abs(value) >= 1e5 ? si(value) : digits(value);
    case "nats":
      return `${digits(value)} nats`;
    default:
      return si(value, unit, 4);
  }
}

/** What of a unit stands at an axis, where numbers are short. */
export function axisValue(value: number, unit: string): string {
  if (unit === "s") return seconds(value);
  if (unit === "bytes") return si(value, "B");
  return Math.abs(value) >= 1e4 ? si(value).replace(" ", "") : digits(value, 5);
}

/** A number as the server sends it, in its unit: what is no number is called so, what is absent is a dash. */
export const told = (value: Num | undefined, unit = ""): string => (value === "nan" ? "NaN" : inUnit(number(value), unit));

/** A moment as unix seconds; the history has it as text. */
export const moment = (time: string | number | null | undefined): number => (typeof time === "number" ? time : time ? Date.parse(time) / 1000 : NaN);

export function ago(time: number, now: number): string {
  const passed = now - time;
  if (!Number.isFinite(passed)) return NONE;
  if (passed < 2) return "now";
  const text = seconds(Math.floor(passed));
  return `${passed < 3600 ? text : text.split(" ").slice(0, 2).join(" ")} ago`;
}

const CLOCK = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
export const clock = (time: number): string => (Number.isFinite(time) ? CLOCK.format(time * 1000) : NONE);
/** `loss_spike` as words. */
export const words = (name: string): string => name.replaceAll("_", " ");
export const capital = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1);
/** As a sentence: a capital in front, a stop behind. */
export const sentence = (text: string): string => capital(/[.!?)]$/.test(text) ? text : `${text}.`);
export const many = (count: number, what: string): string => `${whole(count)} ${what}${count === 1 ? "" : "s"}`;
/** A word of a command line as a shell must be given it: names of runs are anybody's text. */
export const quoted = (word: string): string => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`);
/** Any value of a setting as one line. */
export const plain = (value: unknown): string =>
  value === null || value === undefined
    ? NONE
    : typeof value === "string"
      ? value || "“”"
      : typeof value === "number"
        ? value
            .toLocaleString("en-US", { maximumSignificantDigits: 12, notation: value && Math.abs(value) < 1e-5 ? "scientific" : "standard" })
            .replace("E", "e")
        : JSON.stringify(value);
