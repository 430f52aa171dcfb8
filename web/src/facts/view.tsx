// What a run is: who it is and what it ran on, its layout, every setting it was made with, what came out, and what it wrote.
import { useMemo, useState } from "preact/hooks";
import { api } from "../api/client";
import { number, type RunFacts } from "../api/types";
import type { RunModel } from "../app/run";
import { colour, painted } from "../app/theme";
import { Lines } from "../charts/lines";
import { Fact, Failed, Waiting } from "../ui/bits";
import { Icon } from "../ui/icon";
import { useLoad } from "../ui/load";
import { clock, digits, plain, si, whole, words } from "../ui/format";

export function FactsView({ run }: { run: RunModel }) {
  const { value, error, again } = useLoad((signal) => api.facts(run.id, signal), [run.id]);
  if (error) return <Failed error={error} again={again} />;
  if (!value) return <Waiting what="the run's facts" />;
  return (
    <div class="facts">
      <Identity facts={value} />
      <Evaluations evals={value.evals} />
      <Settings settings={value.settings} defaults={value.defaults} />
      <Samples samples={value.samples} />
    </div>
  );
}

function Identity({ facts }: { facts: RunFacts }) {
  const { row, identity, layout, summary } = facts;
  const { command, run: _, created: __, ...others } = identity;
  const axes = Object.entries(layout?.axes ?? {}).filter(([, size]) => size > 1);
  return (
    <section class="card" aria-label="Identity">
      <h2>{row.name}</h2>
      {typeof command === "string" && (
        <pre class="output" tabIndex={0}>
          {command}
        </pre>
      )}
      <dl class="pairs">
        <Fact name="Folder">{row.id}</Fact>
        <Fact name="Begun">{clock(row.created ?? NaN)}</Fact>
        <Fact name="Parameters">{si(row.parameters ?? NaN)}</Fact>
        <Fact name="Layout">
          {layout?.text ?? `${whole(layout?.ranks ?? row.ranks ?? NaN)} ranks`}
          {axes.length > 0 && <small class="soft"> {axes.map(([axis, size]) => `${axis} ${size}`).join(" × ")}</small>}
        </Fact>
        {Object.entries(others)
          .flatMap(([name, value]) => flat(name, value))
          .map(([name, value]) => (
            <Fact key={name} name={words(name)}>
              {plain(value)}
            </Fact>
          ))}
      </dl>
      {summary && (
        <details>
          <summary>Summary</summary>
          <dl class="pairs">
            {Object.entries(summary)
              .filter(([name]) => name !== "evals" && name !== "sample")
              .flatMap(([name, value]) => flat(name, value))
              .map(([name, value]) => (
                <Fact key={name} name={words(name)}>
                  {plain(value)}
                </Fact>
              ))}
          </dl>
        </details>
      )}
    </section>
  );
}

function flat(name: string, value: unknown, between = " · "): [string, unknown][] {
  if (value && typeof value === "object" && !Array.isArray(value))
    return Object.entries(value).flatMap(([inner, one]) => flat(`${name}${between}${inner}`, one, between));
  return [[name, value]];
}

/** The validation loss over the whole run, which is measured seldom and so is no metric of every step. */
function Evaluations({ evals }: { evals: RunFacts["evals"] }) {
  const paint = painted.value;
  const known = useMemo(() => evals.filter((one) => Number.isFinite(number(one.val_loss))), [evals]);
  const lines = useMemo(
    () => [{ name: "validation loss", x: known.map((one) => one.step), y: known.map((one) => number(one.val_loss)), colour: colour("--c0") }],
    [known, paint],
  );
  const last = known.at(-1);
  if (!last) return null;
  const best = known.reduce((a, b) => (number(b.val_loss) < number(a.val_loss) ? b : a));
  const says = (one: RunFacts["evals"][number]): string => `${digits(number(one.val_loss), 5)} nats after step ${whole(one.step)}`;
  return (
    <section class="card" aria-label="Evaluations">
      <h2>Validation loss</h2>
      {known.length > 1 && <Lines lines={lines} unit="nats" time={false} log={false} label={`Validation loss by step: last ${says(last)}`} />}
      <dl class="pairs">
        <Fact name="Last">{says(last)}</Fact>
        <Fact name="Lowest">{says(best)}</Fact>
        <Fact name="Evaluations">{whole(evals.length)}</Fact>
      </dl>
    </section>
  );
}

function Settings({ settings, defaults }: { settings: RunFacts["settings"]; defaults: RunFacts["defaults"] }) {
  const [search, setSearch] = useState("");
  const asked = search.toLowerCase();
  const sections = Object.entries(settings)
    .map(
      ([section, values]) =>
        [
          section,
          Object.entries(values)
            .flatMap(([key, value]) => flat(key, value, "."))
            .filter(([key, value]) => `${section}.${key} ${plain(value)}`.toLowerCase().includes(asked)),
        ] as const,
    )
    .filter(([, values]) => values.length);
  return (
    <section class="card" aria-label="Settings">
      <header>
        <h2>Settings</h2>
        <label class="search">
          <Icon name="search" />
          <input
            type="search"
            placeholder="Search settings"
            aria-label="Search settings"
            value={search}
            onInput={(event) => setSearch(event.currentTarget.value)}
          />
        </label>
      </header>
      <div class="sections">
        {sections.map(([section, values]) => (
          <div key={section}>
            <h3>{section}</h3>
            <dl>
              {values.map(([key, value]) => {
                const name = `${section}.${key}`;
                return (
                  <Fact key={key} name={key}>
                    {name in defaults ? (
                      <>
                        <b>{plain(value)}</b> <small class="soft">not {plain(defaults[name])}</small>
                      </>
                    ) : (
                      plain(value)
                    )}
                  </Fact>
                );
              })}
            </dl>
          </div>
        ))}
      </div>
      {!sections.length && <p class="soft">No setting fits “{search}”.</p>}
    </section>
  );
}

function Samples({ samples }: { samples: RunFacts["samples"] }) {
  if (!samples.length) return null;
  return (
    <section class="card" aria-label="Samples">
      <h2>What it wrote</h2>
      <div class="samples">
        {[...samples].reverse().map((sample, index) => (
          <figure key={index}>
            <figcaption class="soft">step {whole(sample.step)}</figcaption>
            <pre tabIndex={0}>
              {sample.prompt && <mark>{sample.prompt}</mark>}
              {sample.text}
            </pre>
          </figure>
        ))}
      </div>
    </section>
  );
}
