"""Whether a model and its batch fit a layout, said in one sentence that names the settings to change.

What does not divide is either padded by the layers (heads, feed-forward widths, vocabularies, experts) or refused here; nothing else is possible.
"""

from __future__ import annotations

from penstock.config import Config, ConfigError
from penstock.parallel.layout import Layout, micro_batch, micro_sizes
from penstock.parallel.pipeline.plan import check_pipeline
from penstock.parallel.placement import padded_part


def check_layout(config: Config, layout: Layout) -> None:
    """Raise `ConfigError` if `config`'s model or batch cannot be laid out so."""
    checks = (_context, _grid, _experts, _shards, _batch)
    for broken, sentence in (found for check in checks for found in check(config, layout)):
        if broken:
            raise ConfigError(sentence)
    if layout.pipeline > 1:
        _pipeline(config, layout)


def _pipeline(config: Config, layout: Layout) -> None:
    """Raise `ConfigError` if the pipeline takes none of the sizes that `batch.micro` may come to."""
    sizes, refusals = micro_sizes(config, layout) if config.batch.micro == "auto" else [micro_batch(config, layout)], []
    for size in sizes:
        try:
            check_pipeline(config.model, config.pipeline, layout.pipeline, config.batch.global_ // layout.size(*layout.sequence_axes) // size)
            return
        except ConfigError as error:
            refusals.append(error)
    raise refusals[0]


def _context(config: Config, layout: Layout) -> list[tuple[bool, str]]:
    tokens, ranks = config.model.context, layout.context
    return [
        (2 * ranks > tokens and ranks > 1, f"layout.context = {ranks} needs two pieces a rank of model.context = {tokens} tokens; use fewer ranks"),
        (
            ranks > 1 and tokens % (2 * ranks) != 0,
            f"model.context = {tokens} is not a multiple of 2 × layout.context = {2 * ranks}, the pieces a sequence is cut into; "
            f"change it, for example to {_up(tokens, 2 * ranks)}",
        ),
    ]


def _grid(config: Config, layout: Layout) -> list[tuple[bool, str]]:
    model, square = config.model, layout.topology == "2.5d"
    tokens = model.context // layout.context
    kv = model.kv_heads or model.heads
    sharing = layout.column if square else layout.row * layout.column
    setting = f"layout.tensor = {layout.tensor} (layout.tensor_topology = '{layout.topology}')"
    return [
        (
            not square and tokens % layout.row != 0,
            f"{setting} cuts model.context / layout.context = {tokens} tokens over {layout.row} ranks, which does not divide; change one of them",
        ),
        (
            not square and model.dim % layout.column != 0,
            f"{setting} cuts model.dim = {model.dim} over {layout.column} columns, which does not divide; change one of them",
        ),
        (
            _leaves_one_out(model.heads, sharing),
            f"{setting} spreads model.heads = {model.heads} over {sharing} ranks, and leaves some without a head; use fewer tensor ranks",
        ),
        (
            square and kv not in (model.heads, 0) and kv % layout.column != 0,
            f"{setting} cuts model.kv_heads = {kv} over {layout.column} columns, which does not divide; change one, or use the topology '1d'",
        ),
    ]


def _experts(config: Config, layout: Layout) -> list[tuple[bool, str]]:
    experts, ranks = config.model.moe.experts, layout.expert
    section = config.layout
    return [
        (
            ranks == 1 and section.expert_spare > 0,
            f"layout.expert_spare = {section.expert_spare} gives expert ranks spare slots, and layout.expert = 1 has no such ranks; change one",
        ),
        (
            ranks == 1 and section.expert_every > 0,
            f"layout.expert_every = {section.expert_every} moves experts between ranks, and layout.expert = 1 has one rank for all; change one",
        ),
        (ranks > 1 and experts == 0, f"layout.expert = {ranks} spreads experts, and model.moe.experts = 0 has none; set layout.expert to 1"),
        (
            _leaves_one_out(experts, ranks),
            f"layout.expert = {ranks} leaves ranks without any of model.moe.experts = {experts}; use fewer",
        ),
    ]


def _shards(config: Config, layout: Layout) -> list[tuple[bool, str]]:
    model, unit = config.model, 1 if layout.topology == "2.5d" else layout.column
    widths = {"model.ffn_dim": model.ffn_dim, "model.moe.dim": model.moe.dim * (model.moe.experts > 0)}
    cuts = [(name, width, unit) for name, width in widths.items()] + [("model.vocab", model.vocab, 1)]
    return [
        (
            layout.sharded and _leaves_one_out(width, layout.row, unit),
            f"layout.tensor = {layout.tensor} leaves a rank without any of {name} = {width}, and layout.shard = {layout.shard} cannot shard that; "
            "use fewer tensor ranks, or a width that divides",
        )
        for name, width, unit in cuts
    ]


def _leaves_one_out(size: int, parts: int, unit: int = 1) -> bool:
    """Whether a cut of `size` into `parts` leaves the last part empty."""
    return 0 < size <= (parts - 1) * padded_part(size, parts, unit)


def _batch(config: Config, layout: Layout) -> list[tuple[bool, str]]:
    sequences, parts = config.batch.global_, layout.size(*layout.sequence_axes)
    return [
        (
            sequences % parts != 0,
            f"batch.global = {sequences} sequences do not divide into the {parts} parts of this layout ({layout}); "
            f"change it, for example to {_up(sequences, parts)}, or start another number of ranks",
        )
    ]


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
