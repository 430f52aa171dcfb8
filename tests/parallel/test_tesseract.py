"""2.5-D tensor parallelism against one plain process, in float64 on fresh random data, and its bytes against the formula."""

import dataclasses
import functools
import random

import pytest
import torch
from ranks import run_ranks

from penstock.config import ModelSection
from penstock.models import Decoder, resolve_model
from penstock.models.moe import Router
from penstock.parallel import Layout, Mesh, plan_weights
from penstock.parallel.tensor.summa import Grid, linear, multiply_transposed, multiply_transposed_gradients
from penstock.parallel.tensor.tesseract import apply_tesseract
from penstock.parallel.tensor.vocabulary import split_softmax_gradient
from penstock.parallel.weights import assemble, own_part

SMALL = {"layers": 2, "dim": 16, "heads": 4, "ffn_dim": 24, "vocab": 40, "context": 12}
MOE = {"experts": 5, "active": 2, "shared": 1, "dim": 7}
MODELS = {
    "dense": {},
    "grouped queries": {"kv_heads": 2},
    "normalised queries and keys": {"qk_norm": True},
    "tied embeddings": {"tie_embeddings": True},
    "odd vocabulary": {"vocab": 37},
    "odd vocabulary, tied": {"vocab": 37, "tie_embeddings": True},
    "odd feed-forward": {"ffn_dim": 23},
    "odd heads": {"heads": 3, "head_dim": 6, "qk_norm": True},
    "fewer heads than columns": {"heads": 1, "head_dim": 6},
    "odd width": {"dim": 17, "head_dim": 4, "ffn_dim": 23, "vocab": 37},
    "sliding window": {"sliding_window": 4},
    "experts": {"moe": MOE | {"first_dense": 1}},
    "experts in groups, odd width": {"dim": 17, "head_dim": 4, "moe": MOE | {"experts": 8, "groups": 4, "active_groups": 2, "scoring": "softmax"}},
}
LAYOUTS = {
    "2x2x1": Layout(row=2, column=2, topology="2.5d"),
    "2x2x2": Layout(depth=2, row=2, column=2, topology="2.5d"),
    "2x2x1, replicated": Layout(replicate=2, row=2, column=2, topology="2.5d"),
}
#: A data axis beside the grid changes nothing of the layers, so two models do there.
CASES = [(layout, model) for layout in LAYOUTS for model in MODELS if "replicated" not in layout or model in ("odd vocabulary, tied", "experts")]
B, T = 2, 12


def section(changes):
    return resolve_model(ModelSection(**(SMALL | changes)), 0)


def plain_decoder(model, seed):
    """A decoder with every parameter random, norms too, scaled so that all parts matter."""
    torch.manual_seed(seed)
    decoder = Decoder(model).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(1 + 0.3 * torch.randn_like(parameter) if parameter.dim() == 1 else torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
        for buffer in decoder.buffers():
            buffer.zero_()
    return decoder


def cut_decoder(plain, mesh):
    """The same decoder on the grid, with the placement of every parameter."""
    with torch.device("meta"):
        decoder = Decoder(plain.model)
    apply_tesseract(decoder, mesh)
    decoder.to(plain.embedding.weight.dtype)
    whole = dict(plain.named_parameters())
    placements = plan_weights(plain.model, mesh.layout, {name: tuple(p.shape) for name, p in whole.items()})
    assert dict(decoder.named_parameters()).keys() == whole.keys()
    for path, module in decoder.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            assert parameter.shape == whole[full].shape
            setattr(module, name, torch.nn.Parameter(own_part(whole[full].detach(), placements[full], mesh)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros_like(buffer, device="cpu"))
    return decoder, placements


def batch(model, layout):
    """Tokens, targets (some to be ignored) and documents of all sequences."""
    n = B * layout.size(*layout.sequence_axes)
    tokens, targets = (torch.randint(model.vocab, (n, T)) for _ in range(2))
    targets[torch.rand(n, T) < 0.2] = -100
    return tokens, targets, (torch.rand(n, T) < 0.2).cumsum(1)


def difference(mine, plain):
    return ((mine - plain).abs().max() / plain.abs().max()).item()


def compare(world, layout, changes, seed, documents):
    """Largest relative differences of loss, evaluation's loss, gradients and expert loads from the plain decoder's."""
    mesh = Mesh(layout, world)
    plain = plain_decoder(section(changes), seed)
    cut, placements = cut_decoder(plain, mesh)
    inputs = batch(plain.model, layout)
    place = layout.index(world.rank, layout.sequence_axes)
    own = [x[place * B : (place + 1) * B] for x in inputs]
    whole_loss, loss = (
        model.loss(tokens, targets, documents_bt=docs if documents else None, dtype=torch.float64, chunk_tokens=5)
        for model, (tokens, targets, docs) in ((plain, inputs), (cut, own))
    )
    whole_loss.backward()
    loss.backward()
    with torch.no_grad():
        cut.eval()
        evaluated = cut.loss(own[0], own[1], documents_bt=own[2] if documents else None, dtype=torch.float64, chunk_tokens=7)
    tokens = mesh.axis(*layout.sequence_axes)
    found = {"loss": difference(tokens.all_reduce(loss.detach().clone(), "test"), whole_loss.detach())}
    found["evaluation"] = difference(tokens.all_reduce(evaluated.clone(), "test"), whole_loss.detach())
    for name, parameter in cut.named_parameters():
        replicas = mesh.axis(*placements[name].replicas(layout))
        gradient = assemble(replicas.all_reduce(parameter.grad.contiguous(), "test"), placements[name], mesh, "test")
        found[name] = difference(gradient, plain.get_parameter(name).grad)
    for (name, a), (_, b) in zip(cut.named_modules(), plain.named_modules()):
        if isinstance(a, Router):
            found[f"{name}.load_e"] = float((tokens.all_reduce(a.load_e, "test") != b.load_e).any())
    return found


def compare_all(world, layout, models, seed):
    return {name: compare(world, layout, changes, seed + i, documents=i % 2 == 1) for i, (name, changes) in enumerate(models.items())}


@functools.cache
def found(layout):
    """The seed, and what `compare_all` returned on every rank of the layout; computed once for all its models."""
    seed = random.SystemRandom().randrange(2**31)
    models = {model: MODELS[model] for of, model in CASES if of == layout}
    return seed, run_ranks(compare_all, LAYOUTS[layout].ranks, LAYOUTS[layout], models, seed, timeout_s=300.0)


@pytest.mark.parametrize(("layout", "model"), [pytest.param(*case, marks=() if case[0] == "2x2x1" else pytest.mark.slow) for case in CASES])
def test_a_grid_gives_the_plain_loss_and_gradients(layout, model):
    seed, of_ranks = found(layout)
    for of_rank in of_ranks:
        wrong = {name: error for name, error in of_rank[model].items() if not error < 1e-10}
        assert not wrong, f"seed {seed}"


@pytest.mark.slow
def test_three_rows_and_columns_give_the_plain_loss_and_gradients():
    layout = Layout(row=3, column=3, topology="2.5d")
    models = {name: MODELS[name] | more for name, more in (("odd width", {"heads": 4}), ("fewer heads than columns", {}), ("experts", {"vocab": 4}))}
    for of_rank in run_ranks(compare_all, 9, layout, models, 7):
        wrong = {(model, name): e for model, errors in of_rank.items() for name, e in errors.items() if not e < 1e-10}
        assert not wrong


def low_precision(world, layout):
    """Loss and a gradient in bfloat16 on the grid, and plainly in bfloat16 and float32."""
    mesh = Mesh(layout, world)
    plain = plain_decoder(section({"moe": MOE}), 3).float()
    cut, placements = cut_decoder(plain, mesh)
    tokens, targets, _ = batch(plain.model, layout)
    own = slice((place := layout.index(world.rank, layout.sequence_axes)) * B, (place + 1) * B)
    results = []
    for model, part, dtype in ((cut, own, torch.bfloat16), (plain, slice(None), torch.bfloat16), (plain, slice(None), torch.float32)):
        model.zero_grad()
        model.loss(tokens[part], targets[part], dtype=dtype, chunk_tokens=5).backward()
        results.append(model.blocks["0"].attention.wq.weight.grad)
    name = "blocks.0.attention.wq.weight"
    mesh.axis(*placements[name].replicas(layout)).all_reduce(results[0], "test")
    mine, low, full = assemble(results[0], placements[name], mesh, "test"), *results[1:]
    return ((mine - full).norm() / full.norm()).item(), ((low - full).norm() / full.norm()).item()


def test_in_bfloat16_a_grid_is_as_near_to_float32_as_one_process():
    for grid_error, plain_error in run_ranks(low_precision, 4, LAYOUTS["2x2x1"]):
        assert grid_error < 2 * plain_error < 0.2


def linear_bytes(world, layout, n, inputs, outputs):
    """Bytes that this rank's meter counts for one linear layer and for one head, forward and backward."""
    mesh = Mesh(layout, world)
    grid, q = Grid(mesh.axis("row"), mesh.axis("column")), layout.row
    x = torch.randn(n, inputs // q, requires_grad=True)
    block = torch.randn(outputs // q, inputs // q, requires_grad=True)
    counts = []
    y = linear(x, block, grid)
    counts.append(world.meter.take())
    y.sum().backward()
    counts.append(world.meter.take())
    multiply_transposed_gradients(multiply_transposed(x, block, grid), x, block, grid)
    counts.append(world.meter.take())
    return [{name: value for name, value in row.items() if name.endswith("_bytes")} for row in counts]


@pytest.mark.parametrize("layout", ["2x2x1", "2x2x2"])
def test_the_meter_counts_what_the_formula_says(layout):
    n, inputs, outputs, q, size = 10, 24, 36, 2, 4
    rows, columns, matrix = (size * count * (q - 1) // q for count in (n * inputs, n * outputs, inputs * outputs // q))
    for forward, backward, head in run_ranks(linear_bytes, LAYOUTS[layout].ranks, LAYOUTS[layout], n, inputs, outputs):
        assert forward == {"column.activations_bytes": rows, "row.weights_bytes": matrix}
        assert backward == {"column.activations_bytes": 2 * rows, "row.weights_bytes": matrix, "row.weight_gradients_bytes": matrix}
        assert head == {"column.activations_bytes": 2 * columns, "row.weights_bytes": 2 * matrix, "row.weight_gradients_bytes": matrix}


def attention_bytes(world, layout, changes):
    mesh = Mesh(layout, world)
    plain = plain_decoder(section(changes), 0)
    cut, _ = cut_decoder(plain, mesh)
    x = torch.randn(B, T, plain.model.dim // layout.column, dtype=torch.float64, requires_grad=True)
    angles = cut.sequence.context(torch.zeros(B, T, dtype=torch.long))
    cut.blocks["0"].attention(x, *angles).sum().backward()
    return world.meter.take()["column.activations_bytes"]


def test_matrices_that_read_the_same_activations_fetch_them_once():
    model = section({})
    once = 3 * B * T * model.dim * 8 // 2
    assert run_ranks(attention_bytes, 4, LAYOUTS["2x2x1"], {}) == [2 * once] * 4  # for wq wk wv together, and for wo


def uneven_experts(world, layout):
    """Expert products where grid rows have different numbers of rows, one of them none."""
    mesh = Mesh(layout, world)
    plain = plain_decoder(section({"moe": MOE}), 5)
    cut, placements = cut_decoder(plain, mesh)
    loads = torch.tensor([[0, 3, 0, 4, 1], [0, 0, 0, 0, 0]])
    row, column = (layout.coordinate(world.rank, axis) for axis in ("row", "column"))
    x = torch.randn(8, plain.model.dim, dtype=torch.float64)
    mine = x[: int(loads[row].sum()), column * 8 : column * 8 + 8].clone().requires_grad_()
    mine_y = cut.blocks["0"].ffn.experts(mine, loads[row].cumsum(0).to(torch.int32))
    x.requires_grad_()
    y = plain.blocks["0"].ffn.experts(x, loads[0].cumsum(0).to(torch.int32))
    y.square().sum().backward()
    mine_y.square().sum().backward()
    name = "blocks.0.ffn.experts.down_edf"
    grad = mesh.axis(*placements[name].replicas(layout)).all_reduce(cut.get_parameter(name).grad, "test")
    errors = [difference(assemble(grad, placements[name], mesh, "test"), plain.get_parameter(name).grad)]
    if row == 0:
        errors += [difference(mine_y, y[:, column * 8 : column * 8 + 8]), difference(mine.grad, x.grad[:, column * 8 : column * 8 + 8])]
    return max(errors), tuple(mine_y.shape)


def test_a_row_of_the_grid_may_have_no_tokens_for_its_experts():
    results = run_ranks(uneven_experts, 4, LAYOUTS["2x2x1"])
    assert all(error < 1e-10 for error, _ in results)
    assert [shape for _, shape in results] == [(8, 8), (8, 8), (0, 8), (0, 8)]


def split_softmax(world, layout):
    axis = Mesh(layout, world).axis("column")
    torch.manual_seed(1)
    logits, targets = torch.randn(6, 5, dtype=torch.float64) * 300, torch.tensor([0, 4, -100, 2, 3, 1])
    mine = torch.nn.functional.pad(logits[:, 3 * axis.index :][:, :3], (0, axis.index)).contiguous()
    loss, gradient = split_softmax_gradient(mine, targets, axis, 3 * axis.index, 3 - axis.index)
    logits.requires_grad_()
    plain = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    plain.backward()
    expected = torch.nn.functional.pad(logits.grad[:, 3 * axis.index :][:, :3], (0, axis.index))
    torch.testing.assert_close(loss, plain.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_a_split_softmax_stands_large_logits_and_padding():
    run_ranks(split_softmax, 2, dataclasses.replace(LAYOUTS["2x2x1"], row=1))


def test_grouped_heads_that_do_not_divide_over_the_columns_are_not_taken():
    with pytest.raises(AssertionError, match="3 grouped key-value heads over 2 columns"):
        run_ranks(compare, 4, LAYOUTS["2x2x1"], {"heads": 6, "kv_heads": 3, "head_dim": 4}, 0, False)
