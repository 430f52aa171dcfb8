"""A long course from coarser levels of the store: no peak, dip, NaN or last value is lost, and nothing is told that was taken back."""

import numpy as np
import pytest
from metric_runs import KINDS

from penstock.monitor.series import ABSENT, coarse
from penstock.monitor.series.columns import ColumnReader, files_of
from penstock.monitor.series.keeper import STORE, Keeper
from penstock.monitor.series.query import Bound, Series
from penstock.monitor.series.rows import RowLog

NAMES = ["loss/total", "time/step"]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(coarse, "CHUNK_BYTES", 600)


def write(folder, values, generation=1, after=0):
    """A log of one rank with a column of `values` and one that is measured in every fourth step."""
    log = RowLog(folder, 0, 1, generation, after)
    log.names(NAMES)
    for i, value in enumerate(values):
        step = after + 1 + i
        log.append(step, float(step), np.array([value, value if step % 4 == 0 else ABSENT]))
    log.close()


def stored(folder, chunk_bytes=16 * 256):
    with Keeper(folder, KINDS, chunk_bytes=chunk_bytes) as keeper:
        while keeper.poll(0.0):
            pass
        keeper.poll(1e9)
        keeper.store()


def course(folder, name="loss/total", **options):
    (found,) = Series(folder, KINDS).courses([name], **options)
    return found


def read_from(monkeypatch):
    """Names of the levels that are read from, as they are."""
    seen, real = set(), ColumnReader.five
    monkeypatch.setattr(ColumnReader, "five", lambda self, chunk, name: seen.add(self.name) or real(self, chunk, name))
    return seen


@pytest.mark.slow
def test_extremes_and_ends_of_a_long_course_are_told_from_few_rows(tmp_path, monkeypatch):
    rng = np.random.default_rng()
    values = rng.standard_normal(60_000)
    places = 5000 * rng.permutation(12) + rng.integers(0, 3000, 12)
    peaks = {int(step): float(height) for step, height in zip(places, [*range(50, 56), *range(-56, -50)])}
    for step, height in peaks.items():
        values[step] = height
    values[31_313] = np.nan
    write(tmp_path, values)
    stored(tmp_path)
    seen = read_from(monkeypatch)
    found = course(tmp_path, points=400)
    assert "coarse1" in seen and "coarse2" not in seen and len(found.steps) <= 500
    assert set(peaks.values()) <= set(found.value.tolist()) and np.isnan(found.value).sum() == 1
    for step, height in peaks.items():
        assert abs(found.steps[found.value.tolist().index(height)] - (step + 1)) <= coarse.WIDTH
    assert (found.steps[-1], found.value[-1], found.times[-1]) == (60_000, values[-1], 60_000.0)
    assert (np.diff(found.steps) >= 0).all()
    sparse = course(tmp_path, "time/step", points=100)
    there = {height for step, height in peaks.items() if (step + 1) % 4 == 0}
    assert there <= set(sparse.value.tolist()) and (sparse.steps[-1], sparse.value[-1]) == (60_000, values[-1])
    seen.clear()
    coarsest = course(tmp_path, points=10)
    assert "coarse2" in seen and {max(peaks.values()), min(peaks.values())} <= set(coarsest.value.tolist())


@pytest.mark.slow
def test_a_part_of_a_long_course_is_told_from_its_own_rows(tmp_path, monkeypatch):
    values = np.random.default_rng().standard_normal(30_000)
    write(tmp_path, values)
    stored(tmp_path)
    seen = read_from(monkeypatch)
    found = course(tmp_path, since=Bound(step=10_001), until=Bound(step=10_400), points=500)
    assert seen == {"columns"}
    np.testing.assert_array_equal(found.value, values[10_000:10_400])
    np.testing.assert_array_equal(course(tmp_path).value, values)


@pytest.mark.slow
def test_steps_that_were_taken_back_show_in_no_level(tmp_path):
    values = np.zeros(20_000)
    values[9_990], values[10_020] = 7.0, 99.0  # what is kept and what is not lie in one stretch of a coarser level
    write(tmp_path, values)
    stored(tmp_path)
    write(tmp_path, np.full(20_000, 1.0), generation=2, after=10_000)
    stored(tmp_path)
    found = course(tmp_path, points=50)
    assert 7.0 in found.value and 99.0 not in found.value
    assert found.value[found.steps > 10_000].tolist() == [1.0] * (found.steps > 10_000).sum() and found.steps[-1] == 30_000


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["lost", "cut", "damaged"])
def test_what_a_level_lacks_comes_from_the_rows_and_is_made_up_for(tmp_path, harm):
    values = np.zeros(20_000)
    values[5_000] = 50.0
    write(tmp_path, values)
    stored(tmp_path)
    whole = course(tmp_path, points=50)
    for name in coarse.LEVELS:
        for path in files_of(tmp_path / STORE, name):
            data = bytearray(path.read_bytes())
            if harm == "lost":
                path.unlink()
            elif harm == "cut":
                path.write_bytes(data[: len(data) // 2])
            else:
                data[70:90] = bytes(20)
                path.write_bytes(data)
    assert 50.0 in course(tmp_path, points=50).value
    write(tmp_path, np.zeros(10), generation=2, after=20_000)
    stored(tmp_path)
    again = course(tmp_path, points=50, until=Bound(step=20_000))
    assert 50.0 in again.value and again.steps[-1] == whole.steps[-1]


def test_any_rows_keep_their_extremes_and_their_order():
    rng = np.random.default_rng()
    for _ in range(50):
        rows, metrics = int(rng.integers(1, 700)), 3
        value = rng.choice([1.0, -1.0, np.inf, -np.inf, np.nan, ABSENT, 5.0], (rows, metrics))
        value[:, 2] = rng.standard_normal(rows)
        ranks = rng.integers(0, 9, (rows, metrics)).astype(np.int32)
        generations = np.sort(rng.integers(1, 3, rows))
        about = coarse.About(("a", "b", "c"), ())
        given = coarse.Rows(about, generations, np.arange(rows), np.arange(rows) * 1.0, coarse.Whole(value, value, value, ranks, ranks))
        few = coarse.coarsened(given)
        assert len(few.steps) <= 4 * (rows // coarse.WIDTH + 2) and (np.diff(few.steps) >= 0).all() and (np.diff(few.generations) >= 0).all()
        for metric in range(metrics):
            full, kept = (column[np.ascontiguousarray(column).view(np.uint64) != np.array(ABSENT).view(np.uint64)] for column in (value[:, metric], few.whole.value[:, metric].copy()))
            assert len(kept) <= len(full) and np.isnan(kept).any() == np.isnan(full).any()
            if len(full):
                assert kept[-1] == full[-1] or (np.isnan(kept[-1]) and np.isnan(full[-1]))
                finite = full[~np.isnan(full)]
                if len(finite):
                    assert np.nanmin(kept) == finite.min() and np.nanmax(kept) == finite.max()
