"""What flows through the model: norms of activations in every step, and dead units, attention and logits in some.

Forward hooks look at what blocks return while the step's own forward pass goes on; they are there for the length of that pass only, so evaluation,
generation and the compiler's checks never meet them, and they read detached values, so what is trained is the same bit for bit. How they come
there depends on what runs:

    eager                       hooks on the blocks, and in the costlier probes on what is inside them
    compiled, sharded or in     the call of each compiled block is wrapped, outside its graph: what blocks return, nothing inside them
    a pipeline
    compiled otherwise          nothing is attached: the first sequence of a micro-batch goes through the blocks once more, eagerly and without
                                gradients (`again`), in the costlier probes and where a step fails, as the layout has no exchange inside them

`activation_norm` is the root mean square over the elements of the global batch: a rank records the root of its own sum of squares over their number,
and every element between blocks lies on one rank in every layout, so the roots of ranks add up by squares. Cost: one read of each layer's output a
micro-batch; with the costlier probes four more of the kind a layer, and what `attention.py` takes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from penstock.engine.compile import sequence_loss
from penstock.engine.probes.attention import look_at_attention
from penstock.engine.probes.places import layer
from penstock.engine.probes.reading import Reading
from penstock.models.attention import AttentionCore
from penstock.models.decoder import Block, blocks_of
from penstock.models.layers import FeedForward, wide
from penstock.models.moe import MixtureOfExperts
from penstock.parallel import Layout
from penstock.parallel.placement import padded_part, part

if TYPE_CHECKING:
    from penstock.engine.build import Core

#: A unit is dead in so many tokens if its largest magnitude in them is below this share of its layer's mean one.
DEAD, UNIT_TOKENS = 0.01, 2048
#: Tokens whose logits are looked at.
LOGIT_TOKENS = 8
#: Sequences that go through a compiled model once more.
AGAIN = 1

#: Ways of looking, as above.
HOOKS, OUTPUTS, AFTERWARDS = "hooks", "outputs", "afterwards"


class Activations:
    """Looks at the activations of a step of a laid-out model."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._norms: dict[str, list[Tensor]] = defaultdict(list)
        self._first: dict[str, Tensor] = {}

    @property
    def way(self) -> str:
        """How the step that comes can be looked at."""
        core = self._core
        blocks = any(block._compiled_call_impl is not None for block in core.decoder.blocks.values())
        whole = core.pipeline is None and core.loss_of is not sequence_loss and not isinstance(core.loss_of, partial)
        if not blocks and not whole:
            return HOOKS
        return OUTPUTS if core.layout.sharded or core.pipeline is not None else AFTERWARDS

    @contextmanager
    def watched(self, reading: Reading) -> Iterator[None]:
        """Look at the forward passes of the block."""
        way = self.way
        with ExitStack() as attached:
            if way == HOOKS:
                self._attach(attached, reading.full)
            elif way == OUTPUTS:
                self._wrap(attached)
            yield
        if way != AFTERWARDS:
            self._hand_over(reading, self._core.config.batch.global_ * self._core.config.model.context)

    @torch.no_grad()
    def again(self, reading: Reading, batch: tuple[Tensor, Tensor, Tensor | None]) -> None:
        """Send the first sequences of a micro-batch through a model that is whole here and compiled, and look at that."""
        core, decoder = self._core, self._core.decoder
        tokens_bt = batch[0][:AGAIN]
        documents_bt = None if batch[2] is None else batch[2][:AGAIN]
        decoder.eval()  # routers count what they choose while training
        try:
            with ExitStack() as attached:
                self._attach(attached, full=True)
                context = decoder.sequence.context(tokens_bt, documents_bt)
                x_btd = decoder.embedding(tokens_bt).to(core.dtype)
                for block in decoder.blocks.values():
                    x_btd = block._call_impl(x_btd, *context)
                decoder.norm(x_btd)
        finally:
            decoder.train()
        self._hand_over(reading, tokens_bt.numel() * core.layout.size(*core.layout.token_axes))

    def _attach(self, attached: ExitStack, full: bool) -> None:
        """Hooks on the model's ends and blocks, and if `full` inside them."""
        decoder = self._core.decoder
        for name in ("embedding", "norm"):
            if (end := getattr(decoder, name, None)) is not None:
                attached.callback(end.register_forward_hook(partial(self._see, name)).remove)
        for number, block in blocks_of(decoder).items():
            place = layer(number)
            attached.callback(block.register_forward_hook(partial(self._see, place)).remove)
            if full:
                for handle in self._inside(place, block):
                    attached.callback(handle.remove)
        if full and self._core.layout.tensor == 1 and getattr(decoder, "norm", None) is not None:
            attached.callback(decoder.norm.register_forward_hook(self._see_logits).remove)

    def _inside(self, place: str, block: Block) -> Iterator[Any]:
        """Hooks inside a block."""
        yield block.attention.register_forward_hook(partial(self._see, f"{place}.attention"))
        yield block.ffn.register_forward_hook(partial(self._see, f"{place}.ffn"))
        core = next(module for module in block.attention.core.modules() if isinstance(module, AttentionCore))
        yield core.register_forward_pre_hook(partial(self._see_attention, place))
        dense = block.ffn.shared if isinstance(block.ffn, MixtureOfExperts) else block.ffn
        if isinstance(dense, FeedForward):
            model = self._core.config.model
            hidden = model.ffn_dim if dense is block.ffn else model.moe.shared * (model.moe.dim or 0)
            yield dense.down.register_forward_pre_hook(partial(self._see_units, place, own_units(self._core.layout, self._core.world.rank, hidden)))

    def _wrap(self, attached: ExitStack) -> None:
        """Look at what compiled blocks return."""

        def seen(place: str, run: Callable[..., Tensor], *args: Any) -> Tensor:
            y_btd = run(*args)
            self._see(place, None, args, y_btd)
            return y_btd

        for number, block in self._core.decoder.blocks.items():
            run = block._compiled_call_impl
            if run is not None:
                block._compiled_call_impl = partial(seen, layer(number), run)
                attached.callback(setattr, block, "_compiled_call_impl", run)

    def _see(self, place: str, module: nn.Module | None, inputs: tuple[Any, ...], output: Tensor) -> None:
        with torch.no_grad():
            y = output.detach()
            self._norms[place].append(torch.linalg.vector_norm(y, dtype=torch.promote_types(y.dtype, torch.float32)))

    def _see_attention(self, place: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if f"attention {place}" not in self._first:
            self._first[f"attention {place}"] = look_at_attention(inputs[0], inputs[1], inputs[3])

    def _see_units(self, place: str, own: int, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if f"units {place}" not in self._first and own:
            with torch.no_grad():
                hidden_nf = inputs[0].detach().flatten(0, -2)[:UNIT_TOKENS]
                most_f = torch.maximum(hidden_nf.amax(0), hidden_nf.amin(0).neg())[:own]
                self._first[f"units {place}"] = wide(most_f < DEAD * most_f.mean()).mean().view(1)

    def _see_logits(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if "logits" not in self._first:
            with torch.no_grad():
                x_td = output.detach()[0]
                x_nd = x_td[:: max(1, len(x_td) // LOGIT_TOKENS)][:LOGIT_TOKENS]
                z_nv = wide(self._core.decoder.logits(x_nd))
                log_p = z_nv.log_softmax(-1)
                self._first["logits"] = torch.stack((z_nv.amax(), -(log_p.exp() * log_p).sum(-1).mean()))

    def _hand_over(self, reading: Reading, tokens: int) -> None:
        """Put what was seen into the reading; norms are over so many tokens of all ranks together."""
        scale = (tokens * self._core.config.model.dim) ** -0.5
        for place, norms in self._norms.items():
            reading.add((f"activation_norm/{'head' if place == 'norm' else place}",), (torch.stack(norms).norm() * scale).view(1))
        for what, values in self._first.items():
            kind, _, place = what.partition(" ")
            names = {
                "attention": (f"attention_entropy/{place}", f"attention_entropy/{place}.lowest", f"logit_max/{place}"),
                "units": (f"dead_units/{place}",),
                "logits": ("logit_max/head", "logit_entropy/head"),
            }[kind]
            reading.add(names, values)
        self._norms.clear()
        self._first.clear()


def own_units(layout: Layout, rank: int, hidden: int) -> int:
    """How many of the units that a rank sees before a feed-forward's last matrix are there: the rest of its part is padding."""
    row, column = (layout.coordinate(rank, axis) for axis in ("row", "column"))
    if layout.topology == "2.5d":
        return part(hidden, layout.column, column)[1]
    rows = part(hidden, layout.row, row, layout.column)[1]
    piece = padded_part(hidden, layout.row, layout.column) // layout.column
    return min(max(rows - column * piece, 0), piece)
