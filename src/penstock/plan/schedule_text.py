"""Pipeline schedules and what they come to, told in a few aligned lines."""

from __future__ import annotations

from penstock.parallel.pipeline.schedule import Costs
from penstock.parallel.pipeline.timeline import Timeline
from penstock.plan.schedule import Outcome


def outcome_text(outcome: Outcome) -> str:
    """One schedule."""
    schedule, timing = outcome.schedule, outcome.timing
    other = f"without a barrier {timing.steady_bubble:.1%}" if outcome.barrier else f"with a barrier {timing.bubble:.1%}"
    return "\n".join(
        [
            f"{_name(outcome)}: {_size(schedule.ranks, schedule.chunks, schedule.micro_batches)}{_made(outcome, ', made in ')}",
            f"bubble       {outcome.bubble:.1%}, {other}",
            f"step         {outcome.step:.6g}, proven to take at least {outcome.lower_bound:.6g} (bubble {outcome.least_bubble:.1%})",
            f"activations  {outcome.peak:.4g} of a rank's micro-batches at most; 1F1B holds {min(schedule.ranks, schedule.micro_batches)}",
        ]
    )


def comparison_text(outcomes: list[Outcome], refused: dict[str, str]) -> str:
    """Several schedules as a table, then why others are not in it."""
    head = ["kind", "chunks", "bubble", "no barrier", "makespan", "activations", "made in"]
    rows = []
    for o in outcomes:
        bubbles = f"{o.timing.bubble:.1%}", f"{o.timing.steady_bubble:.1%}"
        rows.append([_name(o), str(o.schedule.chunks), *bubbles, f"{o.timing.makespan:.6g}", f"{o.peak:.4g}", _made(o)])
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip() for row in [head, *rows]]
    last = outcomes[-1]
    barrier = "with a barrier" if last.barrier else "without a barrier"
    lines.append(f"on the stages of the last row, in the memory it may use, no schedule has a bubble below {last.least_bubble:.1%} {barrier}")
    return "\n".join(lines + [f"not {name}: {why}" for name, why in refused.items()])


def executed_text(timeline: Timeline) -> str:
    """What was executed."""
    size = _size(len(timeline.spans), timeline.schedule.chunks, timeline.micro_batches)
    return f"executed {timeline.kind}: {size}\nbubble       {timeline.bubble:.1%}\nstep         {timeline.makespan_s / timeline.steps:.6g} s"


def costs_text(costs: Costs) -> str:
    """Every stage's costs as a table."""
    head = ["stage", "forward", "input gradient", "weight gradient", "transfer on"]
    columns = (costs.forward, costs.input_grad, costs.weight_grad, (*costs.transfer, 0.0))
    rows = [[str(s), *(f"{column[s]:.4g}" for column in columns)] for s in range(len(costs.forward))]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(row, widths)) for row in [head, *rows])


def _name(outcome: Outcome) -> str:
    """The kind asked for, and the one found where that is another."""
    return outcome.asked if outcome.asked == outcome.schedule.kind else f"{outcome.asked} ({outcome.schedule.kind})"


def _size(ranks: int, chunks: int, micro_batches: int) -> str:
    return f"{ranks} ranks × {chunks} chunk{'s' * (chunks != 1)}, {micro_batches} micro-batches"


def _made(outcome: Outcome, words: str = "") -> str:
    """How long a schedule took to make, where that was not an instant."""
    return f"{words}{outcome.seconds:.2f} s" if outcome.seconds >= 0.05 else ""
