// The frame around every view: where one is, the run's tabs, whether what is shown is live, theme and help.
import { useEffect } from "preact/hooks";
import { frozen, locked } from "../api/client";
import { type Tab, TABS, go, route, runPath } from "./route";
import { helping, Shortcuts, useKeys } from "./keys";
import { current, RunModel } from "./run";
import { me } from "./me";
import { nextTheme, theme } from "./theme";
import { A } from "../ui/link";
import { Icon } from "../ui/icon";
import { Message, StateBadge } from "../ui/bits";
import { Token } from "../ui/token";
import { sentence } from "../ui/format";
import { LiveMark } from "./live-mark";
import { RunsView } from "../runs/view";
import { OverviewView } from "../overview/view";
import { ExploreView } from "../explore/view";
import { HistoryView } from "../history/view";
import { CompareView } from "../compare/view";
import { FactsView } from "../facts/view";
import { InsideView } from "../inside/view";

const TITLES: Record<Tab, string> = { overview: "Overview", explore: "Explore", inside: "Inside", history: "History", facts: "Facts" };
const KEYS: Record<Tab, string> = { overview: "g o", explore: "g e", inside: "g i", history: "g h", facts: "g f" };
const THEMES = { system: "as the system", light: "light", dark: "dark" } as const;

export function Shell() {
  const at = route.value;
  useRun(at.page === "run" ? at.id : null);
  useKeys([
    {
      keys: "?",
      what: "this list",
      act: () => {
        helping.value = true;
      },
    },
    ...(frozen ? [] : [{ keys: "g r", what: "all runs", act: () => go("/") }]),
    { keys: "t", what: "theme: system, light, dark", act: nextTheme },
  ]);
  return (
    <>
      <a
        class="skip"
        href="#main"
        onClick={(event) => {
          event.preventDefault();
          document.getElementById("main")?.focus();
        }}
      >
        Skip to content
      </a>
      <header class="bar">
        <Brand />
        {at.page === "run" && <RunHead id={at.id} tab={at.tab} />}
        {at.page === "compare" && <h1 class="crumb">Compare</h1>}
        <div class="bar-end">
          {at.page === "run" && current.value && !(current.value.error.value && !current.value.overview.value) && <LiveMark run={current.value} />}
          {!frozen && me.value?.may_act && (
            <span class="chip soft-chip" title="This browser may act on runs">
              may act
            </span>
          )}
          <button
            type="button"
            class="quiet square"
            aria-label={`Theme: ${THEMES[theme.value]}`}
            title={`Theme: ${THEMES[theme.value]}`}
            onClick={nextTheme}
          >
            <Icon name={theme.value === "system" ? "system" : theme.value === "light" ? "sun" : "moon"} />
          </button>
          <button
            type="button"
            class="quiet square"
            aria-label="Keyboard shortcuts"
            title="Keyboard shortcuts (?)"
            onClick={() => {
              helping.value = true;
            }}
          >
            <Icon name="help" />
          </button>
        </div>
      </header>
      <main id="main" tabIndex={-1}>
        <View />
      </main>
      <Shortcuts />
    </>
  );
}

function Brand() {
  const inside = (
    <>
      <Icon name="logo" />
      <span>Penstock</span>
    </>
  );
  return frozen ? (
    <span class="brand">{inside}</span>
  ) : (
    <A to="/" class="brand" label="Penstock: all runs">
      {inside}
    </A>
  );
}

function RunHead({ id, tab }: { id: string; tab: Tab }) {
  const overview = current.value?.overview.value;
  const name = overview?.run ?? id;
  useEffect(() => {
    document.title = `${name} · ${TITLES[tab]} · Penstock`;
  }, [name, tab]);
  useKeys(
    TABS.map((one) => ({ keys: KEYS[one], what: TITLES[one].toLowerCase(), act: () => go(runPath(id, one)) })),
    [id],
  );
  return (
    <>
      {tab === "overview" ? (
        <span class="crumb" title={name}>
          {name}
        </span>
      ) : (
        <h1 class="crumb" title={name}>
          {name}
          <span class="sr">: {TITLES[tab]}</span>
        </h1>
      )}
      <span class="bar-state">{overview && <StateBadge state={overview.state} />}</span>
      <nav class="tabs" aria-label="Views of the run">
        {TABS.map((one) => (
          <A key={one} to={runPath(id, one)} current={one === tab} title={`${TITLES[one]} (${KEYS[one]})`}>
            {TITLES[one]}
          </A>
        ))}
      </nav>
    </>
  );
}

function useRun(id: string | null): void {
  useEffect(() => {
    const run = id === null ? null : new RunModel(id);
    current.value = run;
    return () => {
      run?.close();
      current.value = null;
    };
  }, [id]);
}

function View() {
  const at = route.value;
  const run = current.value;
  if (locked.value)
    return (
      <Message title="This dashboard wants its token">
        <Token told="It listens on more than this machine, so looking needs the token, too." done={() => current.value?.read()} />
      </Message>
    );
  if (at.page === "runs") return <RunsView />;
  if (at.page === "compare") return <CompareView ids={at.ids} />;
  if (at.page === "nowhere")
    return (
      <Message title="There is no such page">
        <p>
          <A to="/">All runs</A>
        </p>
      </Message>
    );
  if (!run || run.id !== at.id) return null;
  const failed = run.error.value;
  if (failed && !run.overview.value) {
    return (
      <Message title="This run cannot be read" kind="error">
        <p>{sentence(failed.message)}</p>
        <p>
          <button type="button" onClick={() => run.read()}>
            Try again
          </button>{" "}
          <A to="/">All runs</A>
        </p>
      </Message>
    );
  }
  switch (at.tab) {
    case "overview":
      return <OverviewView run={run} />;
    case "explore":
      return <ExploreView key={run.id} run={run} />;
    case "history":
      return <HistoryView run={run} />;
    case "inside":
      return <InsideView run={run} />;
    case "facts":
      return <FactsView run={run} />;
  }
}
