"""A copy of a site's folder without its key tells nothing about who took part in what, and what it cost."""

import stat
from pathlib import Path

import pytest

from client.data.deidentify.pseudonym import cohort_id, pseudonym
from client.data.forget import forget
from client.site import Site
from client.train.answer import answer
from common.config import sha256_of
from common.config.rundocument import issue
from common.learning.checkpoint import pack
from common.learning.network import build_model
from common.privacy.guarantee import plan
from common.wire.messages import TrainRequest
from simulations.scenarios.homes import make_site
from tests.dresses import found_in
from tests.simulations.tiny import tiny_run, tiny_site

PRIVATE = tiny_run(privacy={"target-epsilon": 8.0, "sampling-rate": 0.5, "crops-per-patient": 1})
PLAIN = tiny_run()  # the kind of run whose split is kept
PATIENTS = 10
ATTEMPT = "message-4711.abcd"
# The declared number of patients is told to others anyway, and stands in the clear.
KEPT = ("ledger.sqlite", "splits.sealed", "splits.lock", "declared.json", "declared.lock")
# In the clear on purpose: the hospital writes them itself, and site.key is what the rest is sealed with.
OWN_WORDS = ("site.toml", "policy.toml", "site.key")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site that has trained with privacy and without, and forgotten a patient."""
    folder = tmp_path_factory.mktemp("hospital")
    made = make_site(folder, tiny_site(folder / "data", "north", patients=PATIENTS))
    for run in (PRIVATE, PLAIN):
        answer(
            TrainRequest(sha256_of(run), 1, {"weights": pack(build_model(run).state_dict())}), issue(run), made, ATTEMPT
        )
    removed = forget(made.home, made.key, made.config.data, "north-3")
    assert removed is not None
    assert removed.studies == 1
    return made


def test_no_file_names_a_patient_a_cohort_a_run_or_a_cost(site: Site) -> None:
    files = [path for path in site.home.rglob("*") if path.is_file() and path.name not in OWN_WORDS]
    names = {path.relative_to(site.home).as_posix() for path in files}
    assert {*(f"state/{name}" for name in KEPT), "forgotten.sealed"} <= names
    assert any(name.startswith("cache/") for name in names)
    patients = [f"north-{number}" for number in range(PATIENTS)]
    charged = site.ledger.entries()[0]
    words = [*patients, *(pseudonym(site.key, name) for name in patients), cohort_id(site.key)]
    words += [sha256_of(PRIVATE), sha256_of(PLAIN)]
    words += [ATTEMPT, str(plan(PRIVATE, PATIENTS).noise_multiplier), charged.charged_at, "train", "seed", "epsilon"]
    words += [str(site.home.parent / "data"), site.key.hex()]
    assert found_in([*words, site.key], files) == []


def test_what_is_kept_is_its_owners_alone(site: Site) -> None:
    kept = [site.home / "forgotten.sealed", *(site.home / "state").iterdir()]
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in kept} == dict.fromkeys(
        ("forgotten.sealed", *KEPT), 0o600
    )


def test_search_would_find_what_the_ledger_held_in_the_clear(site: Site, tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_text(repr(site.ledger.entries()))
    assert found_in([sha256_of(PRIVATE)], [tmp_path / "ledger.sqlite"]) == [("ledger.sqlite", sha256_of(PRIVATE))]
