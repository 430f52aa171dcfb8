"""Alerts by letter: one e-mail a message over SMTP, encrypted where the server can.

Name and password come from the environment (`PENSTOCK_SMTP_USER`, `PENSTOCK_SMTP_PASSWORD`), as a run's settings are kept in its folder for all to
read. Cost: a connection a letter. When not to use it: where a webhook will do, which is faster.
"""

from __future__ import annotations

import os
import smtplib
import socket
from email.message import EmailMessage

from penstock.monitor.sinks.message import Message

TIMEOUT_S = 10.0


class Mail:
    """Sends letters to some addresses over the server `host:port`."""

    def __init__(self, to: str, server: str, timeout_s: float = TIMEOUT_S) -> None:
        host, _, port = server.rpartition(":")
        self._host, self._port = host or server, int(port) if host else 25
        self._to, self._timeout_s = to, timeout_s

    def __call__(self, message: Message) -> None:
        """Send a letter; raises OSError (of which SMTP's errors are)."""
        letter = EmailMessage()
        letter["Subject"] = message.line()[:200].replace("\n", " ")
        letter["From"], letter["To"] = f"penstock@{socket.gethostname()}", self._to
        letter.set_content(f"{message.run}\n\n{message.block()}\n")
        user, password = os.environ.get("PENSTOCK_SMTP_USER"), os.environ.get("PENSTOCK_SMTP_PASSWORD")
        with smtplib.SMTP(self._host, self._port, timeout=self._timeout_s) as server:
            server.ehlo()
            if server.has_extn("starttls"):
                server.starttls()
            if user and password:
                server.login(user, password)
            server.send_message(letter)
