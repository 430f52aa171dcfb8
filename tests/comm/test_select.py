"""Selection of the largest entries: exact against a plain sort, sampled within its bound, on inputs that mislead a sample too."""

import math

import pytest
import torch

from penstock.comm.codec import NonFiniteError, kept, select_exact, select_sampled
from penstock.comm.codec.select import TOLERANCE

SIZES = [0, 1, 2, 7, 1000, 600_000]


def inputs(n, seed):
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randn(n, generator=generator)
    yield "normal", flat
    yield "heavy", flat**7
    yield "equal", torch.full((n,), 0.25)
    yield "zero", torch.zeros(n)
    yield "few", flat * (torch.rand(n, generator=generator) < 0.001)
    yield "ties", (flat * 3).round()
    yield "denormal", flat * 1e-42
    yield "sorted", flat.sort().values
    yield "row", torch.cat([flat[: n // 2] * 1e-3, flat[n // 2 :]])
    spikes = flat.clone() * 1e-3
    spikes[:: max(n // 5000, 1)] = 5  # regular, as columns of a matrix are
    yield "spikes", spikes


def reference(flat, k):
    """The k largest magnitudes, ties to the lower index, by a stable sort."""
    return flat.abs().double().sort(descending=True, stable=True).indices[:k].sort().values


@pytest.mark.slow
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("density", [1e-5, 0.01, 0.05, 0.5, 1.0])
def test_exact_selection_is_the_k_largest_with_ties_to_the_lower_index(n, density):
    for name, flat in inputs(n, n):
        found = select_exact(flat, density)
        assert found.dtype == torch.int64 and found.numel() == kept(n, density), name
        assert torch.equal(found, reference(flat, kept(n, density))), name


def test_exact_selection_is_as_torch_topk():
    flat = torch.randn(3_000_000, generator=torch.Generator().manual_seed(1))
    for density in (0.05, 0.01, 0.001):
        expected = flat.abs().topk(kept(flat.numel(), density)).indices.sort().values
        assert torch.equal(select_exact(flat, density), expected)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("density", [1e-5, 0.01, 0.05, 0.5, 1.0])
def test_sampled_selection_keeps_its_bound_and_leaves_nothing_larger_out(n, density):
    for name, flat in inputs(n, n + 1):
        found, k = select_sampled(flat, density), kept(n, density)
        assert (1 - TOLERANCE) * k <= found.numel() <= (1 + TOLERANCE) * k, name
        assert (found.diff() > 0).all()
        left = torch.ones(n, dtype=torch.bool)
        left[found] = False
        if 0 < found.numel() < n:
            assert flat[left].abs().amax() <= flat[found].abs().amin(), name


@pytest.mark.parametrize("select", [select_exact, select_sampled])
@pytest.mark.parametrize("n", [1, 50, 600_000])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_reported(select, n, bad):
    flat = torch.randn(n, generator=torch.Generator().manual_seed(0))
    flat[n // 2] = bad
    for density in (0.01, 1.0):
        with pytest.raises(NonFiniteError, match=f"1 of {n} .* number {n // 2}$"):
            select(flat, density)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.01, math.nan])
def test_density_outside_its_range_is_refused(density):
    for select in (select_exact, select_sampled):
        with pytest.raises(ValueError, match="density"):
            select(torch.zeros(5), density)


def test_count_is_the_ceiling_without_rounding_noise():
    assert [kept(100, 0.07), kept(100, 0.05), kept(101, 0.05), kept(3, 1e-9), kept(0, 0.5), kept(7, 1.0)] == [7, 5, 6, 1, 0, 7]


@pytest.mark.parametrize("flat", [torch.zeros(3, 3), torch.zeros(4, dtype=torch.float64), torch.zeros(8)[::2]])
def test_other_tensors_are_refused(flat):
    with pytest.raises(ValueError, match="float32"):
        select_exact(flat, 0.5)
