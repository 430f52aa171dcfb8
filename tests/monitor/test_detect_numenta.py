"""The Numenta score against the example of its paper and the ends of its scale."""

import json

import numpy as np
import pytest

from penstock.config.errors import UserError
from penstock.monitor.detect.numenta import Series, raw_score, read_benchmark, score, sigma


def series(rows=5000, windows=((1000, 1100),)):
    return Series("made/up", np.zeros(rows), windows)


def test_the_example_of_the_paper():
    """Figure 3 of arXiv 1510.03336: a false alarm, two hits of one window, a false alarm 0.45 windows after it and one far away: 0.6909."""
    assert raw_score(series(), [800, 1000, 1050, 1145, 4000]) == pytest.approx(0.6909, abs=2e-4)
    assert sigma(0.45) == pytest.approx(-0.8093, abs=1e-4) and sigma(-2.0) == pytest.approx(0.9999, abs=1e-4)


def test_the_scale_ends_at_silence_and_at_the_perfect_detector():
    both = [series(), series(windows=((800, 900), (2000, 2200))), series(windows=())]
    assert score([(s, []) for s in both]) == 0.0
    assert score([(s, [first for first, _ in s.windows]) for s in both]) == pytest.approx(100.0)


def test_the_earlier_of_two_detections_counts_and_earlier_is_better():
    worth = [raw_score(series(), [row]) for row in range(1000, 1101)]
    assert worth == sorted(worth, reverse=True) and worth[0] == pytest.approx(1.0) and 0.0 < worth[-1] < 0.05
    assert raw_score(series(), [1020, 1030, 1100]) == worth[20]


def test_detections_outside_of_windows_cost_a_ninth_and_less_shortly_after_one():
    missed = raw_score(series(), [])
    assert missed == -1.0
    assert raw_score(series(), [900]) - missed == pytest.approx(-0.11)
    costs = [raw_score(series(), [row]) - missed for row in (1101, 1110, 1150, 1350, 1401)]
    assert costs == sorted(costs, reverse=True) and costs[0] > -0.01 and costs[-1] == pytest.approx(-0.11)


def test_nothing_counts_in_the_first_rows_in_which_a_detector_learns():
    assert series(1000).probation == 150 and series(20_000).probation == 750
    assert raw_score(series(20_000, windows=()), list(range(750))) == 0.0
    assert raw_score(series(20_000, windows=()), [749, 750]) == pytest.approx(-0.11)


def test_a_benchmark_is_read_with_its_windows_and_a_folder_that_is_none_is_refused(tmp_path):
    (tmp_path / "data/real").mkdir(parents=True)
    (tmp_path / "labels").mkdir()
    rows = "".join(f"2014-01-01 00:{minute:02d}:00,{minute}.5\n" for minute in range(60))
    (tmp_path / "data/real/a.csv").write_text("timestamp,value\n" + rows)
    with pytest.raises(UserError, match="combined_windows"):
        read_benchmark(tmp_path)
    (tmp_path / "labels/combined_windows.json").write_text(json.dumps({"real/a.csv": [["2014-01-01 00:20:00.000000", "2014-01-01 00:25:00.000000"]]}))
    (read,) = read_benchmark(tmp_path)
    assert read.name == "real/a" and read.windows == ((20, 25),) and read.values_t[59] == 59.5 and read.probation == 9


def test_a_score_of_nothing_labelled_is_refused():
    with pytest.raises(UserError, match="window"):
        score([(series(windows=()), [])])
