"""Who may look and who may act: by where the server listens, by which name it is asked, and by a token.

On the loopback address whoever reaches the server may look; anywhere else looking, too, needs the token. Acting always needs it. It comes in the
header `X-Penstock-Token`, or as a cookie that a login sets: not the token itself but a keyed digest of it, so the cookie of one token is void for
another and logins outlive a restart with the same token. Both are compared in constant time. The cookie goes only with requests of the page's own
site (SameSite=Strict) and no script reads it (HttpOnly); besides, a request whose `Origin` is another's is refused before (`guard.py`).

Names: a page of somebody else's that points its own name at this machine (DNS rebinding) asks with that name as `Host`. So only the loopback names,
this machine's name, addresses in digits, which no name server can hand out, and names given by `--allow-host` are answered. Cost: microseconds. When
not to use it: to tell users apart; there is one token, and who has it is the owner.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.dashboard.limits import Limit

HEADER, COOKIE = "x-penstock-token", "penstock_dashboard"
#: Bytes of a made token, and the least letters of one that somebody chose.
TOKEN_BYTES, LEAST_TOKEN = 32, 16
#: Wrong tokens, and actions, of an address in a minute.
WRONG_A_MINUTE, ACTIONS_A_MINUTE = 10, 30
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]/@\s]+))(?::[0-9]{1,5})?")
_LOCAL = ("localhost", "127.0.0.1", "::1")


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass
class Access:
    """What a server at `host` knows of who may."""

    host: str
    token: str
    allowed: tuple[str, ...] = ()
    wrong: Limit = field(default_factory=lambda: Limit(WRONG_A_MINUTE, 60.0))
    actions: Limit = field(default_factory=lambda: Limit(ACTIONS_A_MINUTE, 60.0))

    @property
    def open_to_look(self) -> bool:
        """Whether looking needs no token."""
        return is_loopback(self.host)

    @property
    def cookie(self) -> str:
        """The value of the cookie of who has logged in."""
        return hmac.new(self.token.encode(), b"penstock dashboard", hashlib.sha256).hexdigest()

    def has_token(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> bool:
        """Whether a request comes with the token, or the cookie for it."""
        given = headers.get(HEADER)
        return self.is_token(given) if given is not None else _same(cookies.get(COOKIE, ""), self.cookie)

    def is_token(self, given: str) -> bool:
        """Whether it is the token."""
        return _same(given, self.token)

    def knows_host(self, host: str) -> bool:
        """Whether the server may be asked by the name in a `Host` header."""
        name = host_name(host)
        if name in (*_LOCAL, self.host, *self.allowed):
            return True
        if self.open_to_look:
            return is_loopback(name)
        return _is_address(name) or name in (socket.gethostname().lower(), socket.getfqdn().lower())


def host_name(host: str) -> str:
    """The name in a `Host` header, without its port, in small letters; empty if it has another form."""
    found = _HOST.fullmatch(host.lower())
    return (found[1] or found[2]).rstrip(".") if found else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _same(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), right.encode())
