"""What a run's snapshots can tell: their differences, forks, samples, and that the same weights come out again."""

import json
import os
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from small_runs import small_config, write_corpus

from penstock.comm import World
from penstock.config import UserError, to_toml
from penstock.data import prepare
from penstock.engine import resume_run, start_run
from penstock.engine.story.compare import compare_snapshots
from penstock.engine.story.foreign import export_state, import_state
from penstock.engine.story.fork import fork_run
from penstock.engine.story.replay import replay
from penstock.engine.story.samples import samples_of
from penstock.store import Run, append_event, list_snapshots, read_history, read_manifest, save_snapshot
from penstock.store.cells.contents import Contents

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("story")


@pytest.fixture(scope="module")
def base(folder):
    """A run of 4 steps, gone on with to 8 at another rate and another cut of the batch; a snapshot every 2 steps."""
    config = small_config(folder, train__steps=4, snapshot__keep=0, optim__ema=0.9, optim__lr=0.001)
    run = Run(folder / "base")
    start_run(config, "test", "test", 1, run.path, None)
    resume_run(run, {"train.steps": 8, "optim.lr": 0.002, "batch.micro": 4}, 1, None)
    return run


@pytest.fixture(scope="module")
def snaps(base):
    return {snapshot.step: snapshot for snapshot in list_snapshots(base.folder)}


def fork(source, target, partial=False, **values):
    return fork_run(source, {name.replace("__", "."): value for name, value in values.items()}, target, 1, partial, "test", None)


def tensors(snapshot):
    contents = Contents(snapshot)
    return {name: contents.read(name) for name in contents.described}


def verified(run):
    from penstock.store import verify_run

    return verify_run(run.folder)




@pytest.mark.slow
def test_every_stretch_of_steps_is_computed_again_bit_for_bit_with_the_settings_it_was_taken_with(snaps, folder, base):
    told = replay(snaps[2], snaps[8])
    assert told.equal, told.text()
    settings = [(leg.first, leg.last, leg.config.optim.lr, leg.config.train.steps, leg.config.batch.micro) for leg in told.legs]
    assert settings == [(2, 4, 0.001, 4, 2), (4, 8, 0.002, 8, 4)]
    assert "bit for bit" in told.text() and told.as_dict()["differ"] == []
    assert not list(folder.glob(".replay-*")), "nothing is left of it"


@pytest.mark.slow
def test_a_replay_that_comes_to_other_numbers_says_where_and_what_may_be_why(snaps, base, tmp_path):
    copy = Run(shutil.copytree(base.path, tmp_path / "copy"))
    begin, end = list_snapshots(copy.folder)[2], read_manifest(list_snapshots(copy.folder)[3])
    state = tensors(list_snapshots(copy.folder)[3])
    state["model.blocks.1.norm2.weight" if "model.blocks.1.norm2.weight" in state else sorted(state)[0]].view(-1)[3] += 1.0
    for snapshot in list_snapshots(copy.folder)[3:]:
        snapshot.path.unlink()
    about = end.about | {"layout": end.about["layout"] | {"threads": 7}, "environment": end.about["environment"] | {"torch": "1.0"}}
    forged = save_snapshot(copy.folder, end.step, state, end.numbers, World(), about=about | {"config": end.about["config"] | {"run": end.about["config"]["run"] | {"threads": 1}}})
    told = replay(begin, forged)
    assert not told.equal and len(told.differ) == 1 and told.first.place[-1] == 3 and told.first.before == pytest.approx(told.first.after + 1)
    assert any("torch 1.0 → " in reason for reason in told.reasons)
    assert told.differ[0] in told.text() and json.dumps(told.as_dict())


def test_snapshots_of_two_lines_are_not_replayed_into_each_other(snaps):
    with pytest.raises(UserError, match=r"step 2 .* does not go on from step 4"):
        replay(snaps[4], snaps[2])


def test_the_samples_of_a_snapshot_are_those_that_its_steps_took(snaps, base):
    told = samples_of(snaps[6])
    assert (told.first, told.last, list(told.steps)) == (4, 6, [5, 6])
    assert [origin.sample for origin in told.steps[5]] == [16, 17, 18, 19]
    corpus = prepare(base.config().data)
    first = told.steps[5][0]
    read = corpus.train.read(first.start, first.end - first.start)
    excerpt = first.excerpts[0]
    with open(excerpt.place, "rb") as file:
        assert file.read()[slice(*excerpt.bytes)] == corpus.tokenizer.decode(read[: excerpt.end - excerpt.start]).encode()
    one = samples_of(snaps[6], 6)
    assert one.steps == {6: told.steps[6]} and excerpt.place in told.steps[5][0].excerpts[0].place and "bytes" in one.text()
    assert json.loads(json.dumps(told.as_dict()))["steps"][0]["step"] == 5 and "samples 16 to 19" in told.text()
    with pytest.raises(UserError, match="of steps 5 to 6"):
        samples_of(snaps[6], 4)


@pytest.mark.slow
def test_a_fork_with_other_settings_goes_on_from_the_very_state_and_both_histories_tell(snaps, base, folder):
    seen = len(read_history(base.path).events)
    made = fork(snaps[4], folder / "fork", optim__lr=0.01, batch__global=8, run__seed=9, train__steps=6)
    run = Run(folder / "fork")
    assert made["settings"] == {"optim.lr": [0.001, 0.01], "batch.global": [4, 8], "run.seed": [1234, 9], "train.steps": [4, 6]}
    assert made["linked"] + made["copied"] == len(read_manifest(snaps[4]).packs) and run.read("run.json")["forked_from"]["snapshot"] == read_manifest(snaps[4]).id
    pack = next((run.path / "packs").iterdir())
    assert os.stat(pack).st_nlink > 1 or made["copied"]
    told = read_history(run.path)
    assert not told.damage and [e.kind for e in told.events[-2:]] == ["fork", "snapshot"] and "optim.lr" in told.events[-2].text and told.events[0].kind == "start"
    theirs = read_history(base.path).events[seen:]
    assert [event.kind for event in theirs] == ["fork"] and theirs[0].data["to"] == str(run.path.resolve())
    assert list_snapshots(run.folder)[0].id == snaps[4].id and not verified(run).damage
    result = resume_run(run, {}, 1, None)
    assert result["step"] == 6 and not verified(run).damage
    last = list_snapshots(run.folder)[-1]
    assert [origin.sample for origin in samples_of(last).steps[6]] == list(range(40, 48))
    assert replay(list_snapshots(run.folder)[0], last).equal
    both = compare_snapshots(snaps[6], last, weights=True)
    assert both.common.step == 4 and "both go on from step 4" in both.text() and both.as_dict()["config"]["run.seed"] == [1234, 9]
    assert both.samples == "the same up to step 4, others since, by run.seed, batch.global"
    assert [told.relative for told in both.weights] == sorted((told.relative for told in both.weights), reverse=True)
    assert {told.name for told in both.weights} == set(both.diff.tensors.differ)


def test_two_snapshots_of_a_run_are_laid_beside_each_other(snaps):
    told = compare_snapshots(snaps[4], snaps[8], code=True)
    assert told.as_dict()["config"]["optim.lr"][1] == 0.002 and told.as_dict()["config"]["train.steps"] == [4, 8]
    assert told.samples == "the same 16; after has 16 more, numbers 16 to 31" and "after goes on from before" in told.text()
    assert all(change.same for change in told.diff.code) and told.patches == {}
    assert told.as_dict()["metrics"]["tokens"] == [4 * 4 * 32, 8 * 4 * 32]
    assert compare_snapshots(snaps[4], snaps[4]).diff.same_state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"model__dim": 48}, ["model.dim cannot change"]),
        ({"model__vocab": 300}, ["model.embedding.weight", "model.head.weight"]),
        ({"optim__kind": "muon"}, ["momentum"]),
        ({"optim__ema": 0.0}, ["ema.blocks"]),
        ({"data__tokenizer": "chars", "model__vocab": 257}, ["model.embedding.weight .a row for each token of another tokenizer"]),
    ],
)
def test_settings_that_the_state_does_not_fit_are_refused_by_the_tensors_names_or_partly_taken(snaps, tmp_path, changes, names):
    with pytest.raises(UserError) as error:
        fork(snaps[4], tmp_path / "fork", **changes)
    assert any(name.replace(" .", " (") in str(error.value) for name in names), str(error.value)
    assert not (tmp_path / "fork").exists() and not list(tmp_path.iterdir())
    made = fork(snaps[4], tmp_path / "fork", partial=True, train__steps=5, **changes)
    run = Run(tmp_path / "fork")
    there, old = tensors(list_snapshots(run.folder)[0]), tensors(snaps[4])
    assert made["anew"] or made["left_out"]
    assert all(torch.equal(there[name], old[name]) for name in there if name not in made["anew"])
    assert not set(made["left_out"]) & there.keys() and all(not there[name].any() for name in made["anew"] if name.startswith("optim."))
    assert all(torch.equal(there[name], there[name.replace("ema.", "model.")]) for name in made["anew"] if name.startswith("ema."))
    if "model__vocab" in changes:
        assert resume_run(run, {}, 1, None)["step"] == 5
    assert not verified(run).damage


@pytest.mark.slow
def test_a_fork_with_more_layers_computes_what_the_run_did_and_goes_on(snaps, tmp_path):
    made = fork(snaps[4], tmp_path / "fork", model__layers=4, train__steps=5)
    run = Run(tmp_path / "fork")
    there, old = tensors(list_snapshots(run.folder)[0]), tensors(snaps[4])
    assert made["grown"] and not made["anew"] and not verified(run).damage
    assert all(torch.equal(there[f"{kind}.blocks.2.ffn.up.weight"], old[f"{kind}.blocks.1.ffn.up.weight"]) for kind in ("model", "ema"))
    assert not there["model.blocks.1.ffn.down.weight"].any() and not there["optim.blocks.1.ffn.down.weight.exp_avg_sq"].any()
    assert there["optim.blocks.2.ffn.up.weight.step"] == 4 and there["optim.blocks.1.ffn.up.weight.step"] == 0
    assert resume_run(run, {}, 1, None)["step"] == 5


@pytest.mark.slow
def test_a_fork_on_other_text_keeps_the_tokenizer_of_its_weights(folder, tmp_path):
    config = small_config(tmp_path, train__steps=2, data__tokenizer="bpe", data__vocab=300)
    start_run(config, "test", "test", 1, tmp_path / "base", None)
    other = write_corpus(tmp_path / "other", documents=25)
    (other / "000.txt").write_text("words that the first corpus never had, zxy zxy zxy\n" * 40)
    fork(list_snapshots(Run(tmp_path / "base").folder)[-1], tmp_path / "fork", data__path=str(other), train__steps=3)
    run = Run(tmp_path / "fork")
    assert resume_run(run, {}, 1, None)["step"] == 3
    assert run.config().data.tokenizer == str(tmp_path / "fork" / "tokenizer")
    assert run.read("run.json")["data_digest"] != Run(tmp_path / "base").read("run.json")["data_digest"]


def test_a_fork_is_made_whole_or_not_at_all(snaps, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not an empty folder"):
        fork(snaps[4], tmp_path / "full")
    monkeypatch.setattr("penstock.engine.story.fork.link_packs", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="is full while forking a run"):
        fork(snaps[4], tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_changes_that_a_crash_took_back_belong_to_the_leg_after_it(base, snaps, tmp_path):
    from penstock.engine.story.legs import legs

    copy = Run(shutil.copytree(base.path, tmp_path / "copy"))
    layout = {"ranks": 1, "threads": 1, "device": "cpu"}
    append_event(copy.path, "change", "x", 8, settings={"optim.lr": [0.002, 0.5], "train.steps": [8, 20]})
    append_event(copy.path, "resume", "x", 8, layout=layout)
    append_event(copy.path, "change", "x", 6, settings={"optim.lr": [0.5, 0.7]})
    append_event(copy.path, "resume", "x", 6, layout=layout | {"ranks": 2})
    end = read_manifest(snaps[8])
    about = end.about | {"config": end.about["config"] | {"optim": end.about["config"]["optim"] | {"lr": 0.7}, "train": end.about["config"]["train"] | {"steps": 20}}}
    from dataclasses import replace

    found = legs(read_history(copy.path).events, read_manifest(snaps[2]), replace(end, step=9, about=about | {"layout": layout | {"ranks": 2}}))
    assert [(leg.first, leg.last, leg.ranks, leg.config.train.steps) for leg in found] == [(2, 4, 1, 4), (4, 6, 1, 8), (6, 9, 2, 20)]
    assert [leg.config.optim.lr for leg in found][1:] == [0.002, 0.7]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dcp", "safetensors"])
def test_an_exported_state_is_read_by_its_own_library_and_becomes_the_same_run_again(snaps, base, tmp_path, kind):
    made = export_state(snaps[4], tmp_path / "out", kind)
    state = tensors(snaps[4])
    assert made["tensors"] == len(state) and made["snapshot"].startswith(snaps[4].id)
    if kind == "dcp":
        loaded = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        dcp.load(loaded, checkpoint_id=tmp_path / "out", no_dist=True)
    else:
        loaded = {name: tensor for file in (tmp_path / "out").glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype for name, tensor in state.items())
    import_state(tmp_path / "out", None, {"train.steps": 6}, tmp_path / "again", False, "test", None)
    run = Run(tmp_path / "again")
    again = list_snapshots(run.folder)[0]
    assert compare_snapshots(snaps[4], again).diff.same_state and read_manifest(again).numbers == read_manifest(snaps[4]).numbers
    assert not verified(run).damage and read_history(run.path).events[0].kind == "note"
    resume_run(run, {}, 1, None)
    fork(snaps[4], tmp_path / "straight", train__steps=6)
    resume_run(Run(tmp_path / "straight"), {}, 1, None)
    ends = [list_snapshots(Run(tmp_path / name).folder)[-1] for name in ("again", "straight")]
    assert compare_snapshots(*ends).diff.same_state and samples_of(ends[0], 6).steps == samples_of(ends[1], 6).steps


@pytest.mark.slow
def test_a_state_of_another_program_becomes_a_run_by_a_config(folder, snaps, tmp_path):
    state = {name: tensor for name, tensor in tensors(snaps[4]).items() if name.startswith("model.")}
    dcp.save({name: tensor.bfloat16() for name, tensor in state.items()} | {"lr": 0.5}, checkpoint_id=tmp_path / "theirs", no_dist=True)
    config = tmp_path / "config.toml"
    config.write_text(to_toml(small_config(folder, train__steps=2)))
    with pytest.raises(UserError, match="does not say of what run it is"):
        import_state(tmp_path / "theirs", None, {}, tmp_path / "run", False, "test", None)
    with pytest.raises(UserError, match=r"does not fit these settings: optim\.\S+ \(nothing there, .*--partial"):
        import_state(tmp_path / "theirs", str(config), {}, tmp_path / "run", False, "test", None)
    made = import_state(tmp_path / "theirs", str(config), {"optim.lr": 0.003}, tmp_path / "run", True, "test", None)
    run = Run(tmp_path / "run")
    there = tensors(list_snapshots(run.folder)[0])
    assert all(torch.equal(there[name], tensor.bfloat16().float()) for name, tensor in state.items())
    assert made["left_out"] == ["lr"] and made["anew"] == sorted(there.keys() - state.keys()) and run.config().optim.lr == 0.003
    assert resume_run(run, {}, 1, None)["step"] == 2


def test_exports_and_imports_that_cannot_be_are_refused(snaps, tmp_path):
    with pytest.raises(UserError, match="use dcp or safetensors"):
        export_state(snaps[4], tmp_path / "out", "pickle")
    export_state(snaps[4], tmp_path / "out", "safetensors")
    with pytest.raises(UserError, match="not an empty folder"):
        export_state(snaps[4], tmp_path / "out", "safetensors")
    with pytest.raises(UserError, match=r"model\.layers|blocks\.2.*nothing there"):
        import_state(tmp_path / "out", None, {"model.layers": 3}, tmp_path / "run", False, "test", None)
    for damage in ('{"numbers": 3}', '{"origin": {}, "about": {}, "numbers": {"step": "x"}}', "{"):
        (tmp_path / "out" / "penstock.json").write_text(damage)
        with pytest.raises(UserError, match=r"penstock\.json is damaged"):
            import_state(tmp_path / "out", None, {}, tmp_path / "run", False, "test", None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
