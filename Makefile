# Every target makes the environment first if it is missing or stale.
PYTHON ?= python3
BIN := .venv/bin
# Many tests wait for ranks of their own, for clocks or for the disk, so three processes keep two cores busy; the fast ones seldom do.
SIDE_BY_SIDE := -n 3 --dist worksteal
SIDE_BY_SIDE_FAST := -n 2 --dist worksteal

.PHONY: env demo test test-fast lint bench page chaos clean

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
	$(BIN)/python -m pytest $(SIDE_BY_SIDE_FAST) -m 'not slow'

lint: env
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

# The dashboard's page, from web/ into src/penstock/dashboard/page, which is committed; needs Node 20.19 or newer.
page:
	cd web && npm ci --no-audit --no-fund && npm run build

bench: env
	$(BIN)/python -m benchmarks

# 200 faults of every kind in runs of four ranks, ten to twenty minutes on two cores; `make chaos SEED=7` plants others.
SEED ?= 0
SMALL := data.max_bytes=500000 data.tokenizer=bytes model.layers=2 model.dim=64 model.heads=2 model.ffn_dim=128 model.context=64 batch.global=12 \
	batch.micro=3 train.steps=400 eval.every=25 eval.sequences=8 eval.sample_tokens=8 snapshot.every=20 compile.enabled=off run.threads=1 \
	metrics.tensorboard=false survive.patience_s=3

chaos: env
	$(BIN)/penstock chaos --faults 200 --seed $(SEED) -- train tiny $(addprefix --set ,$(SMALL)) --nproc 4

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
