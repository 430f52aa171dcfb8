"""Runs that outlive their ranks: a supervisor, generations of ranks, and the state taken up in memory.

    supervisor.py   starts the ranks, sees deaths and hangs, says who forms the next generation
    scaling.py      more or fewer ranks, when somebody asks for them
    policy.py       more or fewer ranks, when the time of steps says so
    processes.py    one rank as the supervisor sees it
    hangs.py        which rank it is that all others wait for
    wire.py         what the supervisor and the ranks say to each other
    groups.py       process groups that can be left while others are stuck in them
    member.py       one rank's process, through all generations
    parting.py      the end of a generation in order, for another number of ranks
    take_up.py      the state of the last complete step, from whoever has it
"""

from penstock.engine.survive.scaling import exclude_rank, scale_run, survives
from penstock.engine.survive.supervisor import supervise

__all__ = ["exclude_rank", "scale_run", "supervise", "survives"]
