"""The config of a run on fewer ranks than it was started with."""

from __future__ import annotations

from penstock.config import Config, with_values


def config_for(config: Config, ranks: int) -> Config:
    """The config for so many ranks: with as many replicas as they make."""
    section = config.layout
    fixed = section.pipeline * section.shard * section.context * section.tensor
    return with_values(config, {"layout.replicate": 0}) if section.replicate and section.replicate * fixed != ranks else config
