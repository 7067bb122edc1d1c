# The one entry, for people and for CI. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Candidates for the environment's Python, in this order; name your own with `make PYTHON=/path/to/python3.12`.
PYTHON ?= python3.11 python3.12 python3.13 python3
VENV := .venv
BIN := $(VENV)/bin
# A stamp named after what is installed, and where. Git is the hash tool that is always there. The shell asks for the
# folder itself: its name may hold spaces and quotes.
KEY := $(shell { pwd -P; cat requirements*.lock pyproject.toml infra/install.sh infra/*.pth; } | git hash-object --stdin)
INSTALLED := $(VENV)/installed-$(KEY)
# What scoring in production needs beside it.
SCORING := $(VENV)/scoring-$(KEY)
# And what a team's servers need beside that.
TEAM := $(VENV)/team-$(KEY)

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

.PHONY: serve stream desk
serve: setup $(SCORING) ## the scoring service with the champion, on this machine (CONFIG=FILE: on that file)
	$(BIN)/agentps serve $(if $(CONFIG),-c "$$CONFIG")
stream: setup $(SCORING) ## the stream worker (CONFIG=FILE says where posts come from and where records go)
	$(BIN)/agentps stream $(if $(CONFIG),-c "$$CONFIG")
desk: setup $(SCORING) ## the review desk, on posts of the sample after `make train`; docs/desk.md tells of your own
	$(BIN)/agentps desk --demo

.PHONY: team team-stop
team: setup $(TEAM) ## start a team's servers on this machine: databases, object store, MLflow, ZenML, scoring (docs/team.md)
	@$(BIN)/python -m infra.team start
team-stop: $(TEAM) ## stop them; what they keep stays
	@$(BIN)/python -m infra.team stop

.PHONY: test
test: setup $(SCORING) ## run the tests
	$(BIN)/python -m pytest -n 3 --dist worksteal

.PHONY: docs
docs: $(INSTALLED) ## build the documentation as a site in site/; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

.PHONY: bench-speed bench-gpu bench-peers bench-serving
bench-speed: $(INSTALLED) ## the network against plain transformers on this CPU: writes docs/speed-network.md (minutes)
	$(BIN)/python -m benchmarks.speed
bench-gpu: $(INSTALLED) ## training and scoring at the real backbones' shapes on this machine's GPU (minutes)
	$(BIN)/python -m benchmarks.gpu
bench-peers: $(INSTALLED) ## public tools on the same work, in environments of their own (downloads; up to an hour)
	benchmarks/peers/run.sh
bench-serving: setup $(SCORING) ## batch, service and stream with the champion on this machine (an hour)
	$(BIN)/python -m benchmarks.batch_scoring kills
	$(BIN)/python -m benchmarks.batch_scoring real
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.same_scores
	$(BIN)/python -m benchmarks.stream_scoring

.PHONY: check
check: $(SCORING) ## lint, formatting, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

.PHONY: lock
lock: $(INSTALLED) ## renew requirements.lock: the newest versions that pyproject.toml allows (minutes)
	$(BIN)/python -m venv --clear $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet uv
	$(BIN)/python -m infra.lock $(VENV)/lock/bin/uv
	rm -rf $(VENV)/lock

.PHONY: clean
clean: ## remove what the project made: .venv, .zen, caches, schedule, stack; of .agentps all but answers, scores and keys
	-@test ! -x $(BIN)/agentps || $(BIN)/agentps schedule --remove
	-@test ! -x $(BIN)/zenml || $(BIN)/python -m infra.local_stack --remove
	rm -rf $(VENV) .zen .hypothesis .pytest_cache .mypy_cache .ruff_cache *.egg-info build site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@test ! -d .agentps || find .agentps -mindepth 1 -maxdepth 1 ! -name 'annotations.db*' ! -name 'scores.db*' ! -name schedule.env ! -name team -exec rm -rf {} +
	@rmdir .agentps 2> /dev/null || test ! -d .agentps || { \
	    echo "kept, because answers are paid for, and scores and keys are yours:" .agentps/*; \
	    echo "to delete them too: rm -r .agentps"; }

$(INSTALLED):
	@infra/install.sh $@ $(PYTHON)

$(SCORING): $(INSTALLED)
	@$(BIN)/python -m pip --disable-pip-version-check --quiet install --require-hashes --no-deps --only-binary :all: -r requirements-scoring.lock
	@touch $@

$(TEAM): $(SCORING)
	@$(BIN)/python -m pip --disable-pip-version-check --quiet install --require-hashes --no-deps --only-binary :all: -r requirements-team.lock
	@touch $@
