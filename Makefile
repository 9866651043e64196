# `make demo` and `make test` do all the set-up themselves, in .venv. PYTHON picks another interpreter (3.11 or later), and VENV
# another place for its environment: `make test PYTHON=python3.14 VENV=.venv-3.14`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint pytest test-floors test-pixels benchmarks docs format clean

demo: $(READY)  ## reinforces the embedded Fashion-MNIST with the embedded teacher; results in demo/
	$(BIN)/python recipes/demo.py

test: lint pytest  ## lint, types and tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pytest: $(READY)
	$(BIN)/python -m pytest -q -n 2

test-floors: $(READY)  ## the tests with the lowest versions that pyproject.toml accepts
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)-floors
	$(BIN)/uv pip install --quiet --python $(VENV)-floors --resolution lowest-direct --editable ".[dev]"
	$(VENV)-floors/bin/python -m pytest -q -n 2

test-pixels: $(READY)  ## the stored views under the lowest and the newest versions of what makes pixels
	for resolution in lowest-direct highest; do \
	  $(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)-pixels && \
	  $(BIN)/uv pip install --quiet --python $(VENV)-pixels --resolution $$resolution --editable ".[dev]" && \
	  $(VENV)-pixels/bin/python -m tests.golden.count && \
	  $(VENV)-pixels/bin/python -m pytest -q tests/test_golden.py tests/views || exit 1; \
	done

# `make benchmarks DATA=folder WEIGHTS=folder`, as the flags of these names; without, those that need them are left out, and always
# cost.py and viewer.py, which take others, and demo.py, which reads what `make demo` leaves.
NEED_DATA := length small_sets
benchmarks: $(READY)  ## every benchmark in short: shows that it runs
	for script in $(filter-out common synthetic cost viewer demo $(if $(DATA),,$(NEED_DATA)),$(basename $(notdir $(wildcard benchmarks/*.py)))); do \
	  echo "== $$script" && \
	  $(BIN)/python benchmarks/$$script.py --quick $(if $(DATA),--data $(DATA) --weights $(WEIGHTS)) > /dev/null || exit 1; \
	done

docs: $(VENV)/.docs  ## the site, in site/; a warning is an error
	$(BIN)/python -m mkdocs build --strict --quiet

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Python compiles what it imports; pip would compile all, which takes a minute.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[dev]"
	touch $@

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-* demo site build dist *.egg-info
