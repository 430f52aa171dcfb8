// A modal dialog on the browser's own `<dialog>`: focus is kept inside, Escape closes it, and focus goes back where it was.
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { Icon } from "./icon";

export function Dialog({ title, close, children }: { title: string; close: () => void; children: ComponentChildren }) {
  const box = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    const before = document.activeElement as HTMLElement | null;
    box.current?.showModal();
    return () => before?.focus?.();
  }, []);
  const outside = (event: MouseEvent): void => {
    if (event.target === box.current) close();
  };
  return (
    <dialog
      ref={box}
      aria-label={title}
      onCancel={(event: Event) => {
        event.preventDefault();
        close();
      }}
      onMouseDown={outside}
    >
      <div class="dialog">
        <header>
          <h2>{title}</h2>
          <button type="button" class="quiet square" aria-label="Close" onClick={close}>
            <Icon name="close" />
          </button>
        </header>
        {children}
      </div>
    </dialog>
  );
}
