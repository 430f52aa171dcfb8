"""A rank's log of rows: what is written comes back, damage is skipped and named, a full disk and a flood stay bounded."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from penstock.monitor.series.frames import HEADER
from penstock.monitor.series.rows import RowLog, next_generation, parts_of, rank_folders
from penstock.monitor.series.table import ABSENT, ABSENT_BITS
from penstock.monitor.series.tail import RowTail


def write(folder, steps, names=("loss/total", "time/step"), rank=0, generation=1, after=0, **options):
    log = RowLog(folder, rank, 2, generation, after, **options)
    log.names(list(names))
    for step in steps:
        log.append(step, 1000.0 + step, np.full(len(names), step, float) + np.arange(len(names)) / 8)
    log.close()
    return log


def read(folder, rank=0, **options):
    tail, blocks = RowTail(rank_folders(folder)[rank], **options), []
    while rows := tail.read():
        blocks += rows
    return tail, blocks


def steps_of(blocks):
    return [int(step) for block in blocks for step in block.steps]


def only_part(folder):
    (path,) = [path for _, _, path in parts_of(rank_folders(folder)[0])]
    return path


def test_rows_come_back_as_they_were_written_nan_infinity_and_the_absent_among_them(tmp_path):
    log = RowLog(tmp_path, 3, 8, 2, 40)
    log.names(["a", "b", "c", "d"])
    row = np.array([1 / 3, np.nan, -np.inf, ABSENT])
    assert log.append(41, 5.5, row)
    tail, (block,) = read(tmp_path, 3)
    assert (block.about.rank, block.about.ranks, block.about.generation, block.about.after) == (3, 8, 2, 40)
    assert block.about.names == ("a", "b", "c", "d")
    assert (steps_of([block]), block.times.tolist()) == ([41], [5.5])
    assert block.values_rn.tobytes() == row.tobytes()
    assert block.values_rn.view(np.uint64)[0, 3] == ABSENT_BITS
    assert (tail.damage, tail.lost) == ([], 0)


def test_a_reader_gets_rows_as_they_are_written_each_once(tmp_path):
    log = RowLog(tmp_path, 0, 1, 1, 0)
    log.names(["a"])
    log.append(1, 0.0, np.ones(1))
    tail = RowTail(tmp_path / "rank-00000")
    assert steps_of(tail.read()) == [1]
    assert tail.read() == []
    log.append(2, 0.0, np.ones(1))
    log.append(3, 0.0, np.ones(1))
    assert steps_of(tail.read()) == [2, 3]


def test_names_may_come_later_and_parts_begin_with_them(tmp_path):
    log = RowLog(tmp_path, 0, 1, 1, 0, part_bytes=1000)
    log.names(["a"])
    log.append(1, 0.0, np.array([1.0]))
    log.names(["a", "b"])
    for step in range(2, 40):
        log.append(step, 0.0, np.array([1.0, step]))
    parts = parts_of(tmp_path / "rank-00000")
    assert len(parts) > 2
    parts[0][2].unlink()  # what the store has taken in is removed
    tail, blocks = read(tmp_path)
    assert {block.about.names for block in blocks} == {("a", "b")}
    assert steps_of(blocks) == list(range(steps_of(blocks)[0], 40))
    assert tail.lost == 0


def test_many_rows_take_several_reads_of_bounded_size(tmp_path):
    names = [f"m/{i}" for i in range(2000)]
    write(tmp_path, range(1, 1201), names, part_bytes=1 << 30)
    tail = RowTail(tmp_path / "rank-00000")
    sizes, steps = [], []
    while rows := tail.read():
        sizes.append(sum(block.values_rn.nbytes for block in rows))
        steps += steps_of(rows)
    assert steps == list(range(1, 1201))
    assert len(sizes) > 1
    assert max(sizes) < 10e6
    assert not tail.damage
    tail, blocks = read(tmp_path, chunk_bytes=5000)  # less than a row
    assert (steps_of(blocks), tail.damage) == (steps, [])


@pytest.mark.parametrize("cut", [1, 9, 60])
def test_a_row_torn_at_the_end_is_waited_for_then_read(tmp_path, cut):
    write(tmp_path, range(1, 6))
    path = only_part(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    tail = RowTail(tmp_path / "rank-00000")
    assert steps_of(tail.read()) == [1, 2, 3, 4]
    assert tail.read() == []
    path.write_bytes(whole)
    assert steps_of(tail.read()) == [5]
    assert not tail.damage


def test_a_row_torn_by_a_crash_is_named_once_the_run_goes_on(tmp_path):
    write(tmp_path, range(1, 6))
    path = only_part(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    write(tmp_path, [5, 6], generation=2, after=4)
    tail, blocks = read(tmp_path)
    assert steps_of(blocks) == [1, 2, 3, 4, 5, 6]
    (damage,) = tail.damage
    assert damage.file == path
    assert "at its end are no whole record" in str(damage)


@pytest.mark.parametrize("junk", [b"", b"\0" * 40, b"PRW1" * 30, os.urandom(100)])
def test_damaged_bytes_in_the_middle_cost_their_rows_alone_and_are_named(tmp_path, junk):
    write(tmp_path, range(1, 31))
    path = only_part(tmp_path)
    whole = path.read_bytes()
    stride = HEADER.size + 16
    start = len(whole) - 20 * stride
    path.write_bytes(whole[: start + 5] + junk + whole[start + 2 * stride + 3 :])
    tail, blocks = read(tmp_path)
    assert steps_of(blocks) == [*range(1, 11), *range(14, 31)]
    assert tail.lost == 3
    (damage,) = tail.damage
    assert (damage.file, damage.offset) == (path, start)


def test_one_wrong_bit_costs_one_row(tmp_path):
    write(tmp_path, range(1, 31))
    path = only_part(tmp_path)
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    write(tmp_path, [31], generation=2, after=30)
    tail, blocks = read(tmp_path)
    assert steps_of(blocks) == [*range(1, 30), 31]
    assert tail.damages == 1


def test_damage_longer_than_what_is_read_at_once_is_passed(tmp_path):
    write(tmp_path, range(1, 201), part_bytes=1 << 20)
    path = only_part(tmp_path)
    whole = path.read_bytes()
    stride = HEADER.size + 16
    for extra in range(50):
        path.write_bytes(whole[: 600 + 13 * stride] + b"\xff" * (9000 + extra) + whole[600 + 13 * stride :])
        tail, blocks = read(tmp_path, chunk_bytes=4096)
        steps = steps_of(blocks)
        assert len(steps) >= 199
        assert tail.damage


def test_rows_whose_names_are_damaged_are_not_given_others(tmp_path):
    write(tmp_path, range(1, 6))
    path = only_part(tmp_path)
    data = bytearray(path.read_bytes())
    data[HEADER.size + 30] ^= 255
    path.write_bytes(data)
    tail, blocks = read(tmp_path)
    assert blocks == []
    assert "5 rows whose names are lost" in str(tail.damage[-1])


def test_an_empty_file_and_a_folder_of_other_things_hold_no_rows(tmp_path):
    folder = tmp_path / "rank-00000"
    folder.mkdir()
    (folder / "g00000001-0000.rows").touch()
    (folder / "notes.txt").write_text("x")
    tail, blocks = read(tmp_path)
    assert (blocks, tail.damage) == ([], [])
    assert rank_folders(tmp_path / "nowhere") == {}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system, whose writes fail as on a full disk")
def test_a_full_disk_drops_rows_and_counts_them_without_raising(tmp_path, monkeypatch):
    log = RowLog(tmp_path, 0, 1, 1, 0)
    log.names(["a"])
    assert log.append(1, 0.0, np.ones(1))
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, bytes(data)[:5]))  # the disk takes a part, then nothing
    assert not log.append(2, 0.0, np.ones(1))
    assert log.dropped == 1
    monkeypatch.setattr(os, "write", real)
    assert log.append(3, 0.0, np.ones(1))
    tail, blocks = read(tmp_path)
    assert steps_of(blocks) == [1, 3]
    assert (tail.lost, tail.damage) == (1, [])
    (tmp_path / "full").symlink_to("/dev/full")
    assert not RowLog(tmp_path / "full", 0, 1, 1, 0).append(1, 0.0, np.zeros(0))


def test_a_folder_that_may_not_be_written_drops_rows(tmp_path):
    (tmp_path / "rank-00000").write_text("a file where the folder should be")
    log = write(tmp_path, range(5))
    assert (log.rows, log.dropped) == (5, 5)


def test_a_flood_of_rows_stays_within_its_bytes_and_keeps_the_newest(tmp_path):
    write(tmp_path, range(1, 3001), part_bytes=10_000, log_bytes=40_000)
    total = sum(path.stat().st_size for _, _, path in parts_of(tmp_path / "rank-00000"))
    assert total <= 40_000
    _, blocks = read(tmp_path)
    steps = steps_of(blocks)
    assert steps[-1] == 3000
    assert steps == list(range(steps[0], 3001))


def test_generations_are_numbered_on_whatever_rank_wrote_last(tmp_path):
    assert next_generation(tmp_path) == 1
    write(tmp_path, [1], rank=0, generation=1)
    write(tmp_path, [1], rank=5, generation=3)
    assert next_generation(tmp_path) == 4


def test_a_log_that_opens_again_in_its_generation_begins_a_new_part(tmp_path):
    write(tmp_path, [1, 2])
    write(tmp_path, [3])
    tail, blocks = read(tmp_path)
    assert steps_of(blocks) == [1, 2, 3]
    assert tail.part == (1, 1)


def test_a_row_costs_the_training_thread_little(tmp_path):
    log = RowLog(tmp_path, 0, 1, 1, 0)
    log.names([f"m/{i}" for i in range(300)])
    row, seconds = np.random.rand(300), []
    for step in range(2000):
        start = time.perf_counter()
        log.append(step, 0.0, row)
        seconds.append(time.perf_counter() - start)
    assert sorted(seconds)[1000] < 50e-6
