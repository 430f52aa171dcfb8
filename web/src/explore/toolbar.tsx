// The controls of Explore; all but the search have keys.
import { useRef, useState } from "preact/hooks";
import { useKeys } from "../app/keys";
import { frozenAbout } from "../api/client";
import { copy } from "../ui/bits";
import { Icon } from "../ui/icon";
import { many, whole } from "../ui/format";
import { AXES } from "./clock";
import type { Shared } from "./context";
import { moved } from "./span";
import { change, look, range, view } from "./state";
import { Smoothing } from "../ui/slider";

export function Toolbar({ shared, found, all }: { shared: Shared; found: number; all: number }) {
  const field = useRef<HTMLInputElement>(null);
  const [copied, setCopied] = useState("");
  const { search, axis, smooth, log, band } = view.value;
  const at = range.value;
  const move =
    (by: number, factor = 1) =>
    (): void =>
      look(moved(shared.clock.peek(), shared.store.base.peek(), range.peek(), by, factor));
  const smoother = (by: number) => (): void => change({ smooth: Math.max(0, Math.min(0.99, Math.round((view.peek().smooth + by) * 100) / 100)) });
  const link = async (): Promise<void> => {
    setCopied((await copy(location.href)) ? "copied" : "see the address");
    setTimeout(() => setCopied(""), 2000);
  };
  useKeys(
    [
      { keys: "/", what: "search metrics", act: () => field.current?.focus() },
      { keys: "+", what: "zoom in (or drag over a panel, or Ctrl-wheel)", act: move(0, 0.5) },
      { keys: "-", what: "zoom out", act: move(0, 2) },
      { keys: "ArrowLeft", what: "earlier (or Shift-drag)", act: move(-0.25) },
      { keys: "ArrowRight", what: "later", act: move(0.25) },
      { keys: "0", what: "the whole run (or a double click)", act: () => look(null) },
      { keys: "]", what: "smoother", act: smoother(0.1) },
      { keys: "[", what: "less smooth", act: smoother(-0.1) },
      { keys: "l", what: "log scale", act: () => change({ log: !view.peek().log }) },
      { keys: "b", what: "band over ranks", act: () => change({ band: !view.peek().band }) },
      { keys: "a", what: "next axis: step, tokens, time", act: () => change({ axis: AXES[(AXES.indexOf(view.peek().axis) + 1) % AXES.length]! }) },
    ],
    [shared],
  );
  const escape = (event: KeyboardEvent): void => {
    if (event.key === "Escape") {
      change({ search: "" });
      field.current?.blur();
    }
  };
  const last = shared.store.through.value;
  return (
    <div class="tools explore-tools" role="toolbar" aria-label="What is shown">
      <label class="search">
        <Icon name="search" />
        <input
          ref={field}
          type="search"
          placeholder="Search metrics"
          aria-label="Search metrics"
          value={search}
          onInput={(event) => change({ search: event.currentTarget.value })}
          onKeyDown={escape}
        />
      </label>
      <span class="soft found" role="status">
        {found === all ? many(all, "metric") : `${whole(found)} of ${whole(all)}`}
      </span>
      <div class="segments" role="group" aria-label="Axis">
        {AXES.map((one) => (
          <button key={one} type="button" aria-pressed={axis === one} onClick={() => change({ axis: one })}>
            {one}
          </button>
        ))}
      </div>
      <Smoothing value={smooth} change={(share) => change({ smooth: share })} />
      <div class="segments" role="group" aria-label="Scale">
        <button type="button" aria-pressed={log} title="Log scale (l)" onClick={() => change({ log: !log })}>
          log
        </button>
        <button type="button" aria-pressed={band} title="Lowest and highest rank (b)" onClick={() => change({ band: !band })}>
          ranks
        </button>
      </div>
      <div class="segments zoom" role="group" aria-label="Range">
        <button type="button" aria-label="Earlier" title="Earlier (←)" disabled={!at} onClick={move(-0.25)}>
          ‹
        </button>
        <button type="button" aria-label="Zoom out" title="Zoom out (−)" disabled={!at} onClick={move(0, 2)}>
          −
        </button>
        <button type="button" class="reset" title="The whole run (0)" disabled={!at} onClick={() => look(null)}>
          {at ? `${whole(at.from)} – ${whole(Math.min(at.to, last))}` : "all steps"}
        </button>
        <button type="button" aria-label="Zoom in" title="Zoom in (+)" onClick={move(0, 0.5)}>
          +
        </button>
        <button type="button" aria-label="Later" title="Later (→)" disabled={!at} onClick={move(0.25)}>
          ›
        </button>
      </div>
      {frozenAbout && frozenAbout.thinned.length > 0 && (
        <span class="soft found">
          {many(frozenAbout.thinned.length, "metric")} thinned to {whole(frozenAbout.points)} points
        </span>
      )}
      <button type="button" class="quiet" title="Copy a link to this view" onClick={link}>
        <Icon name="link" />
        {copied || "Copy link"}
      </button>
    </div>
  );
}
