"""A run outlives each process behind the coordinator's doors, and says within seconds that one has gone."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.system.play import Play, Run, eventually, playing

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    with playing(tmp_path_factory.mktemp("play")) as play:
        yield play


def first_round(run: Run) -> None:
    eventually(lambda: run.events("round"), "a first round")


@pytest.mark.parametrize("word", ["flwr-serverapp", "flower-superexec", "server.superlink"])
def test_run_goes_on_by_itself_to_the_same_model(play: Play, word: str, tmp_path: Path) -> None:
    run = play.propose(f"without-{word[-4:]}", rounds=4, steps=40)
    first_round(run)
    killed = play.child("coordinator", word)
    killed.kill()
    ended = run.ended()
    assert ended["state"] == "completed", ended
    assert run.events("run-started")[-1]["resumed-from"] >= 1
    assert run.model() == run.unbroken(tmp_path)


def test_dead_server_app_is_replaced_within_seconds(play: Play) -> None:
    run = play.propose("noticed", rounds=30, steps=40)
    first_round(run)
    killed = play.child("coordinator", "flwr-serverapp")
    killed.kill()
    started = time.monotonic()

    def replaced() -> bool:
        family = psutil.Process(play.processes["coordinator"].pid).children(recursive=True)
        alive = [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        return any("flwr-serverapp" in " ".join(one.cmdline()) and one.pid != killed.pid for one in alive)

    eventually(replaced, "another ServerApp", 30.0)
    # Noticed at once, a pause of a second, and the SuperExec's next look; a minute was Flower's own patience.
    assert time.monotonic() - started < 10.0
    play.server("stop", "noticed")


def test_status_says_within_five_seconds_that_a_hospital_was_killed_and_that_it_is_back(play: Play) -> None:
    def connected() -> dict[str, str]:
        rows = json.loads(play.server("status", "--json"))
        return {row["what"].removeprefix("site "): row["state"] for row in rows if row["what"].startswith("site ")}

    eventually(lambda: set(connected().values()) == {"connected"}, "both are here")
    play.kill("north")
    time.sleep(5.0)
    assert connected() == {"north": "away", "south": "connected"}
    play.start("north")
    eventually(lambda: connected()["north"] == "connected", "it is back")
