# Every target makes the environment first if it is missing or stale.
PYTHON ?= python3
BIN := .venv/bin
# Many tests wait for ranks of their own, so two processes keep two cores busy.
SIDE_BY_SIDE := -n 2 --dist worksteal

.PHONY: env demo test test-fast lint bench clean

env: .venv/.made

.venv/.made: pyproject.toml constraints.txt scripts/system-packages
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	sh scripts/system-packages
	@touch $@

demo: env
	$(BIN)/penstock train demo --run-dir $$(mktemp -u -d runs/demo-XXXXXX)

test: env
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-fast: env
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m 'not slow'

lint: env
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

bench: env
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
