"""The first that a request meets and the last that an answer does: names, origins, sizes, tokens, and the headers that keep a browser strict.

It stands before the application (ASGI), so what it refuses costs next to nothing, and no address can be forgotten. The content policy lets the page
load scripts, styles and data from this server alone, run nothing that stands in HTML, and stand in nobody's frame. Cost: some 20 µs a request. When
not to use it: never left out.
"""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.dashboard.access import HEADER, Access
from penstock.dashboard.answer import refused

API, LOGIN = "/api/", "/api/v1/login"
#: Bytes of an address with its query, and of what a request brings.
MOST_ADDRESS, MOST_BODY = 16 << 10, 64 << 10
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; font-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
STRICT = {
    "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}  # fmt: skip


class Guard:
    """Stands before an application."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse a request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def strict(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in STRICT.items():
                    headers[name] = value
                if scope["path"].startswith(API) and "cache-control" not in headers:
                    headers["Cache-Control"] = "no-store"
            await send(message)

        status, why = self._refusal(scope)
        if status:
            await refused(status, why)(scope, receive, strict)
            return
        await self._app(scope, _Bounded(receive), strict)

    def _refusal(self, scope: Scope) -> tuple[int, str]:
        """A status and why, or 0."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._access.knows_host(host):
            return 403, "this server is not asked by that name; open the link that it printed, or start it with --allow-host NAME"
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            return 403, "another site's page may not ask this server"
        if len(scope["path"]) + len(scope.get("query_string", b"")) > MOST_ADDRESS:
            return 414, f"the address is longer than {MOST_ADDRESS} bytes; ask for fewer names at once"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MOST_BODY:
            return 413, f"a request may bring {MOST_BODY} bytes at most"
        return self._unknown(scope, headers)

    def _unknown(self, scope: Scope, headers: Headers) -> tuple[int, str]:
        """Refuses who needs the token and lacks it, and who guesses."""
        caller = caller_of(scope)
        given = headers.get(HEADER)
        if given is not None and self._access.wrong.left(caller) < 1.0:
            return 429, "too many wrong tokens came from there; wait a minute"
        if self._access.has_token(headers, cookies_of(headers)):
            return 0, ""
        if given is not None:
            self._access.wrong.take(caller)
            return 401, "that is not the token of this server"
        if scope["path"].startswith(API) and scope["path"] != LOGIN and not self._access.open_to_look:
            return 401, "this server wants its token; open the link that it printed, or log in"
        return 0, ""


class _Bounded:
    """Lets through so many bytes of a request's body as are allowed, whatever its header says."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._left = receive, MOST_BODY

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        return message if self._left >= 0 else {"type": "http.disconnect"}


def caller_of(scope: Scope) -> str:
    """Where a request comes from."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def cookies_of(headers: Headers) -> dict[str, str]:
    """A request's cookies by name."""
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(headers.get("cookie", "")).items()}
    except CookieError:
        return {}
