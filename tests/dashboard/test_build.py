"""The page in the repository is what its sources in `web/` build, byte for byte."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WEB, PAGE = ROOT / "web", ROOT / "src/penstock/dashboard/page"
#: Seconds that fetching the packages and building may take.
FETCH_S, BUILD_S = 240, 120


def run(*command, seconds, **environment):
    """Run a command in `web/`; returns its exit code and what it printed."""
    done = subprocess.run(command, cwd=WEB, env=os.environ | environment, capture_output=True, text=True, timeout=seconds, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def npm():
    found = shutil.which("npm")
    if not found or not shutil.which("node"):
        pytest.skip("node and npm are not installed, so the page cannot be built again")
    if not (WEB / "node_modules").exists():
        try:
            code, told = run(found, "ci", "--no-audit", "--no-fund", seconds=FETCH_S)
        except subprocess.TimeoutExpired:
            code, told = 1, f"no answer within {FETCH_S} s"
        if code:
            shutil.rmtree(WEB / "node_modules", ignore_errors=True)
            pytest.skip(f"the page's packages cannot be had: {told.strip().splitlines()[-1]}")
    return found


@pytest.mark.slow
def test_built_page_is_that_of_the_sources(npm, tmp_path):
    code, told = run(npm, "run", "build", seconds=BUILD_S, PENSTOCK_PAGE=str(tmp_path / "page"))
    assert code == 0, told
    built = {path.name: path.read_bytes() for path in (tmp_path / "page").iterdir()}
    kept = {path.name: path.read_bytes() for path in PAGE.iterdir()}
    assert built.keys() == kept.keys()
    differ = [name for name in built if built[name] != kept[name]]
    assert not differ, f"{differ} differ from what web/ builds; run `npm run build` in web/ and commit the page"


def test_page_loads_nothing_from_elsewhere_and_has_nothing_inline():
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    assert "<style" not in text and "style=" not in text and "onload=" not in text
    assert text.count("<script") == 1 and 'src="/app.js"' in text and 'href="/app.css"' in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    assert "@import" not in (PAGE / "app.css").read_text(encoding="utf-8")
