"""What it costs a training run to be watched: by its monitor and its dashboard's server, and by 50 viewers.

One run of two ranks, which keep two cores busy, as `penstock train` starts it. While it goes on, three ways take turns for `PHASE_S` seconds each,
in an order that turns round every time; the first `SETTLE_S` after a change do not count:

    off       the monitor's and the server's processes are stopped (SIGSTOP), as if there were none
    idle      both run, and nobody looks
    viewers   50 viewers follow 12 metrics each, and ask for the 12 courses again every 20 s (`dashboard_viewers.py`)

`viewers` is how much longer a step takes with 50 viewers than with none, as a share: of mean times between two steps, within a turn, and the median
over the turns (aim: below 0.01); `viewers_low` and `viewers_high` are its quartiles. `idle`, `idle_low`, `idle_high` are the same for monitor and
server with nobody who looks against neither. The figures `…_median` are of the turns' median steps, which single long steps do not move.
`step_s` is the median step of all with none, `spread` half of what lies between its quartiles as a share of it. `server_cpu`, `monitor_cpu`,
`viewers_cpu`: shares of one core while 50 look. `events_a_s`: events of rows that a viewer had a second, so that it is known that they looked.
`turns`; `load`: the machine's load average before. Nothing else should run; it takes 4 minutes.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from benchmarks.timing import ratio
from penstock.config import step_back
from penstock.dashboard.place import FILE
from penstock.monitor.series import Kinds, Series

VIEWERS, PANELS = 50, 12
TURNS, PHASE_S, SETTLE_S = 9, 5.0, 2.0
WAYS = ("off", "idle", "viewers")
#: Longest wait for the run's first steps and for its page, seconds, and steps that are waited for.
START_S, WARM_UP = 120.0, 30
SETS = [
    "data.path=stdlib", "data.max_bytes=400000", "data.tokenizer=bytes", "model.layers=4", "model.dim=128", "model.heads=4", "model.context=128",
    "batch.global=8", "batch.micro=4", "train.steps=100000000", "eval.every=0", "snapshot.every=0", "metrics.tensorboard=false",
    "metrics.peak_tflops=0.1", "compile.enabled=off",
]  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """A stretch of one way in a turn, by unix seconds, and shares of a core that others took in it."""

    turn: int
    way: str
    begin: float
    end: float
    cpu: dict[str, float]
    events: int


def run() -> dict[str, float]:
    """Measure all."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="penstock-load-") as name:
        folder = Path(name) / "runs" / "load"
        with training(folder), viewers(folder) as audience:
            phases = list(taking_turns(helpers_of(folder), audience))
        return figures(folder, phases) | {"turns": float(TURNS), "load": load}


@contextmanager
def training(folder: Path) -> Iterator[None]:
    """A run in the folder that trains within the block; it and its helpers are ended after it."""
    words = [word for one in (*SETS, f"data.cache_dir={folder.parent.parent}") for word in ("--set", one)]
    command = [sys.executable, "-m", "penstock", "train", "--nproc", "2", "--run-dir", str(folder), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        wait(lambda: helpers_of(folder).keys() == {"server", "monitor"} and steps_of(folder) >= WARM_UP)
        yield
    finally:
        found = helpers_of(folder)
        for helper in found.values():
            helper.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGINT)
        process.wait(60)
        if "server" in found:
            found["server"].kill()


@contextmanager
def viewers(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The process of the viewers, none of which is there yet."""
    port, names = json.loads((folder.parent / FILE).read_text())["port"], Series(folder / "metrics", Kinds()).names()
    typical = ["loss/total", "grad_norm/total", "cost/tokens_per_s", "time/step"]
    panels = [*typical, *(name for name in names if name.startswith("grad_norm/layer"))][:PANELS]
    command = [sys.executable, "-m", "benchmarks.dashboard_viewers", str(port), folder.name, *panels]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    step_back(process.pid, 19)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def taking_turns(helpers: dict[str, psutil.Process], audience: subprocess.Popen[str]) -> Iterator[Phase]:
    """Let each way have its phases."""
    watched = helpers | {"viewers": psutil.Process(audience.pid)}
    for turn in range(TURNS):
        for way in WAYS if turn % 2 else WAYS[::-1]:
            for helper in helpers.values():
                helper.send_signal(signal.SIGCONT)
            count = VIEWERS if way == "viewers" else 0
            came, _ = tell(audience, count)
            assert came == count, f"{came} of {count} viewers had an event"
            if way == "off":
                for helper in helpers.values():
                    helper.send_signal(signal.SIGSTOP)
            time.sleep(SETTLE_S)
            if way == "viewers":
                tell(audience, count)
            begin, before = time.time(), {name: seconds(one) for name, one in watched.items()}
            time.sleep(PHASE_S)
            end, after = time.time(), {name: seconds(one) for name, one in watched.items()}
            cpu = {name: (after[name] - before[name]) / (end - begin) for name in watched}
            yield Phase(turn, way, begin, end, cpu, tell(audience, count)[1] if way == "viewers" else 0)


def figures(folder: Path, phases: list[Phase]) -> dict[str, float]:
    """What the run's rows say of the phases."""
    [course] = Series(folder / "metrics", Kinds()).courses(["time/step"])
    steps = {(one.turn, one.way): np.diff(course.times[(course.times >= one.begin) & (course.times <= one.end)]) for one in phases}
    means, medians = ({way: [float(of(steps[turn, way])) for turn in range(TURNS)] for way in WAYS} for of in (np.mean, np.median))
    found: dict[str, float] = {}
    for way, against in (("viewers", "idle"), ("idle", "off")):
        over = ratio(means[way], means[against])
        found |= {way: over["ratio"] - 1, f"{way}_low": over["low"] - 1, f"{way}_high": over["high"] - 1}
        found[f"{way}_median"] = ratio(medians[way], medians[against])["ratio"] - 1
    low, middle, high = np.quantile(np.concatenate([steps[turn, "idle"] for turn in range(TURNS)]), [0.25, 0.5, 0.75])
    found |= {"step_s": float(middle), "spread": float((high - low) / 2 / middle)}
    looked = [one for one in phases if one.way == "viewers"]
    found |= {f"{name}_cpu": statistics.fmean(one.cpu[name] for one in looked) for name in looked[0].cpu}
    return found | {"events_a_s": sum(one.events for one in looked) / VIEWERS / sum(one.end - one.begin for one in looked)}


def helpers_of(folder: Path) -> dict[str, psutil.Process]:
    """The run's monitor and its dashboard's server, those that there are."""
    found: dict[str, psutil.Process] = {}
    for child in psutil.Process().children(recursive=True):
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if "penstock.monitor.service" in words and str(folder.resolve()) in words:
            found["monitor"] = child
    place = folder.parent / FILE
    if place.exists():
        found["server"] = psutil.Process(int(json.loads(place.read_text())["pid"]))
    return found


def steps_of(folder: Path) -> int:
    """The run's last step."""
    return Series(folder / "metrics", Kinds()).last_row()[0]


def seconds(process: psutil.Process) -> float:
    """Processor time of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def tell(audience: subprocess.Popen[str], count: int) -> tuple[int, int]:
    """Have so many viewers; how many there are, and the events of rows that all have had since the last time."""
    assert audience.stdin is not None and audience.stdout is not None
    audience.stdin.write(f"{count}\n")
    audience.stdin.flush()
    came, events = audience.stdout.readline().split()
    return int(came), int(events)


def wait(until: Callable[[], bool]) -> None:
    """Wait until something is so; raises `TimeoutError` where it takes long."""

    end = time.monotonic() + START_S
    while not until():
        if time.monotonic() > end:
            raise TimeoutError(f"the run had no steps, monitor and page after {START_S:.0f} s")
        time.sleep(0.2)
