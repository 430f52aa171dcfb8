// The tree on a time line: steps from left to right, a lane for each branch, a glyph for whatever happened; a click chooses an entry. Everything in it
// stands in the list below too, which is what a screen reader reads.
import { useEffect, useRef, useState } from "preact/hooks";
import type { History } from "../api/types";
import { rem } from "../app/theme";
import { si, whole } from "../ui/format";
import type { Entry, Story } from "./story";

/** Floors above a lane; beyond that, things lie over each other. */
const HIGHEST = 4;

interface Props {
  story: Story;
  told: History;
  through: number;
  chosen: string | null;
  choose: (entry: Entry) => void;
}

export function Tree({ story, told, through, chosen, choose }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const [wide, setWide] = useState(800);
  useEffect(() => {
    const size = new ResizeObserver(([entry]) => setWide(Math.max(240, entry!.contentRect.width)));
    size.observe(box.current!);
    return () => size.disconnect();
  }, []);
  const size = rem() / 15,
    SIDE = 26 * size;
  const last = Math.max(1, through, ...story.entries.map((entry) => entry.step ?? 0));
  const x = (step: number): number => SIDE + (step / last) * (wide - 2 * SIDE);
  const { children } = told;
  const shown = story.entries.filter((entry) => entry.step !== null && entry.kind !== "gc" && entry.kind !== "note");
  const floors = stacked(shown, x, 12 * size);
  const lane = (22 + 14 * (1 + Math.max(0, ...floors.values()))) * size;
  const y = (at: number): number => (at + 1) * lane - 10 * size;
  const tall = story.lanes * lane + (children.length ? 18 * size : 0);
  return (
    <div ref={box} class="tree">
      <svg
        width={wide}
        height={tall + 20 * size}
        role="img"
        aria-label={`The run's tree: ${story.lanes} branches, ${told.snapshots.length} snapshots, through step ${last}`}
      >
        {story.branches.map(
          (branch) =>
            branch.steps.length > 0 && (
              <g key={branch.lane} class={`branch b${branch.lane % 6}`}>
                {branch.from && <path d={`M${x(branch.from.step)} ${y(branch.from.lane)}V${y(branch.lane) - 8}q0 8 8 8`} />}
                <path
                  d={`M${x(branch.from?.step ?? Math.min(...branch.steps)) + (branch.from ? 8 : 0)} ${y(branch.lane)}H${x(branch.lane === story.lanes - 1 ? last : Math.max(...branch.steps))}`}
                />
              </g>
            ),
        )}
        {children.map(
          (child, index) =>
            child.step !== null && (
              <g key={index} class="forked">
                <path d={`M${x(child.step)} ${y(0)}V${tall - 10}h14`} />
                <text x={x(child.step) + 18} y={tall - 6}>
                  {child.name}
                </text>
              </g>
            ),
        )}
        {shown.map((entry) => (
          <g
            key={entry.key}
            class={`node ${entry.kind} ${entry.snapshot?.state ?? ""} ${chosen === entry.key ? "chosen" : ""}`}
            onClick={() => choose(entry)}
            transform={`translate(${x(entry.step!)} ${y(entry.lane) - (floors.get(entry.key) ?? -1) * 14 * size - (entry.snapshot ? 14 : 13) * size}) scale(${size})`}
          >
            <circle class="hit" r={8} />
            <path d={glyph(entry)} />
            <title>{`${entry.kind}, step ${whole(entry.step!)}: ${entry.text}`}</title>
          </g>
        ))}
        {[0, 0.25, 0.5, 0.75, 1].map((share) => (
          <text
            key={share}
            class="tick"
            x={x(last * share)}
            y={tall + 14 * size}
            text-anchor={share === 0 ? "start" : share === 1 ? "end" : "middle"}
          >
            {si(Math.round(last * share))}
          </text>
        ))}
      </svg>
    </div>
  );
}

/** Snapshots lie on their lane; other things stand above it, on the first floor that has room where they are. */
function stacked(entries: Entry[], x: (step: number) => number, room: number): Map<string, number> {
  const floors = new Map<string, number>(),
    taken: { lane: number; x: number; floor: number }[] = [];
  for (const entry of entries) {
    if (entry.snapshot) continue;
    const at = x(entry.step!),
      near = taken.filter((one) => one.lane === entry.lane && Math.abs(one.x - at) < room).map((one) => one.floor);
    let floor = 0;
    while (near.includes(floor) && floor < HIGHEST) floor++;
    floors.set(entry.key, floor);
    taken.push({ lane: entry.lane, x: at, floor });
  }
  return floors;
}

function glyph(entry: Entry): string {
  switch (entry.kind) {
    case "snapshot":
      return "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z";
    case "failure":
      return "M-4-4 4 4M4-4-4 4";
    case "alert":
      return "M0-5 5 4H-5z";
    case "change":
      return "M0-5 5 0 0 5-5 0z";
    case "fork":
      return "M-4 4V0q0-4 4-4h4M1-7l3 3-3 3";
    default:
      return "M-3-4 4 0-3 4z";
  }
}
