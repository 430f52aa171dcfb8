// Who looks: what the server lets this browser do. A token in the address (`#token=…`) is used once and taken out of the address before anything else,
// so that it does not end up in links that are shared.
import { signal } from "@preact/signals";
import { api, frozen, locked } from "../api/client";
import type { Me } from "../api/types";

export const me = signal<Me | null>(null);

export async function refreshMe(): Promise<void> {
  if (frozen) return;
  try {
    me.value = await api.me();
  } catch {
    /* the view that is shown tells of a server that does not answer */
  }
}

export async function login(token: string): Promise<void> {
  await api.login(token.trim());
  locked.value = false;
  await refreshMe();
}

/** Take the token out of the address, log in with it, and ask what is allowed. */
export async function arrive(): Promise<void> {
  if (frozen) return;
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    history.replaceState(null, "", location.pathname + location.search);
    try {
      await login(token);
    } catch {
      /* an old token: reading may be allowed without it */
    }
  }
  await refreshMe();
}
