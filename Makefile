# Every target makes what it needs: python3, pip and make suffice.
PYTHON ?= python3
VENV ?= .venv
# The versions that a machine without a GPU takes; `make CONSTRAINTS=` installs the newest ones instead.
CONSTRAINTS ?= constraints-cpu.txt
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

# Test processes, each of one thread; tests/conftest.py shares out the tests.
WORKERS ?= 2
# Bytecode is kept, and not beside the code: some tests start dozens of processes.
PYTEST = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(abspath $(VENV))/bytecode \
	$(BIN)/python -m pytest -n $(WORKERS) --no-loadscope-reorder

# For `make gpu`: DEVICE=cpu rehearses; MAPS and TABLE (benchmarks/device_maps.py) for the trainings; HEADS a list of
# labelled pairs; WHEELS a folder.
MINUTES ?= 14
OUTPUT ?= gpu_output
DEVICE ?= cuda

# $(call needs,MODULES,EXTRA): one sentence where the environment lacks what a target uses, in place of skipped tests.
needs = @$(BIN)/python -c "import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, sys.argv[1:])))" \
	$(1) || { echo "make $@ lacks one of these modules: $(1); install them with $(BIN)/python -m pip install -e '.[$(2)]'"; exit 1; }

.PHONY: help demo test test-fast lint bench docs notebooks exports zoo wheel gpu clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST)

demo: $(STAMP)  ## register two subjects whose deformation is known
	$(BIN)/morphzoo demo -o demo_output

test: $(STAMP)  ## all tests, in two processes
	$(PYTEST)

test-fast: $(STAMP)  ## the tests that are not marked slow: two minutes
	$(PYTEST) -m "not slow"

lint: $(STAMP)  ## format, style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff check --preview --select PLW1514 custom_components data_lists  # no encoding but UTF-8
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## speed, as ratios to MONAI in one run
	$(BIN)/python -m benchmarks.bench

docs: $(STAMP)  ## the site, in build/site
	$(call needs,mkdocs material mkdocstrings,docs)
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/python -m mkdocs build --quiet --strict

notebooks: $(STAMP)  ## each notebook at full length, with its CPU seconds, which must be less than 180
	$(call needs,nbclient ipykernel sklearn matplotlib,dev)
	MORPHZOO_NOTEBOOKS=full $(PYTEST) -rP tests/test_notebooks.py

exports: $(STAMP)  ## each bundle exported, and run where this package is not installed; other formats, the hub's folder
	$(call needs,onnxruntime onnxscript safetensors jsonschema,dev)
	$(PYTEST) tests/commands/test_export.py tests/commands/test_export_refusals.py tests/commands/test_network_files.py \
		tests/commands/test_hub.py

zoo: $(STAMP)  ## the format checks of MONAI's model zoo on all exported bundles, and their metadata
	$(call needs,black flake8 bugbear isort pep8ext_naming jsonschema,dev)
	$(PYTEST) tests/commands/test_zoo_format.py tests/bundles/test_files.py

wheel: $(STAMP)  ## the package in build/dist, checked, installed in an environment of its own, used for one registration
	rm -rf build/dist build/wheel
	$(BIN)/python -m pip install --quiet build twine
	$(BIN)/python -m build --outdir build/dist
	$(BIN)/python -m twine check --strict build/dist/*
	$(PYTHON) -m venv build/wheel
	PYTHONPATH= build/wheel/bin/python -m pip install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) "$$(ls build/dist/*.whl)[demo]"
	cd build && export PYTHONPATH= && wheel/bin/morphzoo info && wheel/bin/morphzoo demo -o demo_output

gpu:  ## correctness, speed, memory and trainings on a GPU; on a node with torch and wheels, too
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu --minutes $(MINUTES) --output $(OUTPUT) \
		--device $(DEVICE) $(if $(MAPS),--maps $(MAPS) --table $(TABLE)) $(if $(HEADS),--heads $(HEADS)) $(if $(WHEELS),--wheels $(WHEELS))

$(STAMP): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e ".[dev]"
	touch $@

clean:  ## remove the environment and what was built
	rm -rf $(VENV) .venv-lowest demo_output gpu_output build *.egg-info
