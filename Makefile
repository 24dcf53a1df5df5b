# Every target makes what it needs: python3, pip and make suffice.
PYTHON ?= python3
VENV ?= .venv
# The versions that a machine without a GPU takes; `make CONSTRAINTS=` installs the newest ones instead.
CONSTRAINTS ?= constraints-cpu.txt
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.PHONY: demo test lint bench clean

demo: $(STAMP)  ## register two subjects whose deformation is known
	$(BIN)/morphzoo demo -o demo_output

test: $(STAMP)  ## all tests
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## speed, as ratios to MONAI in one run
	$(BIN)/python -m benchmarks.bench

$(STAMP): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo_output build *.egg-info
