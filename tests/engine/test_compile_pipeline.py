"""Compiled stages learn what eager ones do, whether their schedule splits the backward pass or not."""

from dataclasses import replace

import pytest
import torch
from ranks import run_ranks
from torch.torch_version import TorchVersion

from lab.models_to_verify import small_question
from penstock.comm import World
from penstock.config import UserError, with_values
from penstock.engine import StopRequest, build_core
from penstock.engine import compile as compiling
from penstock.engine.starting.resolve import settle_machine
from penstock.engine.step import take_step
from penstock.engine.tune.replan import move_layers
from penstock.lab.equivalence import RandomPlan
from penstock.models import build_decoder
from penstock.models.later import KEEP_BUFFERS, finish, later

#: Before 2.13 torch compiles no attention in float64 on a CPU (its backward pass finds a float32 where it wants float64).
OLD = TorchVersion(torch.__version__) < (2, 13)
FORMAT, TOLERANCE = ("float32", 2e-4) if OLD else ("float64", 1e-9)
STEPS = 4
SETTINGS = {"model__layers": 3, "layout__pipeline": 2, "batch__micro": 3, "precision__compute": FORMAT, "pipeline__chunks": 1, "train__loss_chunk": 24}


def learn(world, configs):
    """Of each config the losses and norms of some steps, whether all is compiled, and what was said; half-way a layer goes to another rank."""
    answers = []
    for config in configs:
        said = []
        core = build_core(config, world, RandomPlan(config), StopRequest(supervised=True), said.append)
        figures = []
        for step in range(STEPS):
            if step == STEPS // 2:
                move_layers(core, moved(core.pipeline.plan))
            whole = core.layout.shard == 1  # what was checked is then what runs
            with torch._dynamo.config.patch(error_on_recompile=whole):
                result = take_step(core, step)
            figures += [result.loss, result.grad_norm]
        compiled = [block._compiled_call_impl is not None for block in core.decoder.blocks.values()]
        answers.append((figures, len(compiled), all(compiled), said))
    return answers


def moved(plan):
    """The plan with the layers of the two ranks exchanged in number."""
    first, last = plan.stages.parts
    border = last.layers.stop - first.layers.stop
    parts = replace(first, layers=range(border)), replace(last, layers=range(border, last.layers.stop))
    return replace(plan, stages=replace(plan.stages, parts=parts))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "changes"),
    [("1f1b", {"layout__shard": 2}), ("auto", {"model__moe__experts": 6, "model__moe__first_dense": 0})],
    ids=["1f1b, sharded", "auto, experts"],
)
def test_compiled_stages_learn_what_eager_ones_do_before_and_after_layers_move(schedule, changes):
    settings, ranks = SETTINGS | changes, 2 * changes.get("layout__shard", 1)
    configs = [small_question("model__moe__experts" in changes, pipeline__schedule=schedule, compile__enabled=switch, **settings) for switch in ("off", "on")]
    for (reference, layers, compiled, _), (figures, _, all_compiled, said) in run_ranks(learn, ranks, configs):
        assert layers in (1, 2) and not compiled and all_compiled and not said
        assert figures == pytest.approx(reference, rel=TOLERANCE)


@pytest.mark.parametrize(("axis", "settled"), [("pipeline", "on"), ("shard", "on"), ("tensor", "off")])
def test_a_long_run_is_compiled_by_itself_in_a_pipeline_as_elsewhere_unless_exchanges_are_inside_its_blocks(axis, settled):
    config = small_question(False, compile__enabled="auto", train__steps=10**9, **{f"layout__{axis}": 2})
    assert settle_machine(config, 1).compile.enabled == settled
    if settled == "off":
        with pytest.raises(UserError, match=rf"compile.enabled = 'on' does not go with .*layout.{axis}"):
            with_values(config, {"compile.enabled": "on"})


def passes(decoder, context, xs, split):
    """Gradients after a backward pass for each of `xs`, all of whose forward passes come first; their products are left till the end if `split`."""
    inputs = [x.clone().requires_grad_() for x in xs]
    outputs = []
    with later.split(split):
        for y in inputs:
            for block in decoder.blocks.values():
                y = block(y, *context)
            outputs.append(y)
    left = []
    for index, y in enumerate(outputs):
        grad = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).sin() * (index + 1)
        if split and index != 1:  # one in their midst is not split, by the same code
            with later.collect() as products:
                y.backward(grad)
            left.append(products)
        else:
            y.backward(grad)
    missing = [name for name, p in decoder.named_parameters() if p.grad is None and name.startswith("blocks")]
    for products in left:
        finish(products)
    assert len(left) == (len(xs) - 1 if split else 0) and not missing
    return {**compiling.take_gradients(decoder), **{f"input {index}": x.grad for index, x in enumerate(inputs)}}


def overwriting(module, **options):
    """A compiler whose code, at the end of its backward pass, overwrites the gradient that it began with, as one may that reuses memory."""

    def run(x, *arguments):
        y = module(x, *arguments)
        if isinstance(y, torch.Tensor) and y.requires_grad:
            came = []

            def overwrite(_):
                came.pop().zero_()

            y.register_hook(came.append)
            x.register_hook(overwrite)
        return y

    return run


@pytest.mark.parametrize("split", [False, True], ids=["at once", "split"])
def test_the_check_finds_memory_overwritten_that_was_left_for_later(monkeypatch, split):
    config, warnings = small_question(False), []
    decoder = build_decoder(config.model, 1, torch.device("cpu"))
    monkeypatch.setattr(torch, "compile", overwriting)
    kernel = compiling.compile_blocks(decoder, config, torch.float32, 2, World(), warnings.append, partly=True, split=split)
    if split:
        assert kernel is None and len(warnings) == 1 and "gradient of ffn.down.weight" in warnings[0]
    else:
        assert kernel is not None and not warnings


@pytest.mark.slow
@pytest.mark.skipif(OLD, reason="torch before 2.13 compiles no attention in float64 on a CPU")
@pytest.mark.parametrize(("options", "wrong"), [(KEEP_BUFFERS, False), (None, True)], ids=["kept", "reused"])
def test_what_a_compiled_backward_pass_leaves_stays_as_it_was_only_if_buffers_are_kept(options, wrong):
    model = small_question(False).model
    decoder = build_decoder(model, 1, torch.device("cpu")).double()
    later.know(decoder)
    context = decoder.sequence.context(torch.zeros(2, model.context, dtype=torch.int64), None)
    xs = [torch.randn(2, model.context, model.dim, dtype=torch.float64) for _ in range(4)]
    reference = passes(decoder, context, xs, split=False)
    torch._dynamo.reset()
    for block in decoder.blocks.values():
        block.compile(dynamic=False, options=options)
    for _ in range(2):
        results = passes(decoder, context, xs, split=True)
        assert results.keys() == reference.keys()
        worst = max(((results[name] - value).norm() / value.norm()).item() for name, value in reference.items())
        assert (worst > 1e-3) is wrong and (wrong or worst < 1e-12), worst
