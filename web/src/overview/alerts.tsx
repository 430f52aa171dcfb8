// Open alerts, the worst first: what happened, where, since when, the likely cause, what moved, and what to do. With the token one can say that one
// knows of it, or that nobody wants to hear of its kind.
import { useState } from "preact/hooks";
import { number, type Alert, type Moved, type Overview } from "../api/types";
import type { RunModel } from "../app/run";
import { frozen } from "../api/client";
import { runPath } from "../app/route";
import { ActionDialog, type Wanted } from "../history/action";
import { LevelMark, Prose } from "../ui/bits";
import { A } from "../ui/link";
import { digits, inUnit, many, percent, whole } from "../ui/format";
import { counted, titleOf } from "./verdict";

const PASSED_SHOWN = 6;

export function Alerts({ run, told }: { run: RunModel; told: Overview }) {
  const [wanted, setWanted] = useState<Wanted | null>(null);
  const [all, setAll] = useState(false);
  const open = counted(told.alerts);
  const passed = run.alerts.value.filter((alert) => alert.state === "resolved" || alert.state === "silenced");
  const shown = all ? [...open, ...passed] : open;
  return (
    <section class="card alerts" aria-label="Alerts">
      <header>
        <h2>{open.length ? many(open.length, "open alert") : "No open alerts"}</h2>
        {passed.length > 0 && (
          <button type="button" class="quiet" aria-pressed={all} onClick={() => setAll(!all)}>
            {all ? "only open" : `${passed.length} passed`}
          </button>
        )}
      </header>
      {!shown.length && (
        <p class="soft">Nothing is wrong that the monitor knows of.{told.resolved ? ` ${many(told.resolved, "alert")} came up and passed.` : ""}</p>
      )}
      <ul>
        {shown.map((alert) => (
          <One key={alert.id} alert={alert} run={run} act={setWanted} />
        ))}
      </ul>
      {!all && passed.length > 0 && <Passed alerts={passed} />}
      {wanted && <ActionDialog run={run} wanted={wanted} close={() => setWanted(null)} done={() => run.read()} />}
    </section>
  );
}

/** What was wrong and is no longer, a line each, the newest first. */
function Passed({ alerts }: { alerts: Alert[] }) {
  return (
    <ul class="passed" aria-label="Alerts that passed">
      {alerts.slice(0, PASSED_SHOWN).map((alert) => (
        <li key={alert.id}>
          <span class="soft">{alert.state === "silenced" ? "silenced" : "passed"}</span>
          <span>
            <b>{titleOf(alert)}</b> {alert.what}
          </span>
          <span class="soft">step {whole(alert.since)}</span>
        </li>
      ))}
    </ul>
  );
}

function One({ alert, run, act }: { alert: Alert; run: RunModel; act: (wanted: Wanted) => void }) {
  const span = new URLSearchParams({ q: alert.evidence[0]?.name ?? "", from: String(Math.max(0, alert.since - 100)) });
  return (
    <li class={`alert ${alert.level} ${alert.state}`}>
      <header>
        <LevelMark level={alert.level} />
        <h3>{titleOf(alert)}</h3>
        <span class="soft">
          since step {whole(alert.since)} · {percent(alert.sure, 2)} sure{alert.state !== "open" ? ` · ${alert.state}` : ""}
        </span>
      </header>
      <p class="what">{alert.what}</p>
      <dl>
        <div>
          <dt>Cause</dt>
          <dd>
            <Prose text={alert.cause} />
          </dd>
        </div>
        <div>
          <dt>Do</dt>
          <dd class="advice">
            <Prose text={alert.advice} />
          </dd>
        </div>
        {alert.evidence.length > 0 && (
          <div>
            <dt>Moved</dt>
            <dd>
              <ul class="moved">
                {alert.evidence.slice(0, 4).map((one) => (
                  <li key={`${one.name}${one.rank}`}>
                    <Evidence one={one} />
                  </li>
                ))}
              </ul>
            </dd>
          </div>
        )}
        {alert.also.length > 0 && (
          <div>
            <dt>Also</dt>
            <dd>{alert.also.slice(0, 3).join("; ")}</dd>
          </div>
        )}
        {alert.notes.length > 0 && (
          <div>
            <dt>Note</dt>
            <dd>{alert.notes.join("; ")}</dd>
          </div>
        )}
      </dl>
      <footer>
        {alert.evidence.length > 0 && (
          <A to={`${runPath(run.id, "explore")}?${span}`} class="button quiet">
            Look at it
          </A>
        )}
        {!frozen && alert.state === "open" && (
          <button type="button" class="quiet" onClick={() => act({ kind: "acknowledge", alert })}>
            Acknowledge
          </button>
        )}
        {!frozen && alert.state !== "resolved" && alert.state !== "silenced" && (
          <button type="button" class="quiet" onClick={() => act({ kind: "silence", alert })}>
            Silence its kind
          </button>
        )}
      </footer>
    </li>
  );
}

function Evidence({ one }: { one: Moved }) {
  const value = number(one.value),
    expected = number(one.expected);
  const unit = /^(time|wait)\//.test(one.name) ? "s" : /^(memory|bytes)\//.test(one.name) ? "bytes" : "";
  const apart = Math.abs(number(one.deviations));
  return (
    <>
      <code>{one.name}</code>
      {one.rank !== null && ` of rank ${one.rank}`} <b>{inUnit(value, unit)}</b>{" "}
      <span class="soft">
        not {inUnit(expected, unit)}
        {Number.isFinite(apart) ? `, ${digits(apart, 2)} deviations` : ""}
      </span>
    </>
  );
}
