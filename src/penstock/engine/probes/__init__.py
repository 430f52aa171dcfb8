"""What is measured of the model while it trains, on this rank's part of it: activations, gradients, weights and updates, by layer.

`Probes` (`probes.py`) is what a step talks to; `places.py` names where a parameter is, `activations.py` and `attention.py` look at what flows
through the blocks, `norms.py` at parameters; `reading.py` holds a step's numbers on the device until the step has been waited for anyway.
"""

from penstock.engine.probes.probes import Probes

__all__ = ["Probes"]
