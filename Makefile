# `make help` lists the targets. On a machine whose Python already has torch: `make bench USE_SYSTEM=1`.
PY ?= python3
VENV ?= .venv
USE_SYSTEM ?=
ARGS ?=
RESULTS ?= results/local
SUBMISSION ?= .
# BEGIN INSTRUCTOR
FORMAT ?= table
# END INSTRUCTOR

# About a minute on two CPU cores, busy ones too; a flag given again in ARGS wins.
FIRST_MINUTE = --model tiny,small --context-length 128 --warmup-steps 1 --steps 5 --max-seconds 30
# What `make results` measures; takes a while, and a rerun continues where it stopped.
REFERENCE = --model small,medium --context-length 128 --warmup-steps 0,1,5 --steps 10 --max-seconds 600
# BEGIN INSTRUCTOR
# What `make gpu` measures with and without kernels.
ON_GPU = --model small,medium,large,xl,2.7B --context-length 1024 --precision bf16 --warmup-steps 2 --steps 10 \
  --max-seconds 20

# What `make sweep-inference` measures.
INFERENCE = --model gpt2-124m --engine ours,hf --precision fp32,bf16 --prompt-len 64 --new-tokens 32 \
  --batch-size 1,2,4,... --memory-limit-gib 0.75 --runs 3 --max-seconds 20 --threads 2 \
  --layout points,memory,frontier,bigcode,bloom,cpu
# What `make gpu` generates, in the shape of the BigCode benchmark.
GENERATE_ON_GPU = --model gpt2-mha-1.3b,bloom-1.3b --engine ours-compiled,hf --precision bf16 --prompt-len 8 \
  --new-tokens 100 --batch-size 1,64,512 --runs 3 --max-seconds 15
# END INSTRUCTOR

ifeq ($(USE_SYSTEM),1)
export PYTHONPATH := .
PYTHON := $(PY)
READY := check-system
PYTEST_FLAGS ?=
else
PYTHON := $(VENV)/bin/python
READY := $(VENV)/ready
PYTEST_FLAGS ?= -n 2
endif

.DEFAULT_GOAL := help
.PHONY: help setup bench results peers attention profile writeup-new measure writeup submission leaderboard test \
  check lint format clean check-system FORCE
# BEGIN INSTRUCTOR
.PHONY: kernels sweep-inference check-answers grade handout gpu tune kernels-aot check-gpu
# END INSTRUCTOR

help:  ## list the targets and the variables
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo 'Variables: ARGS="--flag value" (passed on)   PY=python3.12   VENV=folder   RESULTS=folder   SUBMISSION=folder   USE_SYSTEM=1 (no venv, no install)'

setup: $(READY)  ## create or refresh .venv with the tested versions (the others do it when needed)
	@echo 'ready: $(PYTHON)'

bench: $(READY)  ## time tiny and small in about a minute; more with ARGS="--model medium"
	$(PYTHON) benchmark.py $(FIRST_MINUTE) $(ARGS)

results: $(READY)  ## measure and plot the reference cases into RESULTS=results/local; a rerun continues
	mkdir -p $(RESULTS)
	$(PYTHON) benchmark.py $(REFERENCE) --output $(RESULTS)/training_step.jsonl --resume $(ARGS)
	$(PYTHON) -m cs_systems.report plot $(RESULTS)/training_step.jsonl --output-dir $(RESULTS)

peers: $(READY)  ## our model beside the Hugging Face model of the same shape and weights
	$(PYTHON) -m cs_systems.bench.peers $(ARGS)

attention: $(READY)  ## attention functions against each other, in turns; a small grid where there is no GPU
	$(PYTHON) -m cs_systems.bench.attention $(ARGS)

# BEGIN INSTRUCTOR
kernels: $(READY)  ## each fused kernel against eager, compiled and PyTorch's own, with the copy rate
	$(PYTHON) -m cs_systems.bench.kernels $(ARGS)

# END INSTRUCTOR
# With a GPU and nsys the run is recorded by nsys; otherwise by torch.profiler. The tables are the same.
profile: $(READY)  ## where the time of a step goes: tables and a page in results/local/profile
	@mkdir -p results/local/profile
	@if command -v nsys >/dev/null && $(PYTHON) -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then \
	  set -ex; nsys profile -t cuda,nvtx,cublas,osrt --sample=none --cpuctxsw=none -c cudaProfilerApi \
	    --capture-range-end=stop -f true -o results/local/profile/nsys \
	    $(PYTHON) profiling/run.py --name nsys --context-length 128 $(ARGS); \
	  $(PYTHON) profiling/run.py report results/local/profile/nsys.nsys-rep --html results/local/profile/nsys.html; \
	else set -ex; $(PYTHON) profiling/run.py --context-length 128 $(ARGS); fi

# BEGIN INSTRUCTOR
# Memory is limited so that the frontier can be seen on a machine with much of it; about five minutes.
sweep-inference: $(READY)  ## generate text at growing batch sizes until memory runs out; tables and plots into RESULTS
	mkdir -p $(RESULTS)
	$(PYTHON) -m cs_systems.bench.generation $(INFERENCE) --output $(RESULTS)/generation.jsonl --resume \
	  --plots $(RESULTS) $(ARGS)

# END INSTRUCTOR
writeup-new: $(READY)  ## create writeup/answers.md, which is yours from then on; never overwrites
	$(PYTHON) writeup/run.py new $(ARGS)

measure: $(READY)  ## measure what the tables of the write-up still need, into results/local
	$(PYTHON) writeup/run.py measure $(ARGS)

# BEGIN INSTRUCTOR
check-answers: $(READY)  ## check the answers in writeup/answers.md; says what is wrong, not what is right
	$(PYTHON) writeup/run.py check $(ARGS)

# END INSTRUCTOR
writeup: $(READY)  ## build/writeup.md, .html and .pdf from the answers and your records
	$(PYTHON) writeup/run.py build $(ARGS)

# BEGIN INSTRUCTOR
# Student code may hang, crash or leave processes behind: the grader contains it, and one test costs one test.
grade: $(READY)  ## points of the code in SUBMISSION=folder; FORMAT=table, gradescope, json, md or junit
	@$(PYTHON) tests/graded/grade.py --submission "$(SUBMISSION)" --format $(FORMAT) $(ARGS)

# END INSTRUCTOR
submission: $(READY)  ## pack dist/submission.zip: code, answers and records, with a list of hashes
	$(PYTHON) -m cs_systems.grading.submission $(ARGS)

leaderboard: $(READY)  ## time the flash attention of SUBMISSION=folder, check its results, show the board
	$(PYTHON) -m cs_systems.bench.leaderboard --submission "$(SUBMISSION)" $(ARGS)

# BEGIN INSTRUCTOR
handout: $(READY)  ## write dist/handout, the starter tree for students: everything but the solutions
	$(PYTHON) -m cs_systems.grading.handout $(ARGS)

# END INSTRUCTOR
# BEGIN INSTRUCTOR
# Every step is bounded, the whole should take a quarter of an hour, and each record is on disk once it is measured.
gpu: $(READY) check-gpu  ## on a GPU machine: tests, then attention, kernels, training and inference into RESULTS
	mkdir -p $(RESULTS) && rm -f $(RESULTS)/tests-failed
	$(PYTHON) -m pytest -q $(PYTEST_FLAGS) tests/unit/kernels tests/unit/inference tests/unit/mixed_precision \
	  tests/unit/test_device.py || touch $(RESULTS)/tests-failed
	$(PYTHON) -m cs_systems.bench.attention --preset leaderboard --output $(RESULTS)/attention.jsonl --resume
	$(PYTHON) -m cs_systems.bench.attention --preset gpu --output $(RESULTS)/attention.jsonl --resume
	$(PYTHON) -m cs_systems.bench.kernels --output $(RESULTS)/kernels.jsonl --resume
	$(PYTHON) benchmark.py $(ON_GPU) --output $(RESULTS)/training_step.jsonl --resume
	$(PYTHON) benchmark.py $(ON_GPU) --attention flash --kernels all --optimizer triton \
	  --output $(RESULTS)/training_step.jsonl --resume
	$(PYTHON) -m cs_systems.bench.generation $(GENERATE_ON_GPU) --output $(RESULTS)/generation.jsonl --resume
	@test ! -e $(RESULTS)/tests-failed || { echo 'The benchmarks ran, but tests failed: see above.' >&2; exit 1; }

tune: $(READY) check-gpu  ## on a GPU machine: measure tile sizes and keep the best for this device
	$(PYTHON) -m cs_systems.kernels.tune $(ARGS)

kernels-aot: $(READY)  ## compile every shipped kernel for sm_80 and sm_90 without a GPU, and check what came out
	$(PYTHON) -m cs_systems.kernels.aot $(ARGS)

# END INSTRUCTOR
test: $(READY)  ## run the tests; fewer with ARGS="-k adamw"
	$(PYTHON) -m pytest -q $(PYTEST_FLAGS) $(ARGS)

lint: $(READY)  ## ruff and pyright, changing nothing
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PYTHON) -m pyright --pythonpath $(PYTHON)

check: lint test  ## all that a change must pass: lint, then test

format: $(READY)  ## lay out the code and fix what ruff can fix
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

clean:  ## remove caches and built output; results and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

check-system:
	@$(PY) -c 'import torch' 2>/dev/null || { \
	  echo 'USE_SYSTEM=1: $(PY) cannot import torch, and this mode installs nothing.'; \
	  echo 'Name a Python that has it (PY=...), or leave USE_SYSTEM out to get a .venv.'; exit 1; } >&2

# BEGIN INSTRUCTOR
check-gpu:
	@$(PYTHON) -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null || { \
	  echo 'No usable GPU here: this target is for a machine with an NVIDIA GPU and a CUDA build of torch.'; \
	  echo 'There: make tune USE_SYSTEM=1, or make gpu USE_SYSTEM=1 RESULTS=results/local/NAME.'; \
	  echo 'Without one: make attention, make kernels, make profile.'; \
	  exit 1; } >&2

# END INSTRUCTOR
# `ready` is written last: whatever interrupts a set-up, the next make continues it. `incomplete` stands in a
# folder that was never ready: that one is built anew. A pip that was cut short later on just runs again.
# FORCE: a venv whose Python is gone, because the system's was upgraded, is not ready whatever the dates say.
$(VENV)/ready: pyproject.toml constraints.txt $(shell test -x $(VENV)/bin/python || echo FORCE)
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'Python 3.11 or newer is needed, and $(PY) is missing or older. Try: make PY=python3.12'; exit 1; } >&2
	@$(PY) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo '$(PY) cannot create virtual environments. On Debian and Ubuntu: apt install python3-venv'; exit 1; } >&2
	@if [ -d $(VENV) ] && [ ! -e $(VENV)/pyvenv.cfg ] && [ ! -e $(VENV)/incomplete ]; then \
	  echo 'VENV=$(VENV) is a folder but no virtual environment; nothing was changed. Choose another.' >&2; exit 1; fi
	@if [ -e $(VENV)/incomplete ] || ! $(VENV)/bin/python -m pip --version >/dev/null 2>&1; then \
	  echo 'creating $(VENV)'; rm -rf $(VENV); \
	  mkdir -p $(VENV) && touch $(VENV)/incomplete && $(PY) -m venv $(VENV); fi
	@echo 'installing the tested versions into $(VENV) (minutes the first time)'
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev,report,peers]'
	@rm -f $(VENV)/incomplete && touch $@
