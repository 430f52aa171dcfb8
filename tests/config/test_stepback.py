"""Helpers with a session of their own let others go first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.config import step_back


def test_a_helper_and_its_session_step_back():
    helper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    group = Path(f"/proc/{helper.pid}/autogroup")
    try:
        step_back(helper.pid, 7)
        assert os.getpriority(os.PRIO_PROCESS, helper.pid) == 7 and os.getpriority(os.PRIO_PROCESS, 0) < 7
        if not group.exists():
            pytest.skip("this kernel has no autogroups")
        assert group.read_text().split()[-2:] == ["nice", "7"]
    finally:
        helper.communicate(b"\n")


def test_a_helper_that_is_gone_is_no_error():
    helper = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    helper.wait()
    step_back(helper.pid, 7)
