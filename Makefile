# make notebooks   set everything up and execute the five notebooks in order (VCUTILS_PROFILE, VCUTILS_CORPUS and
#                  VCUTILS_SET choose; FROM=2 leaves out those before)
# make test        set everything up, lint, and pass the tests, with the short half of the matrix, two jobs at a time
# make matrix      the five notebooks with every profile on every kind of corpus, a line of a table each: about
#                  half an hour on 2 busy cores, the short half 3.5 minutes; MATRIX="--keep X" leaves what ran in X
# make lab         open the notebooks in JupyterLab
# make lowest      the tests once more, on the lowest versions that requirements.txt allows
# make site        all of it as one folder of HTML to read offline: data/site/index.html
# make slides      slides for the six sessions of docs/lecturers.md: data/slides/index.html
# make audit       known vulnerabilities of what is installed (needs the network)
# make bench       measured ratios against plain loops
# make gpu         what only a GPU shows, measured within 8 minutes on one card, into docs/performance.md; skipped without one
# make captioner   maintainers: renew vcutils/captioner/ (docs/results.md): make captioner RUN=<run> CLIPS=<corpus>
# make outputs     maintainers: renew the committed outputs from the .py twins, on the sample profile; notebook 04 shows
#                  the ablations only where `python -m vcutils ablate data/corpora/sample --seeds 2` ran before
# make clean       remove artifacts and caches, keep .venv
#
# The CPU build of torch instead of the platform's default (README, "Choosing a torch"):
#   make notebooks TORCH_INDEX=<the CPU index that pytorch.org names>
# With uv in place of pip, which finds out itself whether there is a GPU: make notebooks UV=1

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
UV ?=
READY := $(VENV)/.ready
BIN := $(VENV)/bin
INSTALL := $(if $(UV),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install)
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
FROM ?= 1
SOURCES := vcutils tests notebooks docs/site
LESSON := $(patsubst %,vcutils/%.py,config corpus video features vocab dataset model decode train)
export PYTHONUTF8 := 1

LOWEST := torch torchvision numpy timm accelerate safetensors filelock nltk anywidget tqdm tyro jupyterlab jupytext nbconvert latex2mathml \
  nbval pycocoevalcap codespell

.PHONY: setup notebooks test matrix lint lowest site slides audit bench gpu lab captioner outputs clean

setup: $(READY)

$(READY): requirements.txt pyproject.toml
	$(if $(UV),uv venv --quiet --allow-existing --python $(PYTHON),$(PYTHON) -m venv) $(VENV)
	@$(BIN)/python -c "import torch" 2>/dev/null || $(if $(TORCH_INDEX),$(INSTALL) --index-url $(TORCH_INDEX) torch torchvision,\
	$(if $(UV),$(INSTALL) --torch-backend auto torch torchvision || )\
	echo "torch is not installed yet: on Linux the default wheel brings CUDA, about 3 GB to download. For the small CPU build stop now and see README, Choosing a torch.")
	$(INSTALL) -r requirements.txt -e .
	@touch $@

notebooks: $(READY)
	@out=$$($(BIN)/python -c "from vcutils.config import Config; print(Config.from_env().artifacts / 'notebooks')") && \
	echo "what each stage does is told in $$(dirname "$$out")/log.txt" && \
	for notebook in $(wordlist $(FROM),9,$(NOTEBOOKS)); do \
	  $(BIN)/jupyter-nbconvert --log-level WARN --execute --to notebook --output-dir "$$out" $$notebook && \
	  echo "done: $$out/$$(basename $$notebook)" || exit 1; \
	done && \
	$(BIN)/python -m vcutils.course.export "$$out" && \
	echo "to read: $$out/*.html"

test: $(READY) $(VENV)/.site $(VENV)/.scale lint
	@bash tests/browser/ensure_chromium.sh
	$(BIN)/python tests/run_all.py

matrix: $(READY)
	$(BIN)/python tests/matrix/run.py $(MATRIX)

lint: $(READY)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff check --line-length 100 $(LESSON)
	$(BIN)/ruff format --check --line-length 100 $(LESSON)
	$(BIN)/ruff format --check tests docs/site vcutils/cli.py vcutils/*/
	$(BIN)/mypy
	$(BIN)/codespell --skip vcutils/captioner/vocab.json vcutils tests notebooks README.md docs data/README.md Makefile

lowest:
	$(PYTHON) -m venv $(VENV)-lowest
	for name in $(LOWEST); do sed -nE "s/^($$name)>=([0-9.]+).*/\1==\2/p" requirements.txt; done > $(VENV)-lowest/lowest.txt
	$(VENV)-lowest/bin/python -m pip install -r requirements.txt -c $(VENV)-lowest/lowest.txt -e .
	$(VENV)-lowest/bin/python -m pytest

# What only clusters and corpora of 100,000 clips need, and an S3 server for their tests; not part of `make setup`
$(VENV)/.scale: pyproject.toml $(READY)
	$(INSTALL) --quiet -e '.[scale]' 'moto[server]>=5,<6'
	@touch $@

$(VENV)/.site: docs/site/requirements.txt $(READY)
	$(INSTALL) --quiet -r $<
	@touch $@

site: $(VENV)/.site
	$(BIN)/python docs/site/make_site.py

slides: $(READY)
	$(BIN)/python -m vcutils.course.slides notebooks data/slides

audit: $(READY)
	$(INSTALL) --quiet pip-audit
	$(BIN)/python -m pip_audit --local

bench: $(READY)
	$(BIN)/python tests/benchmarks/run.py

gpu: $(READY)
	$(BIN)/python -m pytest tests/gpu -k "cuda and not cpu"

lab: $(READY)
	$(BIN)/jupyter lab notebooks

captioner: $(READY)
	$(BIN)/python tests/benchmarks/captioner.py $(RUN) $(CLIPS)

outputs: $(READY)
	for notebook in $(NOTEBOOKS:.ipynb=); do \
	  $(BIN)/jupytext --quiet --update --to notebook $$notebook.py && \
	  VCUTILS_PROFILE=sample VCUTILS_CORPUS= TQDM_DISABLE=1 $(BIN)/jupyter-nbconvert --log-level WARN --execute --inplace \
	    --to notebook --ExecutePreprocessor.store_widget_state=False --ExecutePreprocessor.record_timing=False $$notebook.ipynb || exit 1; \
	done

clean:
	find data -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
	rm -rf .pytest_cache .ruff_cache .mypy_cache *.egg-info
	find vcutils tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
