"""What is recorded of the code is enough to put the working tree back as it was."""

import subprocess

import pytest

from penstock.config import UserError
from penstock.plan import code, describe_code
from penstock.plan.code_between import code_between
from penstock.store.story.code import keep_diff, read_diff


def git(folder, *arguments):
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    git(tmp_path, "init", "-q", "-b", "trunk")
    (tmp_path / "model.py").write_text("width = 1\n")
    (tmp_path / "table.bin").write_bytes(bytes(range(256)))
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_a_changed_checkout_is_put_back_from_its_commit_and_diff(checkout, tmp_path_factory):
    (checkout / "model.py").write_text("width = 2\n")
    (checkout / "table.bin").write_bytes(bytes(reversed(range(256))))
    (checkout / "sub").mkdir()
    (checkout / "naïve.txt").write_text("not tracked")
    found = describe_code(checkout / "sub")["project"]
    assert (found.commit, found.branch, found.cut) == (git(checkout, "rev-parse", "HEAD"), "trunk", False)
    assert found.changed == ("model.py", "table.bin") and found.untracked == ("naïve.txt",)
    run = tmp_path_factory.mktemp("run")
    digest = keep_diff(run, found.diff)
    assert keep_diff(run, found.diff) == digest and [file.name for file in (run / "code").iterdir()] == [f"{digest}.diff"]
    clean = tmp_path_factory.mktemp("clean")
    git(clean, "clone", "-q", str(checkout), "again")
    subprocess.run(["git", "apply", "-"], cwd=clean / "again", input=read_diff(run, digest), check=True)
    assert (clean / "again" / "model.py").read_text() == "width = 2\n" and (clean / "again" / "table.bin").read_bytes()[0] == 255
    (run / "code" / f"{digest}.diff").write_bytes(found.diff + b" ")
    for damaged in (digest, "0" * 40, "../../etc/passwd"):
        with pytest.raises(UserError, match=r"is damaged|cannot be read"):
            read_diff(run, damaged)


def test_a_diff_above_the_cap_is_cut_and_said_to_be(checkout, monkeypatch):
    monkeypatch.setattr(code, "DIFF_CAP", 1000)
    (checkout / "model.py").write_text("".join(f"width_{i} = {i}\n" for i in range(20_000)))
    found = describe_code(checkout)["project"]
    assert found.cut and len(found.diff) == 1000 and found.as_dict()["diff_cut"]


def test_nothing_is_told_of_a_folder_outside_any_checkout_or_without_git(tmp_path, checkout, monkeypatch):
    clean = describe_code(checkout)["project"]
    assert clean.diff == b"" and keep_diff(tmp_path, b"") == "" and read_diff(tmp_path, "") == b"" and not clean.as_dict()["dirty"]
    assert "project" not in describe_code(tmp_path.parent)
    monkeypatch.setenv("PATH", "")
    assert describe_code(checkout) == {}


def test_a_checkout_without_a_commit_differs_from_nothing(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    found = describe_code(tmp_path)["project"]
    assert found.commit == "" and found.changed == ("a.py",) and b"+x = 1" in found.diff


def test_the_code_of_the_checkout_that_penstock_runs_from_is_told():
    found = describe_code()
    if "penstock" in found:
        assert (found["penstock"].folder / "pyproject.toml").is_file() and "project" not in found


def test_two_states_of_a_checkout_are_compared_without_touching_it(checkout):
    first = describe_code(checkout)["project"]
    (checkout / "model.py").write_text("width = 2\n")
    second = describe_code(checkout)["project"]
    git(checkout, "commit", "-qam", "second")
    (checkout / "model.py").write_text("width = 3\n")
    third = describe_code(checkout)["project"]
    before = sorted((checkout / ".git").rglob("*"))
    told = code_between(checkout, (second.commit, second.diff), (third.commit, third.diff))
    assert "-width = 2\n+width = 3\n" in told and "width = 1" not in told
    assert code_between(checkout, (first.commit, b""), (first.commit, second.diff)) == second.diff.decode()
    assert code_between(checkout, (first.commit, second.diff), (third.commit, b"")) == "", "what was committed is what was changed"
    assert sorted((checkout / ".git").rglob("*")) == before
    assert code_between(checkout, ("0" * 40, b""), (third.commit, b"")) is None
    assert code_between(checkout / "no", (first.commit, b""), (third.commit, b"")) is None
