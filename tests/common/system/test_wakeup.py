import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.system import wakeup
from tests.patience import PATIENCE_S


def elapsed(action: Callable[[], object]) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start


def wakes(sleep: Callable[[float], object]) -> bool:
    """Whether a sleep of an hour ends."""
    sleeper = threading.Thread(target=sleep, args=(3600.0,), daemon=True)
    sleeper.start()
    sleeper.join(PATIENCE_S)
    return not sleeper.is_alive()


@pytest.fixture
def gateway(tmp_path):
    sleeper = wakeup.gateway_sleeper(tmp_path)
    yield sleeper
    sleeper.close()


def test_a_hint_ends_the_sleep_at_once_and_names_its_nodes(tmp_path, gateway):
    threading.Timer(0.05, wakeup.gateway_hint(tmp_path), [[1, 2**64 - 1]]).start()
    assert gateway.sleep(PATIENCE_S) == {1, 2**64 - 1}


def test_hints_before_the_sleep_are_not_lost_and_are_told_together(tmp_path, gateway):
    hint = wakeup.gateway_hint(tmp_path)
    hint([1, 2])
    hint([2, 3])
    assert gateway.sleep(PATIENCE_S) == {1, 2, 3}
    assert gateway.sleep(0.0) is None


def test_a_hint_waits_for_a_queue_that_is_full(tmp_path, gateway):
    hint = wakeup.gateway_hint(tmp_path)
    sender = threading.Thread(target=lambda: [hint([node]) for node in range(1000)])
    sender.start()
    told: set[int] = set()
    while sender.is_alive() or told != set(range(1000)):
        told |= gateway.sleep(0.1) or set()  # all may be told while the sender has not ended
    sender.join()
    assert told == set(range(1000))


def test_a_hint_for_more_nodes_than_a_datagram_holds_names_them_all(tmp_path, gateway):
    wakeup.gateway_hint(tmp_path)(range(20_000))
    assert gateway.sleep(PATIENCE_S) == set(range(20_000))


def test_without_a_poke_it_sleeps_its_time(gateway):
    assert elapsed(lambda: gateway.sleep(0.05)) >= 0.05


def test_poking_nobody_does_nothing(tmp_path):
    wakeup.gateway_hint(tmp_path)([1])
    wakeup.gateway_hint(None)([1])
    wakeup.poke_strategies(tmp_path)


def test_a_socket_left_behind_by_a_killed_process_is_removed(tmp_path):
    path = tmp_path / "wake" / "strategy-1.sock"
    wakeup.Sleeper(path)._socket.close()
    wakeup.poke_strategies(tmp_path)
    assert not path.exists()


def test_a_gateway_that_starts_while_a_hint_finds_the_one_before_it_dead_is_found_from_then_on(tmp_path, monkeypatch):
    wakeup.gateway_sleeper(tmp_path)._socket.close()  # killed: its socket stays behind
    hint, send = wakeup.gateway_hint(tmp_path), wakeup._send
    started = []

    def refused_just_before(*arguments):
        try:
            send(*arguments)
        finally:
            started.append(wakeup.gateway_sleeper(tmp_path))

    monkeypatch.setattr(wakeup, "_send", refused_just_before)
    hint([1])
    monkeypatch.setattr(wakeup, "_send", send)
    (gateway,) = started
    assert wakeup.gateway_started_at(tmp_path) > 0
    hint([2])
    assert gateway.sleep(PATIENCE_S) == {2}
    gateway.close()


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
    wakeup.gateway_hint(home)([7])
    assert gateway.sleep(PATIENCE_S) == {7}
    gateway.close()
    assert not list((home / "wake").glob("gateway*"))


def test_the_strategy_wakes_when_a_reply_is_there_and_nobody_is_woken_by_its_wait(tmp_path, gateway):
    sleep = wakeup.strategy_wake(tmp_path)
    threading.Timer(0.05, wakeup.poke_strategies, [tmp_path]).start()
    assert wakes(sleep)
    assert gateway.sleep(0.0) is None
