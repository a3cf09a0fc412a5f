"""Forty hospitals of which a round asks five: the same in every start, and nothing is spent at the others."""

from collections.abc import Callable
from pathlib import Path

import pytest

from client.data.deidentify.pseudonym import cohort_id
from client.data.isolate.isolation import Readers
from client.site import Site
from common.config import RunConfig
from common.config.rundocument import issue
from server.federation.events import Event, Summary, read_events
from server.federation.rounds import federate
from simulations.backends import open_sites
from simulations.backends.in_process import InProcessGrid
from simulations.scenarios.homes import make_site
from tests.simulations.tiny import tiny_run_of_format, tiny_site

SITES, PER_ROUND, ROUNDS = 40, 5, 3
FEDERATION = {"rounds": ROUNDS, "sites-per-round": PER_ROUND, "evaluate-every": ROUNDS}
RUN = tiny_run_of_format(2, federation=FEDERATION)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    tiny_site(folder, "all")
    return folder


def hospitals(folder: Path, images: Path, run: RunConfig) -> list[Site]:
    """All of them have the same pictures, which are read here once."""
    source = tiny_site(images, "all").data
    config = tiny_site(images, "all")
    sites = [
        make_site(folder, config.model_copy(update={"name": f"site-{number:02}", "data": source}))
        for number in range(SITES)
    ]
    with Readers(0) as readers:
        for site in sites:
            site.cohort(run, readers=readers)
    return sites


def go(folder: Path, images: Path, run: RunConfig, observe: Callable[[Event], None] | None = None) -> Summary:
    grid = InProcessGrid(hospitals(folder / "sites", images, run), issue(run))
    return federate(grid, issue(run), folder / "out", observe=observe, test=False)


def asked(folder: Path) -> list[list[str]]:
    return [event["sites"] for event in read_events(folder / "out" / "metrics.jsonl") if event["event"] == "asked"]


def test_a_run_that_is_killed_goes_on_to_the_same_model_bit_for_bit(tmp_path: Path, images: Path) -> None:
    whole = go(tmp_path / "whole", images, RUN)

    def stop(event: Event) -> None:
        if (event["event"], event.get("round")) == ("train", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", images, RUN, stop)
    resumed = go(tmp_path / "cut", images, RUN)
    assert resumed.model_sha256 == whole.model_sha256
    assert asked(tmp_path / "cut") == asked(tmp_path / "whole")
    assert [len(names) for names in asked(tmp_path / "whole")] == [PER_ROUND] * ROUNDS
    assert [one["not-asked"] for one in whole.sites_by_round] == [SITES - PER_ROUND] * ROUNDS


def test_a_site_that_is_not_asked_spends_nothing(tmp_path: Path, images: Path) -> None:
    run = tiny_run_of_format(
        2,
        federation=FEDERATION,
        privacy={"target-epsilon": 50.0, "sampling-rate": 0.5, "delta": 0.01},
    )
    summary = go(tmp_path, images, run)
    charged: dict[str, int] = {}
    for site in hospitals(tmp_path / "sites", images, run):
        cohort = cohort_id(site.key)
        charged[site.config.name] = sum(entry.cohort == cohort for entry in site.ledger.entries())
    trained = [name for names in asked(tmp_path) for name in names]
    assert charged == {name: trained.count(name) for name in charged}
    assert 0 in charged.values()
    assert summary.guarantee is not None
    assert set(summary.guarantee["sites"]) == set(trained)  # nothing is stated for the others


def test_no_more_than_so_many_sites_are_held_whatever_their_number(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = hospitals(tmp_path / "sites", images, RUN)
    monkeypatch.setattr(open_sites.OpenSites.__init__, "__defaults__", (4,))
    held: list[int] = []

    def look(event: Event) -> None:
        if event["event"] in ("train", "evaluate"):
            held.append(sum(site.has_read(RUN) for site in sites))

    federate(InProcessGrid(sites, issue(RUN)), issue(RUN), tmp_path / "out", observe=look, test=False)
    assert max(held) <= 5  # and the one at work
    assert len(held) >= SITES


def test_a_share_of_the_memory_is_for_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    for total, processes, share in ((4 << 30, 2, 512 << 20), (4 << 30, 1, 1 << 30), (256 << 30, 2, 2 << 30)):
        monkeypatch.setattr(open_sites, "total_memory", lambda total=total: total)
        assert open_sites.share_of_memory(processes) == share
