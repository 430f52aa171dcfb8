// Every entry of the history, newest first: what, when, at which step, and of a snapshot how good and how large it is. Two can be ticked to see what
// lies between.
import { useState } from "preact/hooks";
import { number, type Snapshot } from "../api/types";
import { clock, digits, inUnit, many, plain, whole } from "../ui/format";
import { type Entry, foldText, type Row, rowsOf, type Story } from "./story";

const FIRST = 200;

interface Props {
  story: Story;
  picked: string[];
  pick: (key: string) => void;
  chosen: string | null;
  choose: (key: string | null) => void;
  fork: ((at: string) => void) | null;
}

export function List({ story, ...rest }: Props) {
  const [most, setMost] = useState(FIRST);
  const [open, setOpen] = useState<string[]>([]);
  const rows = rowsOf(story.entries).flatMap((row): Row[] =>
    row.fold && (open.includes(row.entry.key) || row.fold.some((entry) => entry.key === rest.chosen))
      ? row.fold.map((entry) => ({ fold: null, entry }))
      : [row],
  );
  return (
    <section class="card" aria-label="Entries">
      <ol class="entries">
        {rows.slice(0, most).map((row) =>
          row.fold ? (
            <li key={row.entry.key} class="fold">
              <button type="button" class="quiet" onClick={() => setOpen([...open, row.entry.key])}>
                {foldText(row.fold)}
              </button>
            </li>
          ) : (
            <One key={row.entry.key} entry={row.entry} {...rest} />
          ),
        )}
      </ol>
      {rows.length > most && (
        <button type="button" class="quiet" onClick={() => setMost(most + FIRST)}>
          Show earlier ones ({whole(rows.length - most)})
        </button>
      )}
    </section>
  );
}

function One({ entry, picked, pick, chosen, choose, fork }: { entry: Entry } & Omit<Props, "story">) {
  const { snapshot } = entry;
  const details = Object.entries(entry.event?.data ?? {}).filter(([, value]) => value !== null);
  const opened = chosen === entry.key;
  return (
    <li id={entry.key} class={`entry ${opened ? "chosen" : ""}`}>
      <label class="pick">
        <input
          type="checkbox"
          checked={picked.includes(entry.key)}
          aria-label={`Choose ${entry.kind}${entry.step !== null ? ` at step ${entry.step}` : ""}`}
          onChange={() => pick(entry.key)}
        />
      </label>
      <span class={`kind ${entry.kind}`}>{entry.kind}</span>
      <span class="entry-step">{entry.step !== null ? whole(entry.step) : ""}</span>
      <span class="entry-text">{snapshot ? <About snapshot={snapshot} text={entry.text} /> : entry.text}</span>
      <span class="soft when">{clock(entry.time)}</span>
      <span class="entry-acts">
        {snapshot?.state === "here" && fork && (
          <button type="button" class="quiet" onClick={() => fork(snapshot.id)}>
            Fork
          </button>
        )}
        <button type="button" class="quiet" aria-expanded={opened} onClick={() => choose(opened ? null : entry.key)}>
          {opened ? "Less" : "More"}
        </button>
      </span>
      {opened && (
        <dl class="pairs">
          {snapshot && <Snap snapshot={snapshot} />}
          {!snapshot &&
            details.map(([name, value]) => (
              <div class="fact" key={name}>
                <dt>{name.replaceAll("_", " ")}</dt>
                <dd>{plain(value)}</dd>
              </div>
            ))}
          {!snapshot && !details.length && (
            <div class="fact">
              <dt>text</dt>
              <dd>{entry.text || "nothing more is told"}</dd>
            </div>
          )}
        </dl>
      )}
    </li>
  );
}

function About({ snapshot, text }: { snapshot: Snapshot; text: string }) {
  const loss = number(snapshot.loss),
    val = number(snapshot.val_loss);
  const parts = [
    Number.isFinite(loss) ? `loss ${digits(loss)}` : "",
    Number.isFinite(val) ? `val. loss ${digits(val)}` : "",
    `+${inUnit(snapshot.stored_bytes, "bytes")}`,
  ].filter(Boolean);
  return (
    <>
      <code>{snapshot.id.slice(0, 12)}</code> {parts.join(" · ")}
      {snapshot.state !== "here" && <span class={`tag ${snapshot.state}`}>{snapshot.state}</span>}
      {snapshot.pinned && <span class="tag">pinned</span>}
      {snapshot.newest && <span class="tag">newest</span>}
      {snapshot.full && <span class="tag">whole</span>}
      {text && !text.startsWith("saved as") && <span class="soft"> {text}</span>}
    </>
  );
}

function Snap({ snapshot }: { snapshot: Snapshot }) {
  const facts: [string, string][] = [
    ["id", snapshot.id],
    ["parent", snapshot.parent ?? "none: the run begins here"],
    ["kind", snapshot.full ? "whole" : "increment"],
    ["state", inUnit(snapshot.state_bytes, "bytes")],
    ["new content", inUnit(snapshot.added_bytes, "bytes")],
    ["on the disk", inUnit(snapshot.stored_bytes, "bytes")],
  ];
  return (
    <>
      {facts.map(([name, value]) => (
        <div class="fact" key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </>
  );
}

export const countOf = (entries: Entry[]): string => many(entries.length, "entry").replace("entrys", "entries");
