// The last events of the run's history, newest first.
import type { Overview } from "../api/types";
import type { RunModel } from "../app/run";
import { runPath } from "../app/route";
import { A } from "../ui/link";
import { useNow } from "../ui/load";
import { ago, clock, moment, whole, words } from "../ui/format";

export function Events({ run, told }: { run: RunModel; told: Overview }) {
  const now = useNow(10_000);
  return (
    <section class="card events" aria-label="Last events">
      <header>
        <h2>Last events</h2>
        <A to={runPath(run.id, "history")} class="button quiet">
          History
        </A>
      </header>
      {!told.events.length && <p class="soft">Nothing has happened yet.</p>}
      <ol>
        {told.events.slice(0, 12).map((event) => (
          <li key={`${event.seq}${event.text}`}>
            <span class={`kind ${event.kind}`}>{words(event.kind)}</span>
            <span class="event-text">{event.text}</span>
            <span class="soft when" title={clock(moment(event.time))}>
              {event.step !== null && `step ${whole(event.step)} · `}
              {ago(moment(event.time), now)}
            </span>
          </li>
        ))}
      </ol>
    </section>
  );
}
