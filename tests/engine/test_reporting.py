"""The report that a run leaves: the frozen page as it is at the end, whatever the end was, and never the end of a run itself."""

import subprocess
import sys

import pytest
from small_runs import penstock, small_config, small_sets
from tests.dashboard.asking import thawed

from penstock.config import UserError
from penstock.dashboard import frozen
from penstock.engine.build import Parts
from penstock.engine.record.reporting import reported
from penstock.engine.starting.start import make_run, resume_run, start_run
from penstock.store import Run


def train(tmp_path, name, **changes):
    return start_run(small_config(tmp_path, **changes), "test", "", 1, tmp_path / name, None)


def page(tmp_path, name):
    answers, courses = thawed((tmp_path / name / "report.html").read_text())
    return {address.removeprefix(f"/api/v1/runs/{name}"): answer for address, answer in answers.items()}, courses


@pytest.mark.slow
def test_a_run_ends_with_its_page_as_report_and_everything_in_it(tmp_path):
    done = penstock("train", *small_sets(tmp_path, run__name="a", run__dir=tmp_path), "--nproc", 2)
    assert f"report  {tmp_path}/a/report.html" in done.stdout and "no report" not in done.stderr
    told, courses = page(tmp_path, "a")
    assert told[""]["row"]["state"] == told["/overview"]["state"] == "finished" and told["/overview"]["step"] == 6
    assert told[""]["row"]["val_loss"] is not None and [sample["step"] for sample in told[""]["samples"]] == [3, 6]
    assert told[""]["identity"]["data"] and told[""]["settings"]["optim"]["warmup"] == 2 and told[""]["summary"]["step"] == 6
    assert told["/history"]["events"] and b"loss/total" in courses


@pytest.mark.slow
def test_a_run_that_fails_has_a_report_that_says_why_and_a_resumed_one_a_new_one(tmp_path, monkeypatch):
    monkeypatch.setattr(Parts, "loss", lambda self, batch, real=Parts.loss: real(self, batch) * float("nan" if self.progress.step == 3 else 1.0))
    with pytest.raises(UserError, match="step 3"):
        train(tmp_path, "bad")
    told, _ = page(tmp_path, "bad")
    assert told["/overview"]["state"] == "failed" and any("nan" in event["text"] for event in told["/overview"]["events"] if event["kind"] == "failure")
    monkeypatch.undo()
    resume_run(Run(tmp_path / "bad"), {}, 1, None)
    assert page(tmp_path, "bad")[0]["/overview"]["state"] == "finished"


@pytest.mark.slow
def test_a_run_ends_well_without_its_report_and_says_so_in_one_line(tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise OSError(28, "No space left on device\nand more")

    monkeypatch.setattr(frozen, "inlined", refuse)
    assert train(tmp_path, "full")["state"] == "finished" and not (tmp_path / "full" / "report.html").exists()
    [line] = [line for line in capsys.readouterr().err.splitlines() if "report" in line]
    assert "No space left on device" in line and f"penstock report {tmp_path / 'full'}" in line


@pytest.mark.slow
def test_a_run_with_damaged_metrics_ends_well(tmp_path, monkeypatch, capsys):
    real = frozen.freeze

    def damage(run, out):
        for part in (run.path / "metrics").rglob("*"):
            if part.is_file():
                part.write_bytes(b"\\xff{torn" * 9)
        return real(run, out)

    monkeypatch.setattr(frozen, "freeze", damage)
    assert train(tmp_path, "torn")["state"] == "finished"
    assert page(tmp_path, "torn")[0]["/overview"]["state"] == "finished" and "no report" not in capsys.readouterr().err


def test_a_run_that_never_began_leaves_no_report(tmp_path):
    run = make_run(small_config(tmp_path), "test", "", tmp_path / "no", None)
    with pytest.raises(UserError), reported(run):
        raise UserError("refused")
    assert (tmp_path / "no" / "run.json").exists() and not (tmp_path / "no" / "report.html").exists()


@pytest.mark.slow
def test_a_page_is_frozen_without_a_server_or_torch(tmp_path):
    code = "import sys, penstock.dashboard.frozen; print([name for name in ('fastapi', 'starlette', 'uvicorn', 'torch') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout.strip() == "[]"
