"""The grid of ranks that a monitor keeps: bounded, true to every rank, and right after restarts, rewinds, changes of ranks and damage."""

import json
import time

import numpy as np
import pytest
from metric_runs import KINDS, Ranks

from penstock.config import UserError, load_config, to_toml
from penstock.monitor.series import ABSENT, Grid, GridKeeper, Names, StepTable, grid_of_logs, read_grid
from penstock.monitor.series import grid as grids
from penstock.monitor.series.grid_file import FILE, write_grid
from penstock.monitor.series.kinds import write_kinds
from penstock.monitor.series.merge import Generation, Merged
from penstock.monitor.service import Service
from penstock.monitor.sinks import Sinks

NAMES = Names(["time/own", "loss/total", "memory/resident"])


def table(step, own, ranks=None, memory=ABSENT):
    values = np.full((len(own), 3), ABSENT)
    values[:, 0], values[:, 1], values[:, 2] = own, 7.0, memory
    return StepTable(step, 1000.0 + step, NAMES, ranks or tuple(range(len(own))), values)


def fill(grid, steps, own=lambda step: [float(step), 2.0 * step], number=1, after=0, ranks=2):
    for step in steps:
        grid.add(Merged(number, table(step, own(step)), ()), Generation(number, after, ranks))
    return grid


def cells(grid, name="time/own"):
    """Mean, maximum and count [ranks, buckets] of the buckets that there are."""
    return [part.T for part in grid.of(name).parts]


def test_a_short_run_is_there_step_by_step():
    grid = fill(Grid(), range(1, 6))
    mean, most, count = cells(grid)
    assert grid.steps[0].tolist() == [1, 2, 3, 4, 5] and grid.width == 1 and grid.ranks == 2
    assert mean.tolist() == [[1, 2, 3, 4, 5], [2, 4, 6, 8, 10]] and (most == mean).all() and (count == 1).all()
    assert grid.names == ["time/own"]  # of what is kept, nothing else was measured


def test_a_long_run_stays_within_its_buckets_and_keeps_mean_and_maximum():
    grid = fill(Grid(buckets=8), range(1, 1001))
    mean, most, count = cells(grid)
    assert len(grid.last) <= 8 and grid.width == 128 and count.sum() == 2000
    for bucket, (first, last) in enumerate(zip(*grid.steps)):
        steps = np.arange(max(1, first), last + 1)
        assert mean[0, bucket] == pytest.approx(steps.mean()) and mean[1, bucket] == pytest.approx(2 * steps.mean())
        assert most[1, bucket] == 2 * steps.max() and count[0, bucket] == len(steps)


@pytest.mark.slow
def test_memory_is_bounded_for_a_thousand_ranks():
    grid = Grid()
    for step in range(0, 100_000, 50):
        grid.add(Merged(1, table(step, np.full(1000, 0.5)), ()), Generation(1, 0, 1000))
    held = sum(part.nbytes for part in grid.cells.parts)
    assert held <= len(grid.names) * 12 * grids.CELLS and len(grid.last) >= 64


def test_a_rank_that_measured_nothing_has_no_cell_and_a_nan_is_kept():
    grid = fill(Grid(), [1, 2, 3], lambda step: [1.0, ABSENT if step == 2 else np.nan if step == 3 else 4.0])
    mean, most, count = cells(grid)
    assert count.tolist() == [[1, 1, 1], [1, 0, 1]] and np.isnan(mean[1, 2]) and np.isnan(most[1, 2]) and np.isfinite(mean[0]).all()
    grid = fill(Grid(buckets=2), [2, 3, 4], lambda step: [1.0, np.nan if step == 3 else 4.0])
    assert np.isnan(cells(grid)[0][1, 0]) and cells(grid)[0][1, 1] == 4.0


def test_a_rewind_drops_what_came_after_the_step_gone_back_to():
    grid = fill(Grid(), range(1, 11))
    fill(grid, range(7, 9), lambda step: [100.0, 100.0], number=2, after=6)
    mean, _, count = cells(grid)
    assert mean[0, :8].tolist() == [1, 2, 3, 4, 5, 6, 100, 100] and count[:, 8:].sum() == 0 and grid.last[8:].tolist() == [0, 0]


def test_a_rewind_into_a_wide_bucket_drops_the_bucket():
    grid = fill(Grid(buckets=4), range(1, 17))
    assert grid.width == 8
    fill(grid, [11], lambda step: [100.0, 100.0], number=2, after=10)
    mean, _, count = cells(grid)
    assert grid.steps[0].tolist() == [0, 8, 16] and mean[0].tolist() == [4.0, 100.0, 0.0] and count[0].tolist() == [7, 1, 0]


def test_a_resume_before_the_first_step_that_is_there_makes_room_for_it():
    grid = fill(Grid(buckets=8), range(100, 104))
    fill(grid, range(98, 100), number=2, after=97)
    assert grid.steps[0].tolist() == [98, 99, 100, 101, 102, 103] and cells(grid)[0][0].tolist() == [98, 99, 0, 0, 0, 0]


def test_other_ranks_go_on_in_rows_of_their_own():
    grid = fill(Grid(), [1, 2])
    fill(grid, [3], lambda step: [5.0, 6.0, 7.0], number=2, after=2, ranks=3)
    assert grid.ranks == 3 and grid.ranks_of == 3 and cells(grid)[2].tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 1]]
    fill(grid, [4], lambda step: [8.0], number=3, after=3, ranks=1)
    assert grid.ranks == 3 and grid.ranks_of == 1 and cells(grid)[2][:, 3].tolist() == [1, 0, 0]


def test_what_was_taken_in_is_not_again():
    grid = fill(Grid(), range(1, 6))
    fill(grid, range(3, 7))
    assert cells(grid)[2].tolist() == [[1] * 6] * 2


def test_the_file_gives_the_grid_back(tmp_path):
    grid = fill(Grid(buckets=8), range(1, 100))
    write_grid(grid, tmp_path)
    found = read_grid(tmp_path)
    assert (found.width, found.first, found.through, found.ranks_of) == (grid.width, grid.first, (1, 99), 2)
    for before, after in zip(cells(grid), cells(found)):
        assert (before == after).all() and after.dtype == before.dtype
    fill(found, [100])  # and it goes on
    assert found.through == (1, 100) and not (tmp_path / f"{FILE}.partial").exists()


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "huge"])
def test_a_damaged_file_is_named_and_left_out(tmp_path, damage):
    write_grid(fill(Grid(), range(1, 50)), tmp_path)
    file = tmp_path / FILE
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    file.write_bytes({"cut": data[:-3], "empty": b"", "huge": data[:4] + b"\xff" * 12 + data[16:]}.get(damage, data))
    with pytest.raises(UserError, match=FILE):
        read_grid(tmp_path)
    warnings = []
    keeper = GridKeeper(tmp_path, warnings.append)
    assert len(warnings) == 1 and FILE in warnings[0] and keeper.grid.ranks == 0
    fill(keeper.grid, range(1, 4))
    keeper.write_if_due(0.0)
    assert read_grid(tmp_path).through == (1, 3)


def test_a_grid_is_written_when_it_changed_and_not_too_often(tmp_path):
    keeper = GridKeeper(tmp_path, print)
    keeper.write_if_due(0.0)
    assert read_grid(tmp_path) is None
    for now, through in ((10.0, 1), (11.0, 1), (20.0, 3)):
        fill(keeper.grid, [keeper.grid.through[1] + 1 if keeper.grid.through[1] > 0 else 1])
        keeper.write_if_due(now)
        assert read_grid(tmp_path).through == (1, through)


def test_logs_give_a_grid_where_no_monitor_kept_one(tmp_path):
    Ranks(tmp_path).steps(range(1, 11))
    Ranks(tmp_path, generation=2, after=8).steps([9])
    grid = grid_of_logs(tmp_path)
    assert grid.through == (2, 9) and grid.names == ["time/step"]
    mean, _, count = cells(grid, "time/step")
    assert mean[:, :9].tolist() == [[1.0] * 9, [2.0] * 9] and count[:, 9:].sum() == 0


def test_metrics_of_logs_come_in_the_order_in_which_they_are_wanted(tmp_path):
    Ranks(tmp_path).steps(range(1, 5))
    for wanted in (("time/step", "loss/total", "optim/lr"), ("optim/lr", "time/step", "loss/total")):
        assert grid_of_logs(tmp_path, wanted).names == list(wanted)


class Nothing:
    """Detectors that find nothing."""

    def update(self, table, generation):
        return []

    def silence(self, now):
        return []


def test_the_monitor_keeps_the_grid_over_its_own_end_and_a_rewind(tmp_path):
    run = tmp_path / "run"
    (run / "metrics").mkdir(parents=True)
    config = load_config(None, [])
    (run / "config.toml").write_text(to_toml(config))
    write_kinds(run / "metrics", KINDS.all)
    ranks = Ranks(run / "metrics").steps(range(1, 11))

    def watch(close):
        service = Service(run, config, Nothing(), Sinks([]))
        while service.turn():
            pass
        if close:
            service.close()
        else:  # killed: nothing more is written or stored
            service._grid.write_if_due(time.monotonic() + 1e6)
            service.keeper.close()

    watch(close=False)
    assert read_grid(run / "metrics").through == (1, 10)
    ranks.steps([11, 12])
    watch(close=True)
    assert cells(read_grid(run / "metrics"), "time/step")[2].tolist() == [[1] * 12] * 2
    Ranks(run / "metrics", generation=2, after=6).steps([7])
    watch(close=True)
    found = read_grid(run / "metrics")
    assert found.through == (2, 7) and cells(found, "time/step")[2].sum(0).tolist() == [2] * 7 + [0] * 5
    assert json.loads((run / "metrics" / "monitor.json").read_text())["step"] == 7
