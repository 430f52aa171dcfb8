// Small pieces that every view uses: messages, state badges, copyable commands.
import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import type { Level, RunState } from "../api/types";
import { sentence } from "./format";
import { Icon } from "./icon";

export function Message({ title, children, kind = "empty" }: { title: string; children?: ComponentChildren; kind?: "empty" | "error" }) {
  return (
    <section class={`message ${kind}`} role={kind === "error" ? "alert" : undefined}>
      <h2>{title}</h2>
      {children}
    </section>
  );
}

/** Space that is kept while an answer is on its way, so that nothing jumps when it comes. */
export const Waiting = ({ what }: { what: string }) => (
  <div class="waiting" role="status">
    Reading {what} …
  </div>
);

export function Failed({ error, again }: { error: Error; again?: () => void }) {
  return (
    <Message title="That could not be read" kind="error">
      <p>{sentence(error.message)}</p>
      {again && (
        <button type="button" onClick={again}>
          Try again
        </button>
      )}
    </Message>
  );
}

const STATES: Record<RunState, string> = {
  running: "running",
  finished: "finished",
  interrupted: "interrupted",
  failed: "failed",
  unfinished: "stopped early",
  damaged: "damaged",
};
export const StateBadge = ({ state }: { state: RunState }) => <span class={`state ${state}`}>{STATES[state] ?? state}</span>;

export const LevelMark = ({ level }: { level: Level }) => (
  <span class={`level ${level}`}>
    <Icon name={level} />
    {level}
  </span>
);

export async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

export function Command({ text }: { text: string }) {
  const [done, setDone] = useState("");
  const press = async (): Promise<void> => {
    setDone((await copy(text)) ? "copied" : "select it and copy");
    setTimeout(() => setDone(""), 2000);
  };
  return (
    <div class="command">
      <code tabIndex={0}>{text}</code>
      <button type="button" class="quiet" onClick={press}>
        {done || "copy"}
      </button>
    </div>
  );
}

/** A text in which commands stand between backticks. */
export const Prose = ({ text }: { text: string }) => <>{text.split("`").map((part, at) => (at % 2 ? <code key={at}>{part}</code> : part))}</>;

/** A name and its value in a list of facts. */
export const Fact = ({ name, children }: { name: string; children: ComponentChildren }) => (
  <div class="fact">
    <dt>{name}</dt>
    <dd>{children}</dd>
  </div>
);
