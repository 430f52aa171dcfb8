"""Runs that outlive their ranks: a supervisor, generations of ranks, and the state taken up in memory.

    supervisor.py   starts the ranks, sees deaths and hangs, says who forms the next generation
    processes.py    one rank as the supervisor sees it
    hangs.py        which rank it is that all others wait for
    wire.py         what the supervisor and the ranks say to each other
    groups.py       process groups that can be left while others are stuck in them
    member.py       one rank's process, through all generations
    take_up.py      the state of the last complete step, from whoever has it
"""

from penstock.engine.survive.supervisor import supervise, survives

__all__ = ["supervise", "survives"]
