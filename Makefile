# Everything is done by deploy/bootstrap.py, so that `python deploy/bootstrap.py test` works without make.
PYTHON ?= python3
BOOTSTRAP = $(PYTHON) deploy/bootstrap.py

.PHONY: demo test check bench sites soak fuzz faults privacy ray docs images wheelhouse airgap audit release setup lock clean

demo:  ## three hospitals train one U-Net on this machine; DATA=path/to/vessels uses real images
	@$(BOOTSTRAP) demo $(if $(DATA),--data "$(DATA)")

test:  ## every check: format, lint, types, imports, tests
	@$(BOOTSTRAP) test

check:  ## the quick checks: format, lint, types, imports
	@$(BOOTSTRAP) check

bench:  ## what a deployed round and an idle deployment cost
	@$(BOOTSTRAP) bench

sites:  ## what 10, 25, 100 and 200 sites cost their coordinator; COUNT=50 for another number
	@$(BOOTSTRAP) sites $(if $(COUNT),--count $(COUNT))

soak:  ## 500 small rounds: do memory, descriptors and disk stay as they are; COUNT=100 for fewer
	@$(BOOTSTRAP) soak $(if $(COUNT),--count $(COUNT))

fuzz:  ## 100,000 mutated images against the readers; COUNT=1000 for fewer
	@$(BOOTSTRAP) fuzz $(if $(COUNT),--count $(COUNT))

faults:  ## 60 faults in a federation of real processes; COUNT=200, SEED=2, ONLY="kill" for others
	@$(BOOTSTRAP) faults $(if $(COUNT),--count $(COUNT)) $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only $(ONLY))

privacy:  ## the long proofs: epsilon on 117 histories against PLD, 200 kills of a private round
	@$(BOOTSTRAP) privacy

ray:  ## simulations on a Ray cluster: two nodes of this machine, one that dies, what a killed command leaves
	@$(BOOTSTRAP) ray

docs:  ## the pages as a site, in dist/site; warnings are errors
	@$(BOOTSTRAP) docs

images:  ## build both images by podman, and a federated round of a coordinator and two sites from them; WHEELHOUSE=path
	@$(BOOTSTRAP) images $(if $(WHEELHOUSE),--wheelhouse "$(WHEELHOUSE)")

wheelhouse:  ## dist/wheelhouse, which services are installed from; TORCH_INDEX=URL for another build of torch
	@$(BOOTSTRAP) wheelhouse $(if $(TORCH_INDEX),--torch-index "$(TORCH_INDEX)")

airgap:  ## both services installed without any route, and a round between them under systemd; as root
	@$(BOOTSTRAP) airgap

audit:  ## weaknesses of the code and of what it stands on, and secrets; PART=code, secrets or advisories for one alone
	@$(BOOTSTRAP) audit $(PART)

release:  ## dist/release: the wheel of this commit, built twice to the same bytes, and lists; to be signed by a person
	@$(BOOTSTRAP) release

setup:  ## the environment in .venv, from requirements.lock
	@$(BOOTSTRAP) setup

lock:  ## resolve pyproject.toml anew into requirements.lock and torch.lock
	@$(BOOTSTRAP) lock

clean:  ## caches, builds and the demo's output; .venv stays
	@$(BOOTSTRAP) clean
