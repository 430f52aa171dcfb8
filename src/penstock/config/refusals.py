"""Combinations of settings that cannot work: whether a config has one, and a sentence for its user that names both fields and the mend.

Ranges of single settings are in the schema; what depends on the number of ranks is refused where ranks are laid out (`parallel/check.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.config.schema import Config

#: Whether a combination is there, and what is said of it.
Refusals = list[tuple[bool, str]]


def impossible(config: Config) -> Refusals:
    """Every combination that is refused, in the order in which they are looked for."""
    return [*_of_model(config), *_of_steps(config), *_of_balance(config), *_of_ranks(config), *_of_alerts(config)]


def _of_model(config: Config) -> Refusals:
    m, moe = config.model, config.model.moe
    kv = m.kv_heads or m.heads
    return [
        (m.head_dim == 0 and m.dim % m.heads != 0,
         f"model.dim = {m.dim} is not divisible by model.heads = {m.heads}; change one or set model.head_dim"),
        (m.head_dim == 0 and m.dim % m.heads == 0 and (m.dim // m.heads) % 2 != 0,
         f"model.dim = {m.dim} over model.heads = {m.heads} gives an odd head width, which a rotary embedding cannot split"),
        (m.head_dim % 2 != 0, f"model.head_dim = {m.head_dim} is odd; a rotary embedding needs an even width"),
        (m.heads % kv != 0, f"model.heads = {m.heads} is not a multiple of model.kv_heads = {kv}; queries share keys in equal groups"),
        (moe.experts > 0 and moe.active > moe.experts,
         f"model.moe.active = {moe.active} is more than model.moe.experts = {moe.experts}"),
        (moe.experts > 0 and moe.experts % moe.groups != 0,
         f"model.moe.experts = {moe.experts} is not a multiple of model.moe.groups = {moe.groups}"),
        (moe.active_groups > moe.groups,
         f"model.moe.active_groups = {moe.active_groups} is more than model.moe.groups = {moe.groups}"),
        (moe.experts > 0 and moe.experts % moe.groups == 0 and moe.active > moe.active_groups * (moe.experts // moe.groups),
         f"model.moe.active = {moe.active} does not fit into model.moe.active_groups = {moe.active_groups} groups of "
         f"{moe.experts // moe.groups} experts"),
        (moe.experts > 0 and moe.groups > 1 and moe.experts // moe.groups < 2,
         f"model.moe.groups = {moe.groups} leaves fewer than two of model.moe.experts = {moe.experts} in a group"),
        (moe.experts > 0 and moe.first_dense >= m.layers,
         f"model.moe.first_dense = {moe.first_dense} leaves none of model.layers = {m.layers} for experts"),
        (m.rope_scaling.high <= m.rope_scaling.low,
         f"model.rope_scaling.high = {m.rope_scaling.high} must be above model.rope_scaling.low = {m.rope_scaling.low}"),
    ]


def _of_steps(config: Config) -> Refusals:
    layout, moe = config.layout, config.model.moe
    inner = (layout.tensor, layout.context, layout.expert)
    return [
        (config.compile.enabled == "on" and max(inner) > 1,
         f"compile.enabled = 'on' does not go with layout.tensor, layout.context, layout.expert = {', '.join(map(str, inner))}: the exchanges "
         "inside a block break its graph; set compile.enabled to 'auto' or those to 1"),
        (config.pipeline.check == "after" and layout.pipeline == 1,
         "pipeline.check = 'after' takes away a wait between the ranks of a pipeline, and layout.pipeline = 1 has none; set it to 'before'"),
        (config.pipeline.check == "after" and config.data.document_mask,
         "pipeline.check = 'after' does not go with data.document_mask = true, whose count of target tokens all ranks must know before the "
         "update; set pipeline.check to 'before'"),
        (config.pipeline.check == "after" and moe.experts > 0,
         f"pipeline.check = 'after' does not go with model.moe.experts = {moe.experts}, whose loads are summed over all ranks in every update; "
         "set pipeline.check to 'before'"),
        (config.pipeline.check == "after" and config.exchange.kind != "dense",
         f"pipeline.check = 'after' does not go with exchange.kind = '{config.exchange.kind}', whose messages all ranks must have received before "
         "the update; set one to 'before', or the other to 'dense'"),
        (config.exchange.kind in ("periodic", "auto") and config.optim.ema > 0,
         f"exchange.kind = '{config.exchange.kind}' does not go with optim.ema = {config.optim.ema}: the weights of nodes that train apart are not "
         "the model's; set optim.ema to 0, or choose another kind"),
        (config.exchange.kind in ("periodic", "auto") and layout.expert_every > 0,
         f"exchange.kind = '{config.exchange.kind}' does not go with layout.expert_every = {layout.expert_every}: experts cannot change places "
         "on nodes that train apart; set layout.expert_every to 0, or choose another kind"),
        (config.exchange.momentum > 0 and config.exchange.kind != "topk",
         f"exchange.momentum = {config.exchange.momentum} corrects what exchange.kind = 'topk' sends, and exchange.kind is "
         f"'{config.exchange.kind}'; set one to 0, or the other to 'topk'"),
    ]


def _of_balance(config: Config) -> Refusals:
    layout, measured = config.layout, config.balance.data == "measured"
    together = [axis for axis in ("pipeline", "shard", "expert") if getattr(layout, axis) > 1]
    return [
        (measured and config.exchange.kind in ("periodic", "auto"),
         f"balance.data = 'measured' does not go with exchange.kind = '{config.exchange.kind}', whose nodes train apart on equal shares of the "
         "batch; set one to 'off', or the other to another kind"),
        (measured and config.compile.enabled == "on",
         "balance.data = 'measured' does not go with compile.enabled = 'on', which compiles for one size of micro-batches; set compile.enabled "
         "to 'off' or 'auto'"),
        (measured and config.pipeline.check == "after",
         "balance.data = 'measured' does not go with pipeline.check = 'after': ranks tell each other their times after every step, which is the "
         "wait that 'after' takes away; set pipeline.check to 'before'"),
        (measured and config.batch.micro == 1 and bool(together),
         f"balance.data = 'measured' can move nothing with batch.micro = 1 and layout.{' and layout.'.join(together)} above 1, where all ranks "
         "have as many micro-batches, and none is smaller than a sequence; raise batch.micro"),
    ]


def _of_ranks(config: Config) -> Refusals:
    elastic, survive = config.elastic, config.survive
    on = elastic.policy != "off"
    return [
        (survive.copies > 0 and survive.enabled == "off",
         f"survive.copies = {survive.copies} has no use with survive.enabled = 'off', where a lost rank ends the run; set survive.enabled=on"),
        (on and survive.enabled == "off",
         f"elastic.policy = '{elastic.policy}' needs the supervisor of survive.enabled = 'on'; set that, or elastic.policy=off"),
        (on and elastic.keep >= elastic.gain,
         f"the policy would oscillate: ranks that bring elastic.gain = {elastic.gain} of their part are added, and given up again below "
         f"elastic.keep = {elastic.keep}; let keep be well below gain"),
        (on and 0 < elastic.max < elastic.min,
         f"elastic.max = {elastic.max} is below elastic.min = {elastic.min}; raise one, or lower the other"),
    ]  # fmt: skip


def _of_alerts(config: Config) -> Refusals:
    acts = [part.partition("=") for part in config.alerts.act.split(",") if part.strip()]
    excludes = any(action.strip() == "exclude" for _, _, action in acts)
    asked = any(action.strip() != "skip" and kind.strip() != "non_finite" for kind, _, action in acts)
    return [
        (excludes and config.survive.enabled == "off",
         f"alerts.act = {config.alerts.act!r} goes on without a rank, and survive.enabled = 'off' leaves nobody to do it; set that to 'on'"),
        (excludes and config.elastic.policy != "off",
         f"alerts.act = {config.alerts.act!r} goes on without a rank, and elastic.policy = {config.elastic.policy!r} starts others; choose one"),
        (asked and not (config.metrics.monitor and config.metrics.rows),
         f"alerts.act = {config.alerts.act!r} acts on what the monitor finds, and metrics.monitor or metrics.rows = false leaves that out; "
         "only skip and non_finite do without"),
    ]  # fmt: skip
