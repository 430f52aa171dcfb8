// What lies between two entries of the history: their figures side by side, what happened from one to the other, and, of two snapshots, what of
// settings, code and tensors differs. How far weights are apart is read from the snapshots themselves, which a terminal does: its command is shown.
import { frozen } from "../api/client";
import { number } from "../api/types";
import { Command } from "../ui/bits";
import { Icon } from "../ui/icon";
import { clock, digits, inUnit, NONE, quoted, seconds, whole } from "../ui/format";
import { Beside } from "./beside";
import { Differ } from "./differ";
import { countOf } from "./list";
import type { Entry, Story } from "./story";

export function Between({ pair, story, id, name, close }: { pair: [Entry, Entry]; story: Story; id: string; name: string; close: () => void }) {
  const [a, b] = pair[0].time <= pair[1].time ? pair : [pair[1], pair[0]];
  const first = story.entries.indexOf(a),
    last = story.entries.indexOf(b);
  const inner = story.entries.slice(first + 1, last + 1).filter((entry) => entry.kind !== "snapshot" && entry.kind !== "gc");
  const rows: [string, string, string, string][] = [
    ["step", whole(a.step ?? NaN), whole(b.step ?? NaN), a.step !== null && b.step !== null ? signed(b.step - a.step, whole) : NONE],
    ["time", clock(a.time), clock(b.time), seconds(b.time - a.time)],
  ];
  if (a.snapshot && b.snapshot) {
    for (const [title, key] of [
      ["loss", "loss"],
      ["validation loss", "val_loss"],
    ] as const) {
      const [x, y] = [number(a.snapshot[key]), number(b.snapshot[key])];
      rows.push([title, digits(x), digits(y), signed(y - x, (value) => digits(value))]);
    }
    const size = (value: number): string => inUnit(value, "bytes");
    rows.push(["state", size(a.snapshot.state_bytes), size(b.snapshot.state_bytes), signed(b.snapshot.state_bytes - a.snapshot.state_bytes, size)]);
  }
  return (
    <section class="card between" aria-label="Between two entries">
      <header>
        <h2>
          From {a.kind} {a.step !== null && `at step ${whole(a.step)} `}to {b.kind} {b.step !== null && `at step ${whole(b.step)}`}
        </h2>
        <button type="button" class="quiet square" aria-label="Close" onClick={close}>
          <Icon name="close" />
        </button>
      </header>
      <Beside columns={["before", "after", "difference"]} rows={rows.map(([title, ...cells]) => ({ key: title, title, cells }))} />
      <h3>{inner.length ? `${countOf(inner)} between` : "Nothing else happened between"}</h3>
      <ul>
        {inner.slice(0, 50).map((entry) => (
          <li key={entry.key}>
            <span class={`kind ${entry.kind}`}>{entry.kind}</span> {entry.step !== null && `step ${whole(entry.step)}: `}
            {entry.text}
          </li>
        ))}
      </ul>
      {a.snapshot?.state === "here" && b.snapshot?.state === "here" && (
        <>
          {!frozen && <Differ id={id} before={a.snapshot.id} after={b.snapshot.id} />}
          <p class="soft">How far the weights are apart, tensor by tensor:</p>
          <Command
            text={`penstock runs diff ${quoted(`${name}@${a.snapshot.id.slice(0, 12)}`)} ${quoted(`${name}@${b.snapshot.id.slice(0, 12)}`)} --weights`}
          />
        </>
      )}
    </section>
  );
}

const signed = (value: number, show: (value: number) => string): string =>
  !Number.isFinite(value) ? NONE : value === 0 ? "the same" : `${value > 0 ? "+" : "−"}${show(Math.abs(value))}`;
