"""Alerts: one fault is one alert, whatever detectors say of it; the book; policies; what the history tells."""

import dataclasses
import json

import numpy as np
import pytest

from penstock.config import UserError
from penstock.monitor.alerts import BOOK, KINDS, Book, Desk, RunEvents, as_text, parse_policy, read_alerts
from penstock.monitor.alerts.lines import append
from penstock.monitor.detect import Finding, Moved
from penstock.monitor.series import Names, StepTable

#: Actions that cannot be done about a kind, and what the refusal says.
IMPOSSIBLE = (("straggler=skip", "roll_back for others"), ("loss_spike=exclude", "no fault of one rank"), ("non_finite=stop", "skip or roll_back"))
NAMES = Names(["loss/total", "time/own", "time/step"])


def table(step, loss=2.0, own=(1.0, 1.0), seconds=1.0):
    values = np.array([[loss, one, seconds] for one in own])
    return StepTable(step, 1e9 + step, NAMES, (0, 1), values)


def finding(kind, step, since=None, rank=None, name="loss/total", value=9.0, expected=2.0, text=""):
    since = step if since is None else since
    moved = (Moved(name, since, value, expected, 9.0, rank),)
    return Finding(kind, step, since, 0.9, rank, None, moved, text or f"{kind} at {step}")


@pytest.fixture
def desk(tmp_path):
    said = []
    desk = Desk(Book(tmp_path), lambda event, alert: said.append((event, alert.kind, alert.id)))
    desk.said = said
    return desk


def live(desk):
    return [alert for alert in desk.book.alerts.values() if alert.state != "resolved"]


def test_a_slow_rank_that_slows_all_is_one_alert_whichever_is_found_first(desk):
    desk.step(table(57, own=(1, 2), seconds=2), [finding("throughput_drop", 57, 50, name="time/step")])
    assert desk.said == []  # it waits for its cause
    desk.step(table(58, own=(1, 2), seconds=2), [finding("straggler", 58, 51, rank=1, name="time/own")])
    desk.step(table(59, own=(1, 2), seconds=2), [finding("communication_stall", 59)])
    [alert] = live(desk)
    assert desk.said == [("opened", "straggler", alert.id)]
    assert (alert.rank, alert.since) == (1, 50)
    assert [also.partition(":")[0] for also in alert.also] == ["throughput_drop", "communication_stall"]


def test_a_drop_of_all_ranks_is_told_when_nothing_claims_it(desk):
    desk.step(table(50, seconds=2), [finding("throughput_drop", 50, 43, name="time/step")])
    for step in range(51, 63):
        desk.step(table(step, seconds=2), [])
    assert [said[:2] for said in desk.said] == [("opened", "throughput_drop")]


def test_the_cause_takes_over_an_alert_that_was_told_and_a_batch_is_told_with_its_cause_first(desk):
    desk.step(table(40, loss=9), [finding("loss_spike", 40), finding("data_corruption", 40, rank=1, name="time/own")])
    [alert] = live(desk)
    assert (alert.kind, alert.rank, len(desk.said)) == ("data_corruption", 1, 1)
    desk.step(table(41, loss=9), [finding("non_finite", 41, name="loss/total", value=float("nan"))])
    [alert] = live(desk)
    assert alert.kind == "data_corruption" and alert.level == "critical" and "non_finite" in alert.also[-1]
    assert desk.said[1:] == [("changed", "data_corruption", alert.id)]
    desk.step(table(42, loss=9), [finding("gradient_explosion", 42)])
    assert len(live(desk)) == 1 and len(desk.said) == 2


def test_a_cause_that_is_found_later_takes_over_what_was_told(desk):
    desk.step(table(40, loss=9), [finding("loss_spike", 40)])
    desk.step(table(41, loss=9), [finding("data_corruption", 41, 40, rank=1, name="time/own")])
    [alert] = live(desk)
    assert (alert.kind, alert.rank) == ("data_corruption", 1) and "loss_spike" in alert.also[0]
    assert desk.said[1:] == [("changed", "data_corruption", alert.id)]


def test_a_cause_does_not_begin_after_what_it_brings_about(desk):
    desk.step(table(60, seconds=2), [finding("communication_stall", 60, 40)])
    for step in range(61, 64):
        desk.step(table(step, seconds=2), [])
    desk.step(table(64, own=(1, 2), seconds=2), [finding("straggler", 64, 58, rank=1)])
    assert [alert.kind for alert in live(desk)] == ["communication_stall", "straggler"]


def test_faults_of_other_ranks_times_and_causes_are_alerts_of_their_own(desk):
    desk.step(table(50), [finding("straggler", 50, rank=0), finding("straggler", 50, rank=1), finding("memory_leak", 50, 1, rank=1)])
    assert len(live(desk)) == 3
    desk.step(table(51), [finding("straggler", 51, rank=1)])
    assert len(live(desk)) == 3
    desk.step(table(150), [finding("straggler", 150, rank=1)])
    assert len(live(desk)) == 4


def test_an_alert_is_resolved_when_its_evidence_is_back_and_not_before(desk):
    desk.step(table(40, loss=9), [finding("loss_spike", 40)])
    for step in range(41, 60):
        desk.step(table(step, loss=2.1), [])
    desk.step(table(60, loss=8), [])
    assert len(live(desk)) == 1
    for step in range(61, 81):
        desk.step(table(step, loss=2.1), [])
    assert live(desk) == [] and desk.said[-1][0] == "resolved"


def test_a_hang_is_resolved_by_the_next_step(desk):
    desk.take([finding("hang", 40, 41)], 1e9 + 60)
    desk.step(table(41), [])
    assert [said[0] for said in desk.said] == ["opened", "resolved"]


def test_acknowledged_stays_so_and_silenced_is_kept_and_not_told(desk, tmp_path):
    desk.step(table(40, loss=9), [finding("loss_spike", 40)])
    [alert] = live(desk)
    other = read_alerts(tmp_path)
    other.acknowledge(alert.id, "me")
    other.silence("straggler", "me")
    desk.step(table(41, loss=9), [finding("gradient_explosion", 41), finding("straggler", 41, rank=1)])
    kept = read_alerts(tmp_path).alerts
    assert sorted(one.state for one in kept.values()) == ["acknowledged", "silenced"]
    assert "acknowledged by me" in kept[alert.id].notes and kept[alert.id].also
    assert len(desk.said) == 1


def test_a_silence_ends(tmp_path):
    book = Book(tmp_path)
    book.silence("straggler", "me", -1.0)
    assert not book.is_silenced("straggler", 2e9)


def test_a_monitor_that_starts_again_tells_nothing_twice(desk, tmp_path):
    found = finding("loss_spike", 40)
    desk.step(table(40, loss=9), [found])
    said = []
    again = Desk(Book(tmp_path), lambda event, alert: said.append(event))
    again.step(table(40, loss=9), [found])
    assert said == [] and len(again.book.alerts) == 1


def test_the_number_of_open_alerts_is_bounded_and_what_is_left_out_is_counted(desk):
    desk.take([Finding("straggler", 1, 1, 0.9, rank, None, (), "") for rank in range(200)], 1e9)
    assert len(live(desk)) == 64 and desk.left_out == 136


def test_a_book_with_torn_and_damaged_lines_is_read_as_far_as_it_is_whole(desk, tmp_path):
    desk.step(table(40, loss=float("nan")), [finding("non_finite", 40, value=float("nan"), expected=float("inf"))])
    with open(tmp_path / BOOK, "ab") as file:
        file.write(b'{"event": "opened", "alert": {"id": 3}}\nnot json\n[1]\n{"event": "open')
    book = read_alerts(tmp_path)
    assert len(book.alerts) == 1 and book.damaged == 3
    append(tmp_path / BOOK, {"event": "acknowledged", "id": next(iter(book.alerts)), "who": "me"})
    book = read_alerts(tmp_path)
    [alert] = book.alerts.values()
    assert alert.state == "acknowledged" and np.isnan(alert.evidence[0].value)
    json.dumps(alert.as_dict(), allow_nan=False)


def test_a_disk_that_takes_nothing_gets_the_alerts_when_it_does(tmp_path):
    run = tmp_path / "run"
    desk = Desk(Book(run), lambda event, alert: None)  # there is no such folder
    desk.step(table(40, loss=9), [finding("loss_spike", 40)])
    assert len(desk.book.alerts) == 1 and not (run / BOOK).exists()
    run.mkdir()
    desk.step(table(41, loss=9), [])
    assert len(read_alerts(run).alerts) == 1


def test_deaths_in_the_history_are_alerts_which_a_recovery_resolves(desk, tmp_path):
    def tell(seq, kind, text, step):
        append(tmp_path / "history.jsonl", {"seq": seq, "time": "2026-01-31T10:00:00+0000", "kind": kind, "step": step, "text": text, "data": {}})

    events = RunEvents(tmp_path)
    tell(0, "failure", "rank 1 failed with KeyError", 7)  # of an earlier start, which no monitor watched
    tell(1, "resume", "went on", 7)
    tell(2, "failure", "rank 2 was killed by SIGKILL after step 12, in forward_backward", 12)
    tell(3, "alert", "could not be saved: no space left", 12)
    for told in events.read():
        desk.told(told)
    desk.take([finding("hang", 12, 13), finding("throughput_drop", 14, 13)], 1.8e9)
    lost, failed = live(desk)
    assert (lost.kind, lost.rank, lost.since, failed.kind) == ("rank_lost", 2, 12, "snapshot_failed")
    assert events.read() == [] and events.seq == 3
    tell(4, "recovery", "rank 2 was killed; a standby took its place", 12)
    for told in events.read():
        desk.told(told)
    assert live(desk) == [failed]


def test_what_the_run_did_by_itself_is_told_and_going_back_ends_what_began_later(desk, tmp_path):
    def tell(seq, step, text, **data):
        append(tmp_path / "history.jsonl", {"seq": seq, "time": "2026-01-31T10:00:00+0000", "kind": "change", "step": step, "text": text, "data": data})

    events = RunEvents(tmp_path, seq=1)
    tell(2, 39, "step 39: loss nan; samples 4 to 7 are left out", left_out="non_finite", samples=[4, 7])
    for told in events.read():
        desk.told(told)
    [alert] = desk.book.alerts.values()
    assert (alert.kind, alert.step, alert.state) == ("non_finite", 40, "resolved") and "left out" in alert.notes[-1] and "samples 4 to 7" in alert.what
    for step, kind in ((45, "data_repetition"), (60, "loss_spike")):
        desk.take([finding(kind, step)], 1.7e9)
    desk.take([finding("throughput_drop", 61)], 1.7e9)  # held, for a cause
    tell(3, 50, "back from step 62 to the snapshot of step 50", rolled_back={"to": 50, "since": 60, "kind": "", "why": "for alert loss_spike-s60"})
    for told in events.read():
        desk.told(told)
    assert [alert.kind for alert in live(desk)] == ["data_repetition"]
    desk.close()
    desk.take([finding("loss_spike", 60)], 2e9)
    assert {alert.id for alert in desk.book.alerts.values() if alert.kind == "loss_spike"} == {"loss_spike-s60", "loss_spike-s60-2"}
    assert not any(alert.kind == "throughput_drop" for alert in desk.book.alerts.values()), "what was held of steps that are taken back is not told"


def test_alerts_of_ranks_end_when_ranks_leave_as_their_numbers_are_others_then(desk, tmp_path):
    desk.take([finding("straggler", 10, rank=1), finding("memory_leak", 10, rank=2), finding("divergence", 10)], 1.7e9)
    data = {"command": "scale", "left": [1], "parted": 1.7e9}
    event = {"seq": 2, "time": "2026-01-31T10:00:00+0000", "kind": "change", "step": 12, "text": "3 ranks became 2 ranks", "data": data}
    append(tmp_path / "history.jsonl", event)
    for told in RunEvents(tmp_path, seq=1).read():
        desk.told(told)
    assert [alert.kind for alert in live(desk)] == ["divergence"]
    desk.take([finding("straggler", 60, 50, rank=1)], 1.9e9)
    assert [(alert.kind, alert.rank, alert.since) for alert in live(desk)][1:] == [("straggler", 1, 50)]


def test_policies_are_read_and_bad_ones_refused_with_what_there_is(tmp_path):
    assert parse_policy("loss_spike=snapshot, divergence = stop") == {"loss_spike": "snapshot", "divergence": "stop"}
    assert parse_policy("") == {} and parse_policy("non_finite=skip, straggler=exclude")["straggler"] == "exclude"
    for bad, word in (("loss_spik=stop", "loss_spike"), ("loss_spike=stopp", "stop"), ("loss_spike", "KIND=ACTION"), ("hang=stop", "no step comes"), *IMPOSSIBLE):
        with pytest.raises(UserError, match=word):
            parse_policy(bad)


def test_the_cause_names_what_moved_first_if_it_moved_far(desk):
    found = finding("loss_spike", 50, 48)
    for number, (deviations, told) in enumerate(((9.0, True), (5.0, False))):
        before = Moved("data/unique", 45, 0.1, 0.6, deviations, None)
        late = dataclasses.replace(found, step=50 + 200 * number, since=48 + 200 * number, moved=(dataclasses.replace(found.moved[0], since=48), before))
        desk.step(table(late.step, loss=9.0), [late])
        assert ("data/unique had moved by step 45" in live(desk)[-1].cause) == told


def test_every_kind_that_explains_others_names_kinds_that_exist_and_texts_say_what_where_cause_and_advice(desk):
    for kind in KINDS.values():
        assert set(kind.explains) <= KINDS.keys()
    desk.step(table(50, own=(1, 3)), [finding("straggler", 50, 44, rank=1, name="time/own", value=3.0, expected=1.0)])
    text = as_text(live(desk)[0])
    for part in ("WARNING straggler (rank 1) since step 44", "90% sure", "time/own of rank 1: 3 s, not 1 s, from step 44", "cause", "do "):
        assert part in text, text
