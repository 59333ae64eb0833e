# Every target works on a fresh machine that has make and Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?=
LABEL ?=
VOCABULARY ?=
OUTPUT ?= demo_output$(if $(DATA),_$(basename $(notdir $(DATA))))

.PHONY: setup demo test chaos lint bench lock wheel check-wheel sbom audit clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "cellray needs Python 3.11 or newer; found $$($(PYTHON) --version). Name one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

demo: setup
	$(BIN)/python -m jobs.demo --output "$(OUTPUT)" \
	  $(if $(DATA),--data "$(DATA)") $(if $(LABEL),--label "$(LABEL)") $(if $(VOCABULARY),--vocabulary "$(VOCABULARY)")

test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup

chaos: setup
	$(BIN)/python -m pytest -m chaos -rA

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m tests.benchmarks.encoding
	$(BIN)/python -m tests.benchmarks.tokenization
	$(BIN)/python -m tests.benchmarks.scale
	$(BIN)/python -m tests.benchmarks.vocabulary
	$(BIN)/python -m tests.benchmarks.embedding
	$(BIN)/python -m tests.benchmarks.prefilter $(wildcard ../shared/data)
	$(BIN)/python -m tests.benchmarks.training_step
	$(BIN)/python -W ignore -m tests.benchmarks.perturbation
	$(BIN)/python -W ignore -m tests.benchmarks.screen_memory
	$(BIN)/python -m tests.benchmarks.gpu_training
	$(BIN)/python -W ignore -m tests.benchmarks.streaming
	$(BIN)/python -W ignore -m tests.benchmarks.serving
	$(BIN)/python -m tests.benchmarks.import_time

# Writes the versions of this environment as the ones everybody gets; run the tests before you commit them.
lock: setup
	$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//; /@ file:/d' > constraints.txt

# Releases: the library as a wheel, tried where there is no checkout; what it brings along; known vulnerabilities.
TOOLS := .release

$(TOOLS)/.installed: tests/release/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --requirement tests/release/tools.txt
	touch $@

wheel: $(TOOLS)/.installed
	rm -rf dist
	$(TOOLS)/bin/python -m build --outdir dist .

check-wheel: wheel
	$(PYTHON) tests/release/check_wheel.py dist/*.whl build/wheel

sbom: check-wheel
	sed "s/^dynamic = .*/version = \"$$(build/wheel/bin/python -c 'import cellray; print(cellray.__version__)')\"/" \
	  pyproject.toml > build/pyproject.toml
	$(TOOLS)/bin/cyclonedx-py environment --pyproject build/pyproject.toml --mc-type library --output-reproducible \
	  --output-format JSON --output-file dist/cellray.cdx.json build/wheel/bin/python

audit: $(TOOLS)/.installed
	$(PYTHON) tests/release/audit.py $(TOOLS)/bin/pip-audit constraints.txt

clean:
	rm -rf $(VENV) $(TOOLS) build dist demo_output* .pytest_cache .mypy_cache .ruff_cache
