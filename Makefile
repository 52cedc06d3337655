# Everything works from a fresh clone with Python 3.11, make and gcc; each target does what set-up is missing, in .venv.
# TARGET=cpu or cuda; cuda is picked when nvidia-smi answers. pip's own variables (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS ...) are respected.
TARGET ?= $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
PYTHON ?= $(firstword $(shell command -v python3.11 python3))
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STAMP := $(VENV)/.ready-$(TARGET)
SHELL := /bin/bash

.PHONY: setup compare test suite-ci check gpu-kit mutations robustness fuzz kill-trials bench-targets bench-suites full-size peers peers-setup peers-traces slow clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info[:2] != (3, 11))" || { echo "Python 3.11 is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt -e ".[$(TARGET),dev]"
	@# TorchRec's metadata demands the CUDA build of FBGEMM: on CPU it is installed alone.
	if [ $(TARGET) = cpu ]; then $(PIP) --no-deps -c constraints.txt torchrec==1.8.0; fi
	$(BIN)/python -c "import torch, torchrec, fbgemm_gpu; print('torch', torch.__version__, 'torchrec', torchrec.__version__, 'fbgemm', fbgemm_gpu.__version__)"
	touch $@

compare: setup
	$(BIN)/ctrbench run suite=quick

# A process a core and one more, each with one thread: browsers and served requests wait much of the time. A file
# stays in one process, which makes its fixtures once. Pages are tested in headless Chromium; pytest says at its end, in red, when there is none. Screenshots: CTRBENCH_ARTEFACTS=folder.
WORKERS ?= $(shell expr $$(nproc) + 1)
test: setup
	@command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null || echo "NO CHROMIUM HERE: the report's browser tests will be skipped; apt-get install chromium" >&2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10

# Every ranking model through one small suite: the tests run it with three models, since all of them take minutes.
suite-ci: setup
	$(BIN)/ctrbench run suite=ci

slow: setup
	$(BIN)/python -m pytest -q -m slow

# docs/robustness.md: what happens to bad input of every kind, from what each command does.
robustness: setup
	$(BIN)/python -m tests.data.robust docs/robustness.md

# Files spoiled at random through every reader, ten minutes each; FUZZ="--seconds 30 --only nsys,kineto" takes less.
fuzz: setup
	$(BIN)/python -m tests.fuzz $(FUZZ)

# Signals at random moments of prepare, train, record and report: nothing half is taken for whole, nothing finished is lost.
# About half an hour; KILLS="--trials 40 --jobs report" takes less.
kill-trials: setup
	$(BIN)/python -m tests.kill_trials $(KILLS)

# Plants mistakes in a copy of the sources, one at a time: each must be caught. MODELS="fat din" takes some.
mutations: setup
	$(BIN)/python tests/mutations/run.py $(MODELS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=.typing $(BIN)/lint-imports

# Offline: the set-up must be done. What it measures is set against the predictions by `ctrbench score`.
gpu-kit: setup
	$(BIN)/python -m ctrbench.bench.gpu_kit $(KIT)

# Every target of speed: wanted, measured, verdict. GROUPS="kernels mfu" takes some; what is done is not measured again.
bench-targets: setup
	$(BIN)/python -m ctrbench.bench.targets $(GROUPS)

# Logs of the public ones' full sizes: generated, prepared, killed and prepared again. About 40 GB of disk and two hours;
# LOGS="criteo" takes one. What is done is not done again.
full-size: setup
	$(BIN)/python -m ctrbench.bench.full_size $(LOGS)

# pytest-benchmark; compare two files with `pytest-benchmark compare`. SUITES="kernels report" takes some.
SUITES ?= kernels datapath trace_ingest report models
bench-suites: setup
	mkdir -p runs/suites
	for suite in $(SUITES); do $(BIN)/python -m pytest -q -p no:cacheprovider bench/suites/test_$$suite.py --benchmark-json=runs/suites/$$suite.json || exit 1; done

# deepctr-torch pins old packages and FuxiCTR needs polars < 1.30, so each lives in an environment of its own beside ours.
peers-setup:
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	test -e .venv-peers/.ready || { .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0" numpy pandas scikit-learn tqdm h5py requests \
	  && .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps deepctr-torch==0.3.0 && touch .venv-peers/.ready; }
	test -x .venv-peers-fuxictr/bin/python || $(PYTHON) -m venv .venv-peers-fuxictr
	test -e .venv-peers-fuxictr/.ready || { .venv-peers-fuxictr/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0" numpy pandas scikit-learn tqdm h5py pyarrow PyYAML "polars<1.30" keras-preprocessing \
	  && .venv-peers-fuxictr/bin/python -m pip install --quiet --disable-pip-version-check --no-deps fuxictr==2.3.9 && touch .venv-peers-fuxictr/.ready; }

# The peers' logits are made anew and compared; then DeepFM, DCN-v2 and DIN of both train by turns with ours.
peers: setup peers-setup
	mkdir -p build/peers
	.venv-peers/bin/python tests/data/peers/make_golden.py build/peers
	.venv-peers-fuxictr/bin/python tests/data/peers/make_golden_fuxictr.py build/peers
	CTRBENCH_PEER_ARRAYS=build/peers $(BIN)/python -m pytest -q tests/reference/test_peers.py tests/reference/test_peers_fuxictr.py
	$(BIN)/python -m ctrbench.bench.peers $(PEERS)

# HolisticTraceAnalysis demands JupyterLab, which no analysis of it imports: what it does import is installed, itself alone.
TRACES ?= $(wildcard ../shared/traces/kineto/*.json.gz)
peers-traces: setup
	test -x .venv-peers-hta/bin/python || $(PYTHON) -m venv .venv-peers-hta
	test -e .venv-peers-hta/.ready || { .venv-peers-hta/bin/python -m pip install --quiet --disable-pip-version-check numpy pandas plotly networkx psutil PyYAML \
	  && .venv-peers-hta/bin/python -m pip install --quiet --disable-pip-version-check --no-deps HolisticTraceAnalysis==0.5.0 && touch .venv-peers-hta/.ready; }
	$(BIN)/python -m ctrbench.bench.peers_traces $(TRACES) --peer-python .venv-peers-hta/bin/python

clean:
	rm -rf $(VENV) .venv-peers .venv-peers-fuxictr .venv-peers-hta build dist *.egg-info
