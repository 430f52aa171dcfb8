"""PowerSGD: each matrix's sum over the nodes by its best known rank-r approximation, with error feedback (Vogels et al., arXiv 1905.13727).

    m = g + r                                    gradient and residual of this node: its rank's rows × columns
    Q = orth(Σ mᵀ F),   P = Σ m Q                one step of subspace iteration on Σ m; the sums are over the nodes
    Σ g ≈ P Qᵀ,   r ← m - m Q Qᵀ,   F ← P

The paper's algorithm on mᵀ: what is kept to begin the next step with (its warm start) then has this rank's *rows*, so it is cut and joined as the
parameter is, and a run goes on with it on other ranks. P and Q of a bucket travel flattened in one all-reduce each, so the wire carries
r (rows + columns) numbers twice over a ring instead of rows · columns, and summing needs no decoding. A node's own share m Q Qᵀ is never sent: Q is
the same everywhere, so the shares add up to P Qᵀ, and sent and withheld to the gradients, to rounding (whatever Q is).

Stacks of experts go matrix by matrix, batched. Columns of F that are zero (at the start, or of an expert without tokens) are replaced by
fixed random ones. Tensors of one dim, those whose residual no layout could cut anew, and pieces for which r (rows + columns) saves nothing travel
whole, together with Q. The QR factorisation begins with numbers that all nodes have to the bit, so nodes of one kind get the same Q; between
nodes whose processors round differently replicas would drift apart.

Cost: four products with r columns, two numbers a parameter for the residual, two times r numbers a row for F. When not to use it: where gradients are
far from low rank (what is withheld then grows old before it is sent), or the network is not the bottleneck.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from penstock.comm.gradients.bucket import Bucket, Piece
from penstock.comm.gradients.residual import Residual


@dataclass(frozen=True)
class _Matrices:
    """A piece as (stack, rows, columns): its part of what the residual becomes, its warm start, and what that becomes."""

    place: slice
    m_snd: Tensor
    factor_snr: Tensor
    next_snr: Tensor


@dataclass
class PowerSGD:
    """`Between` by rank-`rank` approximations of parameters that are `cuttable`, of two dims or more."""

    rank: int
    cuttable: Callable[[nn.Parameter], bool]
    faults: list[str] = field(default_factory=list)
    overflow: bool = False
    withholds: bool = True
    #: F of every parameter with a residual, (…, rows here, rank): part of the training state. Zero: begin anew.
    factors: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    _residuals: dict[int, Residual] = field(default_factory=dict)
    _matrices: dict[int, list[_Matrices]] = field(default_factory=dict)
    _fresh_nr: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __str__(self) -> str:
        return f"approximations of rank {self.rank}"

    def prepare(self, buckets: list[Bucket]) -> dict[nn.Parameter, Tensor]:
        """Make residuals and factors of the buckets, all zero; returns each parameter's residual, with a leading dim of one for the node."""
        withheld: dict[nn.Parameter, Tensor] = {}
        for bucket in buckets:
            residual = Residual(bucket, lambda parameter: self.compresses(tuple(parameter.shape)) and self.cuttable(parameter))
            for parameter, kept in residual.withheld.items():
                self.factors[parameter] = kept.new_zeros(*kept.shape[1:-1], self.rank)
            small = [place for piece, place in residual.chosen if not self.compresses(tuple(piece.view.shape))]
            residual.whole += small
            self._matrices[id(bucket)] = [self._matrices_of(piece, place, residual) for piece, place in residual.chosen if place not in small]
            self._residuals[id(bucket)] = residual
            withheld |= residual.withheld
        parts = [matrices.m_snd for found in self._matrices.values() for matrices in found]
        if parts:
            generator = torch.Generator().manual_seed(self.rank)
            fresh_nr = torch.randn(max(m.shape[-2] for m in parts), self.rank, generator=generator, dtype=torch.float64)
            self._fresh_nr = fresh_nr.to(parts[0])
        return withheld

    def compresses(self, shape: tuple[int, ...]) -> bool:
        """Matrices, and stacks of them, whose two factors are smaller than they are."""
        return len(shape) > 1 and self.rank * (shape[-2] + shape[-1]) < shape[-2] * shape[-1]

    def begin(self, step: int) -> None:
        """Every step is alike."""
        self.overflow = False

    def sum_(self, bucket: Bucket) -> None:
        """Replace `bucket.own` by the sum over the nodes, its matrices by the approximation of theirs."""
        residual, matrices = self._residuals[id(bucket)], self._matrices[id(bucket)]
        residual.add(bucket.own)
        if not _finite(residual.becomes):  # whatever is received then does not count
            self.overflow = True
            residual.becomes.zero_()
        right = [each.m_snd.mT @ self._start(each.factor_snr) for each in matrices]
        *right, whole = _summed(bucket, [*right, residual.whole_numbers()])
        right = [torch.linalg.qr(q_sdr).Q for q_sdr in right]
        left = [each.m_snd @ q_sdr for each, q_sdr in zip(matrices, right)]
        for each, p_snr, q_sdr in zip(matrices, left, right):
            each.m_snd.baddbmm_(p_snr, q_sdr.mT, alpha=-1)
        for each, p_snr, q_sdr in zip(matrices, _summed(bucket, left), right):
            each.next_snr.copy_(p_snr)
            torch.bmm(p_snr, q_sdr.mT, out=bucket.own[each.place].view_as(each.m_snd))
        residual.put_whole(whole, bucket.own)
        self.overflow |= not _finite(residual.becomes)

    def commit(self) -> None:
        """The step counts: what was not sent is what is withheld, and the next begins where this ended."""
        for residual in self._residuals.values():
            residual.commit()
        for each in (each for found in self._matrices.values() for each in found):
            each.factor_snr.copy_(each.next_snr)

    def _matrices_of(self, piece: Piece, place: slice, residual: Residual) -> _Matrices:
        m_snd = residual.becomes[place].view(-1, *piece.view.shape[-2:])
        factor_snr = self.factors[piece.parameter].view(*m_snd.shape[:2], self.rank)
        return _Matrices(place, m_snd, factor_snr, torch.zeros_like(factor_snr))

    def _start(self, factor_snr: Tensor) -> Tensor:
        """Where the step begins: the factor, with random columns in place of those of zeros."""
        empty_s1r = factor_snr.abs().amax(1, keepdim=True) == 0
        return torch.where(empty_s1r, self._fresh_nr[: factor_snr.shape[1]], factor_snr)


def _summed(bucket: Bucket, parts: list[Tensor]) -> list[Tensor]:
    """Sums of tensors over the nodes, by one all-reduce."""
    if not any(part.numel() for part in parts):
        return parts
    flat = bucket.route.between.all_reduce(torch.cat([part.reshape(-1) for part in parts]), "gradients")
    return [summed.view(part.shape) for summed, part in zip(flat.split([part.numel() for part in parts]), parts)]


def _finite(flat: Tensor) -> bool:
    return not flat.numel() or bool(torch.stack(flat.aminmax()).isfinite().all())
