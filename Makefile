# Two commands: `make demo` trains a Vision Transformer on real images and reports its accuracy,
# `make test` runs lint, types and tests. Each installs what it needs into .venv first.
# `make test-mindspore` runs the tests of the MindSpore engine, in .venv-mindspore; `make test-demo`
# those of the demo's page, in .venv-demo and in Chromium; `make test-gpu` those that need an accelerator.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VENV_MINDSPORE ?= .venv-mindspore
VENV_DEMO ?= .venv-demo

.PHONY: demo test test-mindspore test-report test-demo test-gpu test-slow soak weights-table golden-losses lint types format clean

demo: $(VENV)/.installed
	$(BIN)/vitbase train fashion
	$(BIN)/vitbase eval --checkpoint_path runs/fashion

test: lint types
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-mindspore: $(VENV_MINDSPORE)/.installed
	$(VENV_MINDSPORE)/bin/python -m pytest tests/mindspore tests/launch/test_msrun.py

soak: $(VENV)/.installed-dev
	$(BIN)/python tests/faults/soak.py

test-report: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/evaluation/test_report_page.py

test-demo: $(VENV_DEMO)/.installed
	$(VENV_DEMO)/bin/python -m pytest tests/shipping/test_demo_page.py

test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m gpu

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

weights-table: $(VENV)/.installed-dev
	$(BIN)/python tests/reference/agreement.py --write docs/weights.md

golden-losses: $(VENV)/.installed-dev
	$(BIN)/python tests/golden_runs.py --write

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vitbase needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.installed

$(VENV_MINDSPORE)/.installed: pyproject.toml tests/mindspore/requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13) and "MindSpore 2.10 has builds for Python 3.9 to 3.12, vitbase needs 3.11; try: make test-mindspore PYTHON=python3.11")'
	test -x $(VENV_MINDSPORE)/bin/python || $(PYTHON) -m venv $(VENV_MINDSPORE)
	$(VENV_MINDSPORE)/bin/python -m pip install --quiet --requirement tests/mindspore/requirements.txt --editable .
	touch $@

$(VENV_DEMO)/.installed: pyproject.toml tests/shipping/demo_requirements.txt
	test -x $(VENV_DEMO)/bin/python || $(PYTHON) -m venv $(VENV_DEMO)
	$(VENV_DEMO)/bin/python -m pip install --quiet --requirement tests/shipping/demo_requirements.txt --editable .
	touch $@

clean:
	rm -rf $(VENV) $(VENV_MINDSPORE) $(VENV_DEMO) runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
