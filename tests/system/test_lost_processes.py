"""A run outlives each process behind the coordinator's doors, and says within seconds that one has gone."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from server.home.checkpoints import latest
from tests.system.play import Play, Run, eventually, playing

pytestmark = pytest.mark.system

# What is noticed takes five seconds; Flower, and a site's own silence, take a minute.
SOONER_S = 40.0


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    with playing(tmp_path_factory.mktemp("play")) as play:
        yield play


def first_round(run: Run) -> None:
    eventually(lambda: run.events("round") and latest(run.folder), "a first round, and its checkpoint")


@pytest.mark.parametrize("word", ["flwr-serverapp", "flower-superexec", "server.coordinator.superlink"])
def test_run_goes_on_by_itself_to_the_same_model(play: Play, word: str, tmp_path: Path) -> None:
    run = play.propose(f"without-{word[-4:]}", rounds=4, steps=40)
    first_round(run)
    killed = play.child("coordinator", word)
    killed.kill()
    ended = run.ended()
    assert ended["state"] == "completed", ended
    assert run.events("run-started")[-1]["resumed-from"] >= 1
    assert run.model() == run.unbroken(tmp_path)


def server_apps(play: Play) -> set[int]:
    """Process ids of those that live."""
    family = psutil.Process(play.processes["coordinator"].pid).children(recursive=True)
    found = set()
    for one in family:
        with suppress(psutil.NoSuchProcess):
            if one.status() != psutil.STATUS_ZOMBIE and any("flwr-serverapp" in word for word in one.cmdline()):
                found.add(one.pid)
    return found


def test_dead_server_app_is_replaced_before_flower_would_notice(play: Play) -> None:
    run = play.propose("noticed", rounds=30, steps=40)
    first_round(run)
    killed = server_apps(play)
    for pid in killed:
        psutil.Process(pid).kill()
    eventually(lambda: server_apps(play) - killed, "another ServerApp", SOONER_S)
    play.server("stop", "noticed")


def test_server_app_that_dies_while_it_is_loaded_is_replaced_before_flower_would_notice(play: Play) -> None:
    before = server_apps(play)
    run = play.propose("stillborn", rounds=2)
    (killed,) = eventually(lambda: server_apps(play) - before, "a ServerApp")
    psutil.Process(killed).kill()
    assert not run.events("run-started")
    eventually(lambda: server_apps(play) - before - {killed}, "another ServerApp", SOONER_S)
    assert run.ended()["state"] == "completed"


def test_status_says_that_a_hospital_was_killed_and_that_it_is_back(play: Play) -> None:
    def connected() -> dict[str, str]:
        rows = json.loads(play.server("status", "--json"))
        return {row["what"].removeprefix("site "): row["state"] for row in rows if row["what"].startswith("site ")}

    eventually(lambda: set(connected().values()) == {"connected"}, "both are here")
    play.kill("north")
    eventually(lambda: connected() == {"north": "away", "south": "connected"}, "it is seen to be away", SOONER_S)
    play.start("north")
    eventually(lambda: connected()["north"] == "connected", "it is back")
