"""Floor 4: what is wrong in the metrics of a run, as findings.
"""

from penstock.monitor.detect.finding import Detector, Finding, Moved
from penstock.monitor.detect.watch import Watch

__all__ = ["Detector", "Finding", "Moved", "Watch"]
