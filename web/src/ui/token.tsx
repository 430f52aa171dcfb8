// The token: asked for where it is needed, sent once, and kept by the browser as a cookie that no script reads.
import { useState } from "preact/hooks";
import { login } from "../app/me";

export function Token({ told, close, done }: { told: string; close?: () => void; done: () => void }) {
  const [token, setToken] = useState("");
  const [error, setError] = useState("");
  const send = async (event: Event): Promise<void> => {
    event.preventDefault();
    try {
      await login(token);
      done();
    } catch (problem) {
      setError((problem as Error).message);
    }
  };
  return (
    <form onSubmit={send}>
      <p>{told} The command that started the dashboard printed it.</p>
      <label class="field">
        Token
        <input type="password" autoComplete="off" autoFocus required value={token} onInput={(event) => setToken(event.currentTarget.value)} />
      </label>
      {error && (
        <p class="bad-text" role="alert">
          {error}
        </p>
      )}
      <footer>
        {close && (
          <button type="button" onClick={close}>
            Cancel
          </button>
        )}
        <button type="submit" class="main" disabled={!token}>
          Log in
        </button>
      </footer>
    </form>
  );
}
