// The overview: one large word, where the run is, how fast, what it cost, which ranks live, and what is wrong with cause and advice. It is laid out to
// be read from two metres; sizes follow the screen (`styles/overview.css`), and every box keeps its height while its number changes.
import type { ComponentChildren } from "preact";
import { number, type Line, type Overview } from "../api/types";
import type { RunModel } from "../app/run";
import { Spark } from "../charts/spark";
import { Icon } from "../ui/icon";
import { useNow } from "../ui/load";
import { Prose, Waiting } from "../ui/bits";
import { ago, amount, digits, inUnit, moment, NONE, percent, seconds, si, told as figure, whole } from "../ui/format";
import { Alerts } from "./alerts";
import { Events } from "./events";
import { Ranks } from "./ranks";
import { verdict } from "./verdict";

export function OverviewView({ run }: { run: RunModel }) {
  const told = run.overview.value;
  const now = useNow(1000) - run.ahead.value;
  if (!told) return <Waiting what="the run" />;
  const stepSeconds = number(told.metrics["time/step"]?.last);
  const silentFor = told.state === "running" && run.live.up.value ? Math.max(0, now - lastStepTime(run, told)) : 0;
  const says = verdict(told, silentFor, stepSeconds || 1);
  const share = told.steps > 0 ? Math.min(1, told.step / told.steps) : 0;
  return (
    <div class="overview">
      <section class={`hero ${says.tone}`} aria-label="How the run stands">
        <div class="verdict" role="status">
          <Icon name={says.tone === "good" ? "check" : says.tone === "idle" ? "notice" : says.tone} />
          <div>
            <h1>{says.word}</h1>
            <p>
              <Prose text={says.detail} />
            </p>
          </div>
        </div>
        <div class="progress">
          <div class="progress-words">
            <span>
              <b>step {whole(told.step)}</b> of {told.steps ? whole(told.steps) : NONE}
            </span>
            <span>{percent(share)}</span>
            <span class="eta">{eta(told, now)}</span>
          </div>
          <progress max={1} value={share} aria-label={`step ${told.step} of ${told.steps}`} />
        </div>
      </section>
      <section class="tiles" aria-label="Main figures">
        <Tile title="Loss" value={figure(told.metrics["loss/total"]?.last ?? told.loss)} note={lossNote(told)} line={told.metrics["loss/total"]} />
        <Tile
          title="Speed"
          value={si(number(told.tokens_per_s))}
          unit="tokens/s"
          note={`${percent(number(told.mfu))} of the hardware's peak`}
          line={told.metrics["cost/tokens_per_s"]}
        />
        <Tile title="Tokens" value={si(number(told.tokens))} note={`a step takes ${seconds(stepSeconds)}`} />
        <Cost told={told} />
        <Ranks told={told} />
      </section>
      <div class="overview-columns">
        <Alerts run={run} told={told} />
        <Events run={run} told={told} />
      </div>
      <Sparks told={told} />
    </div>
  );
}

let seen = { run: "", step: -1, at: 0 };
/** When the newest step was first told of (seconds of the server's clock). */
function lastStepTime(run: RunModel, told: Overview): number {
  if (seen.run !== run.id || seen.step !== told.step) seen = { run: run.id, step: told.step, at: told.time };
  return seen.at;
}

function eta(told: Overview, now: number): string {
  const left = number(told.eta_s),
    newest = told.events[0];
  if (told.state !== "running") return newest ? `last event ${ago(moment(newest.time), now)}` : "";
  return Number.isFinite(left) ? `${seconds(left)} left` : "time left not known yet";
}

function lossNote(told: Overview): string {
  const checked = number(told.validation?.loss),
    lowest = number(told.validation?.lowest);
  if (Number.isFinite(checked)) return `validation ${digits(checked)}${lowest < checked ? ` · lowest ${digits(lowest)}` : ""}`;
  const values = (told.metrics["loss/total"]?.values ?? []).map(number).filter(Number.isFinite);
  return values.length ? `lowest ${digits(Math.min(...values))} · highest ${digits(Math.max(...values))}` : "nothing measured yet";
}

interface TileProps {
  title: string;
  value: string;
  unit?: string;
  note: string;
  line?: Line | undefined;
  children?: ComponentChildren;
}

function Tile({ title, value, unit, note, line }: TileProps) {
  return (
    <div class="tile">
      <h2>{title}</h2>
      <p class="figure">
        {value}
        {unit && <small> {unit}</small>}
      </p>
      <p class="note">{note}</p>
      {line ? <Spark values={line.values} label={`${title}: last ${inUnit(number(line.last), line.unit)}`} /> : <div class="spark" />}
    </div>
  );
}

function Cost({ told }: { told: Overview }) {
  const hours = number(told.cost?.device_hours),
    spent = number(told.cost?.seconds),
    money = number(told.cost?.money),
    end = number(told.cost?.money_at_end);
  const paid = Number.isFinite(money);
  return (
    <div class="tile">
      <h2>Cost so far</h2>
      <p class="figure">
        {paid ? amount(money) : digits(hours, 3)}
        <small> {paid ? told.cost?.currency : "device-hours"}</small>
      </p>
      <p class="note">
        {Number.isFinite(end) ? `${amount(end)} at the end · ` : ""}
        {paid ? `${digits(hours, 3)} device-hours` : `${seconds(spent)} of run time`}
      </p>
      <div class="spark" />
    </div>
  );
}

/** The course of each main metric, with the rank that is worst. */
function Sparks({ told }: { told: Overview }) {
  const lines = Object.entries(told.metrics);
  if (!lines.length) return null;
  return (
    <section class="card sparks" aria-label="Main metrics">
      <h2>Main metrics</h2>
      <ul>
        {lines.map(([name, line]) => {
          const [low, high] = [number(line.low), number(line.high)];
          const between =
            Number.isFinite(high) && high !== low
              ? `${inUnit(low, line.unit)} – ${inUnit(high, line.unit)}, highest on rank ${line.high_rank}`
              : "the same on all ranks";
          return (
            <li key={name} title={name}>
              <div>
                <span class="soft">{line.title.replace(/, s$/, "")}</span>
                <b>{figure(line.last, line.unit)}</b>
              </div>
              <Spark values={line.values} label={`${line.title}: last ${inUnit(number(line.last), line.unit)}; ${between}`} />
              <small class="soft">{between}</small>
            </li>
          );
        })}
      </ul>
    </section>
  );
}
