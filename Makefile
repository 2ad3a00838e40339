# Everything runs in .venv, made on the first call from constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Small enough for five minutes on two cores; the space file alone asks for 40 trials of 30 epochs.
# In a folder of its own: what was trained on embedded sound is no champion of your machines.
SEARCH_ARGS ?= --machine-types fan,valve --trials 6 --epochs 4 --out runs/embedded
BENCHES := training scoring search_quality multifidelity confirmation promotion label_free phase \
  attention effects start sampler data trial_overhead driver \
  soak

.PHONY: install search test lint type unit integration e2e cluster-test bench gpu-bench clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python >= 3.11 is needed, {sys.executable} is {v.major}.{v.minor}: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

search: install
	$(BIN)/python -m search.run --space spaces/complex.yaml $(SEARCH_ARGS)

test: lint type unit integration e2e cluster-test

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: install
	$(BIN)/mypy

unit: install
	$(BIN)/python -m pytest tests/unit

integration: install
	$(BIN)/python -m pytest tests/integration

e2e: install
	$(BIN)/python -m pytest tests/e2e

# Skipped by name where network namespaces cannot be made, and says what is missing.
cluster-test: install
	$(BIN)/python -m pytest tests/cluster

bench: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	set -e; for bench in $(BENCHES); do echo "== $$bench"; $(BIN)/python -m tests.bench.$$bench; done

# Training speed on the first GPU; without one it says so.
gpu-bench: install
	$(BIN)/python -m tests.bench.gpu --profile

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
