// History: the run's tree, every entry of it, what lies between any two, and the actions that add to it.
import { useEffect, useMemo, useState } from "preact/hooks";
import { api, frozen } from "../api/client";
import type { Fork, History } from "../api/types";
import type { RunModel } from "../app/run";
import { runPath } from "../app/route";
import { useKeys } from "../app/keys";
import { Failed, Waiting } from "../ui/bits";
import { A } from "../ui/link";
import { useLoad } from "../ui/load";
import { many, whole } from "../ui/format";
import { ActionDialog, type Kind, type Wanted } from "./action";
import { Between } from "./between";
import { List } from "./list";
import { storyOf } from "./story";
import { Tree } from "./tree";

const ACTIONS: readonly Kind[] = ["snapshot", "scale", "change", "fork", "stop"];

export function HistoryView({ run }: { run: RunModel }) {
  const { value: told, error, again } = useLoad((signal) => api.history(run.id, signal), [run.id]);
  const [wanted, setWanted] = useState<Wanted | null>(null);
  const [picked, setPicked] = useState<string[]>([]);
  const [chosen, setChosen] = useState<string | null>(null);
  const story = useMemo(() => (told ? storyOf(told) : null), [told]);
  const newest = run.overview.value?.events[0]?.seq ?? 0;
  useEffect(() => {
    if (told && newest > (told.events.at(-1)?.seq ?? 0)) again();
  }, [newest]);
  useKeys(
    [
      {
        keys: "Escape",
        what: "choose no entry",
        act: () => {
          setPicked([]);
          setChosen(null);
        },
      },
    ],
    [],
  );
  if (error && !told) return <Failed error={error} again={again} />;
  if (!told || !story) return <Waiting what="the run's history" />;
  const pick = (key: string): void => setPicked((was) => (was.includes(key) ? was.filter((one) => one !== key) : [...was, key].slice(-2)));
  const pair = picked.map((key) => story.entries.find((entry) => entry.key === key)).filter((entry) => entry !== undefined);
  return (
    <div class="history">
      <div class="tools">
        <span class="soft">
          {many(told.snapshots.length, "snapshot")} · {many(told.events.length, "event")}
          {told.head && (
            <>
              {" "}
              · sealed as <code title={told.head}>{told.head.slice(0, 12)}</code>
            </>
          )}
        </span>
        <span class="grow" />
        {!frozen &&
          ACTIONS.map((kind) => (
            <button
              key={kind}
              type="button"
              class={kind === "stop" ? "danger" : ""}
              disabled={!run.running.value && kind !== "fork"}
              title={!run.running.value && kind !== "fork" ? "The run is not running" : undefined}
              onClick={() => setWanted(kind === "fork" ? { kind, at: newestHere(told) } : { kind })}
            >
              {kind[0]!.toUpperCase() + kind.slice(1)}
            </button>
          ))}
      </div>
      {told.damage.map((damage) => (
        <p key={damage} class="bad-text banner" role="alert">
          Damaged: {damage}
        </p>
      ))}
      {told.left_out > 0 && (
        <p class="soft banner">
          {many(told.left_out, "older event")} are left out here; <code>penstock runs log</code> tells all.
        </p>
      )}
      {told.notes.map((note) => (
        <p key={note} class="soft banner">
          {note}
        </p>
      ))}
      <section class="card" aria-label="Tree">
        <Family told={told} id={run.id} />
        <Tree
          story={story}
          told={told}
          through={run.overview.value?.step ?? 0}
          chosen={chosen}
          choose={(entry) => {
            setChosen(entry.key);
            document.getElementById(entry.key)?.scrollIntoView({ block: "center" });
          }}
        />
      </section>
      {pair.length === 2 && (
        <Between pair={[pair[0]!, pair[1]!]} story={story} id={run.id} name={run.overview.value?.run ?? run.id} close={() => setPicked([])} />
      )}
      {pair.length === 1 && (
        <p class="soft banner" role="status">
          Choose a second entry to see what lies between.
        </p>
      )}
      <List
        story={story}
        picked={picked}
        pick={pick}
        chosen={chosen}
        choose={setChosen}
        fork={frozen ? null : (at) => setWanted({ kind: "fork", at })}
      />
      {wanted && (
        <ActionDialog
          run={run}
          wanted={wanted}
          close={() => setWanted(null)}
          done={() => {
            again();
            run.read();
          }}
        />
      )}
    </div>
  );
}

/** The id of the newest snapshot that is there; empty if none is. */
const newestHere = (told: History): string =>
  told.snapshots
    .filter((snapshot) => snapshot.state === "here")
    .at(-1)
    ?.id.slice(0, 12) ?? "";

function Family({ told, id }: { told: History; id: string }) {
  const { parent, children } = told;
  if (!parent && !children.length) return null;
  const link = (fork: Fork) => (
    <>
      {fork.run !== null && !frozen ? <A to={runPath(fork.run, "history")}>{fork.name}</A> : <b>{fork.name}</b>}
      {fork.step !== null && <span class="soft"> at step {whole(fork.step)}</span>}{" "}
      {fork.run !== null && !frozen && (
        <A
          to={`/compare?${new URLSearchParams([
            ["run", id],
            ["run", fork.run],
          ])}`}
          class="button quiet"
        >
          Compare
        </A>
      )}
    </>
  );
  return (
    <p class="family">
      {parent && <span>forked from {link(parent)}</span>}
      {children.map((child, index) => (
        <span key={index}>forked into {link(child)}</span>
      ))}
    </p>
  );
}
