"""Floor 3: which axes the ranks form, where every tensor's pieces lie, and the layers that compute on pieces."""

from penstock.parallel.layout import Layout, build_layout
from penstock.parallel.matrices import Matrices, shared_matrices
from penstock.parallel.mesh import Mesh
from penstock.parallel.placement import Box, Placement, Split
from penstock.parallel.plan import plan_weights
from penstock.parallel.weights import Weights, assemble, own_part

__all__ = [
    "Box", "Layout", "Matrices", "Mesh", "Placement", "Split", "Weights", "assemble", "build_layout", "own_part", "plan_weights", "shared_matrices",
]
