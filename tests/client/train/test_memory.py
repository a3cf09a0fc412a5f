"""What a strategy keeps at a site: sealed, the same for a round that is trained again, and gone after the run."""

import dataclasses
from pathlib import Path

import pytest
import torch

from client.home.folder import STRATEGIES_NAME
from client.site import Site
from client.train.answer import answer
from client.train.memory import recall, retain
from client.train.strategies import Kept
from common.config import RunConfig, SiteConfig
from common.config.rundocument import RunDocument, issue
from common.errors import PolicyError
from common.learning.checkpoint import pack
from common.learning.network import build_model, weights_of
from common.wire.messages import EvaluateRequest, Phase
from simulations.scenarios.homes import make_site
from tests.client.train.test_strategies import a_run
from tests.simulations.tiny import tiny_run_of_format, tiny_site

HASH, RUN = "ab" * 32, a_run("scaffold")  # of two rounds
DOCUMENT = RunDocument("", RUN, HASH)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path, SiteConfig(name="north"))


def kept(round_: int) -> Kept:
    states = {"sent": {"block.weight": torch.full((2, 3), 1.5 + round_)}, "correction": {"block.weight": torch.ones(2)}}
    return Kept(round_, states)


def long_run(rounds: int = 9, run: RunConfig = RUN) -> RunDocument:
    return RunDocument(
        "", run.model_copy(update={"federation": run.federation.model_copy(update={"rounds": rounds})}), HASH
    )


def files(site: Site) -> list[str]:
    folder = site.home / STRATEGIES_NAME
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.sealed"))


def test_what_a_round_left_comes_back_bit_for_bit(site: Site) -> None:
    assert recall(site, DOCUMENT, 1) is None
    retain(site, DOCUMENT, kept(1))
    found = recall(site, DOCUMENT, 2)
    assert found is not None
    assert found.round == 1
    assert found.states.keys() == {"sent", "correction"}
    assert torch.equal(found.states["sent"]["block.weight"], torch.full((2, 3), 2.5))
    assert recall(site, RunDocument("", RUN, "cd" * 32), 2) is None


def test_a_round_that_is_trained_again_finds_what_it_found_before(site: Site) -> None:
    run = long_run()
    for number in (1, 2, 3):
        retain(site, run, kept(number))
    assert files(site) == [f"{HASH}/2.sealed", f"{HASH}/3.sealed"]
    for again in (3, 3):
        found = recall(site, run, again)
        assert found is not None
        assert found.round == 2
    later = recall(site, run, 7)  # after rounds without this site
    assert later is not None
    assert later.round == 3


@pytest.mark.parametrize("number", [7, 9])
def test_a_round_after_rounds_without_this_site_may_be_trained_again_too(site: Site, number: int) -> None:
    """The last of nine among them."""
    run = long_run(9)
    for one in (3, number, number):
        retain(site, run, kept(one))
        found = recall(site, run, number)
        assert found is not None
        assert found.round == 3


def test_a_run_that_is_begun_anew_goes_on_from_nothing_that_an_earlier_start_left(site: Site) -> None:
    """As a policy with free evaluations allows."""
    run = long_run()
    for number in (1, 2, 3, 1):
        retain(site, run, kept(number))
    assert files(site) == [f"{HASH}/1.sealed"]
    later = recall(site, run, 3)  # it missed round 2 this time
    assert later is not None
    assert later.round == 1


def test_the_last_round_leaves_nothing_of_its_own(site: Site) -> None:
    retain(site, DOCUMENT, kept(1))
    retain(site, DOCUMENT, kept(2))
    assert files(site) == [f"{HASH}/1.sealed"]


@pytest.mark.parametrize("phase", ["validation", "test"])
def test_nothing_is_left_once_the_last_model_is_to_be_scored(tmp_path: Path, phase: Phase) -> None:
    """Also where no scores leave."""
    run = tiny_run_of_format(2, strategy={"kind": "feddyn"})
    site = make_site(tmp_path, tiny_site(tmp_path / "data", "north"))
    silent = dataclasses.replace(site, policy=site.policy.model_copy(update={"scores": "none"}))
    document = issue(run)
    retain(site, document, kept(1))
    for number in (1, 2):
        asked = EvaluateRequest(document.hash, number, phase, {"weights": pack(weights_of(build_model(run)))})
        with pytest.raises(PolicyError, match="no scores"):
            answer(asked, document, silent, "one")
        assert files(site) == ([f"{document.hash}/1.sealed"] if number == 1 else [])


def test_only_the_site_reads_it_and_only_in_its_place(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    run = long_run()
    retain(site, run, kept(1))
    path = site.home / STRATEGIES_NAME / HASH / "1.sealed"
    assert path.stat().st_mode & 0o077 == 0
    assert b"block" not in path.read_bytes()
    assert recall(dataclasses.replace(site, key=b"x" * 32), DOCUMENT, 2) is None
    assert "as if it were new" in caplog.text
    path.rename(path.with_name("3.sealed"))
    assert recall(site, DOCUMENT, 4) is None
    path.with_name("3.sealed").write_bytes(b"damaged")
    assert recall(site, DOCUMENT, 4) is None
