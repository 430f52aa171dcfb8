"""Waiting threads spin on a free host, sleep on a busy one, and do as the user says."""

import pytest

from penstock.cli.threads import set_waiting


@pytest.mark.parametrize(("running", "cores", "chosen"), [(1, 2, "GOMP_SPINCOUNT"), (2, 2, "OMP_WAIT_POLICY"), (4, 16, "GOMP_SPINCOUNT"), (12, 16, "OMP_WAIT_POLICY")])
def test_how_threads_wait_depends_on_what_else_runs(tmp_path, running, cores, chosen):
    (tmp_path / "loadavg").write_text(f"0.52 0.40 0.31 {running}/512 4711\n")
    environment = {}
    set_waiting(environment, tmp_path / "loadavg", cores)
    assert list(environment) == [chosen]


@pytest.mark.parametrize("text", [None, "", "0.5"])
def test_a_host_that_does_not_tell_counts_as_free(tmp_path, text):
    if text is not None:
        (tmp_path / "loadavg").write_text(text)
    environment = {}
    set_waiting(environment, tmp_path / "loadavg", 2)
    assert list(environment) == ["GOMP_SPINCOUNT"]


def test_the_users_own_setting_wins(tmp_path):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        environment = {name: "x"}
        set_waiting(environment, tmp_path / "loadavg", 2)
        assert environment == {name: "x"}
