"""The pipeline of a config: how many micro-batches it runs, and the plan that estimated costs give, the same for who plans and who trains.

Times are estimated in FLOPs, so bubbles are shares of time and say nothing of seconds; a run measures its stages and plans again. Cost: up to some
seconds for a large pipeline whose schedule is synthesised, and next to none for a named kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from penstock.comm import World
from penstock.config import Config, ConfigError
from penstock.parallel import Layout
from penstock.parallel.cost.traffic import Workload
from penstock.parallel.layout import micro_batch, micro_sizes
from penstock.parallel.pipeline.layer_costs import LayerCosts, estimated_costs
from penstock.parallel.pipeline.plan import PipelinePlan, check_pipeline, plan_pipeline
from penstock.parallel.pipeline.stages import Stages

FORMATS = {"float32": (4, 4), "bfloat16": (2, 4), "float64": (8, 8)}  # bytes of an activation, of a weight


def make_plan(config: Config, layout: Layout, micro: int, stages: Stages | None = None, count: int = 0) -> PipelinePlan:
    """The plan of a pipeline of micro-batches of so many sequences from estimated costs, the same on all ranks.

    `stages`, if they are to stay; `count` micro-batches, if not as many as a rank's even share makes.
    """
    count, costs = count or micro_batches(config, layout, micro), layer_costs(config, layout, micro)
    return plan_pipeline(config.model, config.pipeline, layout.pipeline, count, costs, stages)


def agreed_plan(world: World, make: Callable[[], PipelinePlan]) -> PipelinePlan:
    """The plan that the lead rank makes, on every rank; what it raises as `ConfigError` all raise. Every rank must call it."""
    if world.size == 1:
        return make()
    plan = told = None
    if world.is_lead:
        try:
            plan = make()
        except ConfigError as error:
            told = str(error)
    answer = json.loads(world.share(json.dumps({"plan": plan.as_dict() if plan else None, "told": told})))
    if answer["told"] is not None:
        raise ConfigError(answer["told"])
    return PipelinePlan.from_dict(answer["plan"])


def layer_costs(config: Config, layout: Layout, micro: int) -> LayerCosts:
    """Estimated costs of the model's pieces for a micro-batch of so many sequences on one rank."""
    compute, master = FORMATS[config.precision.compute]
    return estimated_costs(Workload(config.model, replace(layout, pipeline=1), micro, 1, compute, master, config.train.loss_chunk))


def micro_batches(config: Config, layout: Layout, micro: int) -> int:
    """Micro-batches of a step on each rank."""
    return config.batch.global_ // layout.size(*layout.sequence_axes) // micro


def takes(config: Config, layout: Layout, micro: int) -> bool:
    """Whether the pipeline's schedule, if there is one, takes as many micro-batches as such a size gives."""
    return takes_count(config, layout, micro_batches(config, layout, micro))


def takes_count(config: Config, layout: Layout, count: int) -> bool:
    """Whether the pipeline's schedule, if there is one, takes so many micro-batches."""
    try:
        if layout.pipeline > 1:
            check_pipeline(config.model, config.pipeline, layout.pipeline, count)
    except ConfigError:
        return False
    return True


def first_size(config: Config, layout: Layout) -> int:
    """Sequences a rank computes at a time in the first step: `batch.micro`, or the largest below its first value that the schedule takes."""
    first = micro_batch(config, layout)
    if config.batch.micro != "auto":
        return first
    return max((size for size in micro_sizes(config, layout) if size <= first and takes(config, layout, size)), default=first)
