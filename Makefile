# One command each; every target that needs Python fills .venv by itself. Kept to GNU make 3.81, which macOS ships.

PYTHON ?= python3
UV_VERSION = 0.13.9

.DEFAULT_GOAL := help
.PHONY: help demo serve test soak emulators bench lint lock clean

# A stamp says: .venv holds what the lock says. `demo` and `serve` wait for the first only.
RUN = .venv/.filled-for-running
DEV = .venv/.filled-for-developing
UV = .venv/.uv-$(UV_VERSION)

# A key in the shell is never spent by a test: each variable that could lead to Google is unset by its name.
KEYLESS = env $(foreach name,$(filter GCLOUD_% GEMINI_% GOOGLE_%,$(.VARIABLES)),-u $(name))

help: ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "%-15s %s\n", $$1, $$2 }'

demo: $(RUN) ## one photo all the way through (PHOTO=me.jpg; REAL=1 spends money)
	@$(if $(filter-out 1,$(REAL)),$(error REAL=1 asks Google and spends money; REAL=$(REAL) means nothing))
	@.venv/bin/darkroom demo $(if $(PHOTO),--photo "$$PHOTO") $(if $(filter 1,$(REAL)),--real)

serve: $(RUN) ## the API on http://127.0.0.1:8080, its docs at /docs
	@.venv/bin/darkroom serve

test: $(DEV) ## every test but the long ones (ARGS="-k webhook" chooses)
	@$(KEYLESS) .venv/bin/python -m pytest $(ARGS)

soak: $(DEV) ## the long tests
	@$(KEYLESS) .venv/bin/python -m pytest -m soak $(ARGS)

emulators: $(DEV) ## Google's emulators, for darkroom serve --engine google (docs/cloud.md)
	@$(KEYLESS) .venv/bin/python -m tests.google.stack $(ARGS)

bench: $(DEV) ## measure the pipeline on this machine
	@$(KEYLESS) .venv/bin/python -m benchmarks.pipeline $(ARGS)

lint: $(DEV) ## ruff and mypy
	@status=0; \
	for check in "ruff check --quiet" "ruff format --check --quiet" mypy; do \
		echo "$$check"; .venv/bin/$$check || status=1; \
	done; exit $$status

# Never an index in a lock: whoever installs decides where packages come from, the hashes decide what they are.
COMPILE = .venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"
lock: $(UV) ## newest versions that pyproject.toml allows, with hashes, into both locks
	$(COMPILE) --output-file requirements.lock pyproject.toml
	$(COMPILE) --output-file requirements-dev.lock --constraint requirements.lock --group dev

clean: ## remove .venv, caches and .darkroom with every picture in it
	rm -rf .venv .darkroom .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Empty when a .venv can be made, or is there and runs; otherwise what to do, as one sentence.
PYTHON_PROBLEM = $(shell .venv/bin/python -c '' 2>/dev/null && exit; \
	version=`$(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null`; \
	other="choose another: make PYTHON=/path/to/python3.12 $(or $(MAKECMDGOALS),demo)"; \
	case "$$version" in \
	("") echo "Darkroom needs Python 3.11 or newer, and $(PYTHON) does not run here; $$other" ;; \
	(2.*|3.?|3.10) echo "Darkroom needs Python 3.11 or newer, and $(PYTHON) is $$version; $$other" ;; \
	(*) $(PYTHON) -c 'import ensurepip, venv' >/dev/null 2>&1 || \
	    echo "$(PYTHON) lacks its venv or pip module; install it (Debian: apt-get install python3-venv), or $$other" ;; \
	esac)

# uv reads no pip.conf: where only a mirror named there is reachable, pip takes over. Both hold to the hashes.
INSTALL = .venv/bin/uv pip install --quiet --python .venv/bin/python --require-hashes --compile-bytecode --requirement
INSTALL_SLOWLY = .venv/bin/python -m pip install -qq --disable-pip-version-check --require-hashes --requirement
HAND_OVER = echo "uv did not manage (.venv/uv.log says why), so pip installs; that takes a minute."

$(UV):
	@$(if $(PYTHON_PROBLEM),$(error $(PYTHON_PROBLEM)))
	@.venv/bin/python -c '' 2>/dev/null || echo "Setting up .venv, this once: about ten seconds, more where packages must be fetched."
	@.venv/bin/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@.venv/bin/python -m pip install -qq --disable-pip-version-check uv==$(UV_VERSION) || true
	@touch $@

$(RUN): $(UV) requirements.lock pyproject.toml
	@$(INSTALL) requirements.lock 2>.venv/uv.log || { $(HAND_OVER); $(INSTALL_SLOWLY) requirements.lock; }
	@.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --editable . 2>>.venv/uv.log \
	|| .venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps --editable .
	@touch $@

$(DEV): $(RUN) requirements-dev.lock
	@echo "Adding what tests and linting need to .venv."
	@$(INSTALL) requirements-dev.lock 2>.venv/uv.log || { $(HAND_OVER); $(INSTALL_SLOWLY) requirements-dev.lock; }
	@touch $@
