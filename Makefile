# The same commands on a laptop and in CI. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV_READY := $(VENV)/.ready-dev

.DEFAULT_GOAL := help
.PHONY: help install serve test test-quick soak fleet-soak upgrade-check kills attack agents recording test-vllm bench-vllm test-sglang image-check compose-check ray-check bench-ray check format docs release-check clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-13s %s\n", $$1, $$2}'

install: $(READY) ## make the environment in .venv

serve: $(READY) ## serve the built-in model at http://127.0.0.1:8000
	@$(BIN)/penstock serve $(ARGS)

# Each worker takes whole files, as far as it goes: what a file's tests share is started once.
test: $(DEV_READY) ## run the tests
	@$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

# Without a browser, vLLM and the real model, and without tests that take minutes or an empty
# environment.
test-quick: $(DEV_READY) ## run the tests that take seconds and need no other program
	@$(BIN)/python -m pytest -n auto --dist worksteal -m "not browser" \
	    --ignore tests/faults --ignore tests/training --ignore tests/deploy --ignore tests/docs \
	    --ignore tests/foreign --ignore tests/real --ignore tests/test_wheel.py $(ARGS)

soak: $(DEV_READY) ## break streams in every way at once (ARGS="--minutes 60")
	@$(BIN)/python -m tests.faults.soak $(ARGS)

fleet-soak: $(DEV_READY) ## kill servers, engines and stores under streams (ARGS="--minutes 10")
	@$(BIN)/python -m tests.faults.fleet_soak $(ARGS)

upgrade-check: $(DEV_READY) ## run an older release beside this one, over one store (ARGS=COMMIT)
	@$(BIN)/python -m tests.deploy.upgrades $(ARGS)

kills: $(DEV_READY) ## kill upstreams under answers, 50 times (ARGS="--kills 10")
	@$(BIN)/python -m tests.engine.remote.kills $(ARGS)

attack: $(DEV_READY) ## attack a server in every way at once (ARGS="--minutes 10")
	@$(BIN)/python -m tests.attacks.mix $(ARGS)

agents: $(DEV_READY) ## run Claude Code, Codex and opencode on a task, and replay their turns
	@$(BIN)/python -m tests.agents $(ARGS)

recording: $(DEV_READY) ## record kill -9 in mid-sentence for the README (needs Chromium)
	@$(BIN)/python -m tests.page.recording docs/kill.webp $(ARGS)

# In an environment of its own, kept in ~/.cache/penstock: vLLM pins much.
test-vllm: ## run vLLM's tests (the first time downloads 1 GB)
	@vllm=$$($(PYTHON) -m tests.vllm.environment) && \
	    TEST_VLLM=1 PYTHONPATH=$(CURDIR) $$vllm/bin/python -m pytest tests/vllm $(ARGS)

test-sglang: ## run the tests in front of real SGLang servers (the first time downloads 1 GB)
	@sglang=$$($(PYTHON) -m tests.sglang.environment) && \
	    TEST_SGLANG=$$sglang $(PYTHON) -m pytest tests/sglang -p no:xdist $(ARGS)

bench-vllm: ## compare vLLM behind Penstock with vLLM's own server
	@vllm=$$($(PYTHON) -m tests.vllm.environment) && \
	    PYTHONPATH=$(CURDIR) $$vllm/bin/python -m benchmarks.vllm_server $(ARGS)

# In an environment of its own, kept in ~/.cache/penstock: Ray brings many packages.
ray-check: ## kill nodes and replicas of a Ray cluster (the first time downloads 200 MB)
	@ray=$$($(PYTHON) -m tests.ray.environment) && \
	    TEST_RAY=1 PYTHONPATH=$(CURDIR) $$ray/bin/python -m pytest tests/ray $(ARGS)

# As root: buildah, debootstrap and runc are Debian's packages.
image-check: $(DEV_READY) ## build the image of the Dockerfile and run containers of it (as root)
	@TEST_IMAGE=1 $(BIN)/python -m pytest tests/image $(ARGS)

# As root: debootstrap, setpriv, slirp4netns, unshare and nsenter are Debian's.
compose-check: $(DEV_READY) ## run the compose file in a Docker of its own and break it (as root)
	@TEST_COMPOSE=1 $(BIN)/python -m pytest tests/compose $(ARGS)

bench-ray: ## measure what Ray's proxy costs beside direct access
	@ray=$$($(PYTHON) -m tests.ray.environment) && \
	    PYTHONPATH=$(CURDIR) $$ray/bin/python -m benchmarks.ray_proxy $(ARGS)

check: $(DEV_READY) ## formatter, linter, strict types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(DEV_READY) ## format the code and mend what the linter can
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(DEV_READY) ## build the documentation as a site in build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html"

release-check: $(DEV_READY) ## check that this tree can be released (ARGS=0.2.0); see RELEASING.md
	@$(BIN)/python -m tools.release_check $(ARGS)

clean: ## remove the environment and every build output
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Penstock needs Python 3.11 or later; this is %s. Say PYTHON=/path/to/python3.11" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

# In setuptools' other mode, a folder named penstock hides the package from every program beside
# it. The folder of a clone has this name.
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check \
    --config-settings editable_mode=compat --editable

$(READY): pyproject.toml | $(VENV)/bin/python
	$(PIP_INSTALL) .
	@touch $@

$(DEV_READY): pyproject.toml | $(VENV)/bin/python
	$(PIP_INSTALL) '.[dev]'
	@touch $(READY) $@
