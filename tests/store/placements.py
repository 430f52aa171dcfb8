"""Random layouts, and random placements of tensors on them, for property tests of the store."""

from hypothesis import strategies as st

from penstock.parallel import Layout, Placement, Split

AXES = ("node", "replicate", "shard", "context", "depth", "row", "column")


@st.composite
def layouts(draw, most=12):
    """A layout of at most so many ranks."""
    sizes, ranks = {}, 1
    for axis in draw(st.permutations(("pipeline", *AXES))):
        sizes[axis] = draw(st.integers(1, min(3, most // ranks)))
        ranks *= sizes[axis]
    inner = sizes["shard"] * sizes["context"]
    return Layout(**sizes, expert=draw(st.sampled_from([n for n in range(1, inner + 1) if inner % n == 0])))


@st.composite
def placed(draw, layout, sizes=st.integers(1, 9), dims=st.integers(0, 3), shape=None):
    """A tensor's placement, of `shape` if one is given: cut along any dims over any axes, perhaps held by some pipeline ranks only, or experts placed by hand."""
    shape = tuple(draw(st.lists(sizes, min_size=(n := draw(dims)), max_size=n))) if shape is None else shape
    holders = tuple(sorted(draw(st.sets(st.integers(0, layout.pipeline - 1), min_size=1, max_size=2)))) if shape and draw(st.booleans()) else ()
    if shape and draw(st.integers(0, 3)) == 0:
        experts = [draw(st.lists(st.integers(0, shape[0] - 1), min_size=1, max_size=3)) for _ in range(layout.expert)]
        experts[0] += [expert for expert in range(shape[0]) if not any(expert in mine for mine in experts)]
        cuts = [Split(draw(st.integers(1, len(shape) - 1)), (axis,)) for axis in ("row", "column") if len(shape) > 1 and draw(st.booleans())]
        return Placement(shape, tuple(cuts), tuple(map(tuple, experts)), holders)
    axes = draw(st.lists(st.sampled_from(AXES), unique=True, max_size=3)) if shape else []
    cuts = [Split(draw(st.integers(0, len(shape) - 1)), (axis,), draw(st.sampled_from([1, 1, 2, 4]))) for axis in axes]
    return Placement(shape, tuple(cuts), (), holders)
