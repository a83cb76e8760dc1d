# The project's commands. `make demo` and `make test` set up what they need from nothing but make and Python 3.11 or 3.12.
#
#   PYTHON=/path/to/python   the interpreter to build the environment with (default: the first suitable one on the path)
#   TORCH_INDEX=<url>        a further package index for torch. Where your default index serves a CUDA build (5 GB more),
#                            give the CPU index named on PyTorch's Get Started page
#   HTTP_PORT, GRPC_PORT, METRICS_PORT   ports for the demo's server (default: free ones)
#   DEMO, PYTEST             more arguments: make demo DEMO=--report-only, make test PYTEST="tests/serve -x"

STARTED := $(shell date +%s)

VENV := .venv
PYTHON_IN := $(VENV)/bin/python
# The environment is ready when it was built from this lock, in this folder (its paths are absolute).
READY := $(VENV)/ready-$(shell echo "$(CURDIR)" | cat - requirements.lock | sha256sum | cut -c1-16)
PROJECT := $(VENV)/project-$(shell cat pyproject.toml clients/pyproject.toml | sha256sum | cut -c1-16)

TYPED := train export serve benchmarks clients/bet_client verdict.py demo.py preflight.py
PORTS_ASKED := $(foreach name,HTTP_PORT GRPC_PORT METRICS_PORT,$(if $($(name)),--port $(name)=$($(name))))
SERVER_PORTS := $(if $(HTTP_PORT),--http-port $(HTTP_PORT)) $(if $(GRPC_PORT),--grpc-port $(GRPC_PORT)) \
	$(if $(METRICS_PORT),--metrics-port $(METRICS_PORT))
PREFLIGHT := python=; for name in python3 python3.11 python3.12 "$(PYTHON)"; do \
	if [ -n "$$name" ] && "$$name" -c 0 >/dev/null 2>&1; then python="$$name"; break; fi; done; \
	if [ -z "$$python" ]; then echo "preflight: no Python was found; install Python 3.11 or 3.12." >&2; exit 2; fi; \
	"$$python" preflight.py --python "$(PYTHON)"

export PIP_DISABLE_PIP_VERSION_CHECK = 1
# On a machine shared with others, OpenMP threads that spin while they wait slow torch down many times over.
export OMP_WAIT_POLICY = passive

.DEFAULT_GOAL := help
.PHONY: help preflight env demo test test-heavy lint format lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

preflight:
	@$(PREFLIGHT) $(if $(wildcard $(READY)),--environment $(VENV)) $(PORTS_ASKED) >/dev/null

$(READY): | preflight
	@echo "setting up $(VENV): about two minutes and 2.2 GB, once"
	@interpreter=$$($(PREFLIGHT)) && "$$interpreter" -m venv --clear $(VENV)
	@$(PYTHON_IN) -m pip install $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") -r requirements.lock
	@touch $@

# Nothing is resolved here: the lock holds everything, the build backend too.
$(PROJECT): $(READY)
	@$(PYTHON_IN) -m pip install --quiet --no-deps --no-build-isolation -e . -e ./clients
	@touch $@

env: preflight $(PROJECT) ## make the environment in .venv from requirements.lock

demo: env ## train, export, serve, predict and load-test; prints what it measured
	@$(PYTHON_IN) demo.py --started $(STARTED) $(SERVER_PORTS) $(DEMO)

# The temporary folders lie inside the project so that coverage sees the copies of model.py that Triton runs there.
test: env ## the tests, with coverage (PYTEST="tests/serve -x" for a part)
	@mkdir -p build
	@$(PYTHON_IN) -m pytest -m "not heavy" --basetemp build/tests $(or $(PYTEST),--cov)

test-heavy: env ## the tests marked heavy: minutes each
	@$(PYTHON_IN) -m pytest -m heavy $(PYTEST)

lint: env ## ruff and mypy, as CI runs them
	@$(PYTHON_IN) -m ruff check .
	@$(PYTHON_IN) -m ruff format --check .
	@$(PYTHON_IN) -m mypy $(TYPED)

format: env ## let ruff format the code and sort its imports
	@$(PYTHON_IN) -m ruff check --select I --fix --quiet .
	@$(PYTHON_IN) -m ruff format .

lock: ## write requirements.lock anew from the bounds in pyproject.toml (in a fresh environment)
	@interpreter=$$($(PREFLIGHT)) && "$$interpreter" -m venv --clear build/lock
	@build/lock/bin/python -m pip install $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") -e ".[dev]" -e ./clients
	@{ echo "# The exact versions that were tested, direct and transitive. Written by make lock; change pyproject.toml instead."; \
		build/lock/bin/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+[A-Za-z0-9.]*$$//' | LC_ALL=C sort -f; } \
		> build/requirements.lock
	@if grep -n '@' build/requirements.lock; then echo "lock: these are not versions of an index" >&2; exit 1; fi
	@mv build/requirements.lock requirements.lock && rm -rf build/lock && echo "wrote requirements.lock"

clean: ## remove the environment, everything the commands made, and caches
	@rm -rf $(VENV) build *.egg-info clients/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
