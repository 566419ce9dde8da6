# Two commands do all the set-up: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
AUDIT := .venv-audit
BIN := $(VENV)/bin
CONFIG ?= configs/demo.yaml
STUDY ?= blend
EXPERIMENT ?= demo
SECONDS ?= 60
READERS ?=
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help env demo oof stack tune dashboard report test test-ci test-all fuzz audit-deps lint format docs bench chaos clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

$(VENV)/.stamp: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("dermstack needs Python 3.11 or newer, found " + sys.version.split()[0] + ": try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[image,dev,docs]'
	@touch $@

env: $(VENV)/.stamp  ## create .venv with everything in it (again only when pyproject or constraints change)

demo: env  ## generate data, then image models, level 2, blend, submission and report
	$(BIN)/dermstack demo-data data/demo
	$(BIN)/dermstack oof --config configs/demo.yaml $(ARGS)
	$(BIN)/dermstack stack --config configs/demo.yaml $(ARGS)

oof: env  ## CONFIG=...: image cache, folds, image models: out-of-fold predictions and embeddings
	$(BIN)/dermstack oof --config $(CONFIG) $(ARGS)

stack: env  ## CONFIG=...: level-2 matrix, GBDTs, blend, submission, report
	$(BIN)/dermstack stack --config $(CONFIG) $(ARGS)

tune: env  ## STUDY=blend|gbdt|image CONFIG=...: run or continue an Optuna study
	$(BIN)/dermstack tune $(STUDY) --config $(CONFIG) $(ARGS)

dashboard: env  ## EXPERIMENT=...: show its studies in a browser (optuna-dashboard), on this machine
	$(BIN)/pip install --quiet --constraint constraints.txt 'optuna-dashboard>=0.18'
	$(BIN)/optuna-dashboard runs/$(EXPERIMENT)/studies/journal.log $(ARGS)

report: env  ## CONFIG=...: write report.html again
	$(BIN)/dermstack report --config $(CONFIG) $(ARGS)

# A file's tests run in one process, so that the experiments they share are made once, in the order of tests/conftest.py.
# Compiled tests are kept, whatever the environment says: to rewrite their assertions takes each process seven seconds.
TEST := PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test: env  ## the fast tests
	$(TEST) -m 'not slow' $(ARGS)

test-ci: env  ## the fast tests and those marked ci
	$(TEST) -m 'not slow or ci' $(ARGS)

test-all: env  ## every test
	$(TEST) $(ARGS)

fuzz: env  ## SECONDS=60 READERS="dicom npy": fuzz the readers, guided by coverage (atheris, Linux)
	-$(BIN)/pip install --quiet --constraint constraints.txt 'atheris>=3.0; sys_platform == "linux"'
	$(BIN)/python tests/fuzz_readers.py --seconds $(SECONDS) $(READERS)

audit-deps:  ## look up known vulnerabilities of the pinned versions; needs network, and fails without
	test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/pip install --quiet --constraint constraints.txt pip-audit; }
	@$(AUDIT)/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip --progress-spinner off \
		|| { echo "audit-deps: either a weakness is named above, or PyPI's data could not be reached: then nothing was audited" >&2; exit 1; }

lint: env  ## ruff, mypy and the import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: env  ## format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: env  ## build the documentation into site/index.html; fails on a broken link
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

chaos: env  ## kill runs, fill their disk, damage their files, and count what survives (ARGS=--quick for a part)
	$(BIN)/python -m benchmarks.chaos $(ARGS)

bench: env  ## the benchmark that needs no data (the others in benchmarks/ say how they are called)
	$(BIN)/python benchmarks/metrics.py

clean:  ## remove the environment and what tools left behind
	rm -rf $(VENV) $(AUDIT) .fuzz site .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
