# Everything from a bare clone. `make repro` runs the pipeline, `make test` checks the code; both install what they need first.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install install-trackers repro test studies lock audit

# cpu or gpu: which lock is installed. A GPU that nvidia-smi lists decides; `make repro PROFILE=cpu` overrides it.
PROFILE ?= $(shell nvidia-smi -L 2>/dev/null | grep -q '^GPU' && echo gpu || echo cpu)
# Where the CPU build of torch comes from when the package indexes that pip is configured with lack it.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# Python 3.11: the locks and the CPU build of torch are made for it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Further arguments: make repro ARGS="ril", make test ARGS="-k params"
ARGS ?=
# Processes that run tests, whole modules each, so that a module's models and servers are made once (tests/conftest.py has
# the order). 0 runs all in this process, as --pdb and -s need it.
WORKERS ?= 2
# Which of the long tests (engines, training, browser) run: all, none, or a third (sixth, twelfth), another one every 32
# commits.
LONG ?= third

# Experiments of a study at a time (`make studies`).
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/$(PROFILE).txt
TORCH := requirements/torch-cpu.txt
STAMP := $(VENV)/installed-$(PROFILE)-$(shell cat $(LOCK) $(TORCH) pyproject.toml requirements/ril_torchvision.* 2>/dev/null | sha256sum | cut -c1-16)

# Trackers of training (extras wandb, mlflow, dvclive): `make test` tests all of them; nothing else needs them.
TRACKERS := requirements/trackers.txt
TRACKERS_STAMP := $(VENV)/installed-trackers-$(shell cat $(TRACKERS) 2>/dev/null | sha256sum | cut -c1-16)

# One thread a process: two OpenMP threads on two busy cores spin against each other (a 64-prompt batch: 2.8 s against 0.7 s).
export OMP_NUM_THREADS ?= 1
# No telemetry; and no download unless RIL_ALLOW_DOWNLOADS=1.
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export VLLM_NO_USAGE_STATS := 1
export HF_HUB_DISABLE_TELEMETRY := 1
ifneq ($(RIL_ALLOW_DOWNLOADS),1)
export HF_HUB_OFFLINE := 1
endif
export PATH := $(CURDIR)/$(BIN):$(PATH)

# A test that needs what a machine lacks (a browser, a GPU) skips itself; `make test LONG=all` runs all the others.
# pip warns once for each package that a local index lacks; hundreds of such lines would hide a real message.
QUIET := 2> >(grep -v 'is ignored: it is neither a file nor a directory' >&2)
PIP := $(BIN)/python -m pip --disable-pip-version-check

help:
	@echo 'make repro   install (first time only) and run the pipeline (as dvc repro, two stages at a time)  [PROFILE=cpu|gpu] [ARGS="stage ..."]'
	@echo 'make test    install (first time only) and check:  ruff, mypy, import rules, dead code, security lint, pytest  [ARGS="-k name"] [WORKERS=2] [LONG=third|sixth|twelfth|all|none]'
	@echo 'make install only install, into $(VENV)'
	@echo 'make install-trackers  also wandb, mlflow and dvclive, which make test installs'
	@echo 'make studies run the comparisons of studies/protocol.md (days of two cores; resumes; commits the chosen learning rates)  [JOBS=2] [ARGS="--world 411"]'
	@echo 'make lock    write the hashes of the pinned packages anew, with uv  [PROFILE=cpu|gpu]'
	@echo 'make audit   known vulnerabilities of the pinned packages; needs the network  [PROFILE=cpu|gpu]'

repro: $(STAMP)
	@ril run --jobs 2 $(ARGS)

test: $(STAMP) $(TRACKERS_STAMP)
	@echo '== ruff'; ruff check .; ruff format --check .
	@echo '== mypy'; mypy
	@echo '== import rules'; lint-imports
	@echo '== dead code'; vulture
	@echo '== security'; bandit -q -c pyproject.toml -r flows stages studies 2> >(grep -v 'Test in comment\|no failed test' >&2)
	@echo '== pytest'; pytest -m '' --long $(LONG) -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 40 --durations-min 15 $(ARGS)

# In this order: each study takes records or learning rates of the one before.
studies: $(STAMP)
	@failed=0; for study in faulty_teachers figure1 ablation; do \
	  ril experiments run $$study --jobs $(JOBS) --commit-rates $(ARGS) || { failed=$$?; test $$failed -lt 128 || exit $$failed; }; \
	done; exit $$failed

# Asks the package index, downloads nothing. Pins are those of the lock; comments stay.
lock:
	@command -v uv > /dev/null || { echo 'make lock needs uv (pip install uv)' >&2; exit 2; }
	@grep '^#' $(LOCK) > $(LOCK).partial
	@sed -n 's/^\([A-Za-z0-9][^ ]*==[^ ]*\).*/\1/p' $(LOCK) | uv pip compile -q --no-deps --generate-hashes --no-header --no-annotate \
	  --python-version 3.11 - >> $(LOCK).partial
	@mv $(LOCK).partial $(LOCK)

audit:
	@.ci/audit $(LOCK)

install: $(STAMP)
	@echo 'Installed in $(VENV) ($(PROFILE)).'

install-trackers: $(TRACKERS_STAMP)
	@echo 'Installed the trackers in $(VENV).'

$(TRACKERS_STAMP): $(STAMP)
	@echo "Installing the trackers ($(TRACKERS))"
	@$(PIP) install -q --no-deps --require-hashes -r $(TRACKERS) $(QUIET)
	@touch $@

# The stamp's name holds a hash of everything that decides what is installed, so a second call installs nothing.
$(STAMP):
	@test '$(PROFILE)' = cpu -o '$(PROFILE)' = gpu || { echo "PROFILE is '$(PROFILE)'; use cpu or gpu" >&2; exit 2; }
	@test -n '$(PYTHON)' && '$(PYTHON)' -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Python 3.11 is needed, found $$($(PYTHON) --version 2>&1 || echo none); give one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@if test "$$(cat $(VENV)/profile 2>/dev/null || echo $(PROFILE))" != $(PROFILE); then \
	  echo '$(VENV) was made for another PROFILE; making it anew'; rm -rf $(VENV); fi
	@test -x $(BIN)/python || '$(PYTHON)' -m venv $(VENV)
	@rm -f $(VENV)/installed-*; echo $(PROFILE) > $(VENV)/profile
ifeq ($(PROFILE),cpu)
	@echo 'Installing the CPU build of torch ($(TORCH))'
	@$(PIP) install -q --no-deps --require-hashes -r $(TORCH) 2> $(VENV)/torch.log || { \
	  echo 'The configured package indexes lack it; trying $(TORCH_CPU_INDEX)'; \
	  $(PIP) install -q --no-deps --require-hashes --index-url '$(TORCH_CPU_INDEX)' -r $(TORCH) $(QUIET) || { \
	    echo 'The first attempt said:' >&2; grep -v 'is ignored: it is neither' $(VENV)/torch.log >&2; exit 1; }; }
	@rm -f $(VENV)/torch.log
endif
	@echo "Installing $$(grep -c == $(LOCK)) locked packages ($(LOCK)); the first time takes minutes"
	@$(PIP) install -q --no-deps --require-hashes -r $(LOCK) $(QUIET)
	@$(PIP) install -q --no-deps --no-build-isolation -e . $(QUIET)
	@touch $@
