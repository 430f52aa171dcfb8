"""The config of a run on another number of ranks than it was started with.

    replicas    as many as the ranks make, if the other axes divide their number
    shards      else, where the run is sharded: one replica's worth of shards, the least number that is no less than before, or the most that there is

The global batch stays, and so do the learning rate and what is learned. Fewer shards mean more memory on each rank.
"""

from __future__ import annotations

from penstock.config import Config, with_values


def config_for(config: Config, ranks: int) -> Config:
    """The config for so many ranks; whether it can be laid out on them `check_world` says."""
    section = config.layout
    rest = section.pipeline * section.context * section.tensor
    if ranks % (rest * section.shard) == 0:
        return config if section.replicate in (0, ranks // (rest * section.shard)) else with_values(config, {"layout.replicate": 0})
    if section.shard == 1 or ranks % rest:
        return config
    most = ranks // rest
    more = [shard for shard in range(section.shard + 1, most + 1) if most % shard == 0]
    return with_values(config, {"layout.replicate": 0, "layout.shard": more[0] if more else most})
