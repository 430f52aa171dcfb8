"""The commands as a user types them: in a process of its own what is killed, signalled or timed, the others in this one."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from ranks import free_port
from small_runs import Command, penstock, refused, small_sets, summary

from penstock.store import current_writer, find_run, list_snapshots, read_history


def wait_for_snapshot(run, process, deadline_s=240):
    """Wait until the run at `run` has a snapshot."""
    end = time.monotonic() + deadline_s
    while not list_snapshots(run):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "no snapshot in time"
        time.sleep(0.02)


def test_help_is_instant_and_needs_no_torch():
    code = "import sys, penstock.cli.app; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules), 'imported too much'"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "train" in penstock("--help").stdout


@pytest.mark.slow
def test_a_run_that_compiles_nothing_imports_no_compiler(tmp_path):
    """It takes longer than all else that a command imports."""
    train, generate = ["train", *small_sets(tmp_path), "--run-dir", str(tmp_path / "run")], ["generate", str(tmp_path / "run"), "--tokens", "5"]
    code = (
        f"import sys\nfrom penstock.cli import main\nfor words in ({train}, {generate}):\n    sys.argv = ['penstock', *words]\n    assert main() == 0\n"
        "assert not {'torch._dynamo', 'torch._inductor', 'torch.distributed.fsdp', 'sympy'} & set(sys.modules), 'imported too much'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


COMPUTING = """
import threading, torch
from penstock import cli
a, inside = torch.eye(500), threading.Event()
def compute():
    while True:
        a @ a
        inside.set()
def main():
    threading.Thread(target=compute, daemon=True).start()
    inside.wait()
    threading.Timer(0.2, lambda: print("and all is said")).start()
    print("the work is done")
    return 130
cli.app.main = main
cli.app.run()
"""


@pytest.mark.slow
def test_a_process_ends_with_its_own_exit_code_whatever_its_threads_do():
    """The interpreter's own end would be a SIGABRT."""
    done = subprocess.run([sys.executable, "-c", COMPUTING], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "the work is done\nand all is said\n", "")


@pytest.mark.slow
def test_train_then_use_the_run(tmp_path, here, answer):
    run = tmp_path / "runs" / "mine"
    result = answer("train", *small_sets(tmp_path), "--run-dir", run)
    assert result["step"] == 6 and result["run"] == str(run)
    text = answer("generate", run, "--prompt", "the ", "--tokens", 10)
    assert text["prompt"] == "the " and len(text["text"]) > 0
    other = tmp_path / "other.txt"
    other.write_text("rain falls on green hills and rivers run to seas\n" * 40)
    score = answer("eval", run, "--data", other)
    assert 0 < score["bits_per_byte"] < 10 and score["tokens"] > 1000
    assert answer("runs", "--runs-dir", tmp_path / "runs")["runs"][0]["run"] == str(run)
    table = here("runs", "--runs-dir", tmp_path / "runs")[1]
    assert "mine" in table and "finished" in table


def test_every_setting_is_printed_and_explained():
    printed = penstock("config", "tiny", "--set", "optim.lr=0.5").stdout
    assert "lr = 0.5" in printed and "[model.moe]" in printed
    assert summary(penstock("config", "--json"))["batch"]["global"] == 16
    assert "Peak learning rate" in penstock("config", "--explain", "optim.lr").stdout
    assert "did you mean 'optim.lr'" in refused("config", "--explain", "optim.lrr")


@pytest.mark.slow
def test_a_layout_is_shown_for_more_ranks_than_there_are(here, refuses):
    sets = ["--set", "model.heads=16", "--set", "model.dim=256", "--set", "batch.global=64"]
    grid = ["--set", "layout.tensor=16", "--set", "layout.shard=2"]
    code, out, err = here("layout", "tiny", *sets, *grid, "--nproc", 64, "--ranks-per-node", 8)
    assert code == 0, err
    assert "64 ranks, 8 a node" in out and "row.ffn" in out and "over 2 nodes" in out and "moments" in out and "less: --set layout.tensor" in out
    code, out, err = here("layout", "tiny", *sets, *grid, "--nproc", 64, "--json")
    report = json.loads(out)
    assert report["layout"]["tensor"] == 16 and report["layout"]["replicate"] == 2
    assert report["inside"] + report["between"] == sum(line["bytes"] for line in report["traffic"].values()) > 0
    assert report["memory"]["total"] > report["memory"]["weights"] > 0
    assert "layout.tensor = 16" in refuses("layout", "tiny", *sets, *grid, "--nproc", 24)
    assert "--ranks-per-node 0" in refuses("layout", "tiny", "--ranks-per-node", 0)
    assert "batch.global = 16" in refuses("layout", "tiny", "--nproc", 7)


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, 2])
def test_a_killed_run_resumes_to_the_very_same_weights(tmp_path, answer, nproc):
    sets = small_sets(tmp_path, train__steps=60, snapshot__every=3, eval__every=0, eval__sample_tokens=0)
    whole = answer("train", *sets, "--nproc", nproc, "--run-dir", tmp_path / "whole")
    run = tmp_path / "killed"
    process = Command("train", *sets, "--nproc", nproc, "--run-dir", run)
    wait_for_snapshot(run, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    end = time.monotonic() + 60
    while current_writer(run):  # its ranks end a moment later
        assert time.monotonic() < end
        time.sleep(0.02)
    assert not (run / "summary.json").exists(), "it was killed in the middle"
    resumed = answer("resume", run, "--nproc", nproc)
    assert resumed["weights_digest"] == whole["weights_digest"] and resumed["step"] == 60


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, 2])
def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(tmp_path, answer, nproc):
    sets = small_sets(tmp_path, train__steps=100000, snapshot__every=5, eval__every=0)
    run = tmp_path / "r"
    process = Command("train", *sets, "--nproc", nproc, "--run-dir", run, "--json")
    wait_for_snapshot(run, process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert f"penstock resume {run}" in err and "Traceback" not in err
    result = json.loads(out)
    assert result["state"] == "interrupted" and list_snapshots(run)[-1].step == result["step"]
    more = answer("resume", run, "--nproc", nproc, "--set", f"train.steps={result['step'] + 3}")
    assert more["step"] == result["step"] + 3


@pytest.mark.slow
def test_two_ranks_learn_what_one_does(tmp_path, answer):
    sets = small_sets(tmp_path, train__steps=8, data__document_mask=True)
    one = answer("train", *sets, "--run-dir", tmp_path / "one")
    two = answer("train", *sets, "--nproc", 2, "--run-dir", tmp_path / "two")
    assert two["val_loss"] == pytest.approx(one["val_loss"], rel=1e-4) and two["tokens"] == one["tokens"]
    again = answer("resume", tmp_path / "two", "--set", "train.steps=10")
    assert again["step"] == 10, "a run of two ranks goes on with one"


@pytest.mark.slow
def test_torchrun_trains_the_same_config(tmp_path, answer):
    sets = small_sets(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "penstock", "train", *sets, "--run-dir", str(tmp_path / "r"), "--json"],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    alone = answer("train", *sets, "--nproc", 2, "--run-dir", tmp_path / "alone")
    assert result["weights_digest"] == alone["weights_digest"]


@pytest.mark.slow
def test_below_torchrun_a_mistake_ends_all_ranks_with_its_cause(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "penstock", "train", "--set", f"data.path={tmp_path / 'nowhere'}"],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode != 0 and "nowhere" in done.stderr


@pytest.mark.slow
def test_a_killed_rank_is_named_and_the_command_ends(tmp_path):
    sets = small_sets(tmp_path, train__steps=100000, snapshot__every=5, eval__every=0, survive__enabled="off")
    run = tmp_path / "r"
    process = Command("train", *sets, "--nproc", 2, "--run-dir", run)
    wait_for_snapshot(run, process)
    template = psutil.Process(process.pid).children()[0]
    template.children()[0].kill()
    _, err = process.communicate()
    assert process.returncode == 1, err
    assert re.search(r"rank \d was killed by SIGKILL.*penstock resume", err), err
    assert re.fullmatch(r"rank \d was killed by SIGKILL", read_history(run).events[-1].text)


@pytest.mark.slow
def test_bad_input_is_refused_in_one_line_with_exit_code_two(tmp_path, refuses, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sets = small_sets(tmp_path)
    cases = [
        (["train", tmp_path / "none.toml"], "does not exist"),
        (["train", *sets, "--set", "modle.layers=2"], "did you mean 'model"),
        (["train", *sets, "--set", f"data.path={tmp_path / 'none'}"], "none"),
        (["train", *sets, "--nproc", "1000"], "--nproc 1000 is above"),
        (["train", *sets, "--nproc", "3"], "batch.global"),
        (["train", *sets, "--set", "layout.replicate=2"], "layout.replicate"),
        (["train", *sets, "--set", "model.context=100000"], "model.context"),
        (["train", *sets, "--set", "model.context=5000"], "raise data.validation"),
        (["train", *sets, "--set", "model.vocab=100"], "model.vocab"),
        (["train", *sets, "--set", "alerts.act=loss_spike", "--run-dir", tmp_path / "half"], "alerts.act"),
        (["resume", tmp_path / "none"], "no run"),
        (["generate", tmp_path / "none"], "no run"),
        (["frobnicate"], "frobnicate"),
    ]
    for arguments, words in cases:
        message = refuses(*arguments)
        assert words in message, (arguments, message)
    assert "none.toml" in refused("train", tmp_path / "none.toml"), "a process of its own says the same, without a traceback"
    assert not (tmp_path / "half").exists() and not (tmp_path / "runs").exists(), "nothing is half-written"


def test_a_port_in_use_is_refused(tmp_path, refuses, monkeypatch):
    import socket

    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        port = free_port()
        taken.bind(("localhost", port))
        taken.listen()
        assert f"layout.port = {port}" in refuses("train", *small_sets(tmp_path), "--nproc", 2, "--set", f"layout.port={port}")
    assert not (tmp_path / "runs").exists(), "no run is made"


@pytest.mark.slow
def test_a_tokenizer_that_does_not_fit_the_run_is_refused(tmp_path, here, refuses):
    run, other = tmp_path / "r", tmp_path / "s"
    assert here("train", *small_sets(tmp_path, data__tokenizer="chars"), "--run-dir", run)[0] == 0
    assert here("train", *small_sets(tmp_path), "--run-dir", other)[0] == 0
    for file in (other / "tokenizer").iterdir():
        (run / "tokenizer" / file.name).write_bytes(file.read_bytes())
    assert "model.vocab" in refuses("generate", run, "--prompt", "a")


@pytest.mark.slow
def test_a_run_without_a_snapshot_says_so(tmp_path, here, refuses):
    run = tmp_path / "r"
    assert here("train", *small_sets(tmp_path), "--run-dir", run)[0] == 0
    for snapshot in list_snapshots(find_run(run).folder):
        snapshot.path.unlink()
    assert "no snapshot" in refuses("generate", run)
    assert "no snapshot" in refuses("resume", run)


@pytest.mark.slow
def test_a_full_disk_while_training_keeps_the_last_snapshot_and_says_so(tmp_path, refuses):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1000k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        message = refuses("train", *small_sets(tmp_path, snapshot__keep=0, snapshot__increments="off", metrics__tensorboard=False), "--run-dir", disk / "r")
        last = list_snapshots(disk / "r")[-1].step
        assert "is full while writing packs/" in message and f"last good snapshot is step {last}" in message and last < 6
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_export_and_import_go_round(tmp_path, answer, refuses):
    transformers = pytest.importorskip("transformers")
    import torch

    run = tmp_path / "r"
    answer("train", *small_sets(tmp_path), "--run-dir", run)
    answer("export", run, tmp_path / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    from penstock.engine import open_model

    ours = open_model(find_run(run))
    ids = tokenizer("the quick brown", return_tensors="pt").input_ids
    assert ids[0].tolist() == list(ours.tokenizer.encode("the quick brown"))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, ours.decoder.logits(ours.decoder(ids)), atol=1e-4, rtol=0)
    answer("import", tmp_path / "hf", *small_sets(tmp_path), "--run-dir", tmp_path / "back")
    score = [answer("eval", r, "--data", tmp_path / "corpus")["loss"] for r in (run, tmp_path / "back")]
    assert score[0] == pytest.approx(score[1], rel=1e-5)
    result = answer("resume", tmp_path / "back")
    assert result["step"] == 6 and result["val_loss"] < score[0] + 0.5
    assert "not an empty folder" in refuses("export", run, tmp_path / "hf")
