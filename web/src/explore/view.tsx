// Explore: hundreds of metrics as panels by group, one axis and one cross-hair for all.
import { computed, useSignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { api } from "../api/client";
import type { Metric } from "../api/types";
import type { RunModel } from "../app/run";
import { Message, Waiting } from "../ui/bits";
import { Icon } from "../ui/icon";
import { useLoad } from "../ui/load";
import { capital, whole, words } from "../ui/format";
import { Clock } from "./clock";
import type { Shared } from "./context";
import { marksOf } from "./marks";
import { Panel } from "./panel";
import { search } from "./search";
import { Sight } from "./sight";
import { arriveExplore, change, leaveExplore, range, view } from "./state";
import { Stage } from "./stage";
import { Store } from "./store";
import { Toolbar } from "./toolbar";

export function ExploreView({ run }: { run: RunModel }) {
  const shared = useShared(run);
  const metrics = run.metrics.value;
  const asked = view.value.search;
  const kept = useMemo(() => (metrics ? search(metrics, asked) : []), [metrics, asked]);
  const error = shared.store.error.value;
  return (
    <div class="explore">
      <Toolbar shared={shared} found={kept.length} all={metrics?.length ?? 0} />
      {error && (
        <p class="bad-text banner" role="alert">
          {error.message}
        </p>
      )}
      {metrics === null ? (
        <Waiting what="the run's metrics" />
      ) : !metrics.length ? (
        <Message title="Nothing measured yet">
          <p>Metrics appear here with the first step.</p>
        </Message>
      ) : !kept.length ? (
        <Message title="No metric fits">
          <p>
            Nothing fits “{asked}”, in name or meaning.{" "}
            <button type="button" onClick={() => change({ search: "" })}>
              Show all
            </button>
          </p>
        </Message>
      ) : (
        <Groups metrics={kept} shared={shared} searched={asked !== ""} />
      )}
      <Tip shared={shared} />
    </div>
  );
}

function useShared(run: RunModel): Shared {
  const tip = useSignal<{ text: string; left: number; top: number } | null>(null);
  const { value: told, again } = useLoad((signal) => api.history(run.id, signal), [run.id]);
  const newest = run.overview.value?.events[0]?.seq ?? 0;
  useEffect(() => {
    if (told && newest > (told.events.at(-1)?.seq ?? 0)) again();
  }, [newest]);
  const events = useSignal(told?.events ?? []);
  if (told && events.peek() !== told.events) events.value = told.events;
  const shared = useMemo((): Shared => {
    arriveExplore();
    const store = new Store(run);
    const sight = new Sight((names) => store.see(names));
    const clock = computed(() => (store.base.value ? Clock.of(store.base.value, view.value.axis) : null));
    const span = computed((): [number, number] | null => {
      const base = store.base.value;
      if (!clock.value || !base) return null;
      const first = base.step[0]!,
        last = Math.max(base.step[base.rows - 1]!, first + 1),
        at = range.value;
      return [clock.value.toX(Math.max(at?.from ?? first, 0)), clock.value.toX(Math.min(at?.to ?? last, last))];
    });
    const alerts = computed(() => (run.alerts.value.length ? run.alerts.value : (run.overview.value?.alerts ?? [])));
    return {
      run: run.overview.peek()?.run ?? run.id,
      id: run.id,
      store,
      sight,
      stage: new Stage(),
      clock,
      span,
      marks: computed(() => marksOf(alerts.value, events.value)),
      tip,
    };
  }, [run]);
  useEffect(() => {
    const back = (): void => arriveExplore();
    window.addEventListener("popstate", back);
    return () => {
      window.removeEventListener("popstate", back);
      leaveExplore();
      shared.store.close();
      shared.sight.close();
    };
  }, [shared]);
  return shared;
}

/** Groups that people look at first; the others follow in their order. */
const FIRST = ["loss", "eval", "cost", "grad_norm", "time", "wait", "memory", "optim"];

/** So few panels share the width of the page. */
const FEW = 2;

function Groups({ metrics, shared, searched }: { metrics: Metric[]; shared: Shared; searched: boolean }) {
  const { pins, closed } = view.value;
  const few = metrics.length <= FEW;
  const pinned = pins.flatMap((name) => metrics.find((metric) => metric.name === name) ?? []);
  const groups = new Map<string, Metric[]>(searched ? [] : FIRST.map((name) => [name, []]));
  for (const metric of metrics) {
    const group = groups.get(metric.group) ?? [];
    group.push(metric);
    groups.set(metric.group, group);
  }
  const toggle = (name: string): void => change({ closed: closed.includes(name) ? closed.filter((one) => one !== name) : [...closed, name] });
  return (
    <>
      {pinned.length > 0 && <Group name="pinned" metrics={pinned} shared={shared} open toggle={() => undefined} pins={pins} few={few} fixed />}
      {[...groups]
        .filter(([, members]) => members.length)
        .map(([name, members]) => (
          <Group
            key={name}
            name={name}
            metrics={members}
            shared={shared}
            open={searched || !closed.includes(name)}
            toggle={() => toggle(name)}
            pins={pins}
            few={few}
          />
        ))}
    </>
  );
}

interface GroupProps {
  name: string;
  metrics: Metric[];
  shared: Shared;
  open: boolean;
  toggle: () => void;
  pins: string[];
  few: boolean;
  fixed?: boolean;
}

function Group({ name, metrics, shared, open, toggle, pins, few, fixed }: GroupProps) {
  const title = (
    <>
      {capital(words(name))}
      <span class="soft count">{whole(metrics.length)}</span>
    </>
  );
  return (
    <section class="group" aria-label={name}>
      <h2>
        {fixed ? (
          <span class="group-name">
            <Icon name="pin" />
            {title}
          </span>
        ) : (
          <button type="button" class="group-name" aria-expanded={open} onClick={toggle}>
            <Icon name={open ? "down" : "right"} />
            {title}
          </button>
        )}
      </h2>
      {open && (
        <div class={`panels ${few ? "few" : ""}`}>
          {metrics.map((metric) => (
            <Panel key={metric.name} metric={metric} shared={shared} pinned={pins.includes(metric.name)} />
          ))}
        </div>
      )}
    </section>
  );
}

/** What is told of the mark under the pointer. */
function Tip({ shared }: { shared: Shared }) {
  const told = shared.tip.value;
  if (!told) return null;
  return (
    <div class="tip" role="tooltip" style={{ left: `${Math.max(8, Math.min(told.left + 12, innerWidth - 340))}px`, top: `${told.top + 8}px` }}>
      {told.text}
    </div>
  );
}
