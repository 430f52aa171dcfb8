"""Floor 3: which axes the ranks form, where every tensor's pieces lie, and the layers that compute on pieces."""

from penstock.parallel.layout import Layout, build_layout
from penstock.parallel.mesh import Mesh
from penstock.parallel.placement import Box, Placement, Split
from penstock.parallel.plan import plan_weights
from penstock.parallel.weights import Weights

__all__ = ["Box", "Layout", "Mesh", "Placement", "Split", "Weights", "build_layout", "plan_weights"]
