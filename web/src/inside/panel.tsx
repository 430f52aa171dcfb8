// The frame of a view of the inside: what it shows, in a sentence, and its controls.
import type { ComponentChildren } from "preact";

export function Panel({
  title,
  about,
  controls,
  children,
}: {
  title: string;
  about?: string;
  controls?: ComponentChildren;
  children: ComponentChildren;
}) {
  return (
    <section class="card inside-panel" aria-label={title}>
      <header>
        <h2>{title}</h2>
        {controls}
      </header>
      {about && <p class="soft">{about}</p>}
      {children}
    </section>
  );
}

export function Choice<T extends string>({
  label,
  value,
  options,
  choose,
}: {
  label: string;
  value: T;
  options: readonly (readonly [T, string])[];
  choose: (value: T) => void;
}) {
  return (
    <div class="segments" role="group" aria-label={label}>
      {options.map(([id, name]) => (
        <button key={id} type="button" aria-pressed={id === value} onClick={() => choose(id)}>
          {name}
        </button>
      ))}
    </div>
  );
}

export function Damage({ told }: { told: string[] }) {
  return told.length ? (
    <p class="bad-text" role="alert">
      {told.join("; ")}
    </p>
  ) : null;
}

/** A table that may be wider than the screen: it scrolls by itself, by keys too. */
export const Wide = ({ label, children }: { label: string; children: ComponentChildren }) => (
  <div class="scroll" tabIndex={0} role="region" aria-label={label}>
    {children}
  </div>
);

export interface Key {
  name: string;
  look: number;
}
/** What colours stand for. */
export function Keys({ of }: { of: Key[] }) {
  return (
    <ul class="legend">
      {of.map((one) => (
        <li key={one.name}>
          <i class={`swatch tall p${one.look}`} />
          {one.name}
        </li>
      ))}
    </ul>
  );
}
