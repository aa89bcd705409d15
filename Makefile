# `make` prints what there is. Works with GNU make 3.81 (macOS) and newer.
VENV := .venv/bin
INSTALLED := .venv/.installed
WORKERS ?= 2

QUICK := tests/modules tests/data tests/losses tests/training tests/test_cli.py

.PHONY: help install demo test test-slow test-lowest fuzz audit notebooks docs lint types bench format lock clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## make .venv from the locks and install the project into it (PYTHON=... chooses the Python)

$(INSTALLED): requirements.lock requirements-realesrgan.lock pyproject.toml scripts/install.sh
	@rm -f $@
	@scripts/install.sh
	@touch $@

demo: $(INSTALLED) ## the whole path on drawn specimens, a few minutes on a CPU
	$(VENV)/kd-convnext demo

test: lint types ## lint, types and the suite without its slow part (WORKERS=2 processes; COVERAGE=1 adds coverage)
	OMP_NUM_THREADS=1 $(VENV)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
		$(if $(COVERAGE),--cov=kd_convnext --cov-report=term:skip-covered)

test-slow: $(INSTALLED) ## notebooks, other processes, long runs
	OMP_NUM_THREADS=1 $(VENV)/python -m pytest -m slow -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-lowest: build/lowest/.installed ## quick tests on the lowest versions that pyproject.toml allows (needs uv)
	OMP_NUM_THREADS=1 build/lowest/bin/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile \
		-W ignore::DeprecationWarning -W ignore::FutureWarning $(QUICK)

build/lowest/.installed: pyproject.toml
	uv venv --clear --python 3.11 build/lowest
	uv pip install --python build/lowest/bin/python --resolution lowest-direct --editable '.[dev]'
	@touch $@

fuzz: $(INSTALLED) ## read ten thousand manifests and photographs made at random (COUNT=10000, SEED=0)
	OMP_NUM_THREADS=1 $(VENV)/python tests/helpers/fuzz.py --count $(or $(COUNT),10000) --seed $(or $(SEED),0)

audit: build/audit/bin/pip-audit ## known weaknesses of the locked dependencies (asks PyPI; what it cannot look up is an error)
	@for lock in requirements.lock requirements-realesrgan.lock; do \
		build/audit/bin/pip-audit -r $$lock --require-hashes --disable-pip --strict --progress-spinner off || exit 1; \
	done

build/audit/bin/pip-audit: $(INSTALLED)
	$(VENV)/python -m venv build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	@touch $@

lint: $(INSTALLED) ## ruff: rules and format
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .

types: $(INSTALLED) ## mypy, strict
	$(VENV)/mypy

notebooks: $(INSTALLED) ## run all notebooks and keep their outputs, on one thread
	OMP_NUM_THREADS=1 $(VENV)/python scripts/run_notebooks.py

docs: $(INSTALLED) ## the documentation site, into build/site, without network
	NO_MKDOCS_2_WARNING=1 $(VENV)/mkdocs build --strict --quiet
	@echo "open build/site/index.html"

bench: $(INSTALLED) ## run the scripts of benchmarks/, but gate.py, which wants a checkpoint
	@for script in benchmarks/data/*.py benchmarks/inference/*.py benchmarks/training/*.py; do \
		case $$script in *_sides.py|*__init__.py|*/gate.py) continue;; esac; \
		echo "== $$script"; \
		$(VENV)/python -m $$(echo $${script%.py} | tr / .) || exit 1; \
	done

format: $(INSTALLED) ## rewrite the code in the house style
	$(VENV)/ruff check --fix .
	$(VENV)/ruff format .

lock: ## renew the locks after a change of pyproject.toml (needs uv; scripts/lock.sh --upgrade moves every version)
	scripts/lock.sh

clean: ## remove what tests and builds left; .venv, runs/ and the crop cache stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
