"""Compiled stages learn what eager ones do, whether their schedule splits the backward pass or not."""

from dataclasses import replace

import pytest
import torch
from ranks import run_ranks

from lab.models_to_verify import small_question
from penstock.engine import StopRequest, build_core
from penstock.engine import compile as compiling
from penstock.engine.replan import move_layers
from penstock.engine.step import take_step
from penstock.lab.equivalence import RandomPlan
from penstock.models import build_decoder
from penstock.models.later import KEEP_BUFFERS, finish, later

STEPS = 4
SETTINGS = {"model__layers": 3, "layout__pipeline": 2, "batch__micro": 3, "pipeline__chunks": 1, "train__loss_chunk": 24}


def learn(world, configs, move=False):
    """Of each config the losses and norms of some steps, whether all is compiled, and what was said; half-way a layer may go to another rank."""
    answers = []
    for config in configs:
        said = []
        core = build_core(config, world, RandomPlan(config), StopRequest(supervised=True), said.append)
        figures = []
        for step in range(STEPS):
            if move and step == STEPS // 2:
                move_layers(core, moved(core.pipeline.plan))
            with torch._dynamo.config.patch(error_on_recompile=True):  # what was checked is what runs
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
@pytest.mark.parametrize(("experts", "schedules"), [(False, ("1f1b", "auto")), (True, ("zb-h1",))], ids=["dense", "experts"])
def test_compiled_stages_learn_what_eager_ones_do_before_and_after_layers_move(experts, schedules):
    def config(schedule, compiled):
        return small_question(experts, pipeline__schedule=schedule, compile__enabled=compiled, **SETTINGS)

    eager = config(schedules[0], "off")
    for answers in run_ranks(learn, 2, [eager, *(config(schedule, "on") for schedule in schedules)], True):
        (reference, layers, compiled, _), *others = answers
        assert layers in (1, 2) and not compiled
        for figures, _, compiled, said in others:
            assert compiled and not said
            assert figures == pytest.approx(reference, rel=1e-9)


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


@pytest.mark.slow
@pytest.mark.parametrize(("options", "wrong"), [(KEEP_BUFFERS, False), (None, True)], ids=["kept", "reused"])
def test_what_a_compiled_backward_pass_leaves_stays_as_it_was_only_if_buffers_are_kept(options, wrong):
    model = small_question(True, model__moe__first_dense=0).model.model_copy(update={"layers": 2})
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


