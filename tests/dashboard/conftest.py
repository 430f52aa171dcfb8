"""One server of made-up runs for all tests of the page that a worker runs, and a browser for those of a module: while it is open, its library has
asyncio running in this thread, which other tests want."""

import os

import pytest


@pytest.fixture(scope="module")
def browser():
    from tests.dashboard.browser import chromium, sync_api

    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="package")
def server(tmp_path_factory):
    from tests.dashboard.browser import TOKEN, world

    with world(tmp_path_factory.mktemp("dashboard") / "runs", os.environ | {"PENSTOCK_DASHBOARD_TOKEN": TOKEN}) as running:
        yield running


@pytest.fixture
def look(server, browser):
    from tests.dashboard.browser import looking

    with looking(browser, server) as made:
        yield made
