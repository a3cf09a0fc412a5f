"""What a strategy keeps at a site: sealed, the same for a round that is trained again, and gone after the last."""

import dataclasses
from pathlib import Path

import pytest
import torch

from client.home.folder import STRATEGIES_NAME
from client.site import Site
from client.train.memory import recall, retain
from client.train.strategies import Kept
from common.config import RunConfig, SiteConfig
from simulations.scenarios.scenario import make_site
from tests.client.train.test_strategies import a_run

HASH, RUN = "ab" * 32, a_run("scaffold")  # of two rounds


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path, SiteConfig(name="north"))


def kept(round_: int) -> Kept:
    states = {"sent": {"block.weight": torch.full((2, 3), 1.5 + round_)}, "correction": {"block.weight": torch.ones(2)}}
    return Kept(round_, states)


def long_run(rounds: int = 9) -> RunConfig:
    return RUN.model_copy(update={"federation": RUN.federation.model_copy(update={"rounds": rounds})})


def files(site: Site) -> list[str]:
    folder = site.home / STRATEGIES_NAME
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.sealed"))


def test_what_a_round_left_comes_back_bit_for_bit(site: Site) -> None:
    assert recall(site, HASH, 1) is None
    retain(site, RUN, HASH, kept(1))
    found = recall(site, HASH, 2)
    assert found is not None
    assert found.round == 1
    assert found.states.keys() == {"sent", "correction"}
    assert torch.equal(found.states["sent"]["block.weight"], torch.full((2, 3), 2.5))
    assert recall(site, "cd" * 32, 2) is None


def test_a_round_that_is_trained_again_finds_what_it_found_before(site: Site) -> None:
    run = long_run()
    for number in (1, 2, 3):
        retain(site, run, HASH, kept(number))
    assert files(site) == [f"{HASH}/2.sealed", f"{HASH}/3.sealed"]
    for again in (3, 3):
        found = recall(site, HASH, again)
        assert found is not None
        assert found.round == 2
    later = recall(site, HASH, 7)  # after rounds without this site
    assert later is not None
    assert later.round == 3


def test_after_the_last_round_nothing_is_left(site: Site) -> None:
    retain(site, RUN, HASH, kept(1))
    retain(site, RUN, HASH, kept(2))
    assert files(site) == []


def test_only_the_site_reads_it_and_only_in_its_place(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    run = long_run()
    retain(site, run, HASH, kept(1))
    path = site.home / STRATEGIES_NAME / HASH / "1.sealed"
    assert path.stat().st_mode & 0o077 == 0
    assert b"block" not in path.read_bytes()
    assert recall(dataclasses.replace(site, key=b"x" * 32), HASH, 2) is None
    assert "as if it were new" in caplog.text
    path.rename(path.with_name("3.sealed"))
    assert recall(site, HASH, 4) is None
    path.with_name("3.sealed").write_bytes(b"damaged")
    assert recall(site, HASH, 4) is None
