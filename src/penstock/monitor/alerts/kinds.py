"""What each kind of fault means to people: how bad it is, its likely cause, what to do, and which other findings it brings about.

`explains` holds the findings that are a consequence: told near the same step they belong to this fault's alert. So a slow rank, which makes every
step longer, is one alert and not two. Kinds that are nearly always somebody's consequence wait `hold` steps for it before anybody is told. Cost: a
table. When not to use it: to find faults, which detectors do; a new detector's kind needs an entry here to be explained well, and is told without
one.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.monitor.alerts.alert import Level


@dataclass(frozen=True)
class AlertKind:
    """What there is to say of a kind of fault; `hold`: steps in which a deeper fault may yet claim it."""

    level: Level
    cause: str
    advice: str
    explains: tuple[str, ...] = ()
    hold: int = 0


_LOSS = ("loss_spike", "gradient_explosion", "divergence", "unusual_step")

KINDS: dict[str, AlertKind] = {
    "rank_lost": AlertKind(
        "critical", "a process of the run ended: it was killed, ran out of memory, or failed",
        "see RUN/stacks and `penstock runs log RUN`; if the run does not go on by itself, `penstock resume RUN`",
        ("hang", "communication_stall", "throughput_drop", "straggler", "unusual_step", "clock_skew"),
    ),
    "run_lost": AlertKind(
        "critical", "the process that runs the training is gone without a word: killed from outside, or by the system for its memory",
        "look for the killer in the system's log (dmesg), then `penstock resume RUN`",
        ("hang", "rank_lost", "communication_stall", "throughput_drop", "unusual_step"),
    ),
    "run_failed": AlertKind(
        "critical", "the run ended with an error of its own",
        "the error and its traceback are in what the run printed and in `penstock runs log RUN`; mend it, then `penstock resume RUN`",
        ("rank_lost", "hang", "communication_stall", "throughput_drop", "unusual_step"),
    ),
    "hang": AlertKind(
        "critical", "a rank waits for something that does not come: a lost rank, a network that is cut, a disk that blocks",
        "look at RUN/stacks for who waits for whom; survive.patience_s sets when it is ended by itself, else stop it and `penstock resume RUN`",
        ("communication_stall", "throughput_drop", "unusual_step"),
    ),
    "non_finite": AlertKind(
        "critical", "a value overflowed or was divided by zero: a rate too high, a number format too narrow, or damaged data",
        "go on from the snapshot before with a lower optim.lr or optim.clip, or precision.compute = float32; look at the step's samples",
        (*_LOSS, "gradient_vanishing", "run_failed", "rank_lost"),
    ),
    "data_corruption": AlertKind(
        "warning", "the batch that was read then is not like the text before it: a damaged file, binary data, or another source",
        "look at the samples (`penstock runs samples RUN@STEP --step STEP`), mend or leave out the file; if the loss does not "
        "come back, fork the run from the snapshot before (`penstock runs fork`)",
        (*_LOSS, "non_finite", "data_repetition"),
    ),
    "data_repetition": AlertKind(
        "warning", "text is read again that was read lately: duplicates in the corpus, or a corpus that is too small for the run",
        "remove duplicates from data.path, or end earlier", ("plateau", "unusual_step", "data_corruption"),
    ),
    "loss_spike": AlertKind(
        "warning", "a batch unlike the others, or a rate too high for where the run is",
        "if it does not come back in some ten steps: go back to the last snapshot, or lower optim.lr or optim.clip",
        ("gradient_explosion", "unusual_step", "divergence"),
    ),
    "gradient_explosion": AlertKind(
        "warning", "the loss is steep where the weights are now: a rate too high, too short a warm-up, or a layer that has no limit",
        "lower optim.clip or optim.lr, lengthen optim.warmup", ("loss_spike", "divergence", "unusual_step"),
    ),
    "gradient_vanishing": AlertKind(
        "warning", "layers get hardly any gradient: units or softmaxes that saturate, or weights that collapsed",
        "look at dead_units/* and attention_entropy/*; lower optim.lr or optim.weight_decay", ("plateau", "unusual_step"),
    ),
    "divergence": AlertKind(
        "critical", "the loss has climbed for long: the rate is too high, or the state was harmed some steps ago",
        "go back to the snapshot before the climb with a lower optim.lr", ("loss_spike", "gradient_explosion", "plateau", "unusual_step"),
    ),
    "plateau": AlertKind(
        "notice", "the loss does not fall any more: the model has learnt what it can with this rate and data",
        "lower the rate (optim.schedule), or end the run",
    ),
    "straggler": AlertKind(
        "warning", "one rank is slow by itself: other work on its host, a hot or throttled device, a slow disk",
        "look at host/* and device/* of that rank; balance.data = measured gives it less, or run without that host",
        ("throughput_drop", "communication_stall", "unusual_step"),
    ),
    "throughput_drop": AlertKind(
        "warning", "all ranks became slower together: other work on the hosts, a slower network or disk, longer batches",
        "compare time/* and wait/* before and after; look for what else runs on the hosts", ("communication_stall", "unusual_step"), hold=12,
    ),
    "communication_stall": AlertKind(
        "warning", "the network stood still for a while",
        "look at wait/* by collective and at the link; if it comes again, exchange.kind saves bytes", ("throughput_drop", "unusual_step"), hold=3,
    ),
    "memory_leak": AlertKind(
        "warning", "memory is taken in every step and not given back",
        "snapshot before it is full; look for lists that grow in code of your own; resuming the run frees it", ("throughput_drop", "unusual_step"),
    ),
    "dead_experts": AlertKind(
        "warning", "the router sends some experts nothing, so they do not learn",
        "raise model.moe.bias_rate, or lower optim.lr", ("unusual_step",),
    ),
    "clock_skew": AlertKind("notice", "a host's clock is off: times of its ranks cannot be compared", "let the hosts' clocks be set (NTP)"),
    "snapshot_failed": AlertKind(
        "critical", "a snapshot could not be written: the disk is full or refuses",
        "make room, or let snapshot.keep be less; until then a fault takes back more steps",
    ),
    "unusual_step": AlertKind("notice", "many metrics left what was usual together",
        "look at what moved first: `penstock metrics RUN --query NAME`", hold=10,
    ),
}  # fmt: skip

_OTHER = AlertKind("warning", "not known", "look at what moved first: `penstock metrics RUN --query NAME`")


_LEVELS: tuple[Level, ...] = ("notice", "warning", "critical")


def worse(one: Level, other: Level) -> Level:
    """The worse of two levels."""
    return max(one, other, key=_LEVELS.index)


def kind_of(kind: str) -> AlertKind:
    """What there is to say of a kind."""
    return KINDS.get(kind, _OTHER)


def brings_about(deeper: str, kind: str) -> bool:
    """Whether a fault of the first kind brings about findings of the second."""
    return kind in kind_of(deeper).explains
