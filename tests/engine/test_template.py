"""Processes forked from a template are what `python -m` would have started: output, exit codes, signals, environment, and their end."""

import os
import signal
import threading
import time

import psutil
import pytest
from ranks import warm

from penstock.engine.starting.template import Child, wait_for_all, wait_for_end


def start(module, *arguments, **environment):
    return Child(module, arguments, os.environ | environment)


def started(out, thread):
    """In a process that has a thread of its own or not: how some modules end, and whether the template is a new Python."""
    if thread:
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
    with open(out / "out", "wb") as file:
        os.dup2(file.fileno(), 1)
    well, badly, served = start("calendar", "2026", "11"), start("json.tool", str(out / "nowhere")), start("http.server", "0")
    told = start("timeit", "-n1", "-r1", "import os; print(os.environ['HUE'])", HUE="teal")
    wait_for_all([well, badly, told], 60)
    alive = served.exit_code()
    served.send_signal(signal.SIGTERM)
    assert wait_for_end([served], 60) == [served]
    (template,) = psutil.Process().children()
    report = [well.exit_code(), badly.exit_code() not in (0, None), told.exit_code(), alive, served.exit_code(), "penstock.engine.starting.template" in " ".join(template.cmdline())]
    (out / "report").write_text(repr(report))


@pytest.mark.slow
@pytest.mark.parametrize("thread", [False, True], ids=["forked", "a new Python"])
def test_a_child_prints_ends_and_takes_signals_as_a_process_of_its_own(tmp_path, thread):
    process = warm.Process(target=started, args=(tmp_path, thread))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert (tmp_path / "report").read_text() == repr([0, True, 0, None, -signal.SIGTERM, thread])
    printed = (tmp_path / "out").read_text()
    assert "November 2026" in printed and "teal" in printed


def abandon(file):
    child = start("http.server", "0")
    file.write_text(str(child.pid))
    os.kill(os.getpid(), signal.SIGKILL)


def test_children_end_with_whoever_started_them(tmp_path):
    process = warm.Process(target=abandon, args=(tmp_path / "pid",))
    process.start()
    process.join(60)
    end = time.monotonic() + 60
    while psutil.pid_exists(pid := int((tmp_path / "pid").read_text())) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.02)
