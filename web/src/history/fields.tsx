// What an action needs to know besides the run: the fields of its form, and the arguments of the request they become.
import type { Wanted, Kind } from "./action";

export type Values = Record<string, string>;

/** What the fields hold when the dialog opens. */
export function filled(wanted: Wanted): Values {
  return { at: wanted.at ?? "", ranks: "", set: "", run_dir: "", hours: "1" };
}

export const nothingToFill = (kind: Kind): boolean => kind === "snapshot" || kind === "stop" || kind === "acknowledge";

/** The arguments that the server takes. */
export function asked(wanted: Wanted, values: Values): Record<string, unknown> {
  const sets = (values.set ?? "").split("\n").map((line) => line.trim()).filter(Boolean);
  switch (wanted.kind) {
    case "scale": return { ranks: Number(values.ranks) };
    case "change": return { set: sets };
    case "fork": return { ...(values.at ? { at: values.at } : {}), ...(values.run_dir ? { run_dir: values.run_dir } : {}), set: sets };
    case "acknowledge": return { alert: wanted.alert?.id };
    case "silence": return { alert_kind: wanted.alert?.kind, hours: Number(values.hours) };
    default: return {};
  }
}

interface Props { wanted: Wanted; values: Values; change: (values: Values) => void }

export function Fields({ wanted, values, change }: Props) {
  const write = (name: string) => (event: Event): void => change({ ...values, [name]: (event.currentTarget as HTMLInputElement).value });
  const settings = (required: boolean) => (
    <label class="field">Settings, one a line
      <textarea rows={4} required={required} spellcheck={false} placeholder={"optim.lr=1e-4\noptim.clip=0.5"} value={values.set} onInput={write("set")} />
      <small class="soft">As <code>section.key=value</code>; <code>penstock config --explain SECTION.KEY</code> tells what one means.</small>
    </label>
  );
  switch (wanted.kind) {
    case "scale":
      return <label class="field">Ranks<input type="number" min={1} step={1} required autoFocus value={values.ranks} onInput={write("ranks")} /></label>;
    case "change": return settings(true);
    case "fork":
      return (
        <>
          <label class="field">Snapshot<input value={values.at} placeholder="the newest; or a step, or an id" onInput={write("at")} /></label>
          <label class="field">New run's folder<input value={values.run_dir} placeholder="a name is made up" onInput={write("run_dir")} /></label>
          {settings(false)}
        </>
      );
    case "silence":
      return <label class="field">Hours<input type="number" min={0} step="any" autoFocus value={values.hours} onInput={write("hours")} /><small class="soft">0: for good.</small></label>;
    default: return null;
  }
}
