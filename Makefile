# On a fresh machine: Python >= 3.11, make and a network. Afterwards no network is needed.
# Chapters can be named: make run CHAPTERS="01 06"

PYTHON ?= $(shell command -v python3 || command -v python)
JOBS ?= 2
CHAPTERS ?=

# Paths are relative, so that the folder's own path may contain spaces.
PY := .venv/bin/python
INSTALLED := .venv/installed
REVEAL := build/npm/node_modules/reveal.js/dist/reveal.js

.PHONY: help run test lab check format execute bench mutants proof site slides student assignment clean install

help: ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /\1 - /p' Makefile

run: $(INSTALLED) ## execute the chapters and report what they verified (build/report.json)
	@$(PY) -m vi_tutorial run $(CHAPTERS) --jobs $(JOBS)

test: $(INSTALLED) ## lint, types, unit tests, then every chapter against its stored outputs
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest tests
	$(PY) -m pytest --nbval notebooks -n $(JOBS) --dist loadscope

lab: $(INSTALLED) ## open your own copies of the chapters (my_notebooks) in JupyterLab
	@$(PY) tools/lab.py

check: ## what continuous integration runs: test, then run
	@$(MAKE) test
	@$(MAKE) run

format: $(INSTALLED) ## format the code, and mend what the linter can mend
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

execute: $(INSTALLED) ## authors: make the notebooks from notebooks/src and execute them
	@$(PY) tools/execute.py $(CHAPTERS) --jobs $(JOBS)

bench: $(INSTALLED) ## compare with the peers (installs them; about ten minutes; see benchmarks/README.md)
	$(PY) -m pip install -c constraints.txt -e '.[bench]'
	$(PY) benchmarks/peers.py

site: $(INSTALLED) ## the chapters as a web site, from their stored outputs (build/site/index.html)
	@$(PY) tools/website.py

slides: $(INSTALLED) $(REVEAL) ## slides for lectures, made from the chapters (build/slides; npm fetches reveal.js)
	@$(PY) tools/slides.py $(CHAPTERS)

$(REVEAL):
	npm install --prefix build/npm --no-save --no-audit --no-fund --ignore-scripts reveal.js@6.0.2

mutants: $(INSTALLED) ## break the package on purpose and count what the tests and the chapters notice (about an hour)
	$(PY) tools/mutants.py
	$(PY) tools/mutants.py --domain
	$(PY) tools/mutants.py --chapters
	$(PY) tools/mutants.py --report

proof: mutants ## all that the page "Can the checks fail?" shows (about three hours; Linux, as root)
	$(PY) tools/cases.py
	$(PY) tools/reproduce.py

student: $(INSTALLED) ## the chapters without their solutions (build/student)
	@$(PY) tools/course.py student $(CHAPTERS)

assignment: $(INSTALLED) ## a course folder for nbgrader (build/course)
	@$(PY) tools/course.py assignment $(CHAPTERS)

clean: ## remove what was built; .venv and my_notebooks stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find vi_tutorial tests tools notebooks -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is a copy of what was installed from: a new date alone (a checkout, say) installs nothing.
$(INSTALLED): pyproject.toml constraints.txt
	@cat pyproject.toml constraints.txt | cmp -s - $@ || $(MAKE) --no-print-directory install
	@touch $@

install:
	@test -n "$(PYTHON)" || { echo "Python >= 3.11 is needed; none was found. Name one: make PYTHON=/path/to/python"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python >= 3.11 is needed; %s is %s. Name another: make PYTHON=python3.12" % (sys.executable, sys.version.split()[0]))'
	"$(PYTHON)" -m venv .venv
	$(PY) -m pip install -c constraints.txt -e '.[dev]'
	@cat pyproject.toml constraints.txt > $(INSTALLED)
