"""The decoder against plain references: loss, masks, experts, cached generation, initial weights, counts."""

import math

import pytest
import torch
import torch.nn.functional as F

from penstock.config import UserError, load_config, preset_names
from penstock.models import (
    KVCache,
    balance_experts,
    build_decoder,
    count_parameters,
    flops_per_token,
    generate,
    initial_value,
    lm_loss,
    resolve_model,
)  # fmt: skip


def shape(*sets, vocab=61):
    base = ["model.layers=2", "model.dim=32", "model.heads=4", "model.context=24", "model.init_std=0.2"]
    return resolve_model(load_config(None, [*base, *sets]).model, vocab)


MOE = ["model.moe.experts=8", "model.moe.active=3", "model.moe.groups=4", "model.moe.active_groups=2", "model.moe.scale=1.7", "model.moe.first_dense=1"]


@pytest.mark.parametrize("chunk", [1, 7, 40, 1000])
def test_the_chunked_loss_is_plain_cross_entropy_with_its_gradients(chunk):
    torch.manual_seed(chunk)
    hidden, head = torch.randn(3, 13, 8, dtype=torch.float64), torch.randn(29, 8, dtype=torch.float64)
    targets = torch.randint(0, 29, (3, 13))
    targets[0, :5] = -100
    a, b = (t.clone().requires_grad_() for t in (hidden, head))
    c, d = (t.clone().requires_grad_() for t in (hidden, head))
    mine = lm_loss(a, b, targets, chunk_tokens=chunk)
    plain = F.cross_entropy((c @ d.T).flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    (mine * 0.3).backward()
    (plain * 0.3).backward()
    torch.testing.assert_close(mine, plain, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(a.grad, c.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(b.grad, d.grad, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(lm_loss(hidden, head, targets, chunk_tokens=chunk), plain.detach(), rtol=1e-10, atol=1e-10)


def test_the_head_gradient_of_a_bfloat16_loss_is_summed_in_float32():
    torch.manual_seed(0)
    hidden, head, targets = torch.randn(1, 512, 16), torch.randn(40, 16), torch.randint(0, 40, (1, 512))
    a, b = head.clone().requires_grad_(), head.clone().requires_grad_()
    lm_loss(hidden.bfloat16(), a, targets, chunk_tokens=8).backward()
    lm_loss(hidden, b, targets, chunk_tokens=8).backward()
    assert a.grad.dtype == torch.float32
    assert ((a.grad - b.grad).norm() / b.grad.norm()) < 0.02


def dense_attention(decoder, tokens, allowed):
    """The decoder with every attention written out as a softmax over the allowed pairs, in float64."""
    model, x = decoder.model, decoder.embedding.weight[tokens]
    k, t = model.head_dim, tokens.shape[1]
    angle = torch.outer(torch.arange(t, dtype=torch.float64), model.rope_theta ** (-torch.arange(0, k, 2, dtype=torch.float64) / k))
    turn = torch.polar(torch.ones_like(angle), angle)

    def rotated(y):
        z = torch.complex(y[..., : k // 2], y[..., k // 2 :]) * turn
        return torch.cat([z.real, z.imag], -1)

    for block in decoder.blocks.values():
        y, a = block.attention_norm(x), block.attention
        q, key, v = (w(y).unflatten(-1, (-1, k)).transpose(1, 2) for w in (a.wq, a.wk, a.wv))
        groups = model.heads // model.kv_heads
        q, key, v = rotated(q), rotated(key).repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        weight = (q @ key.mT / math.sqrt(k)).masked_fill(~allowed, -math.inf).softmax(-1)
        x = x + a.wo((weight @ v).transpose(1, 2).flatten(2))
        x = x + block.ffn(block.ffn_norm(x))
    return decoder.norm(x)


@pytest.mark.parametrize("window", [0, 1, 5])
@pytest.mark.parametrize("packed", [False, True])
def test_attention_sees_what_window_and_documents_allow_and_nothing_else(window, packed):
    decoder = build_decoder(shape("model.kv_heads=2", f"model.sliding_window={window}"), 1, "cpu").double()
    tokens = torch.randint(0, 61, (2, 20))
    documents = torch.tensor([[0] * 7 + [1] * 13, [0] * 2 + [1] * 9 + [2] * 9])
    i, j = torch.arange(20)[:, None], torch.arange(20)[None, :]
    allowed = (j <= i) & ((i - j < window) if window else torch.ones(20, 20, dtype=torch.bool))
    allowed = allowed.expand(2, 1, 20, 20)
    if packed:
        allowed = allowed & (documents[:, None, :, None] == documents[:, None, None, :])
    with torch.no_grad():
        mine = decoder(tokens, documents_bt=documents if packed else None, dtype=torch.float64)
        torch.testing.assert_close(mine, dense_attention(decoder, tokens, allowed), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_experts_are_the_formula_of_the_paper(scoring):
    decoder = build_decoder(shape(*MOE, f"model.moe.scoring={scoring}"), 2, "cpu")
    layer, moe = decoder.blocks["1"].ffn.eval(), decoder.model.moe
    layer.router.bias_e.copy_(torch.randn(8) * 0.3)
    x = torch.randn(2, 9, 32)
    expected = layer.shared(x).double()
    scores = (x @ layer.router.weight.T).double()
    scores = scores.sigmoid() if scoring == "sigmoid" else scores.softmax(-1)
    for b, t in ((b, t) for b in range(2) for t in range(9)):
        biased = scores[b, t] + layer.router.bias_e
        groups = biased.view(4, 2)
        kept = set(groups.topk(2, -1).values.sum(-1).topk(2).indices.tolist())
        order = sorted((e for e in range(8) if e // 2 in kept), key=lambda e: -biased[e].item())[:3]
        total = sum(scores[b, t, e] for e in order)
        for e in order:
            gate, up, down = (getattr(layer.experts, name)[e] for name in ("gate_efd", "up_efd", "down_edf"))
            expected[b, t] += (scores[b, t, e] / total * moe.scale) * (down @ (F.silu(gate @ x[b, t]) * (up @ x[b, t]))).double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_router_and_experts_as_numeric_ones_do():
    decoder = build_decoder(shape(*MOE), 3, "cpu")
    layer = decoder.blocks["1"].ffn.double()
    x = torch.randn(1, 6, 32, dtype=torch.float64)
    weight = torch.randn(1, 6, 32, dtype=torch.float64)
    (layer(x) * weight).sum().backward()
    for parameter in (layer.router.weight, layer.experts.gate_efd, layer.experts.down_edf):
        index = int(parameter.grad.abs().argmax())
        flat, step = parameter.data.view(-1), 1e-6
        flat[index] += step
        high = (layer(x) * weight).sum().item()
        flat[index] -= 2 * step
        low = (layer(x) * weight).sum().item()
        flat[index] += step
        assert parameter.grad.view(-1)[index].item() == pytest.approx((high - low) / (2 * step), rel=1e-4)


def test_balancing_moves_the_bias_against_the_load_and_counts_all_ranks():
    decoder = build_decoder(shape(*MOE), 4, "cpu")
    decoder(torch.randint(0, 61, (4, 24)))
    router = decoder.blocks["1"].ffn.router
    load = router.load_e.double().clone()
    assert load.sum() == 4 * 24 * 3
    other = torch.tensor([100.0, 0, 0, 0, 0, 0, 0, 0], dtype=torch.float64)
    said = balance_experts(decoder, 0.01, lambda loads: loads.add_(other))
    total = load + other
    torch.testing.assert_close(router.bias_e.double(), 0.01 * (total.mean() - total).sign(), rtol=1e-5, atol=1e-9)
    assert said["expert_load_max_over_mean"] == pytest.approx((total.max() / total.mean()).item())
    assert not router.load_e.any()
    decoder.eval()(torch.randint(0, 61, (1, 8)))
    assert not router.load_e.any(), "evaluation is no load"


@pytest.mark.parametrize("sets", [[], ["model.sliding_window=6"], MOE, ["model.kv_heads=1", "model.qk_norm=true"]])
def test_cached_generation_writes_what_uncached_would(sets):
    decoder = build_decoder(shape(*sets), 5, "cpu").eval()
    start, seen = [3, 1, 4], [3, 1, 4]
    for _ in range(18):
        with torch.no_grad():
            seen.append(int(decoder.logits(decoder(torch.tensor([seen])))[0, -1].argmax()))
    mine = generate(decoder, start, max_new=18, temperature=0.0, top_k=0, generator=torch.Generator(), stop=None, dtype=torch.float32)
    assert start + mine == seen


def test_generation_goes_on_past_the_context_and_stops_at_the_end_token():
    decoder = build_decoder(shape(), 6, "cpu").eval()
    long = generate(decoder, [1], max_new=100, temperature=1.0, top_k=5, generator=torch.Generator().manual_seed(1), stop=None, dtype=torch.float32)
    assert len(long) == 100 and all(0 <= t < 61 for t in long)
    stop = long[10]
    short = generate(decoder, [1], max_new=100, temperature=1.0, top_k=5, generator=torch.Generator().manual_seed(1), stop=stop, dtype=torch.float32)
    assert stop not in short and short == long[: long.index(stop)]


def test_a_cache_holds_no_more_than_the_window():
    decoder, cache = build_decoder(shape("model.sliding_window=4"), 0, "cpu").eval(), KVCache(4)
    with torch.no_grad():
        for _ in range(10):
            decoder(torch.tensor([[1]]), cache=cache)
    assert cache.kept <= 4


def test_initial_weights_depend_on_seed_and_name_alone():
    small, deep = build_decoder(shape(*MOE), 7, "cpu"), build_decoder(shape(*MOE, "model.layers=4"), 7, "cpu")
    mine, others = dict(small.named_parameters()), dict(deep.named_parameters())
    assert torch.equal(mine["blocks.0.attention.wq.weight"], others["blocks.0.attention.wq.weight"])
    assert not torch.equal(mine["blocks.0.attention.wq.weight"], mine["blocks.1.attention.wq.weight"])
    assert not torch.equal(mine["embedding.weight"], dict(build_decoder(shape(*MOE), 8, "cpu").named_parameters())["embedding.weight"])
    name = "blocks.1.ffn.experts.gate_efd"
    one = initial_value(small.model, 7, name, tuple(mine[name].shape[1:]), expert=3)
    assert torch.equal(one, mine[name][3]), "an expert's weights can be drawn without the others"
    assert mine["blocks.0.attention.wq.weight"].detach().std() == pytest.approx(0.2, rel=0.1)
    assert mine["blocks.0.attention.wo.weight"].detach().std() == pytest.approx(0.2 / 2, rel=0.1)


@pytest.mark.parametrize("sets", [[], MOE, ["model.tie_embeddings=true", "model.qk_norm=true", "model.kv_heads=2"]])
def test_counts_are_those_of_the_built_model(sets):
    model = shape(*sets)
    counts = count_parameters(model)
    assert counts["total"] == sum(p.numel() for p in build_decoder(model, 0, "cpu").parameters())
    assert (counts["active"] < counts["total"]) == bool(model.moe.experts)


def test_flops_are_six_per_product_parameter_plus_attention():
    model = shape("model.ffn_dim=96")
    products = 2 * (4 * 32 * 32 + 3 * 32 * 96) + 61 * 32
    assert flops_per_token(model) == 6 * products + 12 * 2 * 4 * 8 * 24


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused():
    assert shape(vocab=61).vocab == 61 and shape(vocab=5000).vocab == 5056 and shape("model.vocab=70").vocab == 70
    with pytest.raises(UserError, match=r"model\.vocab = 50.*61"):
        shape("model.vocab=50")


@pytest.mark.parametrize("name", preset_names())
def test_resolving_a_resolved_shape_changes_nothing(name):
    model = resolve_model(load_config(name).model, 1000)
    assert resolve_model(model, 1000) == model
