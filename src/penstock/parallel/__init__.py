"""Floor 3: which axes the ranks form, where every tensor's pieces lie, and the layers that compute on pieces.

`tensor`, `experts` and `pipeline` have what only these axes need, `cost` what a layout will cost.
"""

from penstock.parallel.apply import Laid, laid_whole, lay_out, saved_buffers
from penstock.parallel.check import check_layout
from penstock.parallel.context import context_positions
from penstock.parallel.experts.balance import Slots, balanced_slots
from penstock.parallel.experts.expert import spread_experts
from penstock.parallel.experts.slots import move_experts, sync_replicas
from penstock.parallel.layout import Layout, build_layout, said_nodes
from penstock.parallel.matrices import Matrices, shared_matrices
from penstock.parallel.mesh import Mesh
from penstock.parallel.peer_copies import PeerCopies, hand_over
from penstock.parallel.placement import Box, Placement, Split, common, inside
from penstock.parallel.plan import plan_weights
from penstock.parallel.shard import Formats
from penstock.parallel.transition import Copy, Missing, TransitionPlan, carry, find_missing, placed, plan_transition
from penstock.parallel.weights import Weights, assemble, own_part

__all__ = [
    "Box", "Copy", "Formats", "Laid", "Layout", "Matrices", "Mesh", "Missing", "PeerCopies", "Placement", "Slots", "Split", "TransitionPlan",
    "Weights", "assemble", "balanced_slots", "build_layout", "carry", "check_layout", "common", "context_positions", "find_missing", "hand_over",
    "inside", "laid_whole", "lay_out", "move_experts", "own_part", "placed", "plan_transition", "plan_weights", "said_nodes", "saved_buffers",
    "shared_matrices", "spread_experts", "sync_replicas",
]
