"""A model that grows computes what it did, then learns with its new parts; moments follow the rule; the rest is refused by name."""

import json

import pytest
import torch

from penstock.config import UserError, load_config
from penstock.models import balance_experts, build_decoder, grown_moment, grown_value, load_decoder, plan_growth, resolve_model

MOE = ["moe.experts=4", "moe.active=2", "moe.groups=2", "moe.active_groups=1", "moe.first_dense=1"]
KINDS = {
    "layers": ([], ["layers=7"]),
    "feed-forward": ([], ["ffn_dim=160"]),
    "heads in groups": (["kv_heads=2"], ["heads=8", "kv_heads=2"]),
    "groups of heads": (["kv_heads=2"], ["heads=6", "kv_heads=3"]),
    "both": (["kv_heads=2"], ["heads=9", "kv_heads=3"]),
    "experts": (MOE, ["moe.experts=8"]),
    "wider experts": (MOE, ["moe.dim=72"]),
    "shared experts": (MOE, ["moe.shared=2"]),
    "first shared expert": ([*MOE, "moe.shared=0"], ["moe.shared=1"]),
    "layers with experts": (MOE, ["layers=6"]),
    "dense layers before experts": (MOE, ["layers=4", "moe.first_dense=2"]),
    "untied head": (["tie_embeddings=true"], ["tie_embeddings=false"]),
    "context": ([], ["context=48"]),
    "much at once": (MOE, ["layers=5", "heads=6", "kv_heads=6", "ffn_dim=128", "moe.experts=6", "moe.dim=64"]),
}


def section(*sets):
    base = ["layers=3", "dim=32", "heads=4", "head_dim=8", "ffn_dim=96", "context=24", "init_std=0.2", "moe.dim=48"]
    return resolve_model(load_config(None, [f"model.{one}" for one in [*base, *sets]]).model, 61)


def batch(seed, context=24):
    tokens = torch.randint(0, 61, (3, context + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def loss_of(decoder, seed=0):
    return decoder.loss(*batch(seed), chunk_tokens=1000)


def train(decoder, steps):
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    for step in range(steps):
        optimizer.zero_grad()
        (loss_of(decoder.train(), step) / 72).backward()
        optimizer.step()
        balance_experts(decoder, decoder.model.moe.bias_rate, None)
    return decoder.eval()


def grown(decoder, after):
    plan, old = plan_growth(decoder.model, after), decoder.state_dict()
    with torch.no_grad():
        values = {name: grown_value(change, after, 5, old.__getitem__) for name, change in plan.changes.items()}
    return load_decoder(after, values, "cpu", torch.float32).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [0, 3])
def test_growth_keeps_the_loss_and_the_new_parts_learn(kind, steps):
    first, then = KINDS[kind]
    before, after = section(*first), section(*first, *then)
    decoder = train(build_decoder(before, 3, "cpu"), steps)
    new = grown(decoder, after)
    for seed in (100, 101):
        torch.testing.assert_close(loss_of(new, seed) / 72, loss_of(decoder, seed) / 72, rtol=1e-5, atol=1e-5)
    plan = plan_growth(before, after)
    assert plan.preserves and not plan.loses
    json.dumps(plan.as_dict())
    silent = [name for name, change in plan.changes.items() if change.fate == "silent"]
    trained = train(new, 2).state_dict()
    assert all(trained[name].any() for name in silent)


def test_layers_that_were_added_are_the_ones_taken_out_again():
    before, after = section(), section("layers=7")
    decoder = train(build_decoder(before, 3, "cpu"), 1)
    back = grown(grown(decoder, after), before).state_dict()
    assert all(torch.equal(back[name], value) for name, value in decoder.state_dict().items())


@pytest.mark.parametrize(
    ("first", "then", "says"),
    [([], ["layers=2"], "layers 1 computed is lost"), ([], ["tie_embeddings=true"], "head's own matrix is lost")],
)
def test_what_is_lost_is_said(first, then, says):
    plan = plan_growth(section(*first), section(*first, *then))
    assert any(says in said for said in plan.loses) and plan.dropped


def test_moments_are_kept_for_what_stays_and_zero_for_what_is_new():
    plan = plan_growth(section(), section("layers=6", "ffn_dim=128"))
    moment = torch.rand(96, 32) + 1
    wider = grown_moment(plan.changes["blocks.2.ffn.gate.weight"], moment)
    assert plan.changes["blocks.2.ffn.gate.weight"].source == "blocks.1.ffn.gate.weight"
    assert torch.equal(wider[:96], moment) and wider.shape == (128, 32) and not wider[96:].any()
    assert grown_moment(plan.changes["blocks.2.ffn.gate.weight"], torch.tensor(7.0), counter=True) == 7
    assert grown_moment(plan.changes["blocks.3.ffn.gate.weight"], moment) is None
    assert torch.equal(grown_moment(plan.changes["embedding.weight"], torch.ones(61, 32)), torch.ones(61, 32))


def test_new_query_heads_join_the_group_of_their_key_value_head():
    plan = plan_growth(section("kv_heads=2"), section("heads=6", "kv_heads=2"))
    moment = torch.arange(4.0).repeat_interleave(8).view(32, 1).expand(32, 32) + 1
    heads = grown_moment(plan.changes["blocks.0.attention.wq.weight"], moment)[::8, 0].tolist()
    assert heads == [1, 2, 0, 3, 4, 0]


@pytest.mark.parametrize(
    ("first", "then", "key"),
    [
        ([], ["dim=64"], "model.dim"),
        ([], ["head_dim=16"], "model.head_dim"),
        ([], ["qk_norm=true"], "model.qk_norm"),
        ([], ["ffn_dim=64"], "model.ffn_dim"),
        (["kv_heads=2"], ["kv_heads=4"], "model.kv_heads"),
        ([], MOE, "model.moe.experts"),
        (MOE, ["moe.active=1"], "model.moe.active"),
        ([*MOE, "moe.scoring=softmax"], ["moe.experts=8"], "model.moe.scoring"),
        ([*MOE, "moe.bias_rate=0"], ["moe.experts=8"], "model.moe.bias_rate"),
    ],
)
def test_what_cannot_keep_the_function_is_refused_by_its_key(first, then, key):
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        plan_growth(section(*first), section(*first, *then))
