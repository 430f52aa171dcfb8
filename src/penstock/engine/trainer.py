"""The training loop: take a step, write it down, evaluate and save when due, stop when asked.

    while step < until:
        next_result      data → forward, backward → exchange → clip → update                (step.py, late.py)
        compare          replicas bit for bit, if asked for                                 (guard/drift.py)
        peers            a copy of the state with another rank, if asked for                (guard/peers.py)
        balancer         each replica's share of the next batch, where that is measured     (tune/balance.py)
        journal          metrics store, TensorBoard, live line                              (record/journal.py)
        tune_micro       how many sequences at a time, while that is being tried            (tune/micro.py)
        chooser          how gradients travel between nodes, if that is automatic           (tune/choose_exchange.py)
        watch            a pipeline's schedule and split of layers, when stages drift       (tune/replan.py)
        evaluate         validation loss and a sample, when due                             (evaluate.py)
        saving           the whole state, when due or when asked to stop                    (saving.py)
    obey             what the run was asked to do from outside                              (requests/obey.py)

A step whose loss is not finite ends the run before its update, and the state it started from is saved first; or, where `alerts.act` says so, its
batch is left out (guard/leave_out.py), or the run goes on from an older snapshot (guard/roll_back.py).
"""

from __future__ import annotations

import time

from penstock.engine.build import Parts
from penstock.engine.evaluate import averaged_weights, sample_text, validation_loss
from penstock.engine.guard.drift import compare_replicas
from penstock.engine.guard.judge import BadStep
from penstock.engine.guard.leave_out import leave_out
from penstock.engine.guard.roll_back import from_bad_step
from penstock.engine.late import next_result
from penstock.engine.requests.obey import begin, obey
from penstock.engine.tune.micro import tune_micro


def train(parts: Parts) -> bool:
    """Train until step `parts.until` or a stop request, recording what is measured; return whether it was reached."""
    with parts.recording.of(parts):
        return _train(parts)


def _train(parts: Parts) -> bool:
    progress = parts.progress
    started = time.perf_counter() - progress.wall_s
    begin(parts)
    while progress.step < parts.until:
        began = time.perf_counter()
        parts.world.meter.begin_step()
        try:
            result = next_result(parts, progress.step, settled_after(parts))
        except BadStep as bad:
            if leave_out(parts, bad) or from_bad_step(parts, bad):
                continue
            parts.saving.save(parts, last=True)
            raise
        progress.step += 1
        parts.judge.applied(result.loss, result.grad_norm)
        parts.torn = parts.late is not None and parts.late.ahead
        progress.tokens += result.tokens
        compare_replicas(parts)
        parts.peers.after_step(parts)
        seconds = time.perf_counter() - began
        parts.heart.after_step(parts, seconds)
        parts.balancer.after_step(parts)
        parts.journal.step(parts, result, began, seconds)
        tune_micro(parts, seconds)
        parts.watch.after_step(parts, seconds)
        parts.chooser.after_step(parts, seconds)
        complete(parts, started, result.stop)
        if result.stop:
            return progress.step == parts.until
        obey(parts, result.asked)
    return True


def complete(parts: Parts, started: float, stop: bool = False) -> None:
    """Do what is due after the step that the state has come to, as far as it has not been done: evaluate, save."""
    config, progress = parts.config, parts.progress
    finished, evaluated = progress.step == parts.until, bool(progress.evals) and progress.evals[-1]["step"] == progress.step
    if not evaluated and (finished or (due(progress.step, config.eval.every) and not stop)):
        parts.heart.says("evaluation")
        evaluate(parts)
    now = time.perf_counter() - started
    progress.device_s += (now - progress.wall_s) * parts.world.size
    progress.wall_s = now
    parts.saving.after_step(parts)
    if finished or stop or due(progress.step, config.snapshot.every):
        parts.heart.says("snapshot")
        parts.saving.save(parts, last=finished or stop)


def settled_after(parts: Parts) -> bool:
    """Whether the loop does something with the state after the coming step, so that no later one may have begun."""
    config, step = parts.config, parts.progress.step + 1
    every = config.eval.every, config.snapshot.every, config.survive.compare, parts.peers.every, parts.watch.every(parts)
    asked = parts.inbox.agreed or any(one.step == step for one in parts.agenda)
    return step == parts.until or asked or any(due(step, n) for n in every)


def due(step: int, every: int) -> bool:
    """Whether something done every `every` steps (0: never) is due after `step` steps."""
    return every > 0 and step % every == 0


def evaluate(parts: Parts) -> None:
    """Record the validation loss, and on the lead rank a sample."""
    began = time.perf_counter()
    with averaged_weights(parts):
        loss = validation_loss(parts)
        text = sample_text(parts, parts.config.eval.prompt, parts.progress.step) if parts.config.eval.sample_tokens else ""
    parts.progress.evals.append({"step": parts.progress.step, "tokens": parts.progress.tokens, "val_loss": loss})
    parts.journal.evaluation(parts.progress, loss, parts.config.eval.prompt, text, time.perf_counter() - began)

