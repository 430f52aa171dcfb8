"""The environment of processes that the dashboard starts: without the place of a rank, which is not theirs, and without the token.

Cost: none. When not to use it: for ranks.
"""

from __future__ import annotations

import os

#: What a launcher tells a rank, by which a command would take itself for one.
_OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
#: Environment variable with the token.
TOKEN = "PENSTOCK_DASHBOARD_TOKEN"


def environment_of_children(with_token: bool = False) -> dict[str, str]:
    """This process's environment for a `penstock` command; only another server is given the token."""
    left_out = _OF_RANKS if with_token else (*_OF_RANKS, TOKEN)
    return {name: value for name, value in os.environ.items() if name not in left_out}
