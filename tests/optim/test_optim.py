"""Optimizers, schedules, clipping and averaging against plain float64 references."""

import math

import pytest
import torch
from torch import nn

from penstock.config import load_config
from penstock.models import build_decoder, resolve_model
from penstock.optim import WeightAverage, build_optimizer, clip_grad_norm, lr_factor
from penstock.optim.muon import Muon, orthogonalise


def settings(*sets):
    return load_config(None, ["model.dim=32", "model.heads=2", "model.layers=2", "optim.warmup=0", *sets])


def decoder(config, seed=0):
    return build_decoder(resolve_model(config.model, 50), seed, "cpu")


def put_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 0.1


def test_adamw_is_that_of_the_paper():
    config = settings("optim.lr=0.01", "optim.weight_decay=0.3")
    model = decoder(config)
    optimizer, o = build_optimizer(dict(model.named_parameters()), config.optim), config.optim
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in expected.items()}
    for step in range(1, 5):
        put_gradients(model, step)
        optimizer.set_factor(0.5)
        optimizer.step()
        for name, p in model.named_parameters():
            g, (m, v) = p.grad.double(), moments[name]
            m.mul_(o.beta1).add_(g, alpha=1 - o.beta1)
            v.mul_(o.beta2).add_(g * g, alpha=1 - o.beta2)
            if p.ndim >= 2:
                expected[name] *= 1 - 0.005 * 0.3
            expected[name] -= 0.005 * (m / (1 - o.beta1**step)) / ((v / (1 - o.beta2**step)).sqrt() + o.eps)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach().double(), expected[name], rtol=1e-5, atol=1e-6)


def train_matrix(make_optimizer, start, gradients):
    """Where an optimizer takes a matrix with these gradients, one a step."""
    weight = nn.Parameter(start.clone())
    optimizer = make_optimizer([weight])
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32), (64, 16)])
def test_muon_agrees_with_torch_up_to_its_bfloat16(shape):
    start, *gradients = torch.randn(5, *shape)
    settings = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    ours = train_matrix(lambda p: Muon(p, **settings), start, gradients)
    theirs = train_matrix(lambda p: torch.optim.Muon(p, nesterov=True, **settings), start, gradients)
    assert (ours - theirs).norm() < 0.02 * (theirs - start).norm()


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_muon_is_that_of_its_formula_in_float64(shape):
    start, *gradients = torch.randn(5, *shape, dtype=torch.float64)
    lr, beta, decay = 0.05, 0.9, 0.2
    weight, m = start.clone(), torch.zeros(shape, dtype=torch.float64)
    for g in gradients:
        m = beta * m + g
        u, singular, vt = torch.linalg.svd(g + beta * m, full_matrices=False)
        singular = singular / singular.norm()
        for _ in range(5):  # an odd polynomial of a matrix acts on its singular values
            singular = 3.4445 * singular - 4.7750 * singular**3 + 2.0315 * singular**5
        polar = u * singular @ vt
        weight = weight * (1 - lr * decay) - lr * max(1, shape[0] / shape[1]) ** 0.5 * polar
    ours = train_matrix(lambda p: Muon(p, lr=lr, momentum=beta, weight_decay=decay), start, gradients)
    torch.testing.assert_close(ours, weight, rtol=0, atol=1e-5)
    single = train_matrix(lambda p: Muon(p, lr=lr, momentum=beta, weight_decay=decay), start.float(), [g.float() for g in gradients])
    torch.testing.assert_close(single.double(), weight, rtol=0, atol=1e-4)


def test_muon_does_the_same_when_it_iterates_few_matrices_at_a_time(monkeypatch):
    starts, gradients = torch.randn(2, 5, 8, 12)

    def updated():
        weights = [nn.Parameter(start.clone()) for start in starts]
        for weight, gradient in zip(weights, gradients):
            weight.grad = gradient.clone()
        Muon(weights, lr=0.1, momentum=0.9, weight_decay=0.0).step()
        return torch.stack([w.detach() for w in weights])

    together = updated()
    monkeypatch.setattr("penstock.optim.muon.CHUNK_ELEMENTS", 2 * 8 * 12)
    torch.testing.assert_close(updated(), together)


def test_muon_updates_every_matrix_of_a_stack_as_if_it_were_alone():
    torch.manual_seed(0)
    stack = nn.Parameter(torch.randn(3, 8, 12))
    alone = [nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    stack.grad = torch.randn(3, 8, 12)
    for parameter, gradient in zip(alone, stack.grad):
        parameter.grad = gradient.clone()
    Muon([stack], lr=0.1, momentum=0.9, weight_decay=0.0).step()
    for parameter in alone:
        Muon([parameter], lr=0.1, momentum=0.9, weight_decay=0.0).step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in alone]), rtol=1e-4, atol=1e-5)


def test_orthogonalising_keeps_the_singular_vectors_and_brings_the_values_near_one():
    x = torch.randn(5, 20, 33, dtype=torch.float64)
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    y = orthogonalise(x)
    core = u.mT @ y @ vt.mT
    values = core.diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.6 and values.max() < 1.25
    assert (core - torch.diag_embed(values)).abs().max() < 1e-9
    polar = u @ vt
    assert ((y * polar).sum(dim=(-2, -1)) / (y.norm(dim=(-2, -1)) * polar.norm(dim=(-2, -1)))).min() > 0.95


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_copied_state_goes_on_bit_for_bit(kind):
    config = settings(f"optim.kind={kind}", "model.moe.experts=4", "model.moe.first_dense=1")
    first, second = decoder(config), decoder(config, seed=9)
    a, b = (build_optimizer(dict(model.named_parameters()), config.optim) for model in (first, second))
    for step in range(3):
        put_gradients(first, step)
        a.step()
    second.load_state_dict(first.state_dict())
    assert a.state_tensors().keys() == b.state_tensors().keys()
    for name, tensor in b.state_tensors().items():
        tensor.copy_(a.state_tensors()[name])
    for step in range(3, 6):
        for model, optimizer in ((first, a), (second, b)):
            put_gradients(model, step)
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters()))


def test_every_parameter_has_its_moments_by_logical_name():
    config = settings("optim.kind=muon", "model.tie_embeddings=true")
    model = decoder(config)
    names = build_optimizer(dict(model.named_parameters()), config.optim).state_tensors().keys()
    assert "optim.blocks.0.attention.wq.weight.momentum" in names and "optim.embedding.weight.exp_avg" in names
    assert {n.removeprefix("optim.").rsplit(".", 1)[0] for n in names} == {name for name, _ in model.named_parameters()}


def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest():
    config = settings("optim.kind=muon", "model.qk_norm=true", "model.moe.experts=4", "model.moe.first_dense=1")
    names = build_optimizer(dict(decoder(config).named_parameters()), config.optim).state_tensors()
    muons = {name.split(".", 1)[1].removesuffix(".momentum") for name in names if name.endswith(".momentum")}
    dense = {f"blocks.0.{part}.weight" for part in ("attention.wq", "attention.wk", "attention.wv", "attention.wo", "ffn.gate", "ffn.up", "ffn.down")}
    assert dense <= muons and "blocks.1.ffn.experts.gate_efd" in muons
    adamws = {name.split(".", 1)[1].removesuffix(".exp_avg") for name in names if name.endswith(".exp_avg")}
    assert {"embedding.weight", "head.weight", "norm.weight", "blocks.0.attention.q_norm.weight", "blocks.1.ffn.router.weight"} <= adamws
    assert not muons & adamws


def test_schedules_have_the_shapes_their_names_say():
    cosine = settings("optim.warmup=10", "optim.min_lr=0.1").optim.model_copy(update={"warmup": 10})
    factors = [lr_factor(cosine, 100, s) for s in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == 1.0 and factors[-1] == pytest.approx(0.1)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[54] == pytest.approx(0.55, abs=0.02)
    wsd = cosine.model_copy(update={"schedule": "wsd", "decay": 0.2, "min_lr": 0.0})
    assert {lr_factor(wsd, 100, s) for s in range(10, 80)} == {1.0}
    assert lr_factor(wsd, 100, 89) == pytest.approx(0.5) and lr_factor(wsd, 100, 99) == pytest.approx(0.0)
    short = wsd.model_copy(update={"decay": 1.0})
    assert max(lr_factor(short, 12, s) for s in range(12)) == 1.0 and lr_factor(cosine, 5, 4) == pytest.approx(0.5), "shorter than the warm-up"
    constant = cosine.model_copy(update={"schedule": "constant", "warmup": 0})
    assert {lr_factor(constant, 100, s) for s in range(100)} == {1.0}
    assert all(0 < lr_factor(cosine, 10**6, s) <= 1 for s in (0, 1, 500_000, 10**6 - 1))


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6])
def test_clipping_measures_the_global_norm_and_scales_only_above_the_limit(max_norm):
    parameters = [nn.Parameter(torch.randn(n, 3)) for n in (4, 7, 1)]
    for p in parameters:
        p.grad = torch.randn_like(p)
    before = [p.grad.double() for p in parameters]
    expected = math.sqrt(sum(float(g.square().sum()) for g in before))
    norm = clip_grad_norm([p.grad for p in parameters], max_norm)
    assert float(norm) == pytest.approx(expected, rel=1e-5) and norm.dtype == torch.float32
    factor = min(1.0, max_norm / expected) if max_norm else 1.0
    for p, g in zip(parameters, before):
        torch.testing.assert_close(p.grad.double(), g * factor, rtol=1e-4, atol=1e-6)


def test_a_gradient_that_is_not_finite_shows_in_the_norm():
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.tensor([1.0, float("nan"), 2.0])
    assert not math.isfinite(float(clip_grad_norm([p.grad], 1.0)))


def test_averaged_weights_follow_the_formula_and_are_swapped_in_and_out_exactly():
    model = nn.Linear(3, 2)
    average = WeightAverage(dict(model.named_parameters()), 0.9)
    expected = model.weight.detach().double()
    for t in range(30):
        model.weight.data.copy_(torch.randn(2, 3, generator=torch.Generator().manual_seed(t)))
        average.update()
        decay = min(0.9, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
    own = model.weight.detach().clone()
    with pytest.raises(KeyError), average.swapped_in():
        torch.testing.assert_close(model.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)
        raise KeyError
    assert torch.equal(model.weight, own), "the weights come back even after an error"
    assert set(average.state_tensors()) == {"ema.weight", "ema.bias", "ema.updates"}


def test_an_average_that_took_anothers_state_goes_on_bit_for_bit():
    models = [nn.Linear(3, 2) for _ in range(2)]
    first, second = (WeightAverage(dict(model.named_parameters()), 0.95) for model in models)

    def follow(pairs, steps):
        for t in steps:
            for model, average in pairs:
                model.weight.data.copy_(torch.randn(2, 3, generator=torch.Generator().manual_seed(t)))
                average.update()

    follow([(models[0], first)], range(7))
    models[1].load_state_dict(models[0].state_dict())
    for name, tensor in second.state_tensors().items():
        tensor.copy_(first.state_tensors()[name])
    follow([(models[0], first), (models[1], second)], range(7, 12))
    expected = first.state_tensors()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in second.state_tensors().items())


def test_the_fused_adamw_is_torchs_bit_for_bit():
    config = settings("optim.lr=0.01", "optim.weight_decay=0.3")
    ours, theirs = decoder(config), decoder(config)
    groups = [{"params": [p for p in theirs.parameters() if (p.ndim < 2) == norms], "weight_decay": 0.0 if norms else 0.3} for norms in (False, True)]
    optimizers = build_optimizer(dict(ours.named_parameters()), config.optim), torch.optim.AdamW(groups, lr=0.01, betas=(config.optim.beta1, config.optim.beta2), fused=True)
    for step in range(3):
        for model, optimizer in zip((ours, theirs), optimizers):
            put_gradients(model, step)
            if step == 1:  # a parameter without a gradient is left as it is, and its step is not counted
                next(model.parameters()).grad = None
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        assert torch.equal(a, b)
