"""Gradient exchange between nodes: hierarchical sums equal one plain process, compression keeps its books, and the state goes on anywhere."""

import time
from types import SimpleNamespace

import pytest
import torch
from ranks import run_ranks
from small_runs import small_config

from lab.models_to_verify import small_question
from penstock.comm import Axis, World, build_between, codec
from penstock.comm.gradients import topk
from penstock.config import ExchangeSection, SharedError, UserError, with_values
from penstock.engine.build import Core, build_core
from penstock.engine.control import StopRequest
from penstock.engine.exchange import consensus
from penstock.engine.starting.start import make_run
from penstock.engine.starting.worker import run_rank
from penstock.engine.step import NonFinite, accumulate, take_step
from penstock.engine.tune.choose_exchange import ExchangeChooser, rejoin
from penstock.lab import check, layout_cases
from penstock.lab.equivalence import RandomPlan, drifted
from penstock.monitor import MetricStore
from penstock.parallel import assemble, own_part
from penstock.plan.layout import planned_traffic, workload
from penstock.store import Run, list_snapshots, read_numbers, save_config

#: Layouts whose replicas are on two nodes.
OVER_NODES = [
    {"layout.replicate": 2, "exchange.topology": "2x1"},
    {"layout.replicate": 4, "exchange.topology": "2x2"},
    {"layout.replicate": 2, "layout.shard": 2, "exchange.topology": "2x2"},
    {"layout.replicate": 2, "layout.tensor": 2, "exchange.topology": "2x2", "optim.kind": "muon"},
    {"layout.replicate": 2, "layout.pipeline": 2, "exchange.topology": "4x1", "model.tie_embeddings": True},
]


def core_of(world, settings, **changes):
    config = with_values(small_question(False, precision__compute="float32", **changes), settings)
    return build_core(config, world, RandomPlan(config), StopRequest(supervised=True), print)


def go_on(world, folder):
    done = run_rank(Run(folder), world)
    return {key: done[key] for key in ("step", "val_loss", "weights_digest")}


def verdicts(world, config, cases):
    plain = {}
    return [check(world, config, case, plain) for case in cases]


@pytest.mark.parametrize(("ranks", "experts"), [(2, False), (4, False), pytest.param(4, True, marks=pytest.mark.slow)])
def test_sums_by_way_of_nodes_equal_one_plain_process(ranks, experts):
    cases = [c for c in layout_cases(4, experts) if "nodes" in c.name and c.ranks == ranks]
    cases = [c for c in cases if "pipeline" not in c.name or "zb-v" in c.name]
    assert len(cases) > (5 if ranks == 4 else 0)
    results = run_ranks(verdicts, ranks, small_question(experts, train__steps=3), cases)[0]
    assert not [f"{r.name}: {r.verdict} {r.why}" for r in results if r.verdict not in ("equal", "refused")]


def step_bytes(world, settings):
    core = core_of(world, settings)
    take_step(core, 0)
    world.meter.take()
    take_step(core, 1)
    return core.layout.node, world.meter.take()


def test_each_node_sends_its_gradient_once_between_the_nodes_and_ranks_share_it():
    flat, nodes = (run_ranks(step_bytes, 4, {"layout.replicate": 4, "exchange.topology": way})[0][1] for way in ("flat", "2x2"))
    whole = flat["replicate.gradients_bytes"] / (2 * 3 / 4)  # of a ring of four
    assert nodes["node.gradients_between_bytes"] == pytest.approx(whole / 2, rel=0.02)  # half the gradient each, there and back over two nodes
    assert not any("between" in name for name in flat)
    assert nodes["exchange.span_s"] > 0


def two_kinds(world, layout, precision):
    """Weights after three steps with the dense exchange, and with top-k that leaves nothing out."""
    kinds = ({}, {"exchange.kind": "topk", "exchange.density": 1.0, "exchange.values": "float32"})
    found = []
    for kind in kinds:
        core = core_of(world, layout | kind)
        for step in range(3):
            take_step(core, step)
        found.append({name: tensor.clone() for name, tensor in core.weights.locals.items()})
    return [name for name in found[0] if not torch.equal(found[0][name], found[1][name])]


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"layout.replicate": 2, "exchange.topology": "2x1"}, {"layout.replicate": 2, "layout.shard": 2, "exchange.topology": "2x2"}])
def test_top_k_of_everything_equals_dense_bit_for_bit(layout):
    ranks = 2 * layout.get("layout.shard", 1)
    assert run_ranks(two_kinds, ranks, layout, "float32") == [[]] * ranks


def sent_and_estimated(world, kinds):
    """Bytes between nodes of a step, and their estimate, for every kind."""
    found = []
    for kind in kinds:
        core = core_of(world, {"layout.replicate": 4, "exchange.topology": "2x2"} | kind, model__dim=64, model__ffn_dim=128)
        take_step(core, 0)
        lines = planned_traffic(core.config, workload(core.config, core.layout))
        expected = sum(line.sent(core.layout) for line in lines if line.axes == ("node",))
        found.append((world.meter.take()["node.gradients_between_bytes"], expected))
    return found


@pytest.mark.slow
def test_the_estimate_of_every_kind_is_near_what_a_step_sends():
    kinds = [{"exchange.kind": "dense"}, {"exchange.kind": "powersgd", "exchange.rank": 2}]
    kinds += [{"exchange.kind": kind, "exchange.density": density} for kind in ("topk", "periodic") for density in (0.3, 1.0)]
    for kind, (sent, expected) in zip(kinds, run_ranks(sent_and_estimated, 4, kinds)[0]):
        assert sent == pytest.approx(expected, rel=0.0 if kind["exchange.kind"] in ("dense", "powersgd") else 0.1), kind


KINDS = {"topk": {"exchange.kind": "topk", "exchange.density": 0.1, "exchange.selection": "exact"}, "powersgd": {"exchange.kind": "powersgd", "exchange.rank": 2}}


def books(world, layout, kind):
    """Largest error of (sent + withheld - gradients) over the steps so far, and whether replicas hold the same bits."""
    core = core_of(world, layout | KINDS[kind], optim__clip=0.0)
    dense = core_of(world, layout)
    sent = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in core.weights.locals.items()}
    true = {name: tensor.clone() for name, tensor in sent.items()}
    for step in range(4):
        accumulate(dense, step)  # both have the weights of the start
        accumulate(core, step)
        core.reducer.between.commit()
        for total, part in ((sent, core), (true, dense)):
            for name, tensor in part.weights.locals.items():
                total[name] += tensor.grad.double()
    worst, withheld, placements = 0.0, 0.0, core.placements()
    for name, tensor in core.tensors().items():
        if name.endswith(".withheld"):
            parameter = name.removeprefix("exchange.").removesuffix(".withheld")
            rest = own_part(assemble(tensor, placements[name], core.mesh, "test").sum(0), core.weights.placements[parameter], core.mesh)
            if rest.numel():  # else it is another pipeline stage's
                worst = max(worst, ((sent[parameter] + rest - true[parameter]).abs().max() / true[parameter].abs().max()).item())
                withheld = max(withheld, rest.abs().max().item())
    take_step(core, 4)
    return worst, withheld, drifted(core)


@pytest.mark.slow
@pytest.mark.parametrize("layout", OVER_NODES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_sent_and_what_is_withheld_add_up_to_the_gradients(layout, kind):
    nodes, each = map(int, layout["exchange.topology"].split("x"))
    ranks = nodes * each
    for worst, withheld, drift in run_ranks(books, ranks, layout, kind):
        assert worst < 1e-6 and withheld > 0 and not drift


def refusal(world, settings):
    with pytest.raises(UserError) as found:
        core_of(world, settings)
    return str(found.value)


def test_compression_without_a_second_node_is_refused_saying_what_to_do():
    for kind in ("topk", "powersgd"):
        assert f"exchange.kind = '{kind}' is a way of exchange between nodes" in run_ranks(refusal, 2, {"exchange.kind": kind})[0]


def test_a_rank_that_saves_nothing_is_refused():
    settings = {"layout.replicate": 2, "exchange.topology": "2x1", "exchange.kind": "powersgd", "exchange.rank": 500}
    assert "exchange.rank = 500 saves nothing" in run_ranks(refusal, 2, settings)[0]


def overflowing(world, kind):
    """Whether a step with a gradient that is not a number on rank 1 is refused, and the state stays as it was."""
    core = core_of(world, {"layout.replicate": 4, "exchange.topology": "2x2"} | KINDS[kind])
    take_step(core, 0)
    before = {name: tensor.clone() for name, tensor in core.tensors().items()}
    if world.rank == 1:
        next(p for p in core.weights.parameters.values() if p.ndim == 2).register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(NonFinite):
        take_step(core, 1)
    return [name for name, tensor in core.tensors().items() if not torch.equal(tensor, before[name])]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["topk", "powersgd"])
def test_a_gradient_that_is_not_finite_stops_all_ranks_and_spoils_no_residual(kind):
    assert run_ranks(overflowing, 4, kind) == [[]] * 4


def damaged(world, kind, times):
    """Weights after three steps of which one receives damaged messages `times` times on rank 1, and what was noted; or the error."""
    found = []
    for harm in (0, times):
        core, left, notes = core_of(world, {"layout.replicate": 2, "exchange.topology": "2x1", "exchange.kind": kind, "exchange.every": 2}), [harm], 0.0

        def decode(message, left=left):
            if world.rank == 1 and left[0]:
                left[0] -= 1
                message = message.clone()
                message[60] ^= 4
            return codec.decode(message)

        topk.decode = decode
        for step in range(4):
            left[0] = harm if step == 3 else 0
            try:
                take_step(core, step)
            except SharedError as error:
                return str(error)
            notes = max(notes, core.notes.pop("exchanges_repeated", 0.0))
        found.append([tensor.clone() for tensor in core.weights.locals.values()])
    return all(torch.equal(a, b) for a, b in zip(*found)), notes


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["topk", "periodic"])
def test_a_damaged_message_is_never_applied_and_the_step_is_made_again(kind):
    assert run_ranks(damaged, 2, kind, 1) == [(True, 1.0)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["topk", "periodic"])
def test_a_network_that_damages_every_message_stops_the_run_on_all_ranks_naming_the_one_that_saw_it(kind):
    texts = run_ranks(damaged, 2, kind, 1000)
    assert all(text.startswith("rank 1 received the gradients of node 0: damaged message") and "sent 3 times in vain" in text for text in texts)


def apart(world, layout):
    """What a run of nodes that train apart shows of itself."""
    core = core_of(world, layout | {"exchange.kind": "periodic", "exchange.every": 3, "exchange.density": 1.0, "exchange.values": "float32"})
    node = core.mesh.axis("node")

    def spread():
        largest = [(node.all_reduce(t.clone(), "t", maximum=True) + node.all_reduce(-t, "t", maximum=True)).abs().max() for t in core.weights.locals.values() if t.numel()]
        return max(map(float, largest))

    found = []
    for step in range(3):
        core.world.meter.take()
        take_step(core, step)
        found.append((spread(), core.world.meter.take().get("node.gradients_between_bytes", 0)))
    with consensus(core):
        agreed = {name: tensor.clone() for name, tensor in core.weights.locals.items()}
        drift = drifted(core)
    near = max(((agreed[name] - tensor).abs().max() for name, tensor in core.weights.locals.items() if tensor.numel()), default=0.0)
    return found, drift, float(near)


@pytest.mark.slow
@pytest.mark.parametrize("layout", OVER_NODES, ids=str)
def test_nodes_train_apart_and_meet(layout):
    nodes, each = map(int, layout["exchange.topology"].split("x"))
    for found, drift, near in run_ranks(apart, nodes * each, layout):
        assert [sent > 0 for _, sent in found] == [False, False, True]
        assert found[0][0] > 1e-4 and found[1][0] > 1e-4 and found[2][0] < 1e-6  # apart, then together
        assert not drift and near < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["topk", "powersgd", "periodic"])
def test_a_compressed_run_goes_on_bit_for_bit_and_on_other_ranks(tmp_path, kind):
    base = {"exchange__momentum": 0.9 if kind == "topk" else 0.0, "layout__replicate": 2, "exchange__topology": "2x1", "exchange__kind": kind, "exchange__every": 3, "exchange__density": 0.3, "exchange__rank": 3}
    base |= {"train__steps": 8, "snapshot__every": 4, "snapshot__keep": 0, "eval__every": 0, "metrics__tensorboard": False}
    whole, again = (make_run(small_config(tmp_path, **base), "test", "test", tmp_path / name, None) for name in ("whole", "again"))
    first = run_ranks(go_on, 2, whole.path)[0]
    run_ranks(go_on, 2, again.path)
    list_snapshots(again.folder)[-1].path.unlink()
    assert run_ranks(go_on, 2, again.path)[0] == first
    tensor = {"exchange.topology": "2x2", "layout.replicate": 2, "layout.tensor": 2, "exchange.rank": 2}
    for changes, ranks in (({"exchange.topology": "4x1", "layout.replicate": 4}, 4), (tensor, 4), ({"exchange.topology": "auto", "exchange.kind": "dense", "exchange.momentum": 0.0, "layout.replicate": 0, "layout.tensor": 1}, 1)):
        list_snapshots(again.folder)[-1].path.unlink()
        save_config(again, with_values(again.config(), changes))
        loss = run_ranks(go_on, ranks, again.path)[0]["val_loss"]
        assert loss == pytest.approx(first["val_loss"], rel=0.02)


def slow_link(seconds):
    """Make every collective between the nodes take longer, as a function of its bytes."""
    kept = Axis.counted

    def counted(self, purpose, operation, whole):
        if self.name == "node" and purpose == "gradients":
            time.sleep(seconds(whole.numel() * whole.element_size()))
        return kept(self, purpose, operation, whole)

    Axis.counted = counted


def chosen(world, folder, bandwidth, compute_s=0.0):
    slow_link(lambda n_bytes: n_bytes / bandwidth)
    kept = Core.loss

    def loss(self, batch):
        time.sleep(compute_s)
        return kept(self, batch)

    Core.loss = loss
    done = run_rank(Run(folder), world)
    return done["val_loss"], done["weights_digest"]


@pytest.mark.slow
def test_auto_lets_nodes_train_apart_where_the_network_is_slow_and_stays_dense_where_it_is_fast(tmp_path):
    base = {"layout__replicate": 2, "exchange__topology": "2x1", "exchange__kind": "auto", "train__steps": 16, "snapshot__every": 12, "snapshot__keep": 0, "eval__every": 0}
    runs = {name: make_run(small_config(tmp_path, **base), "test", "test", tmp_path / name, None) for name in ("slow", "fast")}
    slow, fast = run_ranks(chosen, 2, runs["slow"].path, 3e5), run_ranks(chosen, 2, runs["fast"].path, 1e12, 0.3)
    assert slow[0] == slow[1] and fast[0] == fast[1]
    events = {name: [row["text"] for row in MetricStore(run.path / "metrics").read("event") if row["what"] == "exchange"] for name, run in runs.items()}
    assert "from now on nodes train apart and meet every step" in events["slow"][0] and not events["fast"]
    assert slow[0][0] == pytest.approx(fast[0][0], rel=0.02)
    list_snapshots(runs["slow"].folder)[-1].path.unlink()
    again = run_ranks(chosen, 2, runs["slow"].path, 3e5)
    assert again[0] == again[1]
    numbers = read_numbers(list_snapshots(runs["slow"].folder)[-1])
    assert numbers["exchange"]["every"] >= 1
    list_snapshots(runs["slow"].folder)[-1].path.unlink()
    save_config(runs["slow"], with_values(runs["slow"].config(), {"exchange.topology": "auto", "layout.replicate": 0}))
    alone = run_ranks(chosen, 1, runs["slow"].path, 3e5)[0]  # there is nobody to be apart from
    assert alone[0] == pytest.approx(slow[0][0], rel=0.02)


@pytest.mark.parametrize(
    ("left", "compute_s", "density", "found"),
    [(0.9, 1.0, "auto", 0.2), (0.2, 1.0, "auto", 0.05), (0.6, 1.0, "auto", 0.1), (0.9, 0.01, "auto", 0.1), (0.9, 1.0, 0.1, 0.1)],
)
def test_auto_lets_messages_carry_as_much_as_what_they_leave_out_asks_for(left, compute_s, density, found):
    section = ExchangeSection(kind="auto", density=density)
    chooser = ExchangeChooser(section, 2, {"every": 1, "dense_us": 500_000})
    apart = build_between(chooser.section(), lambda parameter: True)
    apart.left_share, apart.meeting_s = left, 0.1
    silent = SimpleNamespace(event=lambda *a: None, say=lambda *a: None)
    parts = SimpleNamespace(
        tuner=SimpleNamespace(settled=True), reducer=SimpleNamespace(between=apart), world=World(), journal=silent, progress=SimpleNamespace(step=0)
    )
    while parts.progress.step < 120:
        parts.progress.step += 1
        chooser.after_step(parts, compute_s + (0.1 if parts.progress.step % apart.every == 0 else 0.0))
        if apart.density == found != 0.1:
            break
    assert apart.density == pytest.approx(found)
    assert ExchangeChooser(section, 2, chooser.numbers()).section().density == (density if found == 0.1 else pytest.approx(found))


def back_to_dense(world):
    """Whether replicas hold the same bits, moments too, after nodes that trained apart went back to the dense exchange, and took a step."""
    core = core_of(world, {"layout.replicate": 4, "exchange.topology": "2x2", "exchange.kind": "periodic", "exchange.density": 0.2})
    for step in range(3):
        take_step(core, step)
    rejoin(core, core.reducer.between, 3)
    take_step(core, 3)
    moments = [t for name, t in sorted(core.optimizer.state_tensors().items()) if not name.endswith("step")]
    whole = torch.cat([t.flatten() for t in (*core.weights.locals.values(), *moments)]).double()
    return drifted(core), torch.equal(world.axis.all_reduce(whole.clone(), "t"), whole * world.size)


@pytest.mark.slow
def test_nodes_that_trained_apart_can_go_back_to_the_dense_exchange():
    assert run_ranks(back_to_dense, 4) == [([], True)] * 4
