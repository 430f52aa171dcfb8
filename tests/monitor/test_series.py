"""A run's metrics put together from its ranks, stored, and asked for: in order, with late, dead, damaged and replaced ones treated as they should be."""

import os
import shutil
import stat
import threading
import time

import numpy as np
import pytest
from metric_runs import KINDS, NAMES, Ranks

from penstock.config import UserError
from penstock.monitor.series import ABSENT
from penstock.monitor.series.columns import files_of
from penstock.monitor.series.gather import Gather
from penstock.monitor.series.keeper import STORE, Keeper
from penstock.monitor.series.kinds import UNKNOWN, Kind, Kinds, read_kinds, write_kinds
from penstock.monitor.series.merge import Merger
from penstock.monitor.series.query import Bound, Series
from penstock.monitor.series.rows import RowLog, parts_of
from penstock.monitor.series.thin import extremes
from penstock.monitor.series.together import put_together


def keep(folder, **options):
    """Store all that is there."""
    with Keeper(folder, KINDS, **options) as keeper:
        given = []
        while found := keeper.poll(0.0):
            given += found
        given += keeper.poll(1e9)
        keeper.store()
    return given


def course(folder, name="loss/total", **options):
    (found,) = Series(folder, KINDS).courses([name], **options)
    return found


def steps_and_values(folder, name="loss/total", **options):
    found = course(folder, name, **options)
    return found.steps.tolist(), found.value.tolist()


def test_ranks_are_put_together_as_each_metric_has_it():
    values = np.array([[[1.0, 3.0, 7.0, 2.0, ABSENT], [2.0, 4.0, 7.0, np.nan, ABSENT], [ABSENT, ABSENT, 7.0, 5.0, ABSENT]]])
    whole = put_together(values, (4, 5, 6), ["sum", "root", "same", "spread", "sum"])
    assert whole.value[0, :3].tolist() == [3.0, 5.0, 7.0]
    assert np.isnan(whole.value[0, 3])
    assert whole.value.view(np.uint64)[0, 4] == np.array(ABSENT).view(np.uint64)
    assert (whole.low[0, 0], whole.high[0, 0], whole.low_rank[0, 0], whole.high_rank[0, 0]) == (1.0, 2.0, 4, 5)
    assert (whole.low[0, 3], whole.low_rank[0, 3], whole.high_rank[0, 3]) == (2.0, 4, 5)
    assert np.isnan(whole.high[0, 3])
    assert whole.low_rank[0, 4] == -1


def test_infinities_and_absent_ranks_are_never_mixed_up():
    values = np.array([[[ABSENT, -np.inf, ABSENT], [np.inf, ABSENT, np.nan], [np.inf, -np.inf, ABSENT]]])
    whole = put_together(values, (0, 1, 2), ["spread"] * 3)
    assert whole.low_rank[0].tolist() == [1, 0, 1]
    assert whole.high_rank[0].tolist() == [1, 0, 1]
    assert whole.value[0, :2].tolist() == [np.inf, -np.inf]


def test_steps_come_in_order_once_all_ranks_have_them(tmp_path):
    ranks = Ranks(tmp_path)
    gather = Gather(tmp_path, late_s=1.0)
    ranks.steps([1, 2], only=[0])
    assert gather.poll(0.0) == []
    ranks.steps([1, 2, 3], only=[1])
    given = gather.poll(0.5)
    assert [merged.table.step for merged in given] == [1, 2]
    assert given[0].table.of("time/step").tolist() == [1.0, 2.0]
    assert given[0].missing == ()


def test_a_late_rank_is_waited_for_a_while_and_then_missing(tmp_path):
    ranks = Ranks(tmp_path)
    gather = Gather(tmp_path, late_s=1.0)
    ranks.steps([1, 2], only=[0])
    assert gather.poll(10.0) == []
    assert gather.poll(10.9) == []
    given = gather.poll(11.1)
    assert [(merged.table.step, merged.table.ranks, merged.missing) for merged in given] == [(1, (0,), (1,)), (2, (0,), (1,))]
    ranks.steps([1, 2, 3], only=[1])
    assert gather.poll(11.2) == []
    assert gather.merger.late == 2


def test_a_step_that_a_rank_dropped_is_not_waited_for(tmp_path):
    Ranks(tmp_path).steps([1], only=[0, 1]).steps([2], only=[0]).steps([3])
    given = Gather(tmp_path).poll(0.0)
    assert [(merged.table.step, merged.missing) for merged in given] == [(1, ()), (2, (1,)), (3, ())]


def test_what_waits_for_a_dead_rank_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(Merger.__init__, "__defaults__", (None, (-1, -1), 1.0, 1000))  # bytes that may wait
    Ranks(tmp_path).steps(range(1, 101), only=[0])
    gather = Gather(tmp_path)
    given = gather.poll(0.0)
    assert [merged.table.step for merged in given] == list(range(1, 70))
    assert gather.merger.waiting_bytes == 31 * 32
    assert [merged.table.step for merged in gather.rest()] == list(range(70, 101))


def test_ranks_of_many_rows_are_put_together_whole_however_unequal_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr("penstock.monitor.series.gather.WAITING_BYTES", 100_000)
    wide, narrow = RowLog(tmp_path, 0, 2, 1, 0), RowLog(tmp_path, 1, 2, 1, 0)
    wide.names([f"m/{i}" for i in range(100)])
    narrow.names(["n/0"])
    for step in range(1, 3001):
        wide.append(step, 0.0, np.full(100, step, float))
        narrow.append(step, 0.0, np.full(1, step, float))
    gather, most = Gather(tmp_path), 0
    given = []
    for merged in gather.rest():
        given.append((merged.table.step, merged.missing))
        most = max(most, gather.merger.waiting_bytes)
    assert given == [(step, ()) for step in range(1, 3001)]
    assert most < 500_000


@pytest.mark.parametrize("stored", [False, True])
def test_courses_are_the_same_from_logs_and_from_the_store(tmp_path, stored):
    Ranks(tmp_path).steps(range(1, 51))
    if stored:
        keep(tmp_path)
    assert steps_and_values(tmp_path) == (list(range(1, 51)), [9.0] * 50)
    np.testing.assert_allclose(course(tmp_path, "grad_norm/total").value, range(1, 51))
    found = course(tmp_path, "time/step")
    assert (found.value[0], found.low[0], found.high[0], found.low_rank[0], found.high_rank[0]) == (1.5, 1.0, 2.0, 0, 1)
    assert (found.kind.unit, found.measured) == ("s", 50)
    assert course(tmp_path, "optim/lr").value.tolist() == [step * 1e-3 for step in range(1, 51)]
    assert Series(tmp_path, KINDS).names() == sorted(NAMES)


def test_the_store_goes_on_where_it_ended_whoever_keeps_it(tmp_path):
    ranks = Ranks(tmp_path, part_bytes=1500)
    for begin in range(1, 61, 10):
        ranks.steps(range(begin, begin + 10))
        if begin < 50:
            assert [merged.table.step for merged in keep(tmp_path)] == list(range(begin, begin + 10))
    assert steps_and_values(tmp_path)[0] == list(range(1, 61))


def test_a_keeper_that_was_killed_before_it_stored_tells_its_steps_again(tmp_path):
    Ranks(tmp_path).steps(range(1, 6))
    for _ in range(2):
        with Keeper(tmp_path, KINDS) as keeper:
            assert [merged.table.step for merged in keeper.poll(0.0)] == [1, 2, 3, 4, 5]
    assert files_of(tmp_path / STORE) == []


def test_logs_that_are_stored_make_room_and_nothing_is_lost(tmp_path):
    ranks = Ranks(tmp_path, part_bytes=2000)
    ranks.steps(range(1, 101))
    before = len(parts_of(tmp_path / "rank-00000"))
    with Keeper(tmp_path, KINDS, chunk_bytes=1000) as keeper:
        while keeper.poll(0.0):
            pass
        assert before > 4
        assert len(parts_of(tmp_path / "rank-00000")) <= 2
        ranks.steps(range(101, 121))
        keeper.poll(0.0)
    assert steps_and_values(tmp_path)[0] == list(range(1, 121))
    assert Series(tmp_path, KINDS).lost == 0


def test_two_keepers_do_not_write_at_once(tmp_path):
    with Keeper(tmp_path, KINDS), pytest.raises(UserError, match="another process keeps the metrics"):
        Keeper(tmp_path, KINDS)
    Keeper(tmp_path, KINDS).close()


@pytest.mark.parametrize("stored", ["nothing", "before", "after", "both"])
def test_a_resumed_run_replaces_the_steps_that_it_does_again(tmp_path, stored):
    Ranks(tmp_path).steps(range(1, 21))
    if stored in ("before", "both"):
        keep(tmp_path)
    Ranks(tmp_path, generation=2, after=12).steps(range(13, 16))
    if stored in ("after", "both"):
        keep(tmp_path)
    assert steps_and_values(tmp_path) == (list(range(1, 16)), [9.0] * 12 + [10.0] * 3)
    Ranks(tmp_path, generation=3, after=5, ranks=1).steps([6])
    steps, values = steps_and_values(tmp_path)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert values == [9.0] * 5 + [5.5]  # one rank alone


def test_a_rank_that_never_writes_again_is_replaced_with_the_others(tmp_path):
    Ranks(tmp_path, ranks=4).steps(range(1, 11))
    Ranks(tmp_path, ranks=2, generation=2, after=5).steps([6, 7])
    given = Gather(tmp_path).rest()
    assert [(merged.generation, merged.table.step, len(merged.table.ranks)) for merged in given] == [*((1, s, 4) for s in range(1, 6)), (2, 6, 2), (2, 7, 2)]


def test_a_keeper_lets_watchers_see_what_a_rewind_does_again(tmp_path):
    Ranks(tmp_path).steps(range(1, 11))
    with Keeper(tmp_path, KINDS) as keeper:
        assert len(keeper.poll(0.0)) == 10
        Ranks(tmp_path, generation=2, after=8).steps([9, 10])
        assert [(merged.generation, merged.table.step) for merged in keeper.poll(0.0)] == [(2, 9), (2, 10)]
        keeper.store()
    for _, _, path in parts_of(tmp_path / "rank-00000")[:1]:
        path.unlink()
    assert steps_and_values(tmp_path) == (list(range(1, 11)), [9.0] * 8 + [10.0] * 2)


def test_since_and_until_take_steps_and_times(tmp_path):
    ranks = Ranks(tmp_path).steps(range(1, 41))
    keep(tmp_path)
    ranks.steps(range(41, 61))
    assert steps_and_values(tmp_path, since=Bound(step=30), until=Bound(step=45))[0] == list(range(30, 46))
    assert steps_and_values(tmp_path, since=Bound(seconds=10))[0] == list(range(50, 61))
    assert steps_and_values(tmp_path, since=Bound(seconds=30), until=Bound(seconds=25))[0] == list(range(30, 36))
    assert Series(tmp_path, KINDS).last_row() == (60, 1060.125)


def test_thinning_keeps_peaks_dips_nan_and_both_ends():
    values = np.sin(np.arange(100_000) / 500)
    values[12_345], values[54_321], values[77_777], values[88_888] = 9.0, -9.0, np.nan, np.inf
    kept = extremes(values, values, 500)
    assert len(kept) <= 500
    assert {0, 12_345, 54_321, 77_777, 88_888, 99_999} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()
    assert extremes(values[:9], values[:9], 500).tolist() == list(range(9))


@pytest.mark.parametrize("stored", [False, True])
def test_a_thinned_course_keeps_the_spike_of_one_rank(tmp_path, stored):
    logs = [RowLog(tmp_path, rank, 2, 1, 0) for rank in range(2)]
    for log in logs:
        log.names(["time/step"])
    for step in range(1, 5001):
        for rank, log in enumerate(logs):
            log.append(step, float(step), np.array([50.0 if (step, rank) == (3210, 1) else 1.0]))
    if stored:
        keep(tmp_path, chunk_bytes=4000)
    found = course(tmp_path, "time/step", points=50)
    assert len(found.steps) <= 50
    assert found.measured == 5000
    spike = found.steps.tolist().index(3210)
    assert (found.high[spike], found.high_rank[spike], found.value[spike]) == (50.0, 1, 25.5)


def test_names_that_come_later_are_absent_before(tmp_path):
    log = RowLog(tmp_path, 0, 1, 1, 0)
    log.names(["a/x"])
    log.append(1, 1.0, np.array([1.0]))
    log.names(["a/x", "b/y"])
    log.append(2, 2.0, np.array([1.0, np.inf]))
    for _ in range(2):
        assert steps_and_values(tmp_path, "b/y") == ([2], [np.inf])
        assert steps_and_values(tmp_path, "a/x") == ([1, 2], [1.0, 1.0])
        keep(tmp_path)


def test_a_query_that_matches_nothing_names_the_nearest(tmp_path):
    Ranks(tmp_path).steps([1])
    series = Series(tmp_path, KINDS)
    assert series.find(["grad_norm/*", "loss/*"]) == ["grad_norm/total", "loss/total"]
    with pytest.raises(UserError, match=r"no metric matches 'los/total'.*loss/total"):
        series.find(["los/total"])
    with pytest.raises(UserError, match=r"no metric matches 'gradnorm/\*' \(did you mean 'grad_norm/\*'\?\)"):
        series.find(["gradnorm/*"])
    with pytest.raises(UserError, match="holds no metrics"):
        Series(tmp_path / "nowhere", KINDS).find(["*"])


@pytest.mark.parametrize("where", ["head", "front", "block", "end"])
def test_damage_in_the_store_costs_what_it_hits_and_is_named(tmp_path, where):
    ranks = Ranks(tmp_path, part_bytes=500)
    for begin in (1, 11, 21):
        ranks.steps(range(begin, begin + 10))
        keep(tmp_path)
    (path,) = files_of(tmp_path / STORE)
    data = bytearray(path.read_bytes())
    second = data.index(b"PCC1", 10)
    third = data.index(b"PCC1", second + 10)
    if where == "end":
        path.write_bytes(data[:-30])
    else:
        data[{"head": second + 9, "front": second + 90, "block": third - 3}[where]] ^= 255
        path.write_bytes(data)
    series = Series(tmp_path, KINDS)
    found = {c.name: c.steps.tolist() for c in series.courses(NAMES)}
    whole, without = list(range(1, 31)), [*range(1, 11), *range(21, 31)]
    if where == "end":
        assert found["loss/total"][:20] == list(range(1, 21))
        keep(tmp_path)  # the next owner cuts it off
        assert Series(tmp_path, KINDS).damage == []
        return
    assert found["time/step"] == without
    assert found["loss/total"] == (whole if where == "block" else without)
    assert str(path) in series.damage[0]


def test_a_store_is_read_from_a_copy_without_write_permission(tmp_path):
    ranks = Ranks(tmp_path / "run").steps(range(1, 11))
    keep(tmp_path / "run")
    ranks.steps(range(11, 21))
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "run", copy)
    for path in [copy, *copy.rglob("*")]:
        path.chmod(stat.S_IRUSR | (stat.S_IXUSR if path.is_dir() else 0))
    before = sorted((str(path), path.stat().st_mtime_ns) for path in [copy, *copy.rglob("*")])
    assert steps_and_values(copy)[0] == list(range(1, 21))
    assert sorted((str(path), path.stat().st_mtime_ns) for path in [copy, *copy.rglob("*")]) == before
    for path in [copy, *copy.rglob("*")]:
        path.chmod(stat.S_IRWXU)


@pytest.mark.slow
def test_readers_see_every_step_while_ranks_write_and_a_keeper_stores(tmp_path):
    ranks, done, seen = Ranks(tmp_path, part_bytes=3000), threading.Event(), []

    def write_and_keep():
        try:
            with Keeper(tmp_path, KINDS, chunk_bytes=10_000) as keeper:
                for step in range(1, 1501):
                    ranks.steps([step])
                    keeper.poll(time.monotonic())
        finally:
            done.set()

    writer = threading.Thread(target=write_and_keep, daemon=True)
    writer.start()
    while not done.is_set():
        steps = steps_and_values(tmp_path)[0]
        assert steps == list(range(1, len(steps) + 1))
        seen.append(len(steps))
    writer.join()
    assert steps_and_values(tmp_path)[0] == list(range(1, 1501))
    assert len(seen) > 3


def test_a_disk_that_takes_no_chunk_costs_neither_the_watchers_nor_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("penstock.monitor.series.keeper.HELD_BYTES", 4000)
    ranks = Ranks(tmp_path, ranks=1)
    with Keeper(tmp_path, KINDS, chunk_bytes=1000) as keeper:
        keeper._writer.append = lambda chunk: (_ for _ in ()).throw(OSError(28, "full"))
        seen = 0
        for step in range(1, 1001):
            ranks.steps([step])
            seen += len(keeper.poll(float(step)))
            assert keeper._bytes <= 4000
    assert seen == 1000
    assert keeper.unstored > 800
    assert steps_and_values(tmp_path)[0] == list(range(1, 1001))  # the ranks' logs still have them


def test_a_full_disk_leaves_the_store_as_it_was(tmp_path, monkeypatch):
    ranks = Ranks(tmp_path).steps(range(1, 11))
    keep(tmp_path)
    ranks.steps(range(11, 21))
    real = os.fsync
    with Keeper(tmp_path, KINDS) as keeper:
        keeper.poll(0.0)
        monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            keeper.store()
        monkeypatch.setattr(os, "fsync", real)
        assert steps_and_values(tmp_path)[0] == list(range(1, 21))
        keeper.store()
    assert steps_and_values(tmp_path)[0] == list(range(1, 21))
    assert Series(tmp_path, KINDS).damage == []


def test_a_run_keeps_its_catalogue(tmp_path):
    kinds = [Kind("time/*", "s", "spread", "seconds", "long"), Kind("*", "1", "sum", "else", "")]
    write_kinds(tmp_path, kinds)
    read = read_kinds(tmp_path)
    assert read is not None
    assert (read.of("time/step"), read.of("loss/total")) == tuple(kinds)
    assert Kinds().of("x") is UNKNOWN
    (tmp_path / "catalogue.json").write_text('[{"pattern": 1}]')
    assert read_kinds(tmp_path) is None
