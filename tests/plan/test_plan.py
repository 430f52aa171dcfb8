"""The measured peak and the description of the machine."""

import json
import os
from pathlib import Path

import torch

from penstock.plan import describe_environment, measure_peak

CPU = torch.device("cpu")


def cache_file() -> Path:
    return Path(os.environ["XDG_CACHE_HOME"]) / "penstock" / "peaks.json"


def test_the_peak_is_plausible_and_never_falls(monkeypatch):
    first = measure_peak(CPU, torch.float32, seconds=0.05)
    assert 1e-4 < first.tflops < 100 and first.threads == torch.get_num_threads()
    known = json.loads(cache_file().read_text())
    key = next(k for k in known if "float32" in k)
    known[key]["tflops"] = 77.0
    cache_file().write_text(json.dumps(known))
    assert measure_peak(CPU, torch.float32, seconds=0.01).tflops == 77.0
    cache_file().unlink()


def test_a_machine_too_slow_for_the_time_given_has_a_peak_too(monkeypatch):
    cache_file().unlink(missing_ok=True)
    monkeypatch.setattr("penstock.plan.peak.SIZES", {"cpu": (256, 2048)})
    peak = measure_peak(CPU, torch.float32, seconds=1e-9)
    assert peak.tflops > 0 and peak.size == 256
    cache_file().unlink()


def test_a_damaged_cache_is_measured_anew():
    for content in ("{", "[]", '{"x": 3}'):
        cache_file().parent.mkdir(parents=True, exist_ok=True)
        cache_file().write_text(content)
        assert measure_peak(CPU, torch.float32, seconds=0.01).tflops > 0
    assert "float32" in cache_file().read_text()


def test_a_cache_that_cannot_be_written_does_not_stop_a_run(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert measure_peak(CPU, torch.float32, seconds=0.01).tflops > 0


def test_the_environment_names_software_machine_and_commit():
    described = describe_environment()
    assert described["torch"] == torch.__version__ and described["cores"] >= 1 and described["memory_bytes"] > 2**28
    json.dumps(described)
