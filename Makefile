# The one entry, for people and for CI. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Candidates for the environment's Python, in this order; name your own with `make PYTHON=/path/to/python3.12`.
PYTHON ?= python3.11 python3.12 python3.13 python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# A stamp named after what is installed, and where. Git is the hash tool that is always there. The shell asks for the
# folder itself: its name may hold spaces and quotes.
KEY := $(shell { pwd -P; cat requirements.lock pyproject.toml infra/telemetry_off.pth; } | git hash-object --stdin)
INSTALLED := $(VENV)/installed-$(KEY)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: train
train: setup ## set up, then run the training pipeline on the embedded default (CONFIG=FILE: on that file)
	$(BIN)/zenml pipeline run agentps_training $(if $(CONFIG),-c "$$CONFIG")

.PHONY: study study-quick
study: setup ## the paper's tables on the embedded sample: hours, and only what is not in docs/records.jsonl yet
	$(BIN)/zenml pipeline run pipelines.agentps_study
study-quick: setup ## the same code on few and small cells, in minutes; results in .agentps/study-quick/
	$(BIN)/zenml pipeline run pipelines.agentps_study -c configs/study-quick.yaml

.PHONY: setup
setup: $(INSTALLED) ## install the locked dependencies into .venv, register and activate the local stack
	@$(BIN)/python -m infra.local_stack

.PHONY: test
test: setup ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: docs
docs: $(INSTALLED) ## build the documentation as a site in site/; a dead link is an error
	$(PIP) install --quiet --no-build-isolation -c requirements.lock -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

.PHONY: bench-speed bench-gpu bench-peers
bench-speed: $(INSTALLED) ## the network against plain transformers on this CPU: writes docs/speed-network.md (minutes)
	$(BIN)/python -m benchmarks.speed
bench-gpu: $(INSTALLED) ## training and scoring at the real backbones' shapes on this machine's GPU (minutes)
	$(BIN)/python -m benchmarks.gpu
bench-peers: $(INSTALLED) ## public tools on the same work, in environments of their own (downloads; up to an hour)
	benchmarks/peers/run.sh

.PHONY: check
check: $(INSTALLED) ## lint, formatting, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

.PHONY: lock
lock: $(INSTALLED) ## renew requirements.lock: the newest versions that pyproject.toml allows (minutes)
	$(BIN)/python -m venv --clear $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet '.[dev]'
	{ grep '^#' requirements.lock; \
	  $(VENV)/lock/bin/python -m pip freeze --all | grep -vE '^(pip==|agentps)' | sed 's/+.*//'; } > $(VENV)/lock.txt
	mv $(VENV)/lock.txt requirements.lock
	rm -rf $(VENV)/lock

.PHONY: clean
clean: ## remove what the project made: .venv, .agentps, .zen, caches, its schedule, its stack in ZenML
	-@test ! -x $(BIN)/agentps || $(BIN)/agentps schedule --remove
	-@test ! -x $(BIN)/zenml || $(BIN)/python -m infra.local_stack --remove
	rm -rf $(VENV) .agentps .zen .pytest_cache .mypy_cache .ruff_cache *.egg-info build site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment that came with a copied or moved folder is made anew: its scripts name the old place.
$(INSTALLED):
	@if ! grep -qsF " $$(pwd -P)/$(VENV)" $(VENV)/pyvenv.cfg; then \
	    for python in $(PYTHON); do \
	        if "$$python" -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then \
	            found=$$python; break; \
	        fi; \
	    done; \
	    if [ -z "$${found:-}" ]; then \
	        echo "error: none of '$(PYTHON)' is a Python 3.11, 3.12 or 3.13 with the module venv;" \
	            "install one (Debian, Ubuntu: apt install python3 python3-venv) or name it: make PYTHON=/path/to/python3.11" >&2; \
	        exit 1; \
	    fi; \
	    "$$found" -m venv --clear $(VENV); \
	fi
	$(PIP) install --quiet -r requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	cp infra/telemetry_off.pth "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@rm -f $(VENV)/installed-* && touch $@
