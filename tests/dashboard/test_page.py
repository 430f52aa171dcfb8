"""The dashboard's page in a real browser, at a real server: what people see and press, live, as a file, on a phone, by keyboard, with axe."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.dashboard.browser import AXE, HOSTILE, MARKS, PAGE, TOKEN, Look, drawn, expect, panel, until

pytestmark = MARKS
LIVE, DONE, FAILED, POISONED = "/r/llama-live", "/r/gpt2-small-finished", "/r/high-rate-failed", f"/r/{quote(HOSTILE, safe='')}"
COMPARE = "/compare?run=gpt2-small-finished&run=high-rate-failed"
VIEWS = ["/", *(f"{LIVE}/{tab}" for tab in ("overview", "explore?q=loss", "inside", "history", "facts")), f"{POISONED}/overview", COMPARE]


def test_list_of_runs_shows_sorts_searches_and_chooses_for_a_comparison(look):
    page = look.at("/")
    rows = page.locator("tr.run")
    expect(rows).to_have_count(4)
    expect(rows.first).to_contain_text("llama-live")
    expect(page.get_by_text(HOSTILE)).to_be_visible()  # as text: `look` fails on a dialog
    page.get_by_role("button", name="Val. loss").click()
    expect(page.locator("th[aria-sort]")).to_have_attribute("aria-sort", "descending")
    values = [float(text) for text in page.locator("td.c-val").all_inner_texts()]
    assert values == sorted(values, reverse=True)
    page.keyboard.press("/")
    page.keyboard.type("failed")
    expect(rows).to_have_count(1)
    assert page.url.endswith("?q=failed")
    page.get_by_label("Search runs").fill("no such run")
    expect(page.get_by_text("No run fits")).to_be_visible()
    page.get_by_role("button", name="Show all").click()
    for name in ("gpt2-small-finished", "high-rate-failed"):
        page.get_by_label(f"Choose {name}").check()
    page.get_by_role("button", name="Compare 2").click()
    expect(page).to_have_url(re.compile("/compare.run=.*&run="))


def test_a_thousand_runs_scroll_with_few_rows_in_the_page(look):
    row = look.page.request.get(f"{look.url}/api/v1/runs").json()["runs"][-1]
    rows = [row | {"id": f"run-{number}", "name": f"run-{number}"} for number in range(1000)]

    def answer(route):
        asked = {key: int(value) for key, value in re.findall(r"(limit|offset)=(\d+)", route.request.url)}
        route.fulfill(json={"total": 1000, "runs": rows[asked["offset"] : asked["offset"] + asked["limit"]]})

    look.page.route("**/api/v1/runs?*", answer)
    page = look.at("/")
    expect(page.get_by_text("1,000 runs")).to_be_visible()
    expect(page.locator("table")).to_have_attribute("aria-rowcount", "1001")
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    expect(page.get_by_role("link", name="run-999", exact=True)).to_be_visible()
    assert page.locator("tr.run").count() < 100
    page.unroute_all()


def test_no_runs_and_no_such_run_say_what_to_do(look):
    page = look.page
    page.route("**/api/v1/runs?*", lambda route: route.fulfill(json={"total": 0, "runs": []}))
    look.at("/")
    expect(page.get_by_text("penstock train demo")).to_be_visible()
    page.unroute_all()
    look.at("/r/nothing/overview")
    expect(page.get_by_role("heading", name="This run cannot be read")).to_be_visible()
    page.get_by_role("link", name="All runs", exact=True).click()
    expect(page.locator("tr.run")).to_have_count(4)
    look.errors[:] = [told for told in look.errors if "404" not in told]  # the browser itself tells of answers that are none


def test_keyboard_reaches_everything_and_says_how(look):
    page = look.at("/")
    expect(page.locator("tr.run")).to_have_count(4)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard")).to_contain_text("all runs")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/overview$"))
    expect(page.get_by_role("navigation", name="Views of the run")).to_be_visible()
    for keys, tab in (("ge", "explore"), ("gh", "history"), ("gi", "inside"), ("gf", "facts"), ("go", "overview")):
        page.keyboard.press(keys[0])
        page.keyboard.press(keys[1])
        expect(page).to_have_url(re.compile(f"/{tab}$"))
    page.go_back()
    expect(page).to_have_url(re.compile("/facts$"))
    first, second = (page.evaluate("document.documentElement.dataset.theme"), page.keyboard.press("t"))
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") != first or second is None


def test_overview_says_in_a_word_what_is_wrong_and_follows_the_run(look):
    page = look.at(f"{LIVE}/overview")
    expect(page.locator(".hero h1")).to_have_text("Straggler on rank 5")
    alert = page.locator(".alert").first
    for told in ("2.2 times as long", "other work on its host", "balance.data", "time/own"):
        expect(alert).to_contain_text(told)
    expect(page.get_by_label("Ranks", exact=True).locator("li")).to_have_count(8)
    expect(page.locator(".link b")).to_have_text("live")
    step = page.locator(".progress-words b")
    before = int(step.inner_text().removeprefix("step ").replace(",", ""))
    until(page, lambda: int(step.inner_text().removeprefix("step ").replace(",", "")) >= before + 5, "five new steps", 20)
    alert.get_by_role("link", name="Look at it").click()
    expect(page).to_have_url(re.compile(r"/explore\?q=time%2Fown"))


def test_overview_of_a_failed_run_names_the_failure(look):
    page = look.at(f"{FAILED}/overview")
    expect(page.locator(".hero.critical h1")).to_have_text("Failed")
    expect(page.locator(".hero")).to_contain_text("no number")
    expect(page.locator(".link b")).to_have_text("ended")


def test_overview_keeps_in_sight_what_has_passed(look):
    page = look.at(f"{DONE}/overview")
    passed = page.get_by_label("Alerts that passed")
    expect(passed.locator("li")).to_have_count(1)
    expect(passed).to_contain_text("Throughput drop")
    expect(passed).to_contain_text("step 900")


def test_history_draws_the_tree_and_tells_what_lies_between(look):
    page = look.at(f"{DONE}/history")
    expect(page.locator(".tree .node.snapshot")).to_have_count(6)
    expect(page.locator(".tree .node.change")).to_have_count(1)
    expect(page.get_by_text("high-rate-failed").first).to_be_visible()
    for step in (1000, 2000):
        page.get_by_label(f"Choose snapshot at step {step}").check()
    between = page.get_by_label("Between two entries")
    expect(between).to_contain_text("+1,000")
    expect(between).to_contain_text("penstock runs diff")
    differ = between.get_by_label("What differs")
    expect(differ.locator("tr", has_text="optim.lr")).to_contain_text(re.compile("0.0006.*0.0003"))
    expect(differ).not_to_contain_text("optim.clip")
    expect(differ).to_contain_text("The same code ran.")
    expect(differ).to_contain_text("1 differ")
    page.get_by_label("Choose snapshot at step 3000").check()
    expect(differ).to_contain_text("All settings are the same.")
    page.locator(".tree .node.change").click()
    expect(page.locator(".entry.chosen")).to_contain_text("optim.lr")


def test_acting_asks_for_the_token_shows_the_command_and_tells_what_it_did(look):
    page = look.at(f"{DONE}/history")
    page.locator(".entry", has_text="newest").get_by_role("button", name="Fork").click()
    dialog = page.get_by_role("dialog", name="Fork")
    dialog.get_by_label("New run's name").fill("another")
    dialog.get_by_label("Settings").fill("optim.lr=1e-4")
    dialog.get_by_role("button", name="Show the command").click()
    dialog.get_by_label("Token").fill(TOKEN)
    dialog.get_by_role("button", name="Log in").click()
    expect(dialog.locator("code").first).to_contain_text("penstock runs fork")
    expect(dialog.locator("code").first).to_contain_text("optim.lr")
    dialog.get_by_role("button", name="Cancel").click()
    page.goto(f"{look.url}{POISONED}/overview")
    page.locator(".alert", has_text="Straggler").get_by_role("button", name="Acknowledge").click()
    dialog = page.get_by_role("dialog", name="Acknowledge")
    expect(dialog.locator("code")).to_contain_text("--ack straggler-812")
    dialog.get_by_role("button", name="Run it").click()
    expect(dialog.get_by_text("Done.")).to_be_visible(timeout=120_000)
    dialog.get_by_role("button", name="Close").last.click()
    expect(page.locator(".alert", has_text="Straggler")).to_contain_text("acknowledged")


def test_token_of_a_link_is_used_once_and_leaves_the_address(look):
    page = look.at(f"/#token={TOKEN}")
    expect(page.get_by_text("may act")).to_be_visible()
    assert "token" not in page.url


def test_page_says_that_it_is_not_live_while_asleep_and_catches_up(look):
    page = look.at(f"{LIVE}/explore?q=loss%2Ftotal")
    drawn(page, "loss/total")
    mark = page.locator(".link b")
    expect(mark).to_have_text("live")
    page.evaluate("window.stayed = true")
    page.context.set_offline(True)
    expect(mark).to_have_text("reconnecting")
    figures = panel(page, "loss/total").locator(".figures")
    old = figures.inner_text()
    page.wait_for_timeout(3000)
    assert figures.inner_text() == old
    page.context.set_offline(False)
    expect(mark).to_have_text("live")
    until(page, lambda: figures.inner_text() != old, "what came meanwhile")
    assert page.evaluate("window.stayed")
    look.errors[:] = [told for told in look.errors if "net::" not in told]  # the browser itself tells of connections that fail


def test_phone_is_used_by_touch(server, browser):
    context = browser.new_context(viewport={"width": 390, "height": 844}, device_scale_factor=2, has_touch=True, is_mobile=True, reduced_motion="reduce")
    made = Look(context.new_page(), server.url)
    page = made.at("/")
    page.get_by_role("link", name="gpt2-small-finished", exact=True).tap()
    page.get_by_role("link", name="Explore").tap()
    found = drawn(page, "loss/total")
    found.get_by_label("Export loss/total").tap()
    expect(found.get_by_role("button", name="Save PNG")).to_be_visible()
    found.get_by_label("Export loss/total").tap()
    told = page.locator(".zoom .reset")
    over = found.locator(".u-over")
    over.scroll_into_view_if_needed()
    box, fingers = over.bounding_box(), context.new_cdp_session(page)

    def touch(*moves):
        """Fingers that go from share to share of the panel's width."""
        places = lambda shares: [{"x": box["x"] + share * box["width"], "y": box["y"] + box["height"] / 2, "id": i} for i, share in enumerate(shares)]  # noqa: E731
        for number, shares in enumerate(moves):
            fingers.send("Input.dispatchTouchEvent", {"type": "touchMove" if number else "touchStart", "touchPoints": places(shares)})
            page.wait_for_timeout(30)
        fingers.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def shown():
        return [int(number.replace(",", "")) for number in re.findall(r"[\d,]+", told.inner_text())]

    touch((0.4, 0.6), (0.3, 0.7), (0.2, 0.8), (0.1, 0.9))
    until(page, lambda: len(shown()) == 2, "a range between two fingers")
    first = shown()
    assert abs((first[1] - first[0]) - 750) < 60 and abs(sum(first) / 2 - 1500) < 60
    touch((0.7,), (0.5,), (0.3,), (0.2,))
    until(page, lambda: shown()[0] > first[0] + 300, "a range further on")
    assert abs((shown()[1] - shown()[0]) - (first[1] - first[0])) <= 2
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()
    assert made.errors == []


def test_inside_tells_a_cell_of_the_heat_map_by_keyboard(look):
    page = look.at(f"{LIVE}/inside?view=layers")
    canvas = page.locator(".heat canvas")
    expect(canvas).to_be_visible()
    page.get_by_label("Quantity").select_option("grad_norm")
    canvas.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".heat figcaption")).to_contain_text("layer 01 · step")


def test_facts_show_settings_and_find_them(look):
    page = look.at(f"{LIVE}/facts")
    expect(page.get_by_label("Identity")).to_contain_text("penstock train small")
    page.get_by_label("Search settings").fill("optim.lr")
    expect(page.get_by_label("Settings", exact=True).locator("dt")).to_contain_text(["lr"])
    expect(page.get_by_label("Samples")).to_contain_text("<b>there</b>")
    page.get_by_label("Search settings").fill("model.layers")
    expect(page.get_by_label("Settings", exact=True).locator("dd")).to_have_text(["12 not 4"])


def test_evaluations_and_the_price_of_a_run_are_shown(look):
    page = look.at(f"{DONE}/facts")
    expect(page.get_by_label("Evaluations")).to_contain_text("nats after step 3,000")
    expect(page.locator("[aria-label='Evaluations'] canvas")).to_be_visible()
    page = look.at(f"{DONE}/overview")
    expect(page.locator(".tile", has_text="Loss").first).to_contain_text("validation ")
    expect(page.locator(".tile", has_text="Cost so far")).to_contain_text("device-hours")
    page = look.at(f"{LIVE}/overview")
    tile = page.locator(".tile", has_text="Cost so far")
    expect(tile.locator(".figure")).to_have_text(re.compile(r"^\d+\.\d\d EUR$"))
    expect(tile).to_contain_text(re.compile(r"\d+\.\d\d at the end · [\d.]+ device-hours"))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_and_nothing_overflows(server, browser, theme):
    if not AXE.exists():
        pytest.skip("axe-core is not installed: cd web && npm ci")
    width = 360 if theme == "dark" else 1440
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme, reduced_motion="reduce")
    made = Look(context.new_page(), server.url)
    for path in VIEWS:
        page = made.at(path)
        page.wait_for_load_state("load")
        page.locator("#main > :not(.waiting)").first.wait_for()
        page.wait_for_timeout(400)
        page.evaluate(AXE.read_text())
        told = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in told["violations"]] == [], path
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} is wider than {width} pixels"
    context.close()
    assert made.errors == []


def test_page_outlives_a_restart_of_the_server(look, server):
    page = look.at(f"{LIVE}/overview")
    expect(page.locator(".link b")).to_have_text("live")
    server.stop()
    expect(page.locator(".link b")).to_have_text("reconnecting")
    server.start()
    expect(page.locator(".link b")).to_have_text("live")
    step = page.locator(".progress-words b").inner_text()
    until(page, lambda: page.locator(".progress-words b").inner_text() != step, "new steps after the restart")
    look.errors[:] = [told for told in look.errors if "net::" not in told]  # the browser itself tells of connections that fail


def test_frozen_page_needs_no_server(server, browser, tmp_path):
    file = tmp_path / "report.html"
    command = [sys.executable, "-m", "penstock", "report", str(server.runs_dir / "gpt2-small-finished"), "--out", str(file)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    context = browser.new_context(offline=True, reduced_motion="reduce")
    made = Look(context.new_page(), file.as_uri())
    page = made.at("")
    expect(page.locator(".hero h1")).to_have_text("Finished")
    expect(page.locator(".link")).to_contain_text("frozen")
    page.get_by_role("link", name="Explore").click()
    drawn(page, "loss/total")
    expect(page.get_by_text("thinned to")).to_be_visible()
    page.get_by_role("link", name="History").click()
    expect(page.locator(".tree .node.snapshot")).to_have_count(6)
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    page.get_by_role("link", name="Facts").click()
    expect(page.get_by_label("Identity")).to_contain_text("penstock train")
    page.get_by_role("link", name="Inside").click()
    expect(page.locator(".heat canvas")).to_be_visible()
    context.close()
    assert made.errors == [] and made.elsewhere == []


def test_page_is_light():
    assert sum(path.stat().st_size for path in Path(PAGE).iterdir()) <= 500_000
