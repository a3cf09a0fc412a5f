"""Limits with a clock of our own."""

import pytest

from common.wire.records import PIECE_BYTES
from server.gateway.limits import BYTES_PER_HOUR, CALLS_AT_ONCE, CONTROL, OBJECT, Limits, Notes, Reached, Rule, rule_of
from server.gateway.uploads import MAX_REPLY_OBJECTS

SLOW = Rule("slow", 100, 2.0, 3, 1.0)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def called(limits: Limits, caller: str = "a", rule: Rule = SLOW) -> str | None:
    """One call from its beginning to its end."""
    reached = limits.enter(caller, rule)
    if reached is not None:
        return reached.why
    limits.leave(caller)
    return None


def moves(limits: Limits, *, received: int = 0, sent: int = 0, caller: str = "a") -> Reached | None:
    """One call with its bytes."""
    reached = limits.enter(caller, CONTROL)
    if reached is None:
        limits.moved(caller, received=received, sent=sent)
        limits.leave(caller)
    return reached


def test_burst_is_allowed_and_the_call_after_it_is_not(clock: Clock) -> None:
    limits = Limits(clock)
    assert [called(limits) for _ in range(4)] == [None, None, None, "more than 2 slow calls a second"]


def test_places_come_back_at_the_stated_rate_and_never_beyond_the_burst(clock: Clock) -> None:
    limits = Limits(clock)
    while called(limits) is None:
        pass
    clock.now += 0.4
    assert called(limits)
    clock.now += 0.1
    assert [called(limits) is None for _ in range(2)] == [True, False]
    clock.now += 3600.0
    assert [called(limits) is None for _ in range(4)] == [True, True, True, False]


def test_one_callers_excess_costs_no_other_and_no_other_kind_of_call(clock: Clock) -> None:
    limits = Limits(clock)
    while called(limits) is None:
        pass
    assert called(limits, "b") is None
    assert called(limits, "a", CONTROL) is None


def test_calls_at_once_are_counted_over_all_kinds_and_places_are_given_back(clock: Clock) -> None:
    limits = Limits(clock)
    for number in range(CALLS_AT_ONCE):
        assert limits.enter("a", (CONTROL, OBJECT)[number % 2]) is None
    assert called(limits, "a", CONTROL) == f"more than {CALLS_AT_ONCE} calls at once"
    assert limits.enter("b", CONTROL) is None
    limits.leave("a")
    assert limits.enter("a", OBJECT) is None
    assert limits.enter("a", OBJECT) is not None


def test_caller_is_forgotten_after_a_while_but_not_in_the_middle_of_a_call(clock: Clock) -> None:
    limits = Limits(clock)
    assert limits.enter("busy", SLOW) is None
    called(limits, "gone")
    clock.now += 7200.0
    called(limits, "new")
    assert set(limits._callers) == {"busy", "new"}
    limits.leave("busy")


@pytest.mark.parametrize(("received", "sent"), [(1_200_000, 0), (0, 1_200_000)], ids=["received", "sent"])
def test_bytes_of_an_hour_are_counted_in_each_direction_and_the_call_after_them_waits(
    clock: Clock, received: int, sent: int
) -> None:
    limits = Limits(clock, bytes_per_hour=3_600_000)  # 1000 a second
    assert [moves(limits, received=received, sent=sent) for _ in range(3)] == [None] * 3
    reached = moves(limits)
    assert reached is not None
    assert "more than 3600000 bytes an hour" in reached.why
    assert moves(limits, caller="b") is None


def test_debt_is_paid_off_at_the_stated_rate_and_the_time_told_is_right(clock: Clock) -> None:
    limits = Limits(clock, bytes_per_hour=3_600_000)
    assert moves(limits, received=3_610_000) is None  # one call may go beyond: it has come already
    reached = moves(limits)
    assert reached is not None
    assert reached.wait_s == pytest.approx(10.0, abs=0.01)
    clock.now += reached.wait_s - 0.01
    assert moves(limits) is not None
    clock.now += 0.02
    assert moves(limits, received=100_000) is None
    clock.now += 7200.0
    assert [moves(limits, received=1_800_000) for _ in range(3)][:2] == [None, None]
    assert moves(limits) is not None


def test_hour_of_the_largest_rounds_fits_the_limit() -> None:
    """50 million parameters, the most that a hospital's policy allows as shipped, 300 times an hour."""
    assert BYTES_PER_HOUR > 300 * 4 * 50_000_000


def test_refusal_for_too_many_calls_says_when_to_come_again(clock: Clock) -> None:
    limits = Limits(clock)
    while (reached := limits.enter("a", SLOW)) is None:
        limits.leave("a")
    clock.now += reached.wait_s
    assert called(limits) is None


def test_clock_that_stands_still_gives_nothing(clock: Clock) -> None:
    limits = Limits(clock)
    assert sum(called(limits) is None for _ in range(1000)) == SLOW.burst


def test_line_is_written_once_in_a_minute_with_the_number_of_those_kept_silent(clock: Clock) -> None:
    notes = Notes(1 / 60, 1, clock)
    assert notes.write("a") == 0
    assert [notes.write("a") for _ in range(5)] == [None] * 5
    assert notes.write("b") == 0
    clock.now += 61.0
    assert notes.write("a") == 5
    clock.now += 61.0
    assert notes.write("a") == 0


def test_notes_keep_their_size_whoever_calls(clock: Clock) -> None:
    notes = Notes(1 / 60, 1, clock)
    for number in range(25_000):
        notes.write(f"address {number}")
    assert len(notes._buckets) <= 10_000
    assert len(notes._silent) <= 10_000


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("/flwr.proto.Fleet/PullMessages", "poll"),
        ("/wardround.v1.Coordination/ListProposals", "poll"),
        ("/flwr.proto.Fleet/PushObject", "object"),
        ("/flwr.proto.Fleet/PushMessages", "announcement"),
        ("/wardround.v1.Enrolment/Enrol", "enrolment"),
        ("/grpc.health.v1.Health/Check", "control"),
        ("/anything/AtAll", "control"),
        ("", "control"),
    ],
)
def test_every_method_has_a_rule(method: str, kind: str) -> None:
    assert rule_of(method).kind == kind


def test_largest_reply_and_a_model_of_200_mb_fit_the_limits() -> None:
    assert OBJECT.max_bytes > PIECE_BYTES
    assert OBJECT.burst >= MAX_REPLY_OBJECTS
    assert OBJECT.burst > 200e6 / PIECE_BYTES
