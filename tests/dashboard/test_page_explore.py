"""Explore and Compare in a real browser: panels, their range and gestures, what they draw, export and follow."""

import re
from urllib.parse import quote

import pytest
from tests.dashboard.browser import HOSTILE, MARKS, drawn, expect, panel, until

pytestmark = MARKS
LIVE, DONE, POISONED = "/r/llama-live", "/r/gpt2-small-finished", f"/r/{quote(HOSTILE, safe='')}"
COMPARE = "/compare?run=gpt2-small-finished&run=high-rate-failed"


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
