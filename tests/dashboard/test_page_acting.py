"""Acting on a run that trains, from the page in a real browser: every dialog to its end, what it did to the run, and what it says where it cannot."""

import os
import signal
from contextlib import suppress

import pytest
from small_runs import Command, small_sets
from tests.dashboard.browser import MARKS, TOKEN, Server, expect, looking, until

from penstock.store.places.locks import current_writer
from penstock.store.story.history import read_history

pytestmark = MARKS
HISTORY, DONE_MS = "/r/small/history", 150_000


@pytest.fixture
def run(tmp_path):
    """A real run that trains until it is ended."""
    folder = tmp_path / "runs" / "small"
    wishes = small_sets(tmp_path, train__steps=10_000_000, eval__every=10_000_000, snapshot__every=10_000_000, survive__enabled="on")
    training = Command("train", *wishes, "--run-dir", folder)
    yield folder, training
    with suppress(ProcessLookupError):
        os.kill(training.pid, signal.SIGTERM)
    training.wait(60)


@pytest.fixture
def look(run, browser):
    server = Server(run[0].parent, os.environ | {"PENSTOCK_DASHBOARD_TOKEN": TOKEN})
    with looking(browser, server) as made:
        yield made
        made.errors[:] = [told for told in made.errors if "the server responded with a status" not in told]  # what was refused
    server.stop()


def events(folder, kind):
    return [event for event in read_history(folder).events if event.kind == kind]


def opened(page, kind):
    page.locator(".history .tools").get_by_role("button", name=kind, exact=True).click()
    return page.get_by_role("dialog", name=kind)


def run_it(dialog):
    dialog.get_by_role("button", name="Run it").click()
    expect(dialog.get_by_role("status")).to_have_text("Done.", timeout=DONE_MS)
    dialog.get_by_role("button", name="Close").last.click()


def filled(page, kind, **fields):
    dialog = opened(page, kind)
    for label, value in fields.items():
        dialog.get_by_label(label).fill(value)
    dialog.get_by_role("button", name="Show the command").click()
    return dialog


def refused(page, kind, why, **fields):
    dialog = filled(page, kind, **fields)
    expect(dialog.get_by_role("alert")).to_contain_text(why)
    dialog.get_by_role("button", name="Cancel").click()


def test_every_action_reaches_the_run_and_its_history_and_errors_are_told(run, look):
    folder, training = run
    until(look.page, lambda: current_writer(folder) is not None and events(folder, "start"), "a run that trains", 120)
    page = look.at(HISTORY)
    expect(page.get_by_role("button", name="Snapshot", exact=True)).to_be_enabled(timeout=60_000)

    dialog = opened(page, "Snapshot")  # the token: a wrong one first
    dialog.get_by_label("Token").fill("no token of this server's")
    dialog.get_by_role("button", name="Log in").click()
    expect(dialog.get_by_role("alert")).to_contain_text("token")
    dialog.get_by_label("Token").fill(TOKEN)
    dialog.get_by_role("button", name="Log in").click()
    expect(dialog.locator("code").first).to_contain_text("penstock snapshot")
    assert not events(folder, "snapshot")
    run_it(dialog)
    until(page, lambda: events(folder, "snapshot"), "a snapshot", 60)
    expect(page.locator(".entry", has_text="asked on the page to snapshot")).to_be_visible()

    refused(page, "Change", "is no setting", Settings="nonsense")
    refused(page, "Change", "set on the terminal alone", Settings="data.path=/etc")
    run_it(filled(page, "Change", Settings="optim.lr=0.0002"))
    assert events(folder, "change")[-1].data["settings"]["optim.lr"][1] == 0.0002

    refused(page, "Scale", "scale needs ranks", Ranks="2000000")
    run_it(filled(page, "Scale", Ranks="2"))
    scaled = events(folder, "change")[-1].data
    assert scaled["command"] == "scale" and scaled["layout"]["ranks"] == 2

    refused(page, "Fork", "there is a small already", **{"New run's name": "small"})
    run_it(filled(page, "Fork", **{"New run's name": "forked", "Settings": "optim.lr=0.0001"}))
    assert "0.0001" in (folder.parent / "forked" / "config.toml").read_text()
    expect(page.get_by_role("link", name="forked")).to_be_visible()

    late = {kind: page.context.new_page() for kind in ("Snapshot", "Stop")}  # confirmed only when the run has ended
    for kind, other in late.items():
        other.goto(look.url + HISTORY)
        expect(opened(other, kind).locator("code").first).to_contain_text(kind.lower())
    run_it(opened(page, "Stop"))
    assert training.wait(120) == 130  # interrupted, after a clean snapshot
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_disabled()
    for other in late.values():
        dialog = other.get_by_role("dialog")
        dialog.get_by_role("button", name="Run it").click()
        expect(dialog.get_by_role("status")).to_have_text("It ended with exit code 2.", timeout=DONE_MS)
        expect(dialog.locator(".output")).to_contain_text("does not run")
    asked = [event.data["command"] for event in events(folder, "note") if "asked on the page" in event.text]
    assert asked == ["snapshot", "change", "scale", "fork", "stop", "snapshot", "stop"]
    look.errors[:] = [told for told in look.errors if "status of 4" not in told]  # the browser itself tells of answers that are none
    assert look.errors == []
