"""What two snapshots differ in is told completely, and to the number where tensors part."""

import math

import pytest
import torch

from penstock.comm import World
from penstock.store import read_manifest, save_snapshot
from penstock.store.cells.contents import Contents
from penstock.store.story.diff import changes, compare
from penstock.store.story.difference import difference


def about(lr, commit, threads=1, **code):
    return {
        "config": {"optim": {"lr": lr, "kind": "adamw"}, "model": {"moe": {"experts": 0}}},
        "code": {"penstock": {"commit": commit, "branch": "main", "changed": [], "diff": "", "diff_cut": False} | code},
        "layout": {"ranks": 1, "threads": threads},
    }


def state(**changed):
    return {
        "model.w": torch.arange(700_000, dtype=torch.float32).view(700, 1000),
        "model.n": torch.ones(5),
        "model.b": torch.tensor([True, False]),
        "optim.step": torch.tensor(3.0),
        "model.zero": torch.zeros(2, 2),
    } | changed


@pytest.fixture
def saved(tmp_path):
    def save(name, tensors, **told):
        return Contents(save_snapshot(tmp_path / name, 4, tensors, {}, World(), about=about(**told)))

    return save


def test_settings_code_and_tensors_are_told_by_name(saved):
    a = saved("a", state(), lr=0.1, commit="1" * 40)
    other = state() | {"model.n": torch.ones(6), "model.new": torch.zeros(1), "optim.step": torch.tensor(4.0)}
    del other["model.b"]
    b = saved("b", other, lr=0.2, commit="1" * 40, threads=2, diff="ab", changed=["x.py"])
    told = compare(a.manifest, b.manifest)
    assert told.as_dict()["config"] == {"optim.lr": [0.1, 0.2]} and told.as_dict()["layout"] == {"threads": [1, 2]}
    assert [change.same for change in told.code] == [False] and told.as_dict()["code"]["penstock"]["after"]["changed"] == ["x.py"]
    tensors = told.tensors
    assert (tensors.equal, tensors.differ) == (["model.w", "model.zero"], ["optim.step"]) and not told.same_state
    assert (tensors.only_before, tensors.only_after) == (["model.b"], ["model.new"])
    assert [(change.name, change.before, change.after) for change in tensors.reshaped] == [("model.n", [[5], "float32"], [[6], "float32"])]
    alike = compare(a.manifest, read_manifest(a.snapshot))
    assert alike.same_state and alike.code[0].same and not any(alike.parts.values())


def test_code_that_is_not_known_to_be_the_same_is_not_called_so(saved):
    for commit, more in (("", {}), ("1" * 40, {"diff_cut": True})):
        a, b = (saved(f"{commit}{more}{i}", state(), lr=0.1, commit=commit, **more) for i in range(2))
        assert [change.same for change in compare(a.manifest, b.manifest).code] == [False]


def test_the_first_number_that_differs_is_named_in_whatever_cell_it_lies(saved):
    w = state()["model.w"].clone()
    w[350, 2] += 35.0
    w[10, 999] += 7.0
    a, b = saved("a", state(), lr=0.1, commit="x"), saved("b", state(**{"model.w": w}), lr=0.1, commit="x")
    told = difference(a, b, "model.w")
    assert len(a.grid("model.w")) > 1
    assert (told.place, told.before, told.after, told.count, told.largest) == ((10, 999), 10999.0, 11006.0, 2, 35.0)
    assert told.relative == pytest.approx(math.hypot(7, 35) / state()["model.w"].double().norm().item())
    assert torch.equal(b.read("model.w"), w)


def test_bits_count_and_what_is_not_finite_is_told(saved):
    a = saved("a", state(), lr=0.1, commit="x")
    negative = torch.zeros(2, 2)
    negative[1, 1] = -0.0
    b = saved("b", state(**{"model.zero": negative, "optim.step": torch.tensor(math.nan), "model.b": torch.tensor([True, True])}), lr=0.1, commit="x")
    assert compare(a.manifest, b.manifest).tensors.differ == ["model.b", "model.zero", "optim.step"]
    zero, step, flag = (difference(a, b, name) for name in ("model.zero", "optim.step", "model.b"))
    assert (zero.place, zero.count, zero.largest, zero.relative) == ((1, 1), 1, 0.0, math.inf)
    assert step.place == () and math.isnan(step.largest) and step.as_dict()["after"] == "nan"
    assert (flag.place, flag.before, flag.after) == ((1,), 0.0, 1.0)


def test_changes_go_down_to_the_leaves():
    assert [(c.name, c.before, c.after) for c in changes({"a": {"b": 1, "c": [1, 2]}, "d": 0}, {"a": {"b": 1, "c": [2]}, "e": None})] == [
        ("a.c", [1, 2], [2]), ("d", 0, None),
    ]  # fmt: skip
    assert changes({"a": {}}, {"a": {"x": 1}})[0].name == "a.x"
