# trueport: everything starts from `python3`, `make` and a package index.
PYTHON ?= python3
UV_VERSION = 0.13.9
BIN = .venv/bin

.PHONY: demo test lint types tests tests-pipeline tests-runtime tests-export fast gpu sweep fidelity bench bench-input bench-train bench-ports bench-engines bench-serve bench-endurance bench-regressions requirements clean

demo: .venv/installed            ## train, export, check, bench: a LeNet from data to a verified bundle
	$(BIN)/trueport run digits --out runs/demo

test: lint types tests           ## what CI runs

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/installed
	$(BIN)/mypy pipeline models export runtime tests

tests: .venv/installed           ## two at a time, each in a process of its own: exports leave gigabytes in theirs
	@$(MAKE) --no-print-directory --jobs=2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) tests-pipeline tests-runtime tests-export

tests-pipeline: ; $(BIN)/python -m pytest tests/pipeline
tests-runtime: ; $(BIN)/python -m pytest tests/runtime tests/test_*.py
tests-export: ; $(BIN)/python -m pytest tests/export tests/models tests/bench

fast: .venv/installed            ## without the tests that take longer than a few seconds
	$(BIN)/python -m pytest -m "not slow"

gpu: .venv/installed             ## what only a machine with an NVIDIA GPU can show
	$(BIN)/uv pip install --quiet nvidia-curand
	$(BIN)/python -m pytest -m gpu -rs; tests=$$?; $(BIN)/python tests/bench/gpu.py && exit $$tests

sweep: .venv/installed           ## every architecture, and torchvision's and timm's families: train, export, check
	$(BIN)/python -W ignore tests/test_sweep.py
	$(BIN)/python -m pytest -m sweep tests/models

fidelity: .venv/installed        ## docs/fidelity.md: every planted fault, and every healthy export: make fidelity ARGS=--all
	$(BIN)/python -W ignore -m tests.fidelity.lab $(ARGS)

bench-regressions: .venv/installed ## false alarms and finds of the latency gate over 100 repetitions
	$(BIN)/python tests/bench/regressions.py

bench: .venv/installed           ## the figures of docs/numbers.md, on this machine
	$(BIN)/python tests/bench/figures.py

bench-input: .venv/installed     ## pictures decoded and augmented a second, beside Pillow and torchvision
	$(BIN)/python tests/bench/feeding.py

bench-train: .venv/installed     ## training throughput beside a plain PyTorch loop, on this machine
	$(BIN)/python tests/bench/training.py

bench-engines: .venv/installed   ## how long an engine of each architecture takes to build; needs no GPU
	$(BIN)/python tests/bench/engines.py

bench-ports: .venv/installed     ## tuned bundles beside their originals and bare libraries: make bench-ports BUNDLES="A B"
	$(BIN)/python tests/bench/ports.py $(BUNDLES)

bench-serve: .venv/installed     ## requests a second beside other servers, on this machine
	$(BIN)/python -m tests.bench.serving
	$(BIN)/python -m tests.bench.grpc_serving

bench-endurance: .venv/installed ## the server under ten times too much, for a million requests, and while models change
	$(BIN)/python -m tests.bench.endurance

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "trueport needs Python 3.11 or newer, found %s: make PYTHON=/path/to/python3.11" % sys.version.split()[0])'
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r requirements.txt
	$(BIN)/uv pip install --quiet --no-deps -e .
	touch $@

requirements:                    ## pin again from pyproject.toml, versions and hashes only
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--extra serve --extra train --extra timm --extra openvino --extra rtx --group dev pyproject.toml -o requirements.txt

clean:
	rm -rf .venv dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
