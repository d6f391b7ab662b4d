# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   := $(VENV)/.installed-for-demo

.PHONY: demo test unit integration lint bench bench-serving bench-drift docs clean system

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP) $(DEMO)

# The demo needs a third of it.
$(DEMO): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $(DEMO)

# Debian packages that tests need; does nothing where they are there already.
system:
	@sh tests/install_system_packages.sh

demo: $(DEMO)
	$(BIN)/python examples/demo.py

test: unit integration

unit: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 tests/unit tests/golden

# Where speed is tested, or demand followed, nothing else runs.
ALONE := $(patsubst %,tests/integration/test_%_ray.py,deploy faults scale)

integration: $(STAMP) system
	$(BIN)/python -m pytest $(ALONE)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/integration tests/interop \
		tests/chaos $(ALONE:%=--ignore=%)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=examples $(BIN)/mypy examples/*.py

bench: $(STAMP) system
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/ledger.py
	$(BIN)/python benchmarks/verified_load.py
	$(BIN)/python benchmarks/rollout.py
	$(BIN)/python benchmarks/serving.py --quick --output build/bench/serving.json
	$(BIN)/python benchmarks/soak.py --minutes 4 --story --output build/bench/soak-story.json

	$(BIN)/python benchmarks/drift_cost.py --quick --output build/bench/drift_cost.json
	$(BIN)/python benchmarks/drift_quality.py --quick --native --output build/bench/drift_quality.json

bench-drift: $(STAMP)
	$(BIN)/python benchmarks/drift_cost.py
	$(BIN)/python benchmarks/drift_quality.py
	$(BIN)/python examples/census.py --html build/bench/census.html

# The long ones, on a machine that does nothing else: two hours.
bench-serving: $(STAMP)
	$(BIN)/python benchmarks/serving.py --mlserver-venv build/mlserver
	$(BIN)/python benchmarks/rollout.py --live
	$(BIN)/python benchmarks/soak.py --minutes 30
	$(BIN)/python benchmarks/soak.py --minutes 30 --story

docs: $(STAMP)
	$(BIN)/python -m pytest tests/unit/test_documentation.py

clean:
	rm -rf $(VENV) .demo build *.egg-info
