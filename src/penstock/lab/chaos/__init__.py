"""The fault lab: faults planted in a run of one's own, and whether it survived them.

    kinds.py     what can go wrong, and what a run must tell of it
    plan.py      which faults strike when: a function of the seed
    desk.py      the folder through which lab and ranks tell each other
    strike.py    in the ranks: hears every beat, and strikes; acts.py is what it does
    runs.py      a command under faults, resumed where it must be, that cannot hang
    verdict.py   what became of each fault
    study.py     all of it
"""

from penstock.lab.chaos.plan import Fault
from penstock.lab.chaos.runs import Command, Ended, Limits, run_with_faults
from penstock.lab.chaos.study import ChaosResult, run_chaos
from penstock.lab.chaos.verdict import seconds_without_step

__all__ = ["ChaosResult", "Command", "Ended", "Fault", "Limits", "run_chaos", "run_with_faults", "seconds_without_step"]
