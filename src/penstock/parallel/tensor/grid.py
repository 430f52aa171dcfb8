"""1-D and 2-D tensor parallelism: layers on a grid of rows y and columns x, whose partial sums are reduced along one axis at a time.

Between blocks a rank holds (b, t/y, d/x): tokens cut over the rows, features over the columns. A sub-layer runs

    gather tokens over row → (b, t, d/x)
    first matrices, (out | row, in | column): product, sum over column keeping a part → (b, t, out/(y x))
    heads, or SwiGLU, on that part; gather over column → (b, t, out/y)
    last matrix, (out | column, in | row): product → (b, t, d/x), a share of the sum over row
    sum over row keeping own tokens → (b, t/y, d/x)

With one column this is Megatron's column and row split with sequence parallelism (Korthikanti et al., arXiv 2205.05198). With more it is
the weight-stationary grid of AxoNN (Singh et al., arXiv 2305.13525) whose all-reduces are taken apart: the reduce-scatter ends where the
non-linear part begins, so that part is computed and kept once, and only one of SwiGLU's two factors is gathered again.

Elements one rank sends in a layer, forward and backward together, for n tokens, width d, feed-forward f, h = heads · head_dim, g = key-value
heads · head_dim, p = y x (the backward pass repeats each exchange as its conjugate):

    over row      2 · 4 n (d/x) (y - 1)/y
    over column   2 · n ((h + 2 g + 2 f) + (h + f)) (x - 1)/(y x)   + norms' 8 n (x - 1)/(y x)

Cost: products of matrices x y times smaller; many columns make the activations between the exchanges small and the exchanges many. When not to use
it: across nodes, and with one or two sequences of few tokens, where exchanges are all latency.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.comm import Axis, gather, opaque, scatter_sum, total
from penstock.models import Decoder
from penstock.models.attention import Attention
from penstock.models.decoder import blocks_of
from penstock.models.grouped import grouped_linear
from penstock.models.later import linear
from penstock.models.layers import FeedForward, wide
from penstock.models.loss import Kernel, add_product, chunked_loss
from penstock.models.moe import Experts, MixtureOfExperts, Router
from penstock.parallel.mesh import Mesh
from penstock.parallel.padding import pad_to
from penstock.parallel.placement import padded_part
from penstock.parallel.plan import kv_everywhere
from penstock.parallel.tensor.vocabulary import look_up, split_softmax_gradient


def apply_grid(decoder: Decoder, mesh: Mesh) -> None:
    """Replace the layers of `decoder` by those of the grid, in place; names of parameters stay, their shapes are left to the caller."""
    row, column = mesh.axis("row"), mesh.axis("column")
    model, layout = decoder.model, mesh.layout
    for block in blocks_of(decoder).values():
        _replace_attention(block.attention, row, column, kv_everywhere(model, layout))
        if isinstance(block.ffn, MixtureOfExperts):
            block.ffn.router = GridRouter(block.ffn.router, column)
            block.ffn.experts = GridExperts(block.ffn.experts, row, column)
            if block.ffn.shared is not None:
                _replace_ffn(block.ffn.shared, row, column)
        elif isinstance(block.ffn, FeedForward):
            _replace_ffn(block.ffn, row, column)
        block.attention_norm, block.ffn_norm = SplitNorm(block.attention_norm, column), SplitNorm(block.ffn_norm, column)
        for sublayer, name in ((block.attention, "attention"), (block.ffn, "ffn")):
            sublayer.register_forward_pre_hook(partial(_gather_tokens, row, name))
            sublayer.register_forward_hook(partial(_scatter_tokens, row, name))
    decoder.norm = SplitNorm(decoder.norm, column)
    decoder.embedding = GridEmbedding(decoder.embedding, row)
    decoder.token_loss = GridLoss(model.vocab, row, column, mesh.axis("row", "column"))


def _gather_tokens(row: Axis, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (gather(inputs[0], row, 1, name), *inputs[1:])


def _scatter_tokens(row: Axis, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return scatter_sum(output, row, 1, name)


def _replace_attention(attention: Attention, row: Axis, column: Axis, everywhere: bool) -> None:
    unit = column.size * attention.head_dim
    heads = weight_of(attention.wq).shape[0] // attention.head_dim
    attention.wq = FirstLinear(attention.wq, row, column, unit, "attention")
    attention.wo = LastLinear(attention.wo, row, column, unit, "attention")
    if everywhere:
        attention.wk, attention.wv = (OwnHeads(linear, heads, attention.head_dim, row, column) for linear in (attention.wk, attention.wv))
    else:
        attention.wk, attention.wv = (FirstLinear(linear, row, column, unit, "attention") for linear in (attention.wk, attention.wv))


def _replace_ffn(ffn: FeedForward, row: Axis, column: Axis) -> None:
    ffn.gate, ffn.up = (FirstLinear(linear, row, column, column.size, "ffn") for linear in (ffn.gate, ffn.up))
    ffn.down = LastLinear(ffn.down, row, column, column.size, "ffn")


def weight_of(layer: nn.Module) -> nn.Parameter:
    """The layer's only matrix or vector."""
    return cast(nn.Parameter, layer.weight)


def padded(weight: Tensor, dim: int, size: int) -> Tensor:
    """The weight with zeros up to `size` along `dim`, for a part that the cut left short."""
    return pad_to(weight, (*weight.shape[:dim], size, *weight.shape[dim + 1 :]))


class FirstLinear(nn.Module):
    """The local part of a matrix that leads out of the residual stream: (..., d/x) to this rank's part of the outputs, (..., out/(y x))."""

    def __init__(self, linear: nn.Module, row: Axis, column: Axis, unit: int, purpose: str) -> None:
        super().__init__()
        self.weight = weight_of(linear)
        self.rows = padded_part(self.weight.shape[0], row.size, unit)
        self.column, self.purpose = column, purpose

    def forward(self, x: Tensor) -> Tensor:
        """Multiply, and sum over the columns keeping a part."""
        y = linear(x, padded(self.weight, 0, self.rows))
        return scatter_sum(y, self.column, -1, self.purpose)


class LastLinear(nn.Module):
    """The local part of a matrix that leads into the residual stream: (..., in/(y x)) to a share of (..., d/x), to be summed over the rows."""

    def __init__(self, linear: nn.Module, row: Axis, column: Axis, unit: int, purpose: str) -> None:
        super().__init__()
        self.weight = weight_of(linear)
        self.inputs = padded_part(self.weight.shape[1], row.size, unit)
        self.column, self.purpose = column, purpose

    def forward(self, x: Tensor) -> Tensor:
        """Gather the columns' parts, and multiply."""
        x = gather(x, self.column, -1, self.purpose)
        return linear(x, padded(self.weight, 1, self.inputs))


class OwnHeads(nn.Module):
    """Keys or values of every head on every rank, of which it keeps one for each of its query heads.

    For key-value heads that do not divide over the grid: a small matrix, computed by all rows. Places beyond the last head repeat it; their
    query heads are padding.
    """

    def __init__(self, linear: nn.Module, heads: int, head_dim: int, row: Axis, column: Axis) -> None:
        super().__init__()
        self.weight = weight_of(linear)
        groups = self.weight.shape[0] // head_dim
        here = padded_part(heads, row.size, column.size) // column.size
        first = (row.index * column.size + column.index) * here
        self.own_heads = [min(head, heads - 1) // (heads // groups) for head in range(first, first + here)]
        self.head_dim, self.column = head_dim, column

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, d/x) to (b, t, own heads · head_dim)."""
        y = total(linear(x, self.weight), self.column, "attention")
        return y.unflatten(-1, (-1, self.head_dim))[..., self.own_heads, :].flatten(-2)


class SplitNorm(nn.Module):
    """RMSNorm over features that are cut over the columns; the squares are summed over them."""

    def __init__(self, norm: nn.Module, column: Axis) -> None:
        super().__init__()
        self.weight, self.eps, self.column = weight_of(norm), cast(float, norm.eps), column
        self.width = self.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., d/x), keeping the format of `x`."""
        x_wide = wide(x)
        squares = total(x_wide.square().sum(-1, keepdim=True), self.column, "norm")
        return (x_wide * torch.rsqrt(squares / self.width + self.eps) * self.weight).to(x.dtype)


class GridEmbedding(nn.Module):
    """Rows of the vocabulary cut over the grid's rows: each looks up what it has, and the sum goes back to each row's own tokens."""

    def __init__(self, embedding: nn.Module, row: Axis) -> None:
        super().__init__()
        self.row, self.weight = row, weight_of(embedding)
        self.rows = padded_part(self.weight.shape[0], row.size)

    def forward(self, tokens_bt: Tensor) -> Tensor:
        """(b, t) tokens, the same on all rows, to (b, t/y, d/x)."""
        own_vd = padded(self.weight, 0, self.rows)
        return scatter_sum(look_up(tokens_bt, own_vd, self.row.index * self.rows), self.row, 1, "embedding")


class GridRouter(Router):
    """The router whose inputs' features are cut over the columns."""

    def __init__(self, router: Router, column: Axis) -> None:
        nn.Module.__init__(self)
        self.settings, self.weight, self.column = router.settings, router.weight, column
        self.register_buffer("bias_e", router.bias_e)
        self.register_buffer("load_e", router.load_e, persistent=False)

    def logits(self, x_nd: Tensor) -> Tensor:
        """Every expert's score, summed over the columns, (n, e)."""
        return total(F.linear(x_nd, self.weight), self.column, "router")


class GridExperts(Experts):
    """The experts' matrices on the grid, each cut as a dense layer's; the outputs are shares of the sum over the rows."""

    def __init__(self, experts: Experts, row: Axis, column: Axis) -> None:
        nn.Module.__init__(self)
        self.gate_efd, self.up_efd, self.down_edf, self.column = experts.gate_efd, experts.up_efd, experts.down_edf, column
        self.hidden = padded_part(experts.gate_efd.shape[1], row.size, column.size)

    def forward(self, x_nd: Tensor, ends_e: Tensor) -> Tensor:
        """Map rows (n, d/x) sorted by expert; expert e has the rows up to `ends_e[e]` (exclusive), int32."""
        gate, up = (
            scatter_sum(grouped_linear(x_nd, padded(weight, 1, self.hidden), ends_e), self.column, -1, "experts")
            for weight in (self.gate_efd, self.up_efd)
        )
        hidden_nf = gather(F.silu(gate) * up, self.column, -1, "experts")
        return grouped_linear(hidden_nf, padded(self.down_edf, 2, self.hidden), ends_e)


class GridLoss:
    """The `TokenLoss` of a head (v/y, d/x): every rank of the grid returns the loss of all its tokens.

    A rank multiplies its features with its vocabulary rows; the sum over the columns leaves each with v/(y x) of a token's logits. Elements one
    rank sends for n tokens: hidden states 2 n (d/x)(y - 1)/y, logits and their gradients 2 n v (x - 1)/(y x), softmax `vocabulary.py`.
    """

    def __init__(self, vocab: int, row: Axis, column: Axis, both: Axis) -> None:
        """`both` is row and column taken together, over which the logits are cut."""
        self.row, self.column, self.both = row, column, both
        self.part = padded_part(vocab, row.size)  # rows of the head that a row of the grid has, but for the last
        self.piece = padded_part(self.part, column.size)  # logits that a rank has, some of them padding

    @opaque
    def __call__(self, hidden_btd: Tensor, head_weight_vd: Tensor, targets_bt: Tensor, *, chunk_tokens: int, kernel: Kernel | None = None) -> Tensor:
        """Sum of the cross-entropies of `targets_bt` (b, t), the same on all ranks of the grid; `kernel` is for uncut vocabularies."""
        return chunked_loss(gather(hidden_btd, self.row, 1, "head"), head_weight_vd, targets_bt, chunk_tokens * self.both.size, self._step)

    def _step(self, hidden_nd: Tensor, weight_vd: Tensor, targets_n: Tensor, gradients: tuple[Tensor, Tensor] | None) -> Tensor:
        rows, place = len(weight_vd), self.column.index * self.piece
        logits_nv = F.pad(hidden_nd @ weight_vd.t(), (0, self.piece * self.column.size - rows))
        own_nv = self.column.reduce_scatter(logits_nv, 1, "head")
        count = min(max(rows - place, 0), self.piece)
        loss, grad_nv = split_softmax_gradient(own_nv, targets_n, self.both, self.row.index * self.part + place, count)
        if gradients is not None:
            grad_nv = self.column.all_gather(grad_nv, 1, "head")[:, :rows]
            torch.mm(grad_nv, weight_vd, out=gradients[0])
            add_product(gradients[1], grad_nv.t(), hidden_nd)
        return loss
