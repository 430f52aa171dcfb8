// What differs between two snapshots: settings and other recorded facts before and after, the code that ran, and which tensors are not the same.
import { api } from "../api/client";
import type { Checkout, Differences, TensorKind } from "../api/types";
import { capital, many, NONE, plain, whole, words } from "../ui/format";
import { Waiting } from "../ui/bits";
import { useLoad } from "../ui/load";
import { Beside } from "./beside";

const KINDS: readonly [TensorKind, string][] = [
  ["differ", "differ"],
  ["reshaped", "of another shape or type"],
  ["only_before", "only before"],
  ["only_after", "only after"],
  ["equal", "the same, bit for bit"],
];

export function Differ({ id, before, after }: { id: string; before: string; after: string }) {
  const { value: told, error } = useLoad((signal) => api.diff(id, before, after, signal), [id, before, after]);
  if (error)
    return (
      <p class="bad-text" role="alert">
        {error.message}
      </p>
    );
  if (!told) return <Waiting what="what differs" />;
  return (
    <div class="differ scroll" role="group" aria-label="What differs" tabIndex={0}>
      {told.parts.map(({ part, count, values }) => (
        <section key={part} aria-label={part}>
          <h3>{part === "config" ? "Settings" : capital(words(part))}</h3>
          <Table rows={values.map(({ key, values: [x, y] }) => [key, plain(x), plain(y)])} />
          {count > values.length && <p class="soft">and {whole(count - values.length)} more</p>}
        </section>
      ))}
      {!told.parts.some(({ part }) => part === "config") && <p>All settings are the same.</p>}
      <Code told={told} />
      <h3>Tensors</h3>
      <ul>
        {KINDS.filter(([kind]) => told.tensors[kind].count).map(([kind, words]) => (
          <li key={kind}>
            <Names words={`${whole(told.tensors[kind].count)} ${words}`} {...told.tensors[kind]} />
          </li>
        ))}
      </ul>
    </div>
  );
}

function Code({ told }: { told: Differences }) {
  const other = told.code.filter((one) => !one.same);
  if (!other.length) return <p>{told.code.length ? "The same code ran." : "Nothing is recorded of the code that ran."}</p>;
  return (
    <section aria-label="code">
      <h3>Code</h3>
      <Table rows={other.map((one) => [one.name, checkout(one.before), checkout(one.after)])} />
    </section>
  );
}

function checkout(told: Checkout | null): string {
  if (!told) return NONE;
  const changed = told.changed?.length ?? 0;
  return `${told.commit?.slice(0, 12) ?? "no commit"} on ${told.branch ?? "no branch"}${changed ? `, ${many(changed, "file")} changed` : ""}`;
}

function Table({ rows }: { rows: [string, string, string][] }) {
  return <Beside columns={["before", "after"]} rows={rows.map(([key, ...cells]) => ({ key, title: <code>{key}</code>, cells }))} />;
}

function Names({ words, count, names }: { words: string; count: number; names: string[] }) {
  if (!names.length) return <>{words}</>;
  return (
    <details>
      <summary>{words}</summary>
      <p class="soft">
        {names.join(", ")}
        {count > names.length && ` and ${whole(count - names.length)} more`}
      </p>
    </details>
  );
}
