"""Cells are cut by logical position, tile every tensor, and each is put together once from parts that their givers hold."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from placements import layouts, placed

import penstock.store.cells.grid as grids
from penstock.parallel import Box, Layout, Placement, Split, common, inside
from penstock.store.cells.grid import CELL, LARGE_CELL, LARGE_TENSOR, grid, plan_cells, rounds


def count_of(shape, boxes):
    """How often each number of a tensor lies in the boxes."""
    counts = np.zeros(shape, int)
    for box in boxes:
        counts[box.slices] += 1
    return counts


@given(st.lists(st.integers(0, 3000), max_size=4), st.sampled_from([1, 2, 4, 8]))
def test_cells_tile_a_tensor_and_are_no_larger_than_they_may(shape, itemsize):
    cells = grid(shape, itemsize)
    limit = CELL if np.prod(shape, dtype=float) * itemsize <= LARGE_TENSOR else LARGE_CELL
    assert np.prod(cells.block, dtype=float) * itemsize <= limit
    for length, size, count in zip(cells.block, shape, cells.counts):
        assert (count - 1) * length < size <= count * length or size == count == 0
    assert len(cells) == np.prod([-(-size // length) for size, length in zip(shape, cells.block)])


def test_the_longest_dim_is_halved_first_and_a_large_tensor_has_larger_cells():
    assert grid((1024, 4096), 4).block == (512, 512)
    assert grid((50257, 768), 2).block == (393, 768)
    assert grid((), 4).block == () and len(grid((), 4)) == 1 and len(grid((0, 5), 4)) == 0
    assert grid((65536, 4096), 4).block == (1024, 1024)


@pytest.mark.slow
@settings(max_examples=150)
@given(st.data())
def test_the_cells_that_a_box_touches_are_those_it_shares_something_with(data):
    shape = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    offsets = [data.draw(st.integers(0, size - 1)) for size in shape]
    box = Box(tuple(offsets), tuple(data.draw(st.integers(0, size - start)) for size, start in zip(shape, offsets)))
    cells = grids.Grid(tuple(shape), tuple(data.draw(st.integers(1, size)) for size in shape))
    expected = {index: shared for index, cell in enumerate(cells.boxes()) if (shared := common(cell, box))}
    assert dict(cells.touching(box)) == expected
    assert (count_of(shape, cells.boxes()) == 1).all()


@pytest.mark.slow
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_cell_is_put_together_once_from_parts_that_their_givers_hold(monkeypatch, data):
    monkeypatch.setattr(grids, "CELL", 16)
    layout = data.draw(layouts())
    tensors = {f"t{i}": data.draw(placed(layout)) for i in range(3)}
    itemsizes = {name: data.draw(st.sampled_from([1, 4, 8])) for name in tensors}
    cells = plan_cells(itemsizes, tensors, layout)
    for name, placement in tensors.items():
        mine = [cell for cell in cells if cell.name == name]
        assert sorted(cell.index for cell in mine) == list(range(len(grid(placement.shape, itemsizes[name]))))
        assert (count_of(placement.shape, [part.box for cell in mine for part in cell.parts]) == 1).all()
        for cell in mine:
            assert all(common(part.box, cell.box) == part.box for part in cell.parts)
            holds = [
                sum(shared.numel for box in dict.fromkeys(placement.boxes(layout, rank)) if box.numel and (shared := common(box, cell.box)))
                for rank in range(layout.ranks)
            ]
            assert holds[cell.owner] == max(holds)
            for part in cell.parts:
                assert any(common(part.box, box) == part.box for box in placement.boxes(layout, part.giver) if box.numel)
    together = rounds(cells, 64)
    assert sorted(id(cell) for of_round in together for cell in of_round) == sorted(id(cell) for cell in cells if not cell.whole)
    for cells_ in together:
        for rank in range(layout.ranks):
            mine = [cell.n_bytes for cell in cells_ if cell.owner == rank]
            assert sum(mine) <= 64 or len(mine) == 1


def test_replicas_share_the_writing_evenly_and_shards_write_their_own():
    shapes = {"a": (1024, 1024), "b": (4096, 512), "c": (512,), "d": (3, 700, 300)}
    replicas = plan_cells(dict.fromkeys(shapes, 4), {name: Placement(shape) for name, shape in shapes.items()}, Layout(replicate=3))
    of_rank = [sum(cell.n_bytes for cell in replicas if cell.owner == rank) for rank in range(3)]
    assert max(of_rank) - min(of_rank) <= CELL and all(cell.whole for cell in replicas)
    sharded = Placement((1024, 1024), (Split(0, ("shard",)),))
    assert all(cell.whole for cell in plan_cells({"a": 4}, {"a": sharded}, Layout(shard=2)))


def test_an_index_inside_a_box_is_counted_from_where_that_begins():
    assert inside(Box((3, 5), (2, 1)), Box((2, 5), (9, 9))) == (slice(1, 3), slice(0, 1))
