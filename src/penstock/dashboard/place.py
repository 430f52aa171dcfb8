"""Where a server answers and by which addresses its pages go: all that a run needs to know of the dashboard, without loading it.

Cost: none. When not to use it: to know whether the server answers (`background.py`).
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

#: File in the folder of the runs by which a server is found.
FILE = ".dashboard.json"
#: What all addresses of the API begin with.
PREFIX = "/api/v1"


@dataclass(frozen=True)
class Place:
    """Where a server answers; `busy`: the port that was wanted and taken, if it was."""

    host: str
    port: int
    token: str
    busy: int | None = None

    @property
    def url(self) -> str:
        """The page's address, without the token."""
        name = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(self.host, self.host)
        return f"http://[{name}]:{self.port}/" if ":" in name else f"http://{name}:{self.port}/"

    @property
    def link(self) -> str:
        """The page's address with the token, for the owner's terminal alone."""
        return f"{self.url}#token={self.token}"


def id_of_path(path: str) -> str:
    """The id of a run at a path below the runs' folder."""
    return path.replace("~", "~0").replace("/", "~1")
