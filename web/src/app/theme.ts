// Dark or light: the system's choice unless one is made here, which is kept. Canvases read colours from the style sheet when the theme changes.
import { effect, signal } from "@preact/signals";

export type Theme = "system" | "light" | "dark";
const KEY = "penstock.theme";
const system = matchMedia("(prefers-color-scheme: dark)");
const systemDark = signal(system.matches);
system.addEventListener("change", (event) => {
  systemDark.value = event.matches;
});

export const theme = signal<Theme>(kept());
/** Grows when colours change. */
export const painted = signal(0);

function kept(): Theme {
  try {
    const value = localStorage.getItem(KEY);
    return value === "light" || value === "dark" ? value : "system";
  } catch {
    return "system";
  }
}

effect(() => {
  const dark = theme.value === "system" ? systemDark.value : theme.value === "dark";
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  try {
    localStorage.setItem(KEY, theme.value);
  } catch {
    /* a page from a file may have no storage */
  }
  painted.value = painted.peek() + 1;
});

export function nextTheme(): void {
  theme.value = theme.value === "system" ? "light" : theme.value === "light" ? "dark" : "system";
}

/** A colour of the style sheet, by the name of its property. */
export const colour = (name: string): string => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
/** Pixels of one rem: canvases follow the page's size on a wall screen. */
export const rem = (): number => parseFloat(getComputedStyle(document.documentElement).fontSize);
