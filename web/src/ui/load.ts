// A read of the server as a hook: its value, its error, and a way to ask again. Asking again keeps the old value on the screen until the new one comes;
// a read that is no longer wanted is aborted.
import { useCallback, useEffect, useState } from "preact/hooks";

export interface Loaded<T> {
  value: T | null;
  error: Error | null;
  again: () => void;
}

export function useLoad<T>(read: (signal: AbortSignal) => Promise<T>, keys: readonly unknown[]): Loaded<T> {
  const [state, setState] = useState<{ value: T | null; error: Error | null; keys: string }>({ value: null, error: null, keys: "" });
  const [turn, setTurn] = useState(0);
  const key = JSON.stringify(keys);
  useEffect(() => {
    const control = new AbortController();
    read(control.signal).then(
      (value) => {
        if (!control.signal.aborted) setState({ value, error: null, keys: key });
      },
      (error: Error) => {
        if (!control.signal.aborted) setState((before) => ({ value: before.keys === key ? before.value : null, error, keys: key }));
      },
    );
    return () => control.abort();
  }, [key, turn]);
  const again = useCallback(() => setTurn((before) => before + 1), []);
  const fresh = state.keys === key;
  return { value: fresh ? state.value : null, error: fresh ? state.error : null, again };
}

/** Call back every so many milliseconds while the page is in sight. */
export function useEvery(milliseconds: number, call: () => void): void {
  useEffect(() => {
    const timer = setInterval(() => {
      if (!document.hidden) call();
    }, milliseconds);
    return () => clearInterval(timer);
  }, [milliseconds, call]);
}

/** The time in unix seconds, again every so many milliseconds, so that ages stay true. */
export function useNow(milliseconds = 1000): number {
  const [now, setNow] = useState(Date.now() / 1000);
  const tick = useCallback(() => setNow(Date.now() / 1000), []);
  useEvery(milliseconds, tick);
  return now;
}
