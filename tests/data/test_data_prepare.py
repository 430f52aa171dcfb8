"""Preparing: cached, never stale, the same on any number of processes, whole or not at all."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from corpora import contents, data_section, random_text
from small_runs import write_corpus

from penstock.config import UserError
from penstock.data import prepare
from penstock.data.corpus import Source
from penstock.data.encode import _ShardWriter
from penstock.data.files import locked
from penstock.data.pool import run_tasks
from penstock.data.spans import Segment
from penstock.data.split import HELD_OUT
from penstock.data.tasks import Task

#: Prepares in a process of its own with small spans, in processes even for small corpora; prints what came out.
PREPARE = """
import json, sys, time
from penstock.config import DataSection
from penstock.data import preparation, prepare, spans
spans.SPAN_BYTES = 20_000
preparation.SMALL_BYTES = 0
delay = float(sys.argv[2])
def progress(fraction, text):
    if "tokenizing" in text:
        time.sleep(delay)
corpus = prepare(DataSection(**json.loads(sys.argv[1])), progress=progress)
assert "torch" not in sys.modules
print(json.dumps([corpus.digest, str(corpus.folder)]))
"""


def start_preparing(data, delay=0.0):
    command = [sys.executable, "-c", PREPARE, json.dumps(data.model_dump()), str(delay)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process):
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err.decode()
    return json.loads(out)


@pytest.fixture
def mixed(tmp_path):
    """A folder of a long text, short ones, and rows, some 300 kB."""
    root = write_corpus(tmp_path / "mixed", 20)
    (root / "long.txt").write_text(random_text(150_000, seed=5))
    (root / "rows.jsonl").write_text("".join(json.dumps({"text": random_text(500, seed)}) + "\n" for seed in range(200)))
    return root


def test_the_second_time_comes_from_the_cache(tmp_path, monkeypatch):
    data = data_section(write_corpus(tmp_path / "in"), tmp_path / "cache")
    first = prepare(data)
    monkeypatch.setattr("penstock.data.preparation.build", None)
    monkeypatch.setattr("penstock.data.preparation.run_tasks", None)
    second = prepare(data)
    assert second.folder == first.folder and second.digest == first.digest and second.summary == first.summary


@pytest.mark.parametrize("change", ["same size", "same size and time", "new file", "removed file"])
def test_changed_text_is_never_missed(tmp_path, change):
    root = write_corpus(tmp_path / "in")
    data = data_section(root, tmp_path / "cache")
    before = prepare(data)
    file = root / "003.txt"
    stat = file.stat()
    if change.startswith("same size"):
        file.write_text(file.read_text().replace("the", "eht"))
        assert file.stat().st_size == stat.st_size
    if change == "same size and time":
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    if change == "new file":
        (root / "new.txt").write_text("new text\n")
    if change == "removed file":
        file.unlink()
    assert prepare(data).digest != before.digest


def test_settings_that_decide_tokens_have_their_own_cache(tmp_path):
    root = write_corpus(tmp_path / "in")
    variants = [{}, {"validation": 0.3}, {"tokenizer": "chars"}, {"max_bytes": 9000}]
    variants += [{"tokenizer": "bpe", "vocab": vocab} for vocab in (300, 310)]
    digests = {prepare(data_section(root, tmp_path / "cache", **variant)).digest for variant in variants}
    assert len(digests) == len(variants)


def test_small_vocabularies_take_two_bytes_a_token(tmp_path):
    corpus = prepare(data_section(write_corpus(tmp_path / "in"), tmp_path / "cache"))
    tokens = len(corpus.train) + len(corpus.validation)
    assert sum(file.stat().st_size for file in corpus.folder.glob("*.tokens")) == 2 * tokens


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["bpe", "chars"])
def test_shards_do_not_depend_on_the_number_of_processes(mixed, tmp_path, tokenizer):
    results = []
    for workers in (1, 3):
        data = data_section(mixed, tmp_path / f"cache{workers}", tokenizer=tokenizer, vocab=500, workers=workers)
        results.append(finish(start_preparing(data)))
    folders = [contents(Path(folder)) for _, folder in results]
    assert folders[0] == folders[1] and len(folders[0]) > 20


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_preparation_goes_on_to_the_same_bits(mixed, tmp_path, workers):
    clean = finish(start_preparing(data_section(mixed, tmp_path / "clean", tokenizer="bpe", vocab=500)))
    data = data_section(mixed, tmp_path / "cache", tokenizer="bpe", vocab=500, workers=workers)
    process = start_preparing(data, delay=0.15)
    deadline = time.monotonic() + 240
    while len(list((tmp_path / "cache").glob("*.partial/span-*.json"))) < 4:
        assert time.monotonic() < deadline and process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    children = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=120)
    assert len(children) == (0 if workers == 1 else 2)
    assert not psutil.wait_procs(children, timeout=60)[1], "a worker outlived its parent"
    (partial,) = (tmp_path / "cache").glob("*.partial")
    assert not partial.with_suffix("").exists()
    done = sorted(partial.glob("train-*.tokens"))
    kept = done[0].stat().st_mtime_ns
    done[1].write_bytes(done[1].read_bytes()[:-2])
    digest, folder = finish(start_preparing(data))
    folder = Path(folder)
    assert digest == clean[0] and contents(folder) == contents(Path(clean[1]))
    assert (folder / done[0].name).stat().st_mtime_ns == kept, "a finished span was made again"


@pytest.mark.slow
def test_four_processes_at_once_get_the_same_corpus(mixed, tmp_path):
    data = data_section(mixed, tmp_path / "cache", tokenizer="bpe", vocab=500, workers=1)
    results = [finish(process) for process in [start_preparing(data, delay=0.02) for _ in range(4)]]
    assert all(result == results[0] for result in results)
    assert len([entry for entry in (tmp_path / "cache").iterdir() if entry.is_dir() and entry.name != "surveys"]) == 1


@pytest.mark.parametrize("pattern", ["train-*.tokens", "validation-*.tokens", "train.starts", "manifest.json", "sources.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_found_when_it_is_opened(tmp_path, pattern, damage):
    data = data_section(write_corpus(tmp_path / "in"), tmp_path / "cache")
    digest = prepare(data).digest
    file = next(prepare(data).folder.glob(pattern))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x80
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    with pytest.raises(UserError, match="is damaged") as caught:
        prepare(data)
    assert str(file) in str(caught.value) and f"delete the folder {file.parent}" in str(caught.value)
    shutil.rmtree(file.parent)
    assert prepare(data).digest == digest


def test_a_full_disk_is_reported_and_leaves_nothing_behind(tmp_path, monkeypatch):
    data = data_section(write_corpus(tmp_path / "in"), tmp_path / "cache")
    write, written = _ShardWriter._write, []

    def fill_up(self, which, array):
        written.append(array)
        if len(written) > 50:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, which, array)

    monkeypatch.setattr(_ShardWriter, "_write", fill_up)
    with pytest.raises(UserError, match=rf"disk of {tmp_path}/cache is full: .* about \d+ bytes there and \d+ are free") as caught:
        prepare(data)
    assert "data.cache_dir" in str(caught.value)
    assert not list((tmp_path / "cache").glob("*.partial")) and not list((tmp_path / "cache").rglob("*.tmp"))
    monkeypatch.undo()
    assert len(prepare(data).train) > 1000


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs privileges")
    try:
        (tmp_path / "a.txt").write_text(random_text(1_000_000, seed=2))
        process = start_preparing(data_section(tmp_path / "a.txt", disk / "cache", workers=2))
        _, err = process.communicate(timeout=240)
        assert process.returncode == 1 and "is full: preparing this corpus needs up to about" in err.decode()
        assert not list((disk / "cache").glob("*.partial")) and shutil.disk_usage(disk).used < 100_000
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_text_that_changes_while_it_is_read_is_refused(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("new text")
    task = Task(0, (Segment(0, 0, 8, True),), (Source(str(file), "text", 8, 12345, 12345),), "text")
    with pytest.raises(UserError, match=r"a\.txt changed while it was being prepared"):
        run_tasks([task], 1, lambda done: None)


def survey_task(span, file):
    stat = file.stat()
    source = Source(str(file), "text", stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return Task(span, (Segment(0, 0, stat.st_size, True),), (source,), "text")


@pytest.mark.slow
def test_errors_cross_process_borders(tmp_path):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "bad.txt").write_bytes(b"bad\xff")
    good, bad = survey_task(0, tmp_path / "good.txt"), survey_task(1, tmp_path / "bad.txt")
    assert [result["characters"] for result in run_tasks([good] * 3, 2, lambda done: None)] == [4, 4, 4]
    with pytest.raises(UserError, match=r"bad\.txt is not UTF-8"):
        run_tasks([good, bad], 2, lambda done: None)
    (tmp_path / "folder" / "train-00007.tokens").mkdir(parents=True)
    prepare(data_section(write_corpus(tmp_path / "in"), tmp_path / "cache")).tokenizer.save(tmp_path / "folder" / "tokenizer")
    encode = Task(7, good.segments, good.sources, "text", str(tmp_path / "folder"), HELD_OUT)
    with pytest.raises(IsADirectoryError):
        run_tasks([good, encode], 2, lambda done: None)


@pytest.mark.slow
def test_a_killed_process_is_reported_with_the_mend(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("good")
    before = psutil.Process().children()  # other tests may keep processes, multiprocessing's fork server say

    def pool():
        return [child for child in psutil.Process().children() if child not in before]

    def kill_own(done):
        for child in pool():
            child.kill()

    task = survey_task(0, tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"killed by signal 9.*data\.workers"):
        run_tasks([task] * 200, 2, kill_own)
    assert not pool(), "the pool left a process behind"


def test_waiting_for_another_process_has_a_deadline(tmp_path):
    waited = []
    with locked(tmp_path / "a.lock", None), pytest.raises(UserError, match=r"another process has held .*a\.lock"):  # noqa: SIM117
        with locked(tmp_path / "a.lock", lambda: waited.append(True), deadline_s=0.3):
            pass
    assert waited == [True]


def test_progress_goes_from_nothing_to_done(tmp_path):
    steps = []
    data = data_section(write_corpus(tmp_path / "in", 200), tmp_path / "cache", tokenizer="bpe")
    prepare(data, progress=lambda share, text: steps.append((share, text)))
    shares = [share for share, _ in steps]
    assert shares == sorted(shares) and shares[0] < 0.1 and shares[-1] == pytest.approx(0.99)
    assert any(text.startswith("reading") for _, text in steps) and any(text.startswith("tokenizing") for _, text in steps)


@pytest.mark.slow
def test_memory_stays_bounded_on_a_large_file(tmp_path):
    block = random_text(2_000_000, seed=11)
    with open(tmp_path / "large.txt", "w", encoding="utf-8") as file:
        for _ in range(50):
            file.write(block)
    data = data_section(tmp_path / "large.txt", tmp_path / "cache", tokenizer="bytes", workers=2)
    process = start_preparing(data)
    peak, watched = 0, psutil.Process(process.pid)
    while process.poll() is None:
        try:
            peak = max(peak, sum(p.memory_info().rss for p in [watched, *watched.children()]))
        except psutil.Error:
            continue
        time.sleep(0.02)
    _, folder = finish(process)
    assert peak < 300 << 20, f"{peak >> 20} MiB"
    first = np.fromfile(Path(folder) / "train-00000.tokens", dtype="<u2", count=1000)
    assert bytes(first.tolist()) == block.encode()[:1000]
