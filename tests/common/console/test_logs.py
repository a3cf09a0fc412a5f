"""What lasts is said once and counted, however often it comes."""

import logging

import pytest

from common.console.logs import AGAIN_AFTER_S, OVER_AFTER_S, Trouble

LOCKED = "the audit log audit.sqlite cannot be used: database is locked"


@pytest.fixture
def clock() -> list[float]:
    return [1000.0]


@pytest.fixture
def trouble(clock: list[float], caplog: pytest.LogCaptureFixture) -> Trouble:
    caplog.set_level(logging.INFO)
    return Trouble(logging.getLogger("test"), lambda: clock[0])


def test_trouble_that_comes_every_second_is_said_once_and_then_as_a_number_every_ten_minutes(
    trouble: Trouble, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(601):
        trouble.say(LOCKED)
        clock[0] += 1.0
    assert AGAIN_AFTER_S == 600.0
    assert caplog.messages == [LOCKED, f"{LOCKED} (it came 600 times more since this was said)"]
    assert {record.levelname for record in caplog.records} == {"ERROR"}


def test_end_of_a_trouble_is_said_with_how_often_it_came(
    trouble: Trouble, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(4):
        trouble.say(LOCKED)
        clock[0] += 1.0
    trouble.settle()
    assert caplog.messages == [LOCKED]
    clock[0] += OVER_AFTER_S
    trouble.settle()
    assert caplog.messages == [LOCKED, f"no more, after 3 more times: {LOCKED}"]
    trouble.say(LOCKED)  # and another time it is news
    assert caplog.messages[2:] == [LOCKED]


def test_another_trouble_is_said_at_once(trouble: Trouble, caplog: pytest.LogCaptureFixture) -> None:
    for text in (LOCKED, "another", LOCKED, "another"):
        trouble.say(text)
    assert caplog.messages == [LOCKED, "another"]
