// Acting on a run from the page. The server turns a request into a `penstock` command line; it is shown first (a dry run), and started only when it is
// confirmed. Without the token the dialog asks for it. What the command printed is shown, and the server notes it in the run's history.
import { useEffect, useState } from "preact/hooks";
import { api, ApiError } from "../api/client";
import type { Alert, Outcome } from "../api/types";
import { me } from "../app/me";
import type { RunModel } from "../app/run";
import { Dialog } from "../ui/dialog";
import { Command } from "../ui/bits";
import { Token } from "../ui/token";
import { capital } from "../ui/format";
import { asked, Fields, filled, nothingToFill, type Values } from "./fields";

export type Kind = "snapshot" | "scale" | "change" | "fork" | "stop" | "acknowledge" | "silence";
export interface Wanted {
  kind: Kind;
  alert?: Alert;
  at?: string;
}

type Stage =
  { at: "fill" } | { at: "token" } | { at: "confirm"; command: string } | { at: "work"; command: string } | { at: "done"; outcome: Outcome };

const WHAT: Record<Kind, string> = {
  snapshot: "Write a snapshot now. Training goes on after it.",
  scale: "Go on with another number of ranks, from memory, without a restart.",
  change: "Change settings of the run while it trains. What would be lost of its state is said first.",
  fork: "Begin a new run from a snapshot of this one, with other settings if you like.",
  stop: "End the run after a clean snapshot. `penstock resume` goes on from there.",
  acknowledge: "Say that somebody knows of this alert.",
  silence: "Tell nobody of alerts of this kind any more.",
};

interface Props {
  run: RunModel;
  wanted: Wanted;
  close: () => void;
  done: () => void;
}

export function ActionDialog({ run, wanted, close, done }: Props) {
  const [values, setValues] = useState<Values>(() => filled(wanted));
  const [stage, setStage] = useState<Stage>({ at: "fill" });
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);

  const ask = async (dry: boolean): Promise<void> => {
    if (!me.value?.may_act) {
      setStage({ at: "token" });
      return;
    }
    setBusy(true);
    setError("");
    try {
      const action = { kind: wanted.kind, ...asked(wanted, values), ...(dry ? { dry: true } : { confirm: true }) };
      if (!dry && stage.at === "confirm") setStage({ at: "work", command: stage.command });
      const outcome = await api.act(run.id, action);
      setStage(dry ? { at: "confirm", command: outcome.command } : { at: "done", outcome });
      if (!dry) done();
    } catch (problem) {
      const { message, status } = problem as ApiError;
      if (status === 401) setStage({ at: "token" });
      else {
        setError(message);
        setStage({ at: "fill" });
      }
    } finally {
      setBusy(false);
    }
  };
  const simple = nothingToFill(wanted.kind);
  useEffect(() => {
    if (simple) void ask(true);
  }, []);

  return (
    <Dialog title={capital(wanted.kind)} close={close}>
      <p class="soft">{WHAT[wanted.kind]}</p>
      {stage.at === "fill" && (
        <form
          onSubmit={(event) => {
            event.preventDefault();
            void ask(true);
          }}
        >
          <Fields wanted={wanted} values={values} change={setValues} />
          {error && (
            <p class="bad-text" role="alert">
              {error}
            </p>
          )}
          <footer>
            <button type="button" onClick={close}>
              Cancel
            </button>
            <button type="submit" class="main" disabled={busy}>
              {busy ? "Asking …" : "Show the command"}
            </button>
          </footer>
        </form>
      )}
      {stage.at === "token" && <Token told="Acting on a run needs the token." close={close} done={() => void ask(true)} />}
      {(stage.at === "confirm" || stage.at === "work") && (
        <>
          <p>This runs on the dashboard's host:</p>
          <Command text={stage.command} />
          <footer>
            <button type="button" onClick={close}>
              Cancel
            </button>
            <button type="button" class={wanted.kind === "stop" ? "danger" : "main"} disabled={stage.at === "work"} onClick={() => void ask(false)}>
              {stage.at === "work" ? "Working …" : "Run it"}
            </button>
          </footer>
        </>
      )}
      {stage.at === "done" && <Result outcome={stage.outcome} close={close} />}
    </Dialog>
  );
}

function Result({ outcome, close }: { outcome: Outcome; close: () => void }) {
  const well = outcome.exit === 0;
  return (
    <>
      <p role="status" class={well ? "good-text" : "bad-text"}>
        {well ? "Done." : outcome.exit === null ? "It was not run." : `It ended with exit code ${outcome.exit}.`}
      </p>
      <Command text={outcome.command} />
      {outcome.text && (
        <pre class="output" tabIndex={0}>
          {outcome.text}
        </pre>
      )}
      <footer>
        <button type="button" class="main" onClick={close}>
          Close
        </button>
      </footer>
    </>
  );
}
