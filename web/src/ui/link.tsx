// A link that stays in the page; with a modifier key, or the middle button, the browser opens it as any other.
import type { ComponentChildren } from "preact";
import { go, href } from "../app/route";
import { frozen } from "../api/client";

interface Props {
  to: string;
  class?: string;
  current?: boolean;
  label?: string;
  title?: string;
  children: ComponentChildren;
}

export function A({ to, class: look, current, label, title, children }: Props) {
  const click = (event: MouseEvent): void => {
    if (frozen || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    go(to);
  };
  return (
    <a href={href(to)} class={look} aria-current={current ? "page" : undefined} aria-label={label} title={title} onClick={click}>
      {children}
    </a>
  );
}
