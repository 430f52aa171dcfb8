"""2.5-D tensor parallelism: the decoder's layers on a grid of depth × q rows × q columns (Tesseract, Wang et al., arXiv 2105.14500).

Each (depth, row) reads sequences of its own and each column holds some of the features, (b, t, d/q); matrices lie once on every layer of
the grid's depth (`parallel/plan.py`). Their products are SUMMA's (`summa.py`); what lies between them is

    RMSNorm                 the sum of squares, over columns
    embedding               all rows' tokens, looked up in the vocabulary that this row holds, and each row's summed back to it
    attention               nothing: heads lie over columns, so rotation, masks and the core run on whole heads
    router                  every expert's score is summed over columns, so that all columns choose alike
    loss                    vocabulary-parallel over columns (`vocabulary.py`), chunk by chunk as in `models/loss.py`

Widths that do not divide are padded: a rank's activations always have the full part's width, with zeros behind the last features; norms
divide by the true width. Matrices that read the same activations (wq wk wv; gate up) are multiplied together, which sends those once, at the price
of a copy of the blocks on top of each other until backward. The head's blocks travel once a chunk; since a rank holds 1/q of the logits, q times as
many tokens make a chunk. Kernels of the plain loss do not apply. For the cost and when not to use it see `summa.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.comm import opaque, scatter_sum, total
from penstock.config import ModelSection
from penstock.models import Decoder
from penstock.models.attention import Attention
from penstock.models.layers import Embedding, FeedForward, Linear, RMSNorm, wide
from penstock.models.loss import Kernel, chunked_loss
from penstock.models.moe import Experts, MixtureOfExperts, Router
from penstock.parallel.mesh import Mesh
from penstock.parallel.padding import pad_to
from penstock.parallel.placement import padded_part, part
from penstock.parallel.tensor.summa import Grid, grouped, linear, multiply_transposed, multiply_transposed_gradients
from penstock.parallel.tensor.vocabulary import look_up, split_softmax_gradient


def apply_tesseract(decoder: Decoder, mesh: Mesh) -> None:
    """Replace the layers of `decoder`, which is on the meta device, by those of a 2.5-D grid; parameters keep their names and full shapes.

    Whoever gives them memory gives each the shape of its placement. Grouped key-value heads must divide over the grid's columns.
    """
    model, grid = decoder.model, Grid(mesh.axis("row"), mesh.axis("column"))
    assert grid.row.size == grid.column.size, f"a 2.5-D grid is square, not {grid.row.size} by {grid.column.size}"
    assert model.kv_heads == model.heads or model.kv_heads % grid.size == 0, f"{model.kv_heads} grouped key-value heads over {grid.size} columns"
    with torch.device("meta"):
        decoder.embedding = TesseractEmbedding(model, grid)
        decoder.norm = TesseractNorm(model, grid)
        for block in decoder.blocks.values():
            block.attention_norm, block.ffn_norm = TesseractNorm(model, grid), TesseractNorm(model, grid)
            block.attention = TesseractAttention(model, grid)
            if isinstance(block.ffn, MixtureOfExperts):
                _replace_experts(block.ffn, model, grid)
            else:
                block.ffn = TesseractFeedForward(model.dim, model.ffn_dim, grid)
    decoder.token_loss = TesseractLoss(model, grid)


def _replace_experts(moe: MixtureOfExperts, model: ModelSection, grid: Grid) -> None:
    moe.router, moe.experts = TesseractRouter(model, grid), TesseractExperts(model, grid)
    if moe.shared is not None:
        moe.shared = TesseractFeedForward(model.dim, model.moe.shared * model.moe.dim, grid)


class TesseractLinear(Linear):
    """A linear map whose outputs lie over columns in multiples of `unit_out`, and whose inputs do in multiples of `unit_in`."""

    def __init__(self, inputs: int, outputs: int, grid: Grid, unit_in: int = 1, unit_out: int = 1) -> None:
        super().__init__(inputs, outputs)
        self.grid = grid
        self.block = (padded_part(outputs, grid.size, unit_out), padded_part(inputs, grid.size, unit_in))

    def forward(self, x: Tensor) -> Tensor:
        """Map this rank's features (..., in/q) to (..., out/q)."""
        return _together(x, [self])[0]


def _together(x: Tensor, layers: Sequence[TesseractLinear]) -> list[Tensor]:
    """Each layer's output for the same `x`, at the price of one layer's panels."""
    blocks = [pad_to(layer.weight.to(x.dtype), layer.block) for layer in layers]
    y_no = linear(x.flatten(0, -2), torch.cat(blocks) if len(blocks) > 1 else blocks[0], layers[0].grid)
    return [y.view(*x.shape[:-1], -1) for y in y_no.split([len(block) for block in blocks], dim=1)]


class TesseractNorm(RMSNorm):
    """RMSNorm of features that lie over columns."""

    def __init__(self, model: ModelSection, grid: Grid) -> None:
        super().__init__(model.dim, model.norm_eps)
        self.grid, self.width = grid, model.dim

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., d/q), keeping the format of `x`."""
        x_wide = wide(x)
        squares = total(x_wide.square().sum(-1, keepdim=True), self.grid.column, "norm")
        scale = torch.rsqrt(squares / self.width + self.eps)
        return (x_wide * scale * pad_to(self.weight, x.shape[-1:])).to(x.dtype)


class TesseractEmbedding(Embedding):
    """The embedding, its vocabulary over rows and its features over columns."""

    def __init__(self, model: ModelSection, grid: Grid) -> None:
        super().__init__(model.vocab, model.dim)
        self.grid = grid
        self.block = (padded_part(model.vocab, grid.size), padded_part(model.dim, grid.size))
        self.first = part(model.vocab, grid.size, grid.row.index)[0]

    def forward(self, tokens_bt: Tensor) -> Tensor:
        """This rank's features (b, t, d/q) of its row's tokens (b, t)."""
        tokens_rt = self.grid.row.all_gather(tokens_bt, 0, "tokens")
        x_rtd = look_up(tokens_rt, pad_to(self.weight, self.block), self.first)
        return scatter_sum(x_rtd, self.grid.row, 0, "embedding")


class TesseractAttention(Attention):
    """Attention whose heads lie over columns; those that do not divide are padded with heads of zeros, which attend to nothing but zeros."""

    wq: TesseractLinear
    wk: TesseractLinear
    wv: TesseractLinear

    def __init__(self, model: ModelSection, grid: Grid) -> None:
        super().__init__(model)
        k = model.head_dim
        self.wq = TesseractLinear(model.dim, model.heads * k, grid, unit_out=k)
        self.wk = TesseractLinear(model.dim, model.kv_heads * k, grid, unit_out=k)
        self.wv = TesseractLinear(model.dim, model.kv_heads * k, grid, unit_out=k)
        self.wo = TesseractLinear(model.heads * k, model.dim, grid, unit_in=k)

    def project(self, x_btd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of this column's heads."""
        q_bto, k_bto, v_bto = _together(x_btd, [self.wq, self.wk, self.wv])
        return q_bto, k_bto, v_bto


class TesseractFeedForward(FeedForward):
    """SwiGLU, its hidden features over columns."""

    gate: TesseractLinear
    up: TesseractLinear

    def __init__(self, dim: int, hidden: int, grid: Grid) -> None:
        super().__init__(dim, hidden)
        self.gate, self.up = TesseractLinear(dim, hidden, grid), TesseractLinear(dim, hidden, grid)
        self.down = TesseractLinear(hidden, dim, grid)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d/q) to (..., d/q)."""
        gate, up = _together(x, [self.gate, self.up])
        return self.down(F.silu(gate) * up)


class TesseractRouter(Router):
    """The router, its input features over columns."""

    def __init__(self, model: ModelSection, grid: Grid) -> None:
        super().__init__(model)
        self.grid = grid

    def logits(self, x_nd: Tensor) -> Tensor:
        """Every expert's score, (n, e), the same on all columns."""
        partial_ne = F.linear(x_nd, pad_to(self.weight, x_nd.shape[-1:]))
        return total(partial_ne, self.grid.column, "router")


class TesseractExperts(Experts):
    """The routed experts' matrices, each cut like a dense layer's."""

    def __init__(self, model: ModelSection, grid: Grid) -> None:
        super().__init__(model)
        self.grid = grid
        self.widths = (padded_part(model.moe.dim, grid.size), padded_part(model.dim, grid.size))

    def forward(self, x_nd: Tensor, ends_e: Tensor) -> Tensor:
        """Map this column's features of its row's tokens, sorted by expert; expert e has the rows up to `ends_e[e]` (exclusive), int32."""
        product, widths = grouped(ends_e), self.widths
        outward = [pad_to(weight.to(x_nd.dtype), widths) for weight in (self.gate_efd, self.up_efd)]
        gate, up = linear(x_nd, torch.cat(outward, dim=1), self.grid, product).chunk(2, dim=1)
        return linear(F.silu(gate) * up, pad_to(self.down_edf.to(x_nd.dtype), widths[::-1]), self.grid, product)


class TesseractLoss:
    """The `TokenLoss` of a head whose vocabulary lies over rows and whose features lie over columns."""

    def __init__(self, model: ModelSection, grid: Grid) -> None:
        self.grid = grid
        self.block = (padded_part(model.vocab, grid.size), padded_part(model.dim, grid.size))
        self.first, self.count = part(model.vocab, grid.size, grid.column.index)

    @opaque
    def __call__(self, hidden_btd: Tensor, head_weight_vd: Tensor, targets_bt: Tensor, *, chunk_tokens: int, kernel: Kernel | None = None) -> Tensor:
        """Sum of the cross-entropies of this row's `targets_bt`, the same on its columns; its gradient is that of one of them."""
        return chunked_loss(hidden_btd, pad_to(head_weight_vd, self.block), targets_bt, chunk_tokens * self.grid.size, self._step)

    def _step(self, hidden_nd: Tensor, block_vd: Tensor, targets_n: Tensor, gradients: tuple[Tensor, Tensor] | None) -> Tensor:
        logits_nv = multiply_transposed(hidden_nd, block_vd, self.grid)
        loss, grad_nv = split_softmax_gradient(logits_nv, targets_n, self.grid.column, self.first, self.count)
        if gradients is not None:
            grad_hidden, grad_block = multiply_transposed_gradients(grad_nv, hidden_nd, block_vd, self.grid)
            gradients[0].copy_(grad_hidden)
            gradients[1].add_(grad_block)
        return loss
