// The inside of the machine: one of its views at a time, named in the address.
import type { RunModel } from "../app/run";
import { query, setQuery } from "../app/route";
import { VIEWS } from "./views";

export function InsideView({ run }: { run: RunModel }) {
  const asked = query.value.get("view");
  const shown = VIEWS.find((one) => one.id === asked) ?? VIEWS[0]!;
  return (
    <div class="inside">
      {VIEWS.length > 1 && (
        <div class="tools">
          <div class="segments" role="group" aria-label="View">
            {VIEWS.map((one) => (
              <button key={one.id} type="button" aria-pressed={one === shown} onClick={() => setQuery((now) => now.set("view", one.id))}>
                {one.title}
              </button>
            ))}
          </div>
        </div>
      )}
      <shown.view run={run} />
    </div>
  );
}
