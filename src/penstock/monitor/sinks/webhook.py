"""Alerts by HTTP: one POST of JSON a message (`Message.as_dict`), which also has the `text` that Slack, Mattermost and the like show.

Any answer of 200 to 299 will do; its body is not read. Redirections are not followed, as they would turn the POST into a GET. Cost: a connection a
message. When not to use it: without a network from the lead node.
"""

from __future__ import annotations

import http.client
import json
from urllib.parse import urlsplit

from penstock.monitor.sinks.message import Message

#: Longest wait for the other side at each turn, seconds.
TIMEOUT_S = 5.0


class Webhook:
    """Posts to an http or https address."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        self._url, self._timeout_s = urlsplit(url), timeout_s

    def __call__(self, message: Message) -> None:
        """Post a message; raises OSError."""
        url, body = self._url, json.dumps(message.as_dict()).encode()
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        connection = kind(url.hostname or "", url.port, timeout=self._timeout_s)
        try:
            path = (url.path or "/") + (f"?{url.query}" if url.query else "")
            connection.request("POST", path, body, {"Content-Type": "application/json", "User-Agent": "penstock"})
            status = connection.getresponse().status
        except http.client.HTTPException as error:
            raise OSError(f"{url.hostname} answered with no HTTP: {error!r}") from None
        finally:
            connection.close()
        if not 200 <= status < 300:
            raise OSError(f"{url.hostname} answered {status}")
