"""Whatever the placements, all ranks together write the same cells; what they copied is not what the tensors become afterwards."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from placements import layouts, placed

import penstock.store.cells.grid as grids
import penstock.store.snapshots.staging as stagings
from penstock.parallel import Layout
from penstock.store import Increments, LocalFolder
from penstock.store.cells.cell_writer import CellWriter, Lineage
from penstock.store.cells.grid import StatePlan
from penstock.store.snapshots.publish import make_manifest, report
from penstock.store.snapshots.staging import Share, Staging

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.bool]


class Meeting:
    """All-to-all between threads, each of which plays a rank."""

    def __init__(self, ranks):
        self.sent, self.barrier = [None] * ranks, threading.Barrier(ranks, timeout=30)

    def seen_by(self, rank):
        meeting = self

        class Axis:
            def all_to_all(self, rows, send, receive, purpose):
                meeting.sent[rank] = rows.split(list(send))
                meeting.barrier.wait()
                got = torch.cat([parts[rank] for parts in meeting.sent])
                assert [len(parts[rank]) for parts in meeting.sent] == list(receive) and not sum(receive) % 8
                meeting.barrier.wait()
                return got

        return Axis()


def written(folder, state, placements, layout):
    """The manifest of a state that all ranks of a layout save together."""
    meeting = Meeting(layout.ranks)

    def save(rank):
        local = {name: torch.cat([whole[box.slices] for box in placements[name].boxes(layout, rank)]) if whole.dim() else whole for name, whole in state.items()}
        plan = StatePlan(local, placements, layout)
        staging = Staging(Share(plan, rank), torch.device("cpu"))
        room = staging.room()
        copies = {name: tensor.clone() for name, tensor in local.items()}
        staging.copy(copies, room)
        for tensor in copies.values():
            tensor.zero_()
        staging.assemble(meeting.seen_by(rank), room)
        writer = CellWriter(LocalFolder(folder), f"{rank}.pack", staging.share, room, Lineage(), Increments())
        for _ in writer:
            pass
        return plan, report(writer)

    with ThreadPoolExecutor(layout.ranks) as pool:
        answers = list(pool.map(save, range(layout.ranks)))
    return make_manifest(1, None, {}, {}, {}, answers[0][0], [told for _, told in answers])


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_all_layouts_write_the_same_digests(tmp_path, monkeypatch, data):
    monkeypatch.setattr(grids, "CELL", 24)
    monkeypatch.setattr(stagings, "ROUND", 48)
    layout = data.draw(layouts(most=6))
    placements = {f"t{i}": data.draw(placed(layout)) for i in range(3)}
    state = {name: (torch.randn(p.shape) * 9).to(data.draw(st.sampled_from(DTYPES))) for name, p in placements.items()}
    assert written(tmp_path / "a", state, placements, layout).tensors == written(tmp_path / "b", state, _whole(placements), Layout()).tensors


def _whole(placements):
    return {name: type(placement)(placement.shape) for name, placement in placements.items()}
