"""The policy goes to the number of ranks that pays and stays there; a dry run only says it; what would oscillate is no config."""

import pytest
from small_runs import small_config

from penstock.config import ConfigError, ElasticSection, UserError, with_values
from penstock.engine.guard.heart import Beat
from penstock.engine.survive.policy import Pilot, Policy
from penstock.store import create_run, read_history

#: Seconds of a step by ranks: two are worth it, the third brings a fifth of its part, the fourth costs.
TIMES = {1: 1.0, 2: 0.55, 3: 0.5, 4: 0.6}


def travelled(policy, times, steps=400, ranks=1):
    """The numbers of ranks that the policy went to."""
    way = []
    for _ in range(steps):
        policy.saw(ranks, times[ranks])
        move = policy.decide(ranks + 1 if ranks + 1 in times else None, ranks - 1 or None)
        if move is not None:
            ranks = move.ranks
            way.append(ranks)
    return way


def test_ranks_are_added_while_they_pay_and_given_up_where_they_do_not():
    assert travelled(Policy(ElasticSection(cooldown=10, gain=0.5, keep=0.25)), TIMES) == [2, 3, 2], "it settles, and does not come back"
    assert travelled(Policy(ElasticSection(cooldown=10, gain=0.5, keep=0.1)), TIMES) == [2, 3, 4, 3], "what is kept depends on the limit"
    assert travelled(Policy(ElasticSection(cooldown=10)), {1: 1.0, 2: 1.5, 3: 1.0}) == [2, 1]


def test_nothing_is_decided_before_the_cool_down_nor_twice_for_what_is_refused():
    policy = Policy(ElasticSection(cooldown=50))
    assert travelled(policy, TIMES, steps=49) == []
    policy.refused.add(2)
    assert travelled(policy, TIMES) == []


@pytest.fixture
def run(tmp_path):
    values = {"survive.enabled": "on", "elastic.policy": "throughput", "elastic.cooldown": 10, "elastic.max": 3, "batch.global": 12}
    return create_run(with_values(small_config(tmp_path), values), tmp_path / "run", {})


def flown(run, ask, steps=25):
    pilot = Pilot(run, Policy(run.config().elastic), ask)
    for taken in range(1, steps):
        pilot.look(2, [Beat(0, taken, taken, "step", 0.5, 1.0)] * 2)
        if pilot._asking is not None:
            pilot._asking.join()
    return [event.text for event in read_history(run.path).events]


def test_a_refusal_is_told_once_and_the_run_goes_on(run):
    asked = []

    def refuse(run, ranks, wait_s, why):
        asked.append((ranks, why))
        raise UserError("there is no memory")

    told = flown(run, refuse)
    assert asked == [(3, "to see what more ranks bring: a step takes 0.5 s on 2")]
    assert told == ["the policy could not go to 3 ranks: there is no memory"]


def test_a_dry_run_says_what_it_would_do_and_does_nothing(run):
    (run.path / "config.toml").write_text((run.path / "config.toml").read_text().replace("dry_run = false", "dry_run = true"))
    told = flown(run, lambda *_: pytest.fail("it acted"), steps=60)
    assert told == ["the policy would go from 2 to 3 ranks, to see what more ranks bring: a step takes 0.5 s on 2"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"elastic.keep": 0.5}, "the policy would oscillate"),
        ({"elastic.keep": 0.9, "elastic.gain": 0.8}, "let keep be well below gain"),
        ({"elastic.min": 4, "elastic.max": 2}, "elastic.max = 2 is below elastic.min = 4"),
        ({"survive.enabled": "off"}, "needs the supervisor"),
        ({"elastic.cooldown": 1}, "elastic.cooldown"),
        ({"elastic.policy": "off", "survive.enabled": "off", "survive.copies": 2}, "survive.copies = 2 has no use"),
    ],
)
def test_a_policy_that_cannot_work_is_refused(tmp_path, values, said):
    with pytest.raises(ConfigError, match=said):
        with_values(small_config(tmp_path), {"survive.enabled": "on", "elastic.policy": "throughput"} | values)
