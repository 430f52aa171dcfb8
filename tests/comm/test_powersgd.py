"""PowerSGD sends the products it says, keeps the rest, and sends matrices of low rank as they are."""

import pytest
import torch
from ranks import run_ranks
from torch import nn

from penstock.comm import GradientReducer, PowerSGD
from penstock.parallel import Layout, Mesh, Placement, Split

SHAPES = [(40, 24), (3, 16, 20), (17,), (4, 4), (64, 9)]


def gradients(rank, step, dtype=torch.float64):
    generator = torch.Generator().manual_seed(100 * step + rank)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def steps_of(world, rank, gradients_of, steps, dtype=torch.float64, nodes=2):
    """Sums, residuals and factors after each step, the bytes of a step, and whether something was not finite in each."""
    mesh = Mesh(Layout(replicate=world.size // nodes, node=nodes), world)
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]
    kind = PowerSGD(rank, lambda parameter: True)
    reducer = GradientReducer([(p, mesh.route(Placement(tuple(p.shape)))) for p in parameters], 0.002, world.meter, kind)
    found = []
    for step in range(steps):
        for parameter, gradient in zip(parameters, gradients_of(world.rank, step, dtype)):
            parameter.grad = gradient
        world.meter.take()
        reducer.begin_step(step)
        reducer.begin()
        reducer.finish()
        if not (overflow := world.any(kind.overflow, "test")):
            kind.commit()
        states = [[state[p].clone() if p in state else None for p in parameters] for state in (reducer.withheld, kind.factors)]
        found.append(([p.grad.clone() for p in parameters], *states, world.meter.take(), overflow))
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sums_and_residuals_are_those_of_a_plain_float64_reference(dtype):
    answers = run_ranks(steps_of, 2, 2, gradients, 4, dtype)
    residuals = [[torch.zeros(shape, dtype=torch.float64) for shape in SHAPES] for _ in range(2)]
    for step in range(4):
        for index in range(len(SHAPES)):
            m = [gradients(rank, step)[index] + residuals[rank][index] for rank in range(2)]
            if index in (2, 3):  # one dim, and too small to save anything
                expected = m[0] + m[1]
            else:
                # where there was no factor yet, the basis is the exchange's own choice, which shows in its result
                before = answers[0][step - 1][2][index].double() if step else None
                y = sum(part.mT @ before for part in m) if step else answers[0][0][0][index].double().mT
                q = torch.linalg.qr(y).Q if step else torch.linalg.svd(y, full_matrices=False).U[..., :2]
                expected = (m[0] + m[1]) @ q @ q.mT
                for rank in range(2):
                    residuals[rank][index] = m[rank] - m[rank] @ q @ q.mT
            for rank in range(2):
                close = {"rtol": 0, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 0, "atol": 2e-4}
                torch.testing.assert_close(answers[rank][step][0][index].double(), expected, **close)
                if answers[rank][step][1][index] is not None:
                    torch.testing.assert_close(answers[rank][step][1][index][0].double(), residuals[rank][index], **close)
            assert torch.equal(answers[0][step][0][index], answers[1][step][0][index]), "replicas must hold the same bits"


def test_a_rank_as_large_as_the_matrices_sends_them_whole():
    for step, (sums, withheld, _, traffic, _) in enumerate(run_ranks(steps_of, 2, 24, gradients, 2, torch.float32)[0]):
        for index, gradient in enumerate(sums):
            assert torch.equal(gradient, gradients(0, step, torch.float32)[index] + gradients(1, step, torch.float32)[index])
        assert not any(each.any() for each in withheld if each is not None)
        assert traffic["node.gradients_bytes"] == 4 * sum(gradient.numel() for gradient in sums)


def of_low_rank(rank, step, dtype):
    """Of rank 2 in the sum over both; one of the experts has no tokens before the last step."""
    one = gradients(rank, step, dtype)
    generator = torch.Generator().manual_seed(step)
    for index, tensor in enumerate(one):
        if tensor.ndim > 1:
            right = torch.randn(2, tensor.shape[-1], generator=generator, dtype=dtype)
            one[index] = tensor[..., :2] @ right
    if step < 2:
        one[1][1] = 0
    return one


def test_matrices_of_low_rank_are_sent_completely():
    for step, (sums, withheld, *_) in enumerate(run_ranks(steps_of, 2, 3, of_low_rank, 3)[0]):
        for index, gradient in enumerate(sums):
            torch.testing.assert_close(gradient, of_low_rank(0, step, torch.float64)[index] + of_low_rank(1, step, torch.float64)[index])
        assert max(each.abs().max() for each in withheld if each is not None) < 1e-10


def test_bytes_are_those_of_two_factors_and_of_what_travels_whole():
    rank = 2
    whole, stacks = [17, 16], [(1, 40, 24), (3, 16, 20), (1, 64, 9)]
    expected = 4 * (sum(whole) + sum(n * rank * (rows + columns) for n, rows, columns in stacks))
    traffic = run_ranks(steps_of, 2, rank, gradients, 1, torch.float32)[0][0][3]
    assert traffic["node.gradients_bytes"] == expected  # over two nodes a ring carries each number once from each


def with_one_bad(rank, step, dtype):
    found = gradients(rank, step, dtype)
    if (rank, step) == (1, 1):
        found[0][3, 3] = float("inf")
    if (rank, step) == (0, 2):
        found[2][0] = float("nan")  # in what travels whole
    return found


def test_numbers_that_are_not_finite_are_reported_and_never_kept():
    for found in run_ranks(steps_of, 4, 2, with_one_bad, 4):
        assert [overflow for *_, overflow in found] == [False, True, True, False]
        for state in (1, 2):
            assert all(a is None or torch.equal(a, b) for later in (1, 2) for a, b in zip(found[0][state], found[later][state]))
        assert all(each is None or each.isfinite().all() for each in [*found[3][0], *found[3][1], *found[3][2]])


@pytest.mark.parametrize(
    "layout", [Layout(node=2), Layout(replicate=3, column=2, node=2), Layout(replicate=2, shard=2, row=2, column=2, topology="2d", node=2)], ids=str
)
@pytest.mark.parametrize(
    "splits", [(), (Split(0, ("column",)),), (Split(1, ("row", "column")),), (Split(1, ("column",)), Split(0, ("shard",)), Split(1, ("row",)))], ids=str
)
def test_factors_have_the_rows_of_the_residual_and_as_many_columns_as_the_rank(layout, splits):
    placement = Placement((14, 10), splits)
    factor, residual = placement.factor(3, layout), placement.shared_by_node(layout)
    covered = set()
    for rank in range(layout.ranks):
        box = factor.boxes(layout, rank)[0]
        assert box.sizes == (residual.local_shape(layout, rank)[1], 3)
        covered |= {(row, column) for row in range(14)[box.slices[0]] for column in range(factor.shape[1])[box.slices[1]]}
    assert len(covered) == factor.shape[0] * factor.shape[1]
