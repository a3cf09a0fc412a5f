"""Who is asked is waited for within the round's timeout, whoever gets no message is asked again, and all are named."""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.app import Error, Message

from common.config.rundocument import issue
from common.errors import ErrorCode, FederationError
from common.tasks.segmentation import Segmentation
from common.wire.at_work import AtWork
from common.wire.messages import EvaluateRequest, Refusal, Request, TrainReply, TrainRequest
from server.federation.broadcast import AT_WORK, HANGS, NO_ANSWER, Answer, ask
from server.federation.events import open_journal, read_events
from server.federation.members import BRIEFLY_S, Draw, GridMembers, Member, State, Waiting
from server.federation.rounds import federate
from tests.server.fakes import FakeGrid, FakeSite, Said, a_run, trains

LONG_S = 60.0
SHORT_S = 0.3
REQUEST = TrainRequest("0" * 64, 1, {"weights": b"weights"})
same: FakeSite = trains(lambda request: request.parts["weights"])


class Script:
    """Members whose states a test sets, and a clock for what happens when: it is called with every look."""

    def __init__(self, grid: FakeGrid, at_look: Callable[["Script", int], None] = lambda *_: None) -> None:
        self.states = dict.fromkeys(grid.sites, State.HERE)
        self.willing = dict.fromkeys(grid.sites, True)
        self.nodes = {site: node for node, site in grid.nodes.items()}
        self.lost: set[str] = set()
        self.work: dict[str, AtWork] = {}
        self._at_look, self._looks = at_look, 0

    def look(self) -> Mapping[str, Member]:
        self._looks += 1
        self._at_look(self, self._looks)
        return {
            site: Member(site, state, self.nodes[site], willing=self.willing[site], work=self.work.get(site))
            for site, state in sorted(self.states.items())
        }

    def unheld(self, asked: Mapping[str, tuple[str, float]]) -> set[str]:
        found = {message for message, (site, _) in asked.items() if site in self.lost}
        self.lost -= {asked[message][0] for message in found}
        return found


passed_s = [0.0]  # by the clock that deadlines are measured with


def passes(seconds: float) -> None:
    passed_s[0] += seconds


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.federation.broadcast._AGAIN_AFTER_S", 0.0)
    monkeypatch.setattr(
        "server.federation.broadcast.time", SimpleNamespace(monotonic=lambda: passed_s[0], time=time.time)
    )


def answers(grid: FakeGrid, script: Script, timeout_s: float = LONG_S, wanted: int = 0) -> dict[str, Answer]:
    found: dict[str, Answer] = {}
    started = passed_s[0]
    lacking = lambda: wanted - sum(one.reply is not None for one in found.values())  # noqa: E731
    for answer in ask(grid, script, REQUEST, timeout_s=timeout_s, wait=passes, wanted=lacking):
        assert answer.site not in found
        found[answer.site] = answer
    assert passed_s[0] - started < LONG_S
    return found


def asked(grid: FakeGrid, site: str) -> int:
    return sum(name == site for name, _ in grid.requests)


def late(grid: FakeGrid, site: str, after: int) -> Callable[[Script, int], None]:
    """The site is gone from the second look on, and answers what it was asked when it is back."""
    works = grid.sites[site]
    grid.sites[site] = lambda _: None

    def at_look(script: Script, number: int) -> None:
        script.states[site] = State.HERE if number in (1, after) else State.LEFT
        if number == after:
            grid.sites[site] = works
            grid.answer_late(site)

    return at_look


def test_hint_that_messages_wait_goes_out_before_the_first_look_for_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway does not look by itself (common/system/wakeup.py): with each look before it the sites begin later."""
    grid, order = FakeGrid({"north": same}), list[str]()
    pull = grid.pull_messages

    def look(asked: Iterable[str]) -> Iterable[Message]:
        order.append("look")
        return pull(asked)

    monkeypatch.setattr(grid, "pull_messages", look)
    replies = list(ask(grid, Script(grid), REQUEST, timeout_s=LONG_S, wait=lambda _: order.append("hint")))
    assert order == ["hint", "look"]
    assert [one.site for one in replies] == ["north"]


def test_site_that_leaves_in_a_round_is_waited_for_and_asked_once() -> None:
    grid = FakeGrid({"a": same, "b": same})
    found = answers(grid, Script(grid, late(grid, "b", after=50)))
    assert isinstance(found["b"].reply, TrainReply)
    assert asked(grid, "b") == 1


@pytest.mark.parametrize(
    ("state", "why"), [(State.LEFT, "left"), (State.AWAY, "away"), (State.HERE, NO_ANSWER), (State.REVOKED, "revoked")]
)
def test_site_that_does_not_answer_is_named_for_what_it_did(state: State, why: str) -> None:
    grid = FakeGrid({"a": same, "b": lambda _: None})

    def at_look(script: Script, number: int) -> None:
        if number > 1:
            script.states["b"] = state

    # A revoked one does not come back: the round does not wait for it.
    found = answers(grid, Script(grid, at_look), timeout_s=LONG_S if state is State.REVOKED else SHORT_S)
    assert found["b"] == Answer("b", None, why)


@pytest.mark.parametrize(
    ("work", "why"),
    [
        (AtWork(REQUEST.run_hash, REQUEST.round), AT_WORK),
        (AtWork(REQUEST.run_hash, REQUEST.round, hangs=True), HANGS),
        (AtWork(REQUEST.run_hash, REQUEST.round + 1), NO_ANSWER),
        (AtWork("f" * 64, REQUEST.round), NO_ANSWER),
    ],
)
def test_site_that_is_here_is_named_for_what_it_says_that_it_is_at(work: AtWork, why: str) -> None:
    grid = FakeGrid({"a": same, "b": lambda _: None})
    script = Script(grid)
    script.work["b"] = work
    assert answers(grid, script, timeout_s=SHORT_S)["b"] == Answer("b", None, why)


@pytest.mark.parametrize("code", [3, 4, 5])  # Flower: message, reply or node unavailable
def test_what_flower_lost_is_asked_again(code: int) -> None:
    said: list[Said] = [Error(code, "not there"), Error(code, "not there")]

    def b(request: Request) -> Said:
        return said.pop() if said else same(request)

    grid = FakeGrid({"a": same, "b": b})
    found = answers(grid, Script(grid))
    assert isinstance(found["b"].reply, TrainReply)
    assert asked(grid, "b") == 3


def test_message_that_nobody_holds_any_more_is_asked_again() -> None:
    said: list[Said] = [None]

    def b(request: Request) -> Said:
        return said.pop() if said else same(request)

    grid = FakeGrid({"a": same, "b": b})

    def at_look(script: Script, number: int) -> None:
        if number == 10:
            script.lost = {"b"}

    assert isinstance(answers(grid, Script(grid, at_look))["b"].reply, TrainReply)
    assert asked(grid, "b") == 2


def test_message_that_could_not_be_handed_over_is_asked_again() -> None:
    grid = FakeGrid({"a": same, "b": same}, unreachable=["b"])

    def at_look(_: Script, number: int) -> None:
        if number == 10:
            grid.unreachable.clear()

    assert isinstance(answers(grid, Script(grid, at_look))["b"].reply, TrainReply)


def test_site_that_comes_while_too_few_can_answer_is_asked() -> None:
    grid = FakeGrid({"a": same, "b": same})

    def at_look(script: Script, number: int) -> None:
        script.states["b"] = State.HERE if number > 10 else State.LEFT

    found = answers(grid, Script(grid, at_look), wanted=2)
    assert set(found) == {"a", "b"}


def test_round_does_not_wait_for_who_left_before_it_where_enough_are_here() -> None:
    grid = FakeGrid({"a": same, "b": same, "c": same})
    script = Script(grid)
    script.states["c"] = State.LEFT
    assert set(answers(grid, script, wanted=2)) == {"a", "b"}
    assert asked(grid, "c") == 0


def test_round_that_no_coming_site_can_save_ends_at_once() -> None:
    grid = FakeGrid({"a": same, "b": same, "c": same})
    script = Script(grid)
    script.states |= {"b": State.REVOKED, "c": State.LEFT}
    script.willing["c"] = False
    assert set(answers(grid, script, wanted=2)) == {"a"}


def test_failed_round_names_every_enrolled_site_and_why(tmp_path: Path) -> None:
    grid = FakeGrid(dict.fromkeys("abcdef", same) | {"b": lambda _: None})
    script = Script(grid)
    script.states |= {"c": State.LEFT, "d": State.AWAY, "e": State.REVOKED, "f": State.AWAY}
    script.willing["f"] = False
    run = a_run(rounds=1, quorum=2, federation={"round-timeout-s": SHORT_S})
    expected = (
        r"1 update could enter round 1, the quorum is 2: b did not answer, c left, d is away, e was revoked, "
        r"f has not approved the run\. .*wardround-server resume"
    )
    with pytest.raises(FederationError, match=expected):
        federate(grid, issue(run), tmp_path, members=script, wake=passes)


def test_run_that_finds_too_few_sites_names_every_enrolled_one(tmp_path: Path) -> None:
    grid = FakeGrid(dict.fromkeys("abc", same))
    script = Script(grid)
    script.states |= {"b": State.LEFT, "c": State.AWAY}
    with pytest.raises(FederationError, match=r"1 site connected within 0.05 s, the quorum is 2: b left, c is away\."):
        federate(grid, issue(a_run(rounds=1)), tmp_path, members=script, wake=lambda _: None)


def test_journal_says_why_a_site_is_missing(tmp_path: Path) -> None:
    grid = FakeGrid(dict.fromkeys("abc", same))
    for site in "bc":
        grid.sites[site] = lambda request: same(request) if isinstance(request, EvaluateRequest) else None

    def at_look(script: Script, number: int) -> None:
        if number > 2:
            script.states |= {"b": State.LEFT, "c": State.REVOKED}

    run = a_run(rounds=1, quorum=1, federation={"round-timeout-s": SHORT_S})
    federate(grid, issue(run), tmp_path, members=Script(grid, at_look), wake=passes)
    (event,) = [event for event in read_events(tmp_path / "metrics.jsonl") if event["event"] == "round"]
    assert (event["missing"], event["why-missing"]) == (["b", "c"], {"b": "left", "c": "revoked"})
    assert "b left, c was revoked" in (event_text := _line(event)), event_text


def test_nodes_that_vanish_from_flower_are_away() -> None:
    grid = FakeGrid({"a": same, "b": same})
    members = GridMembers(grid)
    assert [one.state for one in members.look().values()] == [State.HERE] * 2
    del grid.nodes[101]
    assert [one.state for one in members.look().values()] == [State.HERE, State.AWAY]


def _line(event: dict[str, object]) -> str:
    from server.views.watch import event_line  # noqa: PLC0415 - loads rich

    return event_line(event, Segmentation())


def test_a_drawn_site_that_has_gone_holds_the_next_in_the_order_back_for_a_minute_at_most() -> None:
    names = [f"site-{number}" for number in range(8)]
    run = a_run(quorum=2, format_=2, federation={"sites-per-round": 2})
    drawn: list[str] = []
    draw = Draw(run, 1, (), drawn.extend)
    started, asked_at = passed_s[0], dict[str, float]()

    def says(name: str) -> FakeSite:
        def site(request: Request) -> Said:
            asked_at[name] = passed_s[0] - started
            return None if name == drawn[0] else same(request)

        return site

    def leaves(script: Script, looks: int) -> None:
        if looks > 2:
            script.states[drawn[0]] = State.LEFT

    grid = FakeGrid({name: says(name) for name in names})
    found: list[Answer] = []
    lacking = lambda: 2 - sum(one.reply is not None for one in found)  # noqa: E731
    for answer in ask(grid, Script(grid, leaves), REQUEST, timeout_s=300, wait=passes, wanted=lacking, draw=draw):
        found.append(answer)
    gone, other, next_ = drawn
    assert [one.site for one in found] == [other, next_, gone]
    assert (found[-1].reply, found[-1].why) == (None, State.LEFT)
    assert asked_at[gone] == asked_at[other] == 0
    assert BRIEFLY_S <= asked_at[next_] < BRIEFLY_S + 1


def test_who_has_not_approved_is_not_asked_and_has_refused_nothing(tmp_path: Path) -> None:
    grid = FakeGrid(dict.fromkeys("abc", same))
    script = Script(grid)
    script.willing["c"] = False
    federate(grid, issue(a_run(rounds=1)), tmp_path, members=script, wake=passes)
    assert {site for site, _ in grid.requests} == {"a", "b"}
    (event,) = [one for one in read_events(tmp_path / "metrics.jsonl") if one["event"] == "round"]
    assert (event["refused"], event["missing"], "not-there" in event) == ({}, [], False)


def test_who_was_gone_as_a_round_asked_is_not_missing_from_it(tmp_path: Path) -> None:
    grid = FakeGrid(dict.fromkeys("abcd", same))
    script = Script(grid)
    script.states |= {"c": State.AWAY, "d": State.LEFT}
    federate(grid, issue(a_run(rounds=1)), tmp_path, members=script, wake=passes)
    (event,) = [one for one in read_events(tmp_path / "metrics.jsonl") if one["event"] == "round"]
    assert (event["missing"], event["not-there"]) == ([], {"c": "away", "d": "left"})


def test_journal_tells_who_is_gone_and_waited_for_once_and_when_that_ends(tmp_path: Path) -> None:
    """c goes after it was asked, and comes back later with its answer."""
    grid = FakeGrid(dict.fromkeys("abc", same))
    answered: list[str] = []
    grid.sites["c"] = lambda request: None if isinstance(request, TrainRequest) and not answered else same(request)

    def at_look(script: Script, look: int) -> None:
        if look == 4:
            script.states["c"] = State.AWAY
        if look == 12:
            script.states["c"] = State.HERE
        if look == 16:
            answered.append("c")
            grid.answer_late("c")

    run = a_run(rounds=1, federation={"round-timeout-s": LONG_S})
    federate(grid, issue(run), tmp_path, members=Script(grid, at_look), wake=passes)
    events = read_events(tmp_path / "metrics.jsonl")
    told = [one for one in events if one["event"] == "waiting"]
    assert [one["sites"] for one in told] == [{"c": "away"}, {}]
    assert told[0]["until"] == pytest.approx(told[0]["time"] + LONG_S, abs=30)
    assert [one["for"] for one in told] == ["updates", "updates"]
    (ended,) = [one for one in events if one["event"] == "round"]
    assert (ended["sites"], ended["missing"]) == (["a", "b", "c"], [])


def test_nobody_is_waited_for_who_is_gone_while_those_at_work_make_the_quorum(tmp_path: Path) -> None:
    grid = FakeGrid(dict.fromkeys("abc", same))
    answered: list[str] = []
    grid.sites["b"] = lambda request: None if isinstance(request, TrainRequest) and not answered else same(request)

    def at_look(script: Script, look: int) -> None:
        if look == 9:
            answered.append("b")
            grid.answer_late("b")

    script = Script(grid, at_look)
    script.states["c"] = State.LEFT
    run = a_run(rounds=1, federation={"round-timeout-s": LONG_S})
    federate(grid, issue(run), tmp_path, members=script, wake=passes)
    assert [one for one in read_events(tmp_path / "metrics.jsonl") if one["event"] == "waiting"] == []


def test_quorum_that_needs_who_is_gone_waits_for_that_site(tmp_path: Path) -> None:
    """c is gone as the round asks; of those that were asked b refuses."""
    grid = FakeGrid(dict.fromkeys("abc", same))
    grid.sites["b"] = lambda request: (
        Refusal(request.run_hash, request.round, ErrorCode.NO_DATA)
        if isinstance(request, TrainRequest)
        else same(request)
    )

    def at_look(script: Script, look: int) -> None:
        script.states["c"] = State.LEFT if look < 15 else State.HERE

    run = a_run(rounds=1, federation={"round-timeout-s": LONG_S})
    federate(grid, issue(run), tmp_path, members=Script(grid, at_look), wake=passes)
    told = [one["sites"] for one in read_events(tmp_path / "metrics.jsonl") if one["event"] == "waiting"]
    assert told[0] == {"c": "left"}


def test_wait_says_since_when_a_site_is_gone_and_is_not_told_of_a_moment(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, last_round=0)
    waiting = Waiting.of(journal, EvaluateRequest("0" * 64, 2, "test", {}), 60.0)
    waiting([Member("a", State.HERE, 1, 0.0), Member("b", State.AWAY, 2, 1.0)])
    assert journal.events == []
    waiting([Member("a", State.HERE, 1, 0.0), Member("b", State.AWAY, 2, 9.0)])
    waiting([Member("a", State.HERE, 1, 0.0), Member("b", State.AWAY, 2, 9.5)])
    (event,) = journal.events
    assert event["since"]["b"] == pytest.approx(event["time"] - 9.0, abs=1)
    assert (event["round"], event["for"]) == (2, "scores")


def test_wait_for_the_quorum_before_the_first_round_is_told(tmp_path: Path) -> None:
    grid = FakeGrid(dict.fromkeys("ab", same))

    def at_look(script: Script, look: int) -> None:
        script.states["b"] = State.HERE if look > 3 else State.LEFT

    federate(grid, issue(a_run(rounds=1)), tmp_path, members=Script(grid, at_look), wake=lambda _: None)
    told = [one for one in read_events(tmp_path / "metrics.jsonl") if one["event"] == "waiting"]
    assert [(one["round"], one["for"], one["sites"]) for one in told] == [
        (1, "quorum", {"b": "left"}),
        (1, "quorum", {}),
    ]
