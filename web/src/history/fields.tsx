// What an action needs to know besides the run: the fields of its form, and the arguments of the request they become.
import type { Wanted, Kind } from "./action";

export type Values = Record<string, string>;

/** What the fields hold when the dialog opens. */
export function filled(wanted: Wanted): Values {
  return { at: wanted.at ?? "", ranks: "", set: "", name: "", hours: "1", loss: "" };
}

export const nothingToFill = (kind: Kind): boolean => kind === "snapshot" || kind === "stop" || kind === "acknowledge";

/** `section.key=value`, one a line, as the server takes it; raises an error that says which line is none. */
function settingsOf(text: string): Record<string, string> {
  const lines = text
    .split("\n")
    .map((line) => line.trim())
    .filter(Boolean);
  return Object.fromEntries(
    lines.map((line) => {
      const at = line.indexOf("=");
      if (at < 1) throw new Error(`“${line}” is no setting; write section.key=value`);
      return [line.slice(0, at).trim(), line.slice(at + 1).trim()];
    }),
  );
}

/** Which snapshot is meant: a short number is a step, anything else an id. */
function snapshotOf(text: string): Record<string, unknown> {
  const asked = text.trim();
  return /^\d{1,9}$/.test(asked) ? { step: Number(asked) } : { snapshot: asked };
}

/** The arguments that the server takes. */
export function asked(wanted: Wanted, values: Values): Record<string, unknown> {
  const set = values.set ?? "";
  switch (wanted.kind) {
    case "scale":
      return { ranks: Number(values.ranks) };
    case "change":
      return { settings: settingsOf(set), ...(values.loss ? { accept_loss: true } : {}) };
    case "fork":
      return { ...snapshotOf(values.at ?? ""), ...(values.name ? { name: values.name } : {}), settings: settingsOf(set) };
    case "acknowledge":
      return { alert: wanted.alert?.id };
    case "silence":
      return { alert_kind: wanted.alert?.kind, hours: Number(values.hours) };
    default:
      return {};
  }
}

interface Props {
  wanted: Wanted;
  values: Values;
  change: (values: Values) => void;
}

export function Fields({ wanted, values, change }: Props) {
  const write =
    (name: string) =>
    (event: Event): void =>
      change({ ...values, [name]: (event.currentTarget as HTMLInputElement).value });
  const settings = (required: boolean) => (
    <label class="field">
      Settings, one a line
      <textarea
        rows={4}
        required={required}
        spellcheck={false}
        placeholder={"optim.lr=1e-4\noptim.clip=0.5"}
        value={values.set}
        onInput={write("set")}
      />
      <small class="soft">
        As <code>section.key=value</code>; <code>penstock config --explain SECTION.KEY</code> tells what one means.
      </small>
    </label>
  );
  switch (wanted.kind) {
    case "scale":
      return (
        <label class="field">
          Ranks
          <input type="number" min={1} step={1} required autoFocus value={values.ranks} onInput={write("ranks")} />
        </label>
      );
    case "change":
      return (
        <>
          {settings(true)}
          <label class="check">
            <input
              type="checkbox"
              checked={values.loss === "1"}
              onChange={(event) => change({ ...values, loss: event.currentTarget.checked ? "1" : "" })}
            />
            Do it even if something of the state is lost
          </label>
        </>
      );
    case "fork":
      return (
        <>
          <label class="field">
            Snapshot
            <input value={values.at} required placeholder="a step, or an id" onInput={write("at")} />
          </label>
          <label class="field">
            New run's name
            <input value={values.name} placeholder="a name is made up" onInput={write("name")} />
          </label>
          {settings(false)}
        </>
      );
    case "silence":
      return (
        <label class="field">
          Hours
          <input type="number" min={0} step="any" autoFocus value={values.hours} onInput={write("hours")} />
          <small class="soft">0: for good.</small>
        </label>
      );
    default:
      return null;
  }
}
