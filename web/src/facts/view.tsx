// What a run is: who it is and what it ran on, its layout, every setting it was made with, what came out, and what it wrote.
import { useState } from "preact/hooks";
import { api } from "../api/client";
import type { RunFacts } from "../api/types";
import type { RunModel } from "../app/run";
import { Fact, Failed, Waiting } from "../ui/bits";
import { Icon } from "../ui/icon";
import { useLoad } from "../ui/load";
import { clock, plain, si, whole, words } from "../ui/format";

export function FactsView({ run }: { run: RunModel }) {
  const { value, error, again } = useLoad((signal) => api.facts(run.id, signal), [run.id]);
  if (error) return <Failed error={error} again={again} />;
  if (!value) return <Waiting what="the run's facts" />;
  return (
    <div class="facts">
      <Identity facts={value} />
      <Settings settings={value.settings} />
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
            {Object.entries(summary).map(([name, value]) => (
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

function flat(name: string, value: unknown): [string, unknown][] {
  if (value && typeof value === "object" && !Array.isArray(value))
    return Object.entries(value).flatMap(([inner, one]) => flat(`${name} · ${inner}`, one));
  return [[name, value]];
}

function Settings({ settings }: { settings: RunFacts["settings"] }) {
  const [search, setSearch] = useState("");
  const asked = search.toLowerCase();
  const sections = Object.entries(settings)
    .map(
      ([section, values]) =>
        [section, Object.entries(values).filter(([key, value]) => `${section}.${key} ${plain(value)}`.toLowerCase().includes(asked))] as const,
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
              {values.map(([key, value]) => (
                <Fact key={key} name={key}>
                  {plain(value)}
                </Fact>
              ))}
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
            <pre tabIndex={0}>{sample.text}</pre>
          </figure>
        ))}
      </div>
    </section>
  );
}
