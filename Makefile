# Two commands for everybody: `make run` and `make test`. Each makes the environment that it needs and says how long
# each step took. `make check` is what CI runs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PORT ?= 8080
DATA ?=
ONCE ?=
WORKERS ?= 2
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

# One torch/OpenMP thread per process: spin barriers collapse where processes share cores.
export OMP_NUM_THREADS := 1
export HF_HUB_OFFLINE := 1

# $(call step,what it does,command): say it, do it, say how long it took.
step = @start=$$(date +%s); echo "==> $(1)"; $(2); echo "    $(1): $$(( $$(date +%s) - start )) s"

store_suites := tests/contract tests/property/test_memory_trees.py tests/property/test_memory_blocks.py
on_redis = KATSURA_TESTING_SERVER=redis-server $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup -m "not soak" -k "not transport and not twin"
redis_too = if command -v redis-server >/dev/null; then $(on_redis) $(store_suites); elif [ "$${CI:-}" = true ]; then echo "no redis-server: apt install redis-server" >&2; exit 1; else echo "    left out: there is no redis-server (apt install redis-server)"; fi

.PHONY: help run test test-redis soak check setup fmt lint types imports protos protos-check bench demo-cluster chart clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

run: $(VENV)/.run  ## install, start everything, hold a short conversation and go on serving (ONCE=1, PORT=0, DATA=folder)
	$(call step,running (Ctrl-C stops everything),$(BIN)/katsura demo --port $(PORT) $(if $(DATA),--data $(DATA)) $(if $(ONCE),--once))

test: $(VENV)/.dev  ## install and run the whole suite; that of the stores on redis-server too, where there is one
	$(call step,testing,$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup -m "not soak")
	$(call step,testing the stores on Redis,$(redis_too))

soak: $(VENV)/.dev  ## run the long suites in full: all kills, all matrices, all seeds
	$(call step,soaking,$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup)

test-redis: $(VENV)/.dev  ## the suites of the store on this machine's redis-server instead of Valkey (apt install redis-server)
	$(call step,testing on Redis,redis-server --version; $(on_redis) $(store_suites) tests/fault/test_memory_faults.py tests/integration/test_memory_service.py)

check: lint types imports protos-check test  ## everything that CI checks

setup: $(VENV)/.dev  ## make the development environment

fmt: $(VENV)/.dev  ## format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lint: $(VENV)/.dev
	$(call step,format and lint,$(BIN)/ruff format --check .; $(BIN)/ruff check .)

types: $(VENV)/.dev
	$(call step,types,$(BIN)/mypy)

imports: $(VENV)/.dev
	$(call step,layers,$(BIN)/lint-imports)

protos: $(VENV)/.dev  ## regenerate services/katsura/api from protos/
	$(call step,protos,$(BIN)/python protos/generate.py)

protos-check: $(VENV)/.dev
	$(call step,buf lint,$(BIN)/buf lint protos)

bench: $(VENV)/.dev  ## a quick look at every number in docs/benchmarks.md
	$(call step,bench,for script in bench/*.py; do $(BIN)/python $$script --quick; done)

demo-cluster: $(VENV)/.dev  ## two real nodes: install, test, ask, kill a pod, drain, uninstall (root; docs/chart.md)
	$(call step,demo on a cluster,$(BIN)/python deploy/demo_cluster.py)

chart: $(VENV)/.dev  ## check the chart: Helm 3 and 4, kubernetes-validate, checkov (tools in .bench/chart)
	$(call step,checking the chart,$(BIN)/python deploy/check_chart.py)

clean:  ## remove environments and caches
	rm -rf $(VENV) .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	$(call step,making $(VENV) with $(PYTHON),$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Katsura needs Python 3.11 or newer; say which with PYTHON=")'; $(PYTHON) -m venv $(VENV))

installed := pyproject.toml constraints.txt hatch_build.py $(wildcard services/katsura/native/kernels.[chi]*)

$(VENV)/.run: $(installed) | $(BIN)/python
	$(call step,installing katsura (about 1 GB; torch is most of it),$(PIP) -e '.[all]'; touch $@)

$(VENV)/.dev: $(installed) | $(BIN)/python
	$(call step,installing katsura and its tools,$(PIP) -e '.[all$(comma)dev]'; touch $@ $(VENV)/.run)

comma := ,
