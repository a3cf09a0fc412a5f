"""What the coordinator's pages show, to whom, and what their buttons do."""

import html
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.config.rundocument import RunDocument
from common.errors import ConfigError, EnrolmentError, FederationError
from common.identity.operators import subject_of
from common.web.pages import Dashboard, Page, Visit
from server.commands.main import app
from server.coordinator import supervisor
from server.dashboard.pages import Keyboard, dashboard_of
from server.federation.events import JOURNAL_NAME, Journal, read_events
from server.home.folder import Home
from server.home.seen import write_seen
from server.registry import operators
from server.registry.audit_trail import open_log
from server.registry.registry import Registry
from server.registry.sites import Presence
from server.views.progress import summary_of
from server.views.report import write_report
from server.views.watch import event_line
from tests.common.web.served import assert_box_is_asked_for, opened
from tests.server.dashboard import recorded
from tests.server.dashboard.recorded import SITES, begin, document, play_round, propose

RUN = document("lesions")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, Registry, Journal]:
    home, registry = recorded.coordinator(tmp_path_factory.mktemp("server") / "home")
    journal = begin(home, registry, RUN)
    play_round(journal, RUN, 1)
    play_round(journal, RUN, 2, odd="st-john")
    play_round(journal, RUN, 3, missing="st-john")
    return home, registry, journal


@pytest.fixture
def stage(tmp_path: Path) -> tuple[Home, Registry]:
    """Of one that a test may change."""
    return recorded.coordinator(tmp_path / "home")


def keyboard(name: str = operators.FIRST, passphrase: str | None = None) -> Keyboard:
    return Keyboard(name, None, passphrase)


def ask(dashboard: Dashboard, path: str, run: RunDocument | None = None) -> Page:
    return dashboard.pages[path](Visit("/base", "secret", {} if run is None else {"run": run.hash}))


def words(page: Page) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", str(page.body))))


def test_run_shows_who_is_in_each_round_who_is_missing_and_what_is_odd(made: tuple[Home, Registry, Journal]) -> None:
    home, registry, _ = made
    text = words(ask(dashboard_of(home, registry, keyboard()), "/runs/{run}", RUN))
    first, second, third = (text[text.index(f"Round {number} ") :] for number in (1, 2, 3))
    assert first.startswith("Round 1 2 in it: st-anna, st-john 43.2 s, 4.8 MB")
    assert "st-john's update is odd (opposite direction)" in second[:120]
    assert third.startswith("Round 3 1 in it: st-anna st-john is away")
    assert "3 of 8 rounds done" in text


def test_lost_scores_are_told_with_their_round_and_beside_the_table_that_lacks_them(
    made: tuple[Home, Registry, Journal],
) -> None:
    """As `watch` tells them."""
    home, registry, journal = made
    text = words(ask(dashboard_of(home, registry, keyboard()), "/runs/{run}", RUN))
    first, third = (text[text.index(f"Round {number} ") :][:200] for number in (1, 3))
    said = "st-john was still at work"
    assert event_line(journal.events[-1], RUN.config.task).endswith(f"; {said}")
    assert f"validation scores: {said}" in third
    assert "scores:" not in first.partition("MB")[0]
    table = text[text.index("Scores on validation patients, after round 3") : text.index("Rounds")]
    assert f"Without: {said}." in table
    report = write_report(home.run_folder(RUN), summary_of(home.run_folder(RUN), registry.proposal(RUN.hash)))
    told = report.read_text(encoding="utf-8")
    assert f"Without: {html.escape(said)}." in told
    assert "<th>scores lost</th>" in told
    assert f"<td>validation scores: {html.escape(said)}</td>" in told


def test_who_a_run_waits_for_is_told_once(stage: tuple[Home, Registry], monkeypatch: pytest.MonkeyPatch) -> None:
    home, registry = stage
    monkeypatch.setattr(supervisor, "is_running", lambda _home: True)
    journal = begin(home, registry, RUN)
    registry.set_presence("st-john", Presence.AWAY)
    page = dashboard_of(home, registry, keyboard())
    assert "st-john is away" in words(ask(page, "/runs/{run}", RUN))
    journal.record("waiting", {"round": 1, "for": "quorum", "sites": {"st-john": "away"}, "since": {}, "until": 1e9})
    text = words(ask(page, "/runs/{run}", RUN))
    said = "the start of round 1 waits for st-john (is away), until 2001-09-09 01:46 UTC at the latest"
    assert f"The run goes on, and {said}." in text
    assert "st-john is away" not in text
    assert said in words(ask(page, "/runs"))


def test_run_says_what_the_report_says(made: tuple[Home, Registry, Journal]) -> None:
    """One view of a run, shown twice: each score and each stated epsilon of the report stands in the page."""
    home, registry, _ = made
    folder, proposal = home.run_folder(RUN), registry.proposal(RUN.hash)
    page = str(ask(dashboard_of(home, registry, keyboard()), "/runs/{run}", RUN).body)
    report = write_report(folder, summary_of(folder, proposal)).read_text()
    cells = re.findall(r"<td>(\d+\.\d{3})</td>", report)
    assert len(cells) > 12
    assert {cell for cell in cells if f">{cell}<" not in page} == set()
    assert page.count("<svg") == report.count("<svg") == 3


def test_every_chart_has_a_table_that_holds_its_points(made: tuple[Home, Registry, Journal]) -> None:
    home, registry, _ = made
    page = str(ask(dashboard_of(home, registry, keyboard()), "/runs/{run}", RUN).body)
    events = read_events(home.run_folder(RUN) / JOURNAL_NAME)
    figures = re.findall(r"<figure>(.*?)</figure>", page, re.DOTALL)
    assert len(figures) == 3
    for figure, kind, key in zip(
        figures, ("evaluate", "train", "train"), ("dice", "train-loss", "epsilon"), strict=True
    ):
        told = [event[key] for event in events if event["event"] == kind and key in event]
        assert [value for value in told if f"<td>{value:.3f}</td>" not in figure] == []
        assert figure.count("<circle") == len(told)
        assert re.search('<svg [^>]*aria-label="', figure)


def test_page_says_epsilon_as_the_site_stated_it_and_none_where_the_run_is_not_private(
    stage: tuple[Home, Registry],
) -> None:
    home, registry = stage
    plain = document("vessels", private=False)
    play_round(begin(home, registry, plain), plain, 1)
    text = words(ask(dashboard_of(home, registry, keyboard()), "/runs/{run}", plain))
    assert "no differential privacy guarantee" in text
    assert "What each site states" not in text


def test_proposal_says_whose_answer_is_awaited(stage: tuple[Home, Registry]) -> None:
    home, registry = stage
    propose(home, registry, RUN)
    registry.answer(RUN.hash, "st-john", approved=False, code="policy-refused")
    page = ask(dashboard_of(home, registry, keyboard()), "/runs/{run}", RUN)
    assert "Waiting for the answer of st-anna, st-mary." in words(page)
    assert "refused by the policy of st-john (policy-refused)" in words(page)
    assert page.said.startswith("Proposed, 0 of 2 approvals")


def test_who_takes_part_and_is_silent_is_named(
    made: tuple[Home, Registry, Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, registry, _ = made
    monkeypatch.setattr(supervisor, "is_running", lambda _home: True)
    text = words(ask(dashboard_of(home, registry, keyboard()), "/runs/{run}", RUN))
    assert "st-john was last heard in round 2." in text
    assert "st-anna was" not in text


def test_overview_shows_each_site_and_that_nothing_runs(made: tuple[Home, Registry, Journal]) -> None:
    home, registry, _ = made
    page = ask(dashboard_of(home, registry, keyboard()), "/")
    for name in SITES:
        assert re.search(rf"{name} active no \d{{4}}-\d\d-\d\d, \d+ days left", words(page))
    assert page.said == "The coordinator is not running. 0 of 3 sites connected, 1 run open."
    assert "wardround-server start" in words(page)


def test_who_is_not_here_is_told_with_when_they_were_last_seen(
    made: tuple[Home, Registry, Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, registry, _ = made
    write_seen(home.path, {"st-john": 1e9, "st-anna": 1e9})
    dashboard = dashboard_of(home, registry, keyboard())
    for running, said in ((False, ["no, last seen 2001-09-09 01:46 UTC"] * 2), (True, ["yes", "yes"])):
        monkeypatch.setattr(supervisor, "is_running", lambda _home, running=running: running)
        for path in ("/", "/sites"):
            text = words(ask(dashboard, path))
            assert [f"{name} active {one} 20" in text for name, one in zip(SITES, said, strict=False)] == [True, True]
            assert "st-mary active no 20" in text
        member = words(ask(dashboard, "/runs/{run}", RUN))
        assert ("st-anna approved yes" in member, "st-anna approved no" in member) == (running, not running)
    (home.path / "seen.json").unlink()


def test_nobody_is_called_away_where_no_coordinator_runs(made: tuple[Home, Registry, Journal]) -> None:
    home, registry, _ = made
    text = words(ask(dashboard_of(home, registry, keyboard()), "/runs/{run}", RUN))
    assert "The coordinator is not running." in text
    assert "is away;" not in text
    assert "was last heard" not in text


def test_stop_is_signed_by_the_operator_and_in_the_audit_log(stage: tuple[Home, Registry]) -> None:
    home, registry = stage
    begin(home, registry, RUN)
    done = dashboard_of(home, registry, keyboard()).acts["/runs/{run}/stop"](Visit("", "", {"run": RUN.hash}), {})
    assert done == f"lesions {RUN.hash[:8]} is stopped."
    assert registry.proposal(RUN.hash).state == "stopped"
    entry = [one for one in open_log(home).entries() if one.kind == "act"][-1]
    assert (entry.fields["action"], entry.fields["operator"]) == ("stop", "admin")
    assert entry.fields["subject"] == subject_of(RUN.hash)
    with pytest.raises(ConfigError, match="stopped already"):
        dashboard_of(home, registry, keyboard()).acts["/runs/{run}/stop"](Visit("", "", {"run": RUN.hash}), {})


def test_without_the_ticked_box_nothing_is_signed(stage: tuple[Home, Registry]) -> None:
    home, registry = stage
    registry.propose(RUN, [])
    dashboard = dashboard_of(home, registry, keyboard())
    assert_box_is_asked_for(dashboard, "server/dashboard")
    with open_log(home).transaction() as log:
        before = log.size
    with opened(dashboard) as served:
        visitor = served.logged_in()
        form = {"csrf": visitor.get("/").csrf, "seen": RUN.hash}
        for path in dashboard.acts:
            answer = visitor.post(path.format(run=RUN.hash), form)
            assert (answer.status, "is not ticked. Nothing was done" in answer.shown) == (409, True)
        assert registry.proposal(RUN.hash).open
        with open_log(home).transaction() as log:
            assert log.size == before
        assert visitor.post(f"/runs/{RUN.hash}/stop", form | {"sure": "on"}).status == 303
        assert registry.proposal(RUN.hash).state == "stopped"


def test_resume_asks_for_a_coordinator_that_runs_and_is_signed(
    stage: tuple[Home, Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, registry = stage
    begin(home, registry, RUN)
    acts, visit = dashboard_of(home, registry, keyboard()).acts, Visit("", "", {"run": RUN.hash})
    acts["/runs/{run}/stop"](visit, {})
    with pytest.raises(FederationError, match="not running"):
        acts["/runs/{run}/resume"](visit, {})
    monkeypatch.setattr(supervisor, "is_running", lambda _home: True)
    assert "goes on" in acts["/runs/{run}/resume"](visit, {})
    assert registry.proposal(RUN.hash).state == "proposed"


def test_auditor_looks_and_stops_nothing(stage: tuple[Home, Registry]) -> None:
    home, registry = stage
    begin(home, registry, RUN)
    operators.add(home, registry, "ines", "auditor", by=operators.acting(home, registry, "operator-add"))
    dashboard = dashboard_of(home, registry, keyboard("ines"))
    page = ask(dashboard, "/runs/{run}", RUN)
    assert "<form" not in str(page.body)
    with pytest.raises(EnrolmentError):
        dashboard.acts["/runs/{run}/stop"](Visit("", "", {"run": RUN.hash}), {})
    assert registry.proposal(RUN.hash).state == "running"
    refused = [one for one in open_log(home).entries() if one.kind == "act-refused"][-1]
    assert (refused.fields["action"], refused.fields["operator"]) == ("stop", "ines")
    assert "<form" in str(ask(dashboard_of(home, registry, keyboard()), "/runs/{run}", RUN).body)


def test_operator_who_was_removed_meanwhile_looks_no_more(stage: tuple[Home, Registry]) -> None:
    home, registry = stage
    operators.add(home, registry, "ines", "operator", by=operators.acting(home, registry, "operator-add"))
    dashboard = dashboard_of(home, registry, keyboard("ines"))
    ask(dashboard, "/")
    operators.remove(home, registry, "ines", operators.acting(home, registry, "operator-remove"))
    for path in ("/", "/runs", "/sites"):
        with pytest.raises(EnrolmentError, match="may not look at this any more"):
            ask(dashboard, path)


def test_sealed_operator_key_signs_with_the_passphrase_that_was_given_at_the_start(
    stage: tuple[Home, Registry],
) -> None:
    home, registry = stage
    begin(home, registry, RUN)
    by = operators.acting(home, registry, "operator-add")
    operators.add(home, registry, "maria", "operator", passphrase="correct horse", by=by)  # noqa: S106 - of a test
    visit = Visit("", "", {"run": RUN.hash})
    with pytest.raises(ConfigError):
        dashboard_of(home, registry, keyboard("maria", "wrong horse")).acts["/runs/{run}/stop"](visit, {})
    dashboard_of(home, registry, keyboard("maria", "correct horse")).acts["/runs/{run}/stop"](visit, {})
    assert registry.proposal(RUN.hash).state == "stopped"
    assert "horse" not in repr(keyboard("maria", "correct horse"))


def test_run_that_is_not_there_is_an_error(stage: tuple[Home, Registry]) -> None:
    home, registry = stage
    for wanted in ("", "x", "' OR 1=1 --", "../../etc/passwd"):
        with pytest.raises(ConfigError):
            dashboard_of(home, registry, keyboard()).pages["/runs/{run}"](Visit("", "", {"run": wanted}))


def test_stamp_changes_with_what_the_pages_show(stage: tuple[Home, Registry]) -> None:
    home, registry = stage
    journal = begin(home, registry, RUN)
    dashboard = dashboard_of(home, registry, keyboard())
    seen = [dashboard.stamp()]
    for change in (
        lambda: play_round(journal, RUN, 1),
        lambda: Registry(home.registry).answer(RUN.hash, "st-mary", approved=True),
        lambda: Registry(home.registry).close(RUN.hash, "failed", "no quorum"),
    ):
        assert dashboard.stamp() == seen[-1]
        change()
        seen.append(dashboard.stamp())
    assert len(set(seen)) == 4


def test_who_is_no_operator_does_not_start_it(stage: tuple[Home, Registry]) -> None:
    home, _ = stage
    result = CliRunner().invoke(app, ["dashboard", "--home", str(home.path), "--as", "nobody"])
    assert result.exit_code == 1
    assert "no operator is called 'nobody'" in result.output
    assert not (home.path / "dashboard.link").exists()
