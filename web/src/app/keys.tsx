// Keyboard shortcuts: a table of keys and what they do. Views add theirs while they are shown; `?` lists all that work now. `g o` is two keys in a row.
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { Dialog } from "../ui/dialog";

export interface Shortcut {
  keys: string;
  what: string;
  act: () => void;
}

const known = signal<Shortcut[][]>([]);
export const helping = signal(false);
let first = "";
let firstAt = 0;

/** Shortcuts that work while a view is shown. */
export function useKeys(shortcuts: Shortcut[], keys: readonly unknown[] = []): void {
  useEffect(() => {
    known.value = [...known.peek(), shortcuts];
    return () => {
      known.value = known.peek().filter((one) => one !== shortcuts);
    };
  }, keys);
}

function typing(target: EventTarget | null): boolean {
  return (
    target instanceof HTMLElement &&
    (target.isContentEditable || (/^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName) && !/^(range|checkbox)$/.test((target as HTMLInputElement).type)))
  );
}

window.addEventListener("keydown", (event) => {
  if (event.metaKey || event.ctrlKey || event.altKey || typing(event.target) || document.querySelector("dialog[open]")) return;
  const now = event.timeStamp;
  const pair = now - firstAt < 1200 ? `${first} ${event.key}` : "";
  const all = known.peek().flat();
  const found = all.find((one) => one.keys === pair) ?? all.find((one) => one.keys === event.key);
  first = event.key;
  firstAt = found ? 0 : now;
  if (!found) return;
  event.preventDefault();
  found.act();
});

export function Shortcuts() {
  if (!helping.value) return null;
  return (
    <Dialog
      title="Keyboard"
      close={() => {
        helping.value = false;
      }}
    >
      <dl class="keys">
        {known.value.flat().map((one) => (
          <div key={one.keys}>
            <dt>
              {one.keys.split(" ").map((key) => (
                <kbd key={key}>{key}</kbd>
              ))}
            </dt>
            <dd>{one.what}</dd>
          </div>
        ))}
      </dl>
      <p class="soft">Tab and Enter reach everything; Escape closes what is open.</p>
    </Dialog>
  );
}
