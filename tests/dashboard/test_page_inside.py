"""The inside of the machine in a real browser: every view of it, by pointer and by keyboard, in both themes, on a phone, and where a run lacks it."""

import os
import re

import pytest
from tests.dashboard.browser import AXE, MARKS, TOKEN, Look, Server, expect, until
from tests.dashboard.made_runs import MadeRun, small_run
from tests.dashboard.made_values import Faults, MadeValues

pytestmark = MARKS
INSIDE, STEPS = "/r/machine/inside", 120
VIEWS = ("ranks", "layers", "pipeline", "communication", "memory", "experts", "layout")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inside") / "runs"
    run = MadeRun(folder, "machine", MadeValues(ranks=8, layers=3, total=STEPS, experts=4, device=True, faults=Faults(straggler=(60, 5))))
    run.lie(pipeline=4, replicate=2, node=2)
    run.start()
    run.rows(1, STEPS)
    run.watch()
    run.shots((64, 96), stages=4, micros=6, slow=5)
    (small_run(folder, "plain", steps=2, ranks=1, layers=1).path / "metrics" / "rank-00000" / "g00000001-0000.rows").unlink()
    running = Server(folder, os.environ | {"PENSTOCK_DASHBOARD_TOKEN": TOKEN})
    yield running
    running.stop()


def test_ranks_over_time_name_the_slow_one_and_tell_a_cell(look):
    page = look.at(INSIDE)
    expect(page.locator(".finding")).to_contain_text("rank 5 has")
    canvas = page.locator(".heat canvas")
    canvas.focus()
    for _ in range(5):
        page.keyboard.press("ArrowDown")
    told = page.locator(".heat figcaption")
    expect(told).to_contain_text(re.compile(r"rank 5 · step 120 · 9\d\d ms"))
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    expect(told).to_contain_text("rank 0 · step 1 ·")
    page.get_by_label("Metric").select_option("memory/allocated")
    expect(page.get_by_role("heading", name="memory/allocated by rank")).to_be_visible()
    page.get_by_role("button", name="maximum").click()
    until(page, lambda: "metric=memory%2Fallocated" in page.url and "of=most" in page.url, "the address")


def test_layers_over_time_by_a_quantity_on_a_log_scale(look):
    page = look.at(f"{INSIDE}?view=layers")
    page.get_by_label("Quantity").select_option("grad_norm")
    page.locator(".heat canvas").focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator(".heat figcaption")).to_contain_text("layer 01 · step 120")
    page.get_by_role("button", name="log", exact=True).click()
    until(page, lambda: "quantity=grad_norm" in page.url and "log=1" in page.url, "the address")


def test_a_step_is_drawn_as_it_was_run_beside_its_plan_and_zoomed_into(look):
    page = look.at(f"{INSIDE}?view=pipeline")
    expect(page.locator(".finding")).to_contain_text("the plan (1f1b, 6 micro-batches) had 24 %")
    step, plan = page.get_by_label("Step 96 as it was run"), page.get_by_label("The plan")
    expect(plan.locator("canvas")).to_be_visible()
    axis = step.locator(".heat-axis")
    whole = axis.inner_text()
    canvas = step.locator("canvas")
    box = canvas.bounding_box()

    def swept():
        for share in range(5, 40):
            page.mouse.move(box["x"] + box["width"] * share / 200, box["y"] + box["height"] / 16)
            if re.search(r"rank 0 · forward of stage 0, micro-batch \d · [\d.]+ ms, from", step.locator("figcaption").inner_text()):
                return True
        return False

    until(page, swept, "an action's figures")
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 20)
    page.mouse.up()
    expect(axis).not_to_have_text(whole)
    canvas.focus()
    for key in ("+", "ArrowLeft", "-"):
        before = axis.inner_text()
        page.keyboard.press(key)
        until(page, lambda before=before: axis.inner_text() != before, f"a change by {key}")
    step.get_by_role("button", name="whole step").click()
    until(page, lambda: axis.inner_text() == whole, "the whole step")
    expect(page.get_by_label("By rank").locator("tbody tr")).to_have_count(8)
    step.locator("select").select_option("64")
    expect(page.get_by_label("Step 64 as it was run")).to_be_visible()


def test_communication_is_told_by_axis_inside_between_exposed_and_hidden(look):
    page = look.at(f"{INSIDE}?view=communication")
    row = page.locator("tr", has_text="node")
    expect(row).to_contain_text(re.compile(r"96.*800 MB.*ms.*ms"))
    for shown, unit in (("seconds hidden", "ms"), ("bytes", "GB")):
        page.get_by_role("button", name=shown).click()
        expect(page.locator(".stack figcaption b")).to_contain_text(unit)
    page.locator(".stack-box").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".stack figcaption b")).to_contain_text("step 119")


def test_memory_is_stacked_by_kind_against_the_device(look):
    page = look.at(f"{INSIDE}?view=memory")
    over_time = page.get_by_label("Memory by kind", exact=True)
    for words in ("weights 500 MB", "moments 1 GB", "activations 700 MB", "device has 8.5 GB", "other live tensors"):
        expect(over_time).to_contain_text(words)
    expect(page.get_by_label("Over a step, at its highest")).to_contain_text("activations and buffers at the peak")


def test_an_expert_without_tokens_is_found(look):
    page = look.at(f"{INSIDE}?view=experts")
    page.get_by_label("Experts of layer 00", exact=True).locator("select").select_option("01")
    own = page.get_by_label("Experts of layer 01", exact=True)
    own.locator("canvas").focus()
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    expect(own.locator("figcaption")).to_contain_text("expert 2 · step 120 · 0")
    page.get_by_role("button", name="idlest").click()
    expect(page.get_by_label("All layers", exact=True)).to_contain_text("0 is dead")


def test_the_layout_shows_the_slow_rank_and_what_each_holds(look):
    page = look.at(f"{INSIDE}?view=layout")
    expect(page.locator(".finding")).to_contain_text("Rank 5 is slow")
    expect(page.locator(".mesh-cell.slow")).to_have_text("5")
    page.locator(".mesh-cell.slow").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".mesh-says")).to_contain_text("Rank 6 on node1: pipeline 3, node 0; stage 3 (layers 9–11, head), works")


@pytest.mark.parametrize(("theme", "run"), [("light", "machine"), ("dark", "plain")])
def test_views_fit_a_phone_and_say_why_they_are_empty(server, browser, theme, run):
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=theme, reduced_motion="reduce")
    made = Look(context.new_page(), server.url)
    for view in VIEWS:
        page = made.at(f"/r/{run}/inside?view={view}")
        page.locator(".inside .card" if run == "machine" else ".inside .message code, .mesh").first.wait_for()
        expect(page.locator(".waiting")).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{view} is too wide"
        if AXE.exists():
            page.evaluate(AXE.read_text())
            found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
            assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in found] == [], view
    context.close()
    assert made.errors == []
