# Everything is done by deploy/bootstrap.py, so that `python deploy/bootstrap.py test` works without make.
PYTHON ?= python3
BOOTSTRAP = $(PYTHON) deploy/bootstrap.py

.PHONY: demo test check bench fuzz privacy setup lock clean

demo:  ## three hospitals train one U-Net on this machine; DATA=path/to/vessels uses real images
	@$(BOOTSTRAP) demo $(if $(DATA),--data "$(DATA)")

test:  ## every check: format, lint, types, imports, tests
	@$(BOOTSTRAP) test

check:  ## the quick checks: format, lint, types, imports
	@$(BOOTSTRAP) check

bench:  ## what a deployed round and an idle deployment cost
	@$(BOOTSTRAP) bench

fuzz:  ## 100,000 mutated images against the readers; COUNT=1000 for fewer
	@$(BOOTSTRAP) fuzz $(if $(COUNT),--count $(COUNT))

privacy:  ## the long proofs: epsilon on 117 histories against PLD, 200 kills of a private round
	@$(BOOTSTRAP) privacy

setup:  ## the environment in .venv, from requirements.lock
	@$(BOOTSTRAP) setup

lock:  ## resolve pyproject.toml anew into requirements.lock
	@$(BOOTSTRAP) lock

clean:  ## caches, builds and the demo's output; .venv stays
	@$(BOOTSTRAP) clean
