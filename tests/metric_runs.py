"""Makes folders of metrics as ranks would: rows of a few metrics whose values tell where they come from."""

import numpy as np

from penstock.monitor.series.kinds import Kind, Kinds
from penstock.monitor.series.rows import RowLog

KINDS = Kinds([
    Kind("loss/*", "nats", "sum", "the ranks' parts of the loss", "rises"),
    Kind("grad_norm/*", "1", "root", "size of the gradient", "grows tenfold"),
    Kind("optim/*", "1", "same", "a setting", ""),
    Kind("time/*", "s", "spread", "seconds of a phase", "one rank far above the others"),
])  # fmt: skip
NAMES = ["loss/total", "grad_norm/total", "optim/lr", "time/step"]


def row(rank, step, generation=1):
    """Loss parts add up to 8 + generation; squares of norms to step²; rank r takes r + 1 seconds; the learning rate is the step's."""
    return [(8.0 + generation) / 2, step / np.sqrt(2.0), step * 1e-3, rank + 1.0]


class Ranks:
    """Two ranks that log; `folder` is the run's metrics."""

    def __init__(self, folder, ranks=2, generation=1, after=0, **options):
        self.logs = [RowLog(folder, rank, ranks, generation, after, **options) for rank in range(ranks)]
        self.generation = generation
        for log in self.logs:
            log.names(NAMES)

    def steps(self, steps, only=None):
        for step in steps:
            for rank, log in enumerate(self.logs):
                if only is None or rank in only:
                    log.append(step, 1000.0 + step + rank / 8, np.array(row(rank, step, self.generation)))
        return self
