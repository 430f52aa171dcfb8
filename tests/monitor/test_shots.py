"""Steps that all ranks keep, so that they can be laid side by side: the same on each, few, bounded, and written whole."""

import json

from penstock.monitor.bus import SpanRing
from penstock.monitor.series import shots
from penstock.monitor.series.shots import StepShots, is_shot


def test_steps_at_the_start_and_then_every_32nd_are_kept():
    assert [step for step in range(130) if is_shot(step)] == [1, 2, 4, 8, 16, 32, 64, 96, 128]


def test_the_last_steps_are_in_the_file_with_a_bounded_number_of_spans(tmp_path):
    kept = StepShots(tmp_path / "rank-00003", 3)
    for step in range(32, 32 * 7, 32):
        kept.keep(step, float(step), step + 0.5, [(f"phase {i}", step + i / 10_000, 0.1) for i in range(shots.MOST_SPANS + 7)])
    told = json.loads((tmp_path / "rank-00003" / "steps.json").read_text())
    assert told["rank"] == 3 and told["host"] and [shot["step"] for shot in told["steps"]] == [96, 128, 160, 192]
    assert len(told["steps"][-1]["spans"]) == shots.MOST_SPANS and told["steps"][-1]["left_out"] == 7
    assert not list(tmp_path.rglob("*.partial"))


def test_a_disk_that_takes_nothing_is_no_fault(tmp_path):
    (tmp_path / "rank-00000").write_text("no folder")
    StepShots(tmp_path / "rank-00000", 0).keep(1, 0.0, 1.0, [])


def test_spans_that_began_in_a_stretch_are_found_among_the_last():
    ring = SpanRing()
    for i in range(10):
        ring.add(f"phase {i}", float(i), i + 0.5)
    ring.add("phases 4 to 9", 4.0, 9.75)
    found = ring.between(3.0, 6.0)
    assert [name for name, _, _ in found] == ["phase 3", "phase 4", "phase 5", "phases 4 to 9"]
    assert [start for _, start, _ in found] == [ring.unix(start) for start in (3.0, 4.0, 5.0, 4.0)]
    assert [seconds for _, _, seconds in found] == [0.5, 0.5, 0.5, 5.75]
    assert ring.placed("pipeline", [("0F1", 2.0, 2.25)]) == [("pipeline.0F1", ring.unix(2.0), 0.25)]
