"""Floor 4: what the hardware is and can do."""

from penstock.plan.environment import describe_environment
from penstock.plan.peak import Peak, measure_peak

__all__ = ["Peak", "describe_environment", "measure_peak"]
