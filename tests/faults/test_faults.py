"""A run outlives each process of its federation, and says within seconds that one has gone. More: `make faults`."""

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from server.home.checkpoints import latest
from tests.faults.kinds import faults
from tests.faults.line import why_lossless
from tests.faults.stage import Stage, staged
from tests.faults.trial import under_fire
from tests.patience import eventually
from tests.system.play import Run

pytestmark = pytest.mark.system

# What is noticed takes five seconds; Flower, and a site's own silence, take a minute.
SOONER_S = 55.0
# Each process once, in an order and at moments that follow from this.
SEED = 5


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("play")) as stage:
        yield stage


def first_round(run: Run) -> None:
    eventually(lambda: run.events("round") and latest(run.folder), "a first round, and its checkpoint")


@pytest.mark.timeout(1800)  # a minute on two cores, and more where others use them too
def test_run_goes_on_by_itself_to_the_same_model_whichever_process_is_killed(play: Stage, tmp_path: Path) -> None:
    draw = random.Random(SEED)  # noqa: S311 - which process to kill is no secret
    by_kind, _ = faults(play)
    kills = [draw.choice(ones) for kind, ones in sorted(by_kind.items()) if kind.startswith("kill ")]
    draw.shuffle(kills)
    run = play.propose("killed", rounds=10, steps=5)
    struck, verdict = under_fire(run, iter(kills), draw, lambda: run.unbroken(tmp_path), most=len(kills))
    assert verdict.wrong == []
    assert (verdict.state, verdict.failures) == ("completed", [])
    assert [one.name for one in struck] == [one.name for one in kills][: len(struck)]
    assert len(struck) >= len(kills) - 2, "the run was over before it was struck"


def test_run_over_lines_that_lose_packets_ends_with_the_same_model(play: Stage, tmp_path: Path) -> None:
    if (why := why_lossless()) is not None:
        pytest.skip(why)
    with play.lines["north"].lossy(10), play.lines["south"].lossy(10):
        run = play.propose("lossy", rounds=3)
        assert run.ended()["state"] == "completed"
    assert run.model() == run.unbroken(tmp_path)
    assert all(line.lost for line in play.lines.values())


def soon(check: Callable[[], object], what: str) -> None:
    began = time.monotonic()
    eventually(check, what)
    assert time.monotonic() - began < SOONER_S


def server_apps(play: Stage) -> set[int]:
    """Process ids of those that live."""
    family = psutil.Process(play.processes["coordinator"].pid).children(recursive=True)
    found = set()
    for one in family:
        with suppress(psutil.NoSuchProcess):
            if one.status() != psutil.STATUS_ZOMBIE and any("flwr-serverapp" in word for word in one.cmdline()):
                found.add(one.pid)
    return found


def test_dead_server_app_is_replaced_before_flower_would_notice(play: Stage) -> None:
    run = play.propose("noticed", rounds=30, steps=40)
    first_round(run)
    killed = server_apps(play)
    for pid in killed:
        psutil.Process(pid).kill()
    soon(lambda: server_apps(play) - killed, "another ServerApp")
    play.server("stop", "noticed")


def test_server_app_that_dies_while_it_is_loaded_is_replaced_before_flower_would_notice(play: Stage) -> None:
    before = server_apps(play)
    run = play.propose("stillborn", rounds=2)
    (killed,) = eventually(lambda: server_apps(play) - before, "a ServerApp")
    psutil.Process(killed).kill()
    assert not run.events("run-started")
    soon(lambda: server_apps(play) - before - {killed}, "another ServerApp")
    assert run.ended()["state"] == "completed"


def test_status_says_that_a_hospital_was_killed_and_that_it_is_back(play: Stage) -> None:
    def connected() -> dict[str, str]:
        rows = json.loads(play.server("status", "--json"))
        return {row["what"].removeprefix("site "): row["state"] for row in rows if row["what"].startswith("site ")}

    eventually(lambda: set(connected().values()) == {"connected"}, "both are here")
    play.kill("north")
    soon(lambda: connected() == {"north": "away", "south": "connected"}, "it is seen to be away")
    play.start("north")
    eventually(lambda: connected()["north"] == "connected", "it is back")
