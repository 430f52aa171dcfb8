"""Floor 4: what the hardware is and can do, and what a layout will cost on it."""

from penstock.plan.code import Checkout, describe_code
from penstock.plan.environment import describe_environment
from penstock.plan.footprint import Footprint, footprint
from penstock.plan.layout import LayoutReport, describe_layout, layout_text
from penstock.plan.peak import Peak, measure_peak

__all__ = [
    "Checkout", "Footprint", "LayoutReport", "Peak", "describe_code", "describe_environment", "describe_layout", "footprint", "layout_text",
    "measure_peak",
]
