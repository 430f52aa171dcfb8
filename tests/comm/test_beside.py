"""Threads beside the training thread have no OpenMP teams, which would keep its own from spinning."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from ranks import run_ranks

from penstock.comm import World, compute_alone
from penstock.comm.gradients.courier import Courier
from penstock.parallel import Layout
from penstock.store import LocalFolder, Saver

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a process's threads are counted in /proc")

LARGE = 1 << 22  # bytes that torch fills with several threads


def threads():
    return len(os.listdir("/proc/self/task"))


def begin(n):
    """Compute with `n` threads in this one, whose team is there afterwards; how many the process has then."""
    torch.set_num_threads(n)
    torch.empty(LARGE).fill_(0)
    return threads()


def beside(world, alone):
    """How many threads one more costs that fills memory, and with how many it, this one and a later one compute."""
    before, seen, filled, seen_it = begin(2), [], threading.Event(), threading.Event()

    def work():
        if alone:
            compute_alone()
        seen.append(torch.get_num_threads())
        torch.empty(LARGE).fill_(0)
        filled.set()
        seen_it.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    assert filled.wait(60)
    more = threads() - before
    seen_it.set()
    thread.join()
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    return more, *seen, torch.get_num_threads()


def test_a_thread_that_computes_alone_has_no_team_and_changes_nothing_for_others():
    assert run_ranks(beside, 1, False) == [(2, 2, 2, 2)], "or there is nothing to prevent"
    assert run_ranks(beside, 1, True) == [(1, 1, 2, 2)]


def at_once(world):
    """With how many threads each of many that compute alone computes, and one that begins later."""
    begin(2)
    with ThreadPoolExecutor(8, initializer=compute_alone) as pool:
        gate = threading.Barrier(8)
        seen = list(pool.map(lambda _: gate.wait(60) is not None and torch.get_num_threads(), range(8)))
    with ThreadPoolExecutor(1) as pool:
        return {*seen}, pool.submit(torch.get_num_threads).result()


def test_many_that_begin_at_once_all_compute_alone_and_a_later_one_does_not():
    for _ in range(5):
        assert run_ranks(at_once, 1) == [({1}, 2)]


def workers(world, folder):
    """How many threads a saver and a courier add that have filled memory."""
    before = begin(2)
    saver = Saver(LocalFolder(folder), World())
    saver.prepare({"weight": torch.zeros(LARGE)}, {}, Layout())
    saver.wait()
    courier = Courier(world.device, world.meter, "test")
    courier.take(lambda: torch.empty(LARGE).fill_(0)).wait()
    more = threads() - before
    saver.close()
    return more


def test_saving_and_exchanging_beside_training_take_one_thread_each(tmp_path):
    assert run_ranks(workers, 1, tmp_path) == [2]
