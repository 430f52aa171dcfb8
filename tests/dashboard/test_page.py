"""The dashboard's page in a real browser, at a real server: what people see and press, live, as a file, on a phone, by keyboard, with axe."""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
from tests.dashboard.browser import AXE, HOSTILE, PAGE, TOKEN, chromium, until, world  # noqa: E402

expect = sync_api.expect
#: A busy machine takes its time.
expect.set_options(timeout=60_000)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="chromium is not installed: sh scripts/system-packages"),
]
LIVE, DONE, FAILED, POISONED = "/r/llama-live", "/r/gpt2-small-finished", "/r/high-rate-failed", f"/r/{quote(HOSTILE, safe='')}"
COMPARE = "/compare?run=gpt2-small-finished&run=high-rate-failed"
VIEWS = ["/", *(f"{LIVE}/{tab}" for tab in ("overview", "explore?q=loss", "inside", "history", "facts")), f"{POISONED}/overview", COMPARE]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with world(tmp_path_factory.mktemp("dashboard") / "runs", os.environ | {"PENSTOCK_DASHBOARD_TOKEN": TOKEN}) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()


class Look:
    """A tab, and all that its console and network told."""

    def __init__(self, page, url):
        self.page, self.url, self.errors, self.elsewhere = page, url, [], []
        page.set_default_timeout(60_000)
        page.on("console", lambda told: self.errors.append(told.text) if told.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: (self.errors.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda asked: None if asked.url.startswith((url, "data:", "blob:")) else self.elsewhere.append(asked.url))

    def at(self, path):
        self.page.goto(self.url + path)
        return self.page


@pytest.fixture
def look(server, browser):
    context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True, reduced_motion="reduce")
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
    made = Look(context.new_page(), server.url)
    yield made
    context.close()
    assert made.errors == [] and made.elsewhere == []


def panel(page, name):
    return page.locator(f".panel[data-name='{name}']").first


def drawn(page, name):
    """A panel whose course has come; returns it."""
    found = panel(page, name)
    expect(found.locator(".figures")).to_contain_text("last")
    return found


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


def test_explore_finds_smooths_and_keeps_its_view_in_the_address(look):
    page = look.at(f"{DONE}/explore")
    drawn(page, "loss/total")
    page.keyboard.press("/")
    page.keyboard.type("gnatt")  # letters of grad_norm/…attention in their order
    expect(page.locator(".panel").first).to_have_attribute("data-name", re.compile("grad_norm/.*attention"))
    page.get_by_label("Search metrics").fill("loss/total")
    page.get_by_label("Smoothing").fill("0.9")
    page.get_by_role("button", name="log", exact=True).click()
    page.get_by_role("button", name="ranks", exact=True).click()
    page.get_by_role("button", name="tokens", exact=True).click()
    page.get_by_role("button", name="Pin loss/total").first.click()
    until(page, lambda: all(part in page.url for part in ("q=loss%2Ftotal", "x=tokens", "smooth=0.9", "log=1", "band=0", "pin=loss%2Ftotal")), "the address")
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("button", name="copied")).to_be_visible()
    link = page.evaluate("navigator.clipboard.readText()")
    page.goto(link)
    drawn(page, "loss/total")
    expect(page.get_by_label("Smoothing")).to_have_value("0.9")
    expect(page.get_by_role("button", name="tokens", exact=True)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("section[aria-label=pinned] .panel")).to_have_count(1)


def test_explore_zooms_pans_and_resets_all_panels_together(look):
    page = look.at(f"{DONE}/explore?q=loss")
    drawn(page, "loss/total")
    box = panel(page, "loss/total").locator(".u-over").bounding_box()
    across = lambda share: (box["x"] + share * box["width"], box["y"] + box["height"] / 2)  # noqa: E731
    told = page.locator(".zoom .reset")

    def shown():
        return [int(number.replace(",", "")) for number in re.findall(r"[\d,]+", told.inner_text())]

    def drag(begin, end):
        page.mouse.move(*across(begin))
        page.mouse.down()
        page.mouse.move(*across((begin + end) / 2))
        page.mouse.move(*across(end))
        page.mouse.up()

    drag(0.25, 0.5)
    until(page, lambda: len(shown()) == 2, "a range")
    first = shown()
    assert abs(first[0] - 750) < 40 and abs(first[1] - 1500) < 40
    until(page, lambda: "from=" in page.url and "to=" in page.url, "the range in the address")
    page.keyboard.down("Shift")
    drag(0.75, 0.25)
    page.keyboard.up("Shift")
    until(page, lambda: shown()[0] > first[0] + 200, "a pan to the right")
    assert abs((shown()[1] - shown()[0]) - (first[1] - first[0])) <= 2
    panned = shown()
    page.keyboard.down("Control")
    page.mouse.move(*across(0.5))
    page.mouse.wheel(0, -120)
    page.keyboard.up("Control")
    until(page, lambda: shown()[1] - shown()[0] < panned[1] - panned[0], "a zoom by the wheel")
    for name in ("Zoom out", "Earlier", "Later", "Zoom in"):
        before = shown()
        page.get_by_role("button", name=name, exact=True).click()
        until(page, lambda before=before: shown() != before, name)
    page.mouse.dblclick(*across(0.5))
    expect(told).to_have_text("all steps")


def test_explore_has_one_cross_hair_and_tells_of_marks(look):
    page = look.at(f"{POISONED}/explore?q=loss")
    drawn(page, "loss/total")
    drawn(page, "loss/micro.00")
    box = panel(page, "loss/total").locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 20)
    steps = [panel(page, name).locator(".figures") for name in ("loss/total", "loss/micro.00")]
    for figures in steps:
        expect(figures).to_contain_text("step 3")
    expect(steps[1]).to_contain_text("(rank ")
    tip = page.get_by_role("tooltip")

    def sweep():
        for share in range(400, 460):
            page.mouse.move(box["x"] + box["width"] * share / 1000, box["y"] + 20)
            if tip.count() and "Data corruption" in tip.inner_text():
                return True
        return False

    until(page, sweep, "the mark of the poisoned batch at step 599 of 1,400")


def test_explore_explains_enlarges_and_exports(look, tmp_path):
    page = look.at(f"{DONE}/explore?q=loss")
    found = drawn(page, "loss/total")
    page.get_by_role("button", name="What loss/total means").click()
    expect(found).to_contain_text("cross-entropy")
    expect(found).to_contain_text("rises over many steps")
    found.get_by_role("button", name="Close").click()
    height = found.bounding_box()["height"]
    found.get_by_role("button", name="Enlarge").click()
    until(page, lambda: found.bounding_box()["height"] > 1.5 * height, "a larger panel")
    for button, end in (("Save CSV", "csv"), ("Save PNG", "png")):
        found.get_by_label("Export loss/total").click()
        with page.expect_download() as waited:
            found.get_by_role("button", name=button).click()
        assert waited.value.suggested_filename == f"gpt2-small-finished-loss_total.{end}"
        waited.value.save_as(tmp_path / end)
    lines = (tmp_path / "csv").read_text().splitlines()
    assert lines[0] == "step,time,tokens,value,low,low_rank,high,high_rank" and len(lines) == 3001 and lines[1].startswith("1,")
    assert (tmp_path / "png").read_bytes().startswith(b"\x89PNG")


def test_explore_draws_only_what_is_in_sight_and_follows_the_run(look):
    page = look.at(f"{LIVE}/explore")
    drawn(page, "loss/total")
    shells, canvases = page.locator(".panel").count(), page.locator(".panel canvas").count()
    assert shells > 150 and canvases < 60
    first = panel(page, "loss/total").locator(".figures").inner_text()
    until(page, lambda: panel(page, "loss/total").locator(".figures").inner_text() != first, "new values", 20)
    page.locator("section[aria-label=loss] .group-name").click()
    expect(panel(page, "loss/total")).to_have_count(0)
    until(page, lambda: "closed=loss" in page.url, "the closed group in the address")


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


def test_compare_overlays_and_says_what_differs(look):
    page = look.at(COMPARE)
    expect(page.locator(".legend li")).to_have_count(2)
    expect(page.get_by_label("Settings that differ")).to_contain_text("optim.lr")
    expect(page.get_by_label("Results", exact=True)).to_contain_text("validation loss")
    expect(page.get_by_label("Differences")).to_contain_text("ended as no number")
    expect(page.get_by_label("Differences")).to_contain_text("±")
    page.get_by_label("Metric", exact=True).fill("grad_norm/total")
    expect(page.get_by_role("heading", name="grad_norm/total")).to_be_visible()
    page.get_by_role("button", name="step", exact=True).click()
    until(page, lambda: "metric=grad_norm%2Ftotal" in page.url and "x=step" in page.url, "the address")


def test_compare_follows_a_run_that_trains(look):
    page = look.at("/compare?run=llama-live&run=gpt2-small-finished&x=step")
    expect(page.locator(".compare .link b")).to_have_text("live")
    values = page.locator(".legend b")
    ended, seen = values.nth(1).inner_text(), set()
    until(page, lambda: seen.add(values.nth(0).inner_text()) or len(seen) >= 4, "new values of the run that trains")
    assert values.nth(1).inner_text() == ended
    page = look.at(COMPARE)
    expect(page.locator(".legend li")).to_have_count(2)
    expect(page.locator(".compare .link")).to_have_count(0)


def pixels(page, name):
    """What a panel's canvas holds, as text."""
    return panel(page, name).locator("canvas").evaluate("canvas => canvas.toDataURL()")


@pytest.mark.parametrize("path", [f"{DONE}/explore?q=loss", f"{POISONED}/explore?q=time%2Fown"])
def test_explore_after_a_gesture_is_drawn_as_if_there_had_been_none(look, path):
    page = look.at(path)
    name = page.locator(".panel").first.get_attribute("data-name")
    box = drawn(page, name).locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.keyboard.down("Control")
    for _ in range(12):
        page.mouse.wheel(0, -60)
        page.wait_for_timeout(20)
    page.keyboard.up("Control")
    for _ in range(12):
        page.mouse.wheel(30, 0)
        page.wait_for_timeout(20)
    page.mouse.move(1, 1)
    until(page, lambda: "from=" in page.url, "the range in the address")
    page.wait_for_timeout(1500)
    moved = pixels(page, name)
    for _ in range(2):  # which makes all plots anew
        page.get_by_role("button", name="log", exact=True).click()
        page.mouse.move(1, 1)
        page.wait_for_timeout(300)
    until(page, lambda: pixels(page, name) == moved, "the same picture without a gesture")


@pytest.mark.parametrize("log", [0, 1])
def test_explore_band_spans_what_ranks_measured(look, log):
    page = look.at(f"{POISONED}/explore?q=time%2Fown&from=850&to=1050&log={log}")
    drawn(page, "time/own")
    filled = """canvas => {
      const { width, height } = canvas, data = canvas.getContext('2d').getImageData(Math.round(width * 0.6), 0, 1, height).data;
      return Array.from({ length: height }, (_, y) => data[4 * y + 3]).filter((alpha) => alpha > 0).length / height;
    }"""
    share = panel(page, "time/own").locator("canvas").evaluate(filled)
    page.get_by_role("button", name="ranks", exact=True).click()
    until(page, lambda: panel(page, "time/own").locator("canvas").evaluate(filled) < share - 0.3, "no band between the slow rank and the others")


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
