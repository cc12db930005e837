# Two commands: `make demo` and `make test`. Each makes .venv if it is missing, installs, and runs.
# They need Linux, make and Python 3.11 or newer; `make help` lists the rest.

PYTHON ?= python3
# More arguments for pytest, for example: make test ARGS="-k mask"
ARGS ?=
# A torch without CUDA, from an index of PyTorch: make CPU=1 with any target.
CPU ?=
# For make gpu: how long it may take, and the folder of CIFAR-10.
MINUTES ?= 9
DATA ?= /tmp/data
CPUS := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

VENV := .venv
# -P keeps the checkout's models/ and datasets/ out of the import path, as in an installed package.
PY := $(VENV)/bin/python -P
# The stamp carries the folder's name in it: a moved checkout installs again.
STAMP := $(VENV)/.installed$(if $(CPU),-cpu)-$(shell printf '%s' '$(CURDIR)' | cksum | cut -d ' ' -f 1)
CPU_INDEX ?= https://download.pytorch.org/whl/cpu

# Caches stay in the checkout, so that an empty or read-only HOME is enough, and no setting of the
# user's (an accelerate config, a matplotlibrc) changes a result.
CACHE := $(CURDIR)/.cache
export NUMBA_CACHE_DIR := $(CACHE)/numba
export MPLCONFIGDIR := $(CACHE)/matplotlib
export HF_HOME := $(CACHE)/huggingface
export TORCH_HOME := $(CACHE)/torch
export TORCHINDUCTOR_CACHE_DIR := $(CACHE)/inductor
export TRITON_CACHE_DIR := $(CACHE)/triton
export MPLBACKEND := Agg
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONPATH PYTHONHOME

.PHONY: help install demo test slow gpu lint docs wheel-check release-check clean
.DEFAULT_GOAL := help

help:
	@echo "make demo         train, prune and compare on the digits data: results in runs/demo"
	@echo "make test         all tests but the slow and the GPU ones; ARGS=... goes to pytest"
	@echo "make slow         the slow tests: whole products, long kills, every page; 60 minutes at most"
	@echo "make gpu          GPU tests, comparison with spikingjelly, CIFAR-10 training; resumes: see benchmarks/"
	@echo "                  MINUTES=9 DATA=/tmp/data PY=python3 (which has the dependencies; no .venv needed)"
	@echo "make lint         ruff (rules, format), import contracts and mypy"
	@echo "make wheel-check  build the wheel and use it from an environment outside this folder"
	@echo "make release-check  installed with its dependencies (6 GB for a while): metadata, types, every command;"
	@echo "                  BORROW=1 without an index of packages: with the dependencies of .venv"
	@echo "make docs         guides, reference and lab pages as a site: build/docs/index.html"
	@echo "make install      make .venv only (3 minutes and 7 GB, once)"
	@echo "                  CPU=1 with any target: a torch without CUDA, from CPU_INDEX"
	@echo "make clean        remove caches and built files; .venv and runs/ stay"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is missing or older than 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || { echo "Making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); } || { \
		echo "could not make $(VENV); on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV): 3 minutes and 7 GB the first time, seconds when little changed"
	@start=$$(date +%s); rm -f $(VENV)/.installed-*; \
	if [ -n '$(CPU)' ]; then sed '/^torch.*===/s/$$/+cpu/' constraints.txt >$(VENV)/constraints.txt; \
	else cp constraints.txt $(VENV)/constraints.txt; fi; \
	PYTHONWARNINGS=ignore $(PY) -m pip install --quiet --constraint $(VENV)/constraints.txt \
		$(if $(CPU),--extra-index-url $(CPU_INDEX)) --editable '.[dev]' \
	&& $(PY) -c 'import torch, torchvision.ops' \
	&& touch $@ && echo "Installed in $$(($$(date +%s) - start)) s"

demo: $(STAMP)
	@echo "Demo: dense, MultiSp and control runs on digits; under 15 minutes on 2 cores"
	@$(PY) recipes/multisp_compare.py --suite demo --jobs $(CPUS) --out runs/demo

test: $(STAMP)
	@echo "Tests (not slow, not gpu): about 8 minutes on 2 idle cores"
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile $(ARGS)

# A green run of all of them is noted in CONTRIBUTING.md.
SLOW_LINE := Last green run of the slow suite:
slow: $(STAMP)
	@echo "Slow tests: under 60 minutes on 2 cores"
	@start=$$(date +%s); OMP_NUM_THREADS=1 $(PY) -m pytest -q -m slow -n 2 --dist loadfile $(ARGS) && \
	if [ -z '$(ARGS)' ]; then \
		took=$$((($$(date +%s) - start + 59) / 60)); \
		commit=$$(git rev-parse --short HEAD 2>/dev/null || echo unknown); \
		sed -i "s/^$(SLOW_LINE).*/$(SLOW_LINE) commit $$commit, $$(date +%F), $$took minutes on $(CPUS) cores./" CONTRIBUTING.md; \
	fi

# Without $(STAMP) and with the caller's PYTHONPATH: nothing is installed on a machine without network.
gpu: PY = python3
gpu:
	@PYTHONPATH='$(PYTHONPATH)' $(PY) benchmarks/gpu.py --minutes '$(MINUTES)' --data '$(DATA)'

lint: $(STAMP)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) .ci/imports.py
	@$(PY) -m mypy

docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet && echo "open build/docs/index.html"

wheel-check: $(STAMP)
	@$(PY) .ci/wheel_check.py

release-check: $(STAMP)
	@printf "docs/claims.md: "; grep -Em1 "^Last read: [0-9-]{10}, commit [0-9a-f]{7,}" docs/claims.md \
	  || { echo "it needs a line: Last read: YYYY-MM-DD, commit HASH."; exit 1; }
	@$(PY) .ci/wheel_check.py --release $(if $(BORROW),--borrow)

clean:
	@rm -rf .cache build dist ./*.egg-info
	@find . \( -path ./$(VENV) -o -path ./.git \) -prune -o -type d -name __pycache__ -print0 | xargs -0 rm -rf
