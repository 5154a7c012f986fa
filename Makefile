# Every target makes what it needs: `make demo` and `make test` work in a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
comma := ,
# Whoever has installed for GPUs goes on with that: the two builds of vLLM cannot lie side by side.
EXTRAS ?= $(if $(wildcard .venv/installed-gpu*),gpu,cpu)$(comma)demo$(comma)dev
INSTALLED := .venv/installed-$(subst $(comma),-,$(EXTRAS))
BENCH_INSTALLED := .venv-bench/installed
BENCH_PACKAGES := trl==1.16.0 transformers==5.19.0 peft==0.21.2 datasets==5.2.0
INSTALLER := $(wildcard tools/*.py)
# The linters need no torch: where there is no .venv, those on the PATH will do.
LINT := $(if $(wildcard $(BIN)/mypy),$(BIN)/,)
# All but models, workers and drivers, whose libraries have few types.
TYPED := grm_ray/*.py $(addprefix grm_ray/,config study reporting objectives rewards data runtime training)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint format bench-install bench clean clean-env

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## .venv with everything for CPUs (EXTRAS=gpu,demo,dev for GPUs)

$(INSTALLED): pyproject.toml $(INSTALLER)
	$(PYTHON) tools/install.py --extras $(EXTRAS)
	@touch $@

demo: install ## train a reward model, then run PPO against it (about 10 minutes on 2 cores)
	$(BIN)/python -m grm_ray.rm --config configs/rm_demo.yaml
	$(BIN)/python -m grm_ray.ppo --config configs/ppo_demo.yaml

test: install ## all tests but those marked slow; one run of both jobs is among them
	$(BIN)/python -m pytest -m "not slow"

test-all: install ## every test
	$(BIN)/python -m pytest

lint: ## ruff, the type checker where it reaches, known vulnerabilities of what is installed
	$(LINT)ruff check .
	$(LINT)ruff format --check .
	$(LINT)mypy $(TYPED)
	$(if $(LINT),$(LINT)python,$(PYTHON)) tools/audit.py

format: ## let ruff put the files in order
	$(LINT)ruff check --fix-only .
	$(LINT)ruff format .

bench-install: $(BENCH_INSTALLED) ## .venv-bench with what we compare ourselves to

$(BENCH_INSTALLED): Makefile $(INSTALLER)
	$(PYTHON) tools/install.py --venv .venv-bench $(BENCH_PACKAGES)
	@touch $@

bench: install bench-install ## measure against the others; results go to benchmarks/results
	@set -e; for script in benchmarks/[a-z]*.py; do $(BIN)/python "$$script"; done

clean: ## remove caches and build leftovers; runs/ and the environments stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find grm_ray tests -name __pycache__ -type d -prune -exec rm -rf {} +

clean-env: ## remove the environments
	rm -rf .venv .venv-bench
