"""Threads beside the training thread compute alone: without a team of OpenMP threads of their own.

A thread that runs a parallel region of torch's (any large copy or fill) gets a team of OpenMP threads for life. From then on the process has more of
them than cores, for which GNU's OpenMP lets none of them spin any longer while it waits, those of the training thread neither: on two cores a
256 × 128 × 128 product took 2.4 times as long as long as such a thread lived, and a small model's step 1.6 to 2 times (docs/log.md).

`torch.set_num_threads` is for the calling thread, and for all that begin later; so another thread sets it back for those. One thread after the other
does so, or the second would take the number of the first for that of the rest.

Cost: a thread that lives for some µs. When not to use it: in the thread that trains, and where nothing trains beside.
"""

from __future__ import annotations

import threading

import torch

_one_by_one = threading.Lock()


def compute_alone() -> None:
    """Let this thread compute without others' help; to be called before its first operation."""
    with _one_by_one:
        others = torch.get_num_threads()
        torch.set_num_threads(1)
        restoring = threading.Thread(target=torch.set_num_threads, args=(others,))
        restoring.start()
        restoring.join()
