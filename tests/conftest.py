"""Fixtures for all tests: one thread a process, nothing written to the user's cache, shared data where it is."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_MIX_ORDER_REDUCTION", "0")
# where no bytecode is kept, every process that a test starts compiles all of Penstock, which takes a second of a core
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

settings.register_profile("penstock", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("penstock")


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory):
    """Penstock's caches (tokens, measured peaks) in a folder of this test session."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tinyshakespeare() -> Path:
    """The corpus of the learning target; skips where the comparison data is absent."""
    folder = Path(os.environ.get("PENSTOCK_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    file = folder / "tinyshakespeare.txt"
    if not file.is_file():
        pytest.skip(f"no {file}; set PENSTOCK_SHARED_DATA to the folder that holds tinyshakespeare.txt")
    return file
