import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.system import wakeup


def elapsed(action: Callable[[], object]) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start


def wakes(sleep: Callable[[float], object]) -> bool:
    """Whether a sleep of an hour ends."""
    sleeper = threading.Thread(target=sleep, args=(3600.0,), daemon=True)
    sleeper.start()
    sleeper.join(60.0)
    return not sleeper.is_alive()


@pytest.fixture
def gateway(tmp_path):
    sleeper = wakeup.gateway_sleeper(tmp_path)
    yield sleeper
    sleeper.close()


def test_a_poke_ends_the_sleep_at_once(tmp_path, gateway):
    threading.Timer(0.05, wakeup.poke_gateway, [tmp_path]).start()
    assert gateway.sleep(60.0)


def test_a_poke_before_the_sleep_is_not_lost_and_many_count_as_one(tmp_path, gateway):
    for _ in range(1000):
        wakeup.poke_gateway(tmp_path)
    assert gateway.sleep(10.0)
    assert not gateway.sleep(0.0)


def test_without_a_poke_it_sleeps_its_time(gateway):
    assert elapsed(lambda: gateway.sleep(0.05)) >= 0.05


def test_poking_nobody_does_nothing(tmp_path):
    wakeup.poke_gateway(tmp_path)
    wakeup.poke_strategies(tmp_path)


def test_a_socket_left_behind_by_a_killed_process_is_removed(tmp_path):
    path = tmp_path / "wake" / "strategy-1.sock"
    wakeup.Sleeper(path)._socket.close()
    wakeup.poke_strategies(tmp_path)
    assert not path.exists()


@pytest.mark.parametrize("home", [None, Path("nowhere")])
def test_without_a_gateway_the_strategy_just_sleeps(home):
    assert wakeup.strategy_wake(home) is time.sleep


def test_hints_arrive_in_a_home_whose_path_is_longer_than_a_sockets_name_may_be(tmp_path):
    home = tmp_path / ("a" * 100) / ("b" * 100)
    home.mkdir(parents=True)
    gateway = wakeup.gateway_sleeper(home)
    sleep = wakeup.strategy_wake(home)
    wakeup.poke_strategies(home)
    assert wakes(sleep)
    assert gateway.sleep(30.0)
    gateway.close()
    assert not list((home / "wake").glob("gateway*"))


def test_the_strategy_pokes_the_gateway_and_wakes_when_a_reply_is_there(tmp_path, gateway):
    sleep = wakeup.strategy_wake(tmp_path)
    threading.Timer(0.05, wakeup.poke_strategies, [tmp_path]).start()
    assert wakes(sleep)
    assert gateway.sleep(0.0)
