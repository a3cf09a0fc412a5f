"""What a hospital's pages show, and that an answer given there is an answer given by the command."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.agent.status import only_one
from client.commands.main import app
from client.home.folder import POLICY_NAME
from client.home.identity import load_identity
from client.home.sitekey import site_key
from client.rules import approvals
from client.trail.audit_trail import AuditTrail, open_log
from client.views.dashboard import dashboard_of
from common.config import RunConfig
from common.errors import ConfigError, ErrorCode, PolicyError, PrivacyError
from common.system.files import write_private
from common.web.pages import Page, Visit
from common.wire.endings import Ending
from tests.client.views.recorded import a_run, checked, hospital, propose, train
from tests.common.web.served import assert_box_is_asked_for, opened

RUN = a_run("lesions")
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return hospital(tmp_path)


def ask(home: Path, path: str, run: str = "") -> Page:
    return dashboard_of(home).pages[path](Visit("/base", "secret", {"run": run} if run else {}))


def words(page: Page) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", str(page.body)))


def seen(home: Path, run: str) -> dict[str, str]:
    """What the form of a run's page sends."""
    found = re.search(r'name="seen" value="([0-9a-f]{64})"', str(ask(home, "/runs/{run}", run).body))
    assert found is not None
    return {"seen": found[1], "csrf": "secret"}


def act(home: Path, what: str, run: str, form: Mapping[str, str]) -> str:
    shown = dashboard_of(home)
    return {**shown.acts, **shown.at_once}[f"/runs/{{run}}/{what}"](Visit("/base", "secret", {"run": run}), form)


def typed(home: Path, *command: str) -> str:
    result = CliRunner().invoke(app, [*command, "--home", str(home)])
    assert result.exit_code == 0, result.output
    return result.output


def test_run_shows_what_the_command_shows_before_an_approval(home: Path) -> None:
    run = propose(home, RUN).run_hash
    page = ask(home, "/runs/{run}", run)
    shown = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", str(page.body)))
    told = typed(home, "approve", run, "--yes", "--timeout", "0")
    assert {"asked by", "on", "leaves each round", "never leaves", "privacy", "number told to others"} <= shown.keys()
    flat = re.sub(r"\W+", "", told)
    assert [what for what, value in shown.items() if re.sub(r"\W+", "", value)[:40] not in flat] == []


def test_approval_is_that_of_the_command_and_gets_into_the_audit_log(home: Path, tmp_path: Path) -> None:
    run = propose(home, RUN).run_hash
    assert "Approved lesions" in act(home, "approve", run, seen(home, run))
    answer = approvals.load(home, run).answer
    assert answer is not None
    assert (answer.approved, answer.by) == (True, "person")
    (tmp_path / "other").mkdir()
    other = hospital(tmp_path / "other")
    propose(other, RUN)
    typed(other, "approve", run, "--yes", "--timeout", "0")
    by_command = approvals.load(other, run).answer
    assert by_command is not None
    assert (by_command.approved, by_command.by) == (answer.approved, answer.by)
    state = "state/declared.json"  # what an approval sets
    assert (home / state).read_bytes() == (other / state).read_bytes()
    # As the agent does with every answer that it finds.
    AuditTrail(home, load_identity(home), site_key(home)).answered(approvals.load(home, run))
    entry = open_log(home).entries()[-1]
    assert (entry.kind, entry.fields) == ("approved", {"run": run, "by": "person"})


def test_without_the_ticked_box_nothing_is_approved(home: Path) -> None:
    run = propose(home, RUN).run_hash
    dashboard = dashboard_of(home)
    assert_box_is_asked_for(dashboard, "client/views")
    with opened(dashboard) as served:
        visitor = served.logged_in()
        page = visitor.get(f"/runs/{run}")
        form = {"csrf": page.csrf, "seen": page.hidden("seen")}
        for unticked in (form, form | {"sure": ""}):
            answer = visitor.post(f"/runs/{run}/approve", unticked)
            assert (answer.status, "is not ticked. Nothing was done" in answer.shown) == (409, True)
        assert approvals.load(home, run).answer is None
        assert visitor.post(f"/runs/{run}/approve", form | {"sure": "on"}).status == 303
        assert approvals.load(home, run).approved
        assert visitor.post(f"/runs/{run}/deny", {"csrf": page.csrf}).status == 303
        assert not approvals.load(home, run).approved


def test_form_that_is_sent_again_is_told_that_the_run_is_approved(home: Path) -> None:
    run = propose(home, RUN).run_hash
    form = seen(home, run)
    act(home, "approve", run, form)
    before = approvals.load(home, run).answer
    assert act(home, "approve", run, form) == "The run 'lesions' is approved already. Nothing was changed."
    assert approvals.load(home, run).answer == before
    act(home, "deny", run, {})
    with pytest.raises(PolicyError, match="has changed since"):
        act(home, "approve", run, form)


def test_denial_holds_for_a_run_that_was_approved(home: Path) -> None:
    run = propose(home, RUN).run_hash
    act(home, "approve", run, seen(home, run))
    assert 'name="seen"' not in str(ask(home, "/runs/{run}", run).body)
    assert "Denied lesions" in act(home, "deny", run, {})
    assert not approvals.load(home, run).approved
    assert ask(home, "/runs/{run}", run).said == "Denied by person."


@pytest.mark.parametrize("form", [{}, {"seen": ""}, {"seen": "0" * 64}])
def test_nothing_is_approved_that_was_not_seen(home: Path, form: Mapping[str, str]) -> None:
    run = propose(home, RUN).run_hash
    with pytest.raises(PolicyError, match="has changed since"):
        act(home, "approve", run, form)
    assert approvals.load(home, run).answer is None


def test_what_changed_since_the_page_was_shown_is_to_be_seen_first(home: Path) -> None:
    other = a_run("other")
    propose(home, other)
    run = propose(home, RUN).run_hash
    form = seen(home, run)
    train(home, other, 1)  # epsilon of the cohort goes from another number now
    with pytest.raises(PolicyError, match="has changed since"):
        act(home, "approve", run, form)
    assert approvals.load(home, run).answer is None
    act(home, "approve", run, seen(home, run))


def test_form_of_another_run_approves_nothing(home: Path) -> None:
    one, other = propose(home, RUN).run_hash, propose(home, a_run("other")).run_hash
    with pytest.raises(PolicyError, match="has changed since"):
        act(home, "approve", other, seen(home, one))


def test_policy_refuses_here_too(home: Path) -> None:
    run = propose(home, RUN).run_hash
    form = seen(home, run)
    write_private(home / POLICY_NAME, b"max-rounds = 2\n")
    page = ask(home, "/runs/{run}", run)
    assert "It cannot be approved" in words(page)
    assert 'name="seen"' not in str(page.body)
    with pytest.raises(PolicyError, match="max-rounds"):
        act(home, "approve", run, form)
    assert approvals.load(home, run).answer is None


def test_closed_run_is_not_approved(home: Path) -> None:
    run = propose(home, RUN).run_hash
    form = seen(home, run)
    approvals.set_open(home, run, is_open=False)
    with pytest.raises(ConfigError, match="closed at the coordinator"):
        act(home, "approve", run, form)


def test_run_that_has_ended_says_how_on_every_page_and_what_can_be_done(home: Path) -> None:
    run = propose(home, RUN).run_hash
    approvals.answer(home, run, approved=True, by="person")
    before = dashboard_of(home).stamp()
    approvals.set_open(home, run, is_open=False, ending=Ending("failed", ErrorCode.TOO_FEW_SITES, 2))
    assert dashboard_of(home).stamp() != before
    how = f"failed, 2 of {RUN.federation.rounds} rounds done: too few hospitals took part (too-few-sites)"
    for path, name in (("/", ""), ("/runs", ""), ("/runs/{run}", run)):
        assert how in words(ask(home, path, name)), path
    assert "If an operator resumes the run, it goes on here under your approval" in words(ask(home, "/runs/{run}", run))


def test_ledger_that_is_older_than_the_log_approves_nothing(home: Path) -> None:
    other = a_run("other")
    propose(home, other)
    train(home, other, 1)
    run = propose(home, RUN).run_hash
    (home / "state" / "ledger.sqlite").unlink()
    form = re.search(r'name="seen" value="(\w+)"', str(ask(home, "/runs/{run}", run).body))
    assert form is None
    with pytest.raises((PrivacyError, PolicyError)):
        act(home, "approve", run, {"seen": "0" * 64})


@pytest.mark.parametrize("run", ["x", "0" * 64, "../../etc", "%2e%2e"])
def test_run_that_was_not_proposed_is_not_found(home: Path, run: str) -> None:
    with pytest.raises(ConfigError):
        ask(home, "/runs/{run}", run)
    with pytest.raises(ConfigError):
        act(home, "approve", run, {"seen": "0" * 64})
    with pytest.raises(ConfigError):
        act(home, "deny", run, {})


def test_text_of_the_coordinator_is_shown_and_not_obeyed(home: Path) -> None:
    told: RunConfig = a_run("lesions", initial={"sha256": "0" * 64, "public": HOSTILE})
    run = propose(home, told, refusal=HOSTILE).run_hash
    for path in ("/", "/runs"):
        text = str(ask(home, path).body)
        assert "&lt;script&gt;" in text
        assert "<script" not in text
        assert "<img" not in text
    text = str(ask(home, "/runs/{run}", run).body)
    assert "&lt;script&gt;" in text
    assert "<script" not in text
    assert "<img" not in text


def test_ledger_page_states_what_the_command_states(home: Path) -> None:
    propose(home, RUN)
    train(home, RUN, 2)
    page = ask(home, "/ledger")
    told = typed(home, "ledger")
    epsilon = re.search(r"Epsilon ([\d.]+) of 10 is spent", page.said)
    assert epsilon is not None
    assert epsilon[1] in told
    assert '<meter min="0" max="10.0" value="' in str(page.body)
    train(home, a_run("other"), 1)
    assert ask(home, "/ledger").said != page.said  # it is not remembered beyond a change


def test_what_left_is_what_the_audit_log_says(home: Path) -> None:
    propose(home, RUN)
    assert "Nothing has left" in words(ask(home, "/left"))
    train(home, RUN, 2)
    text = words(ask(home, "/left"))
    assert text.index("lesions 2 1,204,000 bytes with") < text.index("lesions 1 1,204,000 bytes with")


def test_no_page_names_a_patient_or_a_path_or_shows_a_picture(home: Path) -> None:
    run = propose(home, RUN).run_hash
    train(home, RUN, 1)
    checked(home)
    (home / "check" / "report.html").write_text("Doe^Jane")
    pages = [ask(home, path) for path in ("/", "/runs", "/ledger", "/left", "/data")]
    pages.append(ask(home, "/runs/{run}", run))
    assert "46" in words(pages[4])
    for page in pages:
        text = str(page.body)
        assert "Doe" not in text
        assert "images" not in re.sub(r"never leaves</dt><dd>.*?</dd>|<caption>Images", "", text)
        assert "<img" not in text
        assert str(home) not in text


def test_damaged_report_of_a_check_is_explained(home: Path) -> None:
    write_private(home / "check" / "report.json", b'{"checked": 1}')
    with pytest.raises(ConfigError, match="data check"):
        ask(home, "/data")
    (home / "check" / "report.json").unlink()
    assert "have not been checked yet" in words(ask(home, "/data"))


def test_overview_says_how_the_agent_is_and_what_to_do_about_its_last_error(home: Path) -> None:
    propose(home, RUN)
    write_private(
        home / "status.json",
        b'{"state": "connected", "since": 1.7e9, "worker": "waiting", "last-error": '
        b'{"run": null, "round": 3, "kind": "train", "code": "budget-spent", "at": 1.7e9}}',
    )
    assert ask(home, "/").said == "The agent is not running; 1 run waits for an answer."
    with only_one(home):
        page = ask(home, "/")
        assert CliRunner().invoke(app, ["status", "--home", str(home)]).exit_code == 1
    assert page.said == "The agent is connected; 1 run waits for an answer."
    assert "the last request was refused (budget-spent): the budget does not carry the run" in words(page)
    assert '<p class="bad">connected' in str(page.body)
    assert "Last error: budget-spent at train" in words(page)
    assert "the budget does not carry the run: `wardround-client policy check RUN` says what fits" in words(page)


def test_pages_of_runs_say_as_of_when_they_are_known(home: Path) -> None:
    run = propose(home, RUN).run_hash
    write_private(home / "status.json", b'{"state": "connected", "since": 1.7e9}')
    for path in ("/runs", "/runs/{run}"):
        assert re.search(r"As of \d{4}-\d\d-\d\d \d\d:\d\d UTC: the agent is not running", words(ask(home, path, run)))
        with only_one(home):
            assert "As of" not in words(ask(home, path, run))


def test_what_was_denied_and_what_the_policy_refused_is_told_apart(home: Path) -> None:
    run, other = propose(home, RUN).run_hash, propose(home, a_run("other")).run_hash
    approvals.answer(home, run, approved=False, by="policy")
    act(home, "deny", other, {})
    assert ask(home, "/runs/{run}", run).said == "Refused by policy."
    assert ask(home, "/runs/{run}", other).said == "Denied by person."
    trail = AuditTrail(home, load_identity(home), site_key(home))
    for one in (run, other):
        trail.answered(approvals.load(home, one))
    text = words(ask(home, "/left"))
    assert "the answer: denied other - by person" in text
    assert "the answer: refused lesions - by policy" in text


def test_stamp_changes_with_what_the_pages_show(home: Path) -> None:
    dashboard = dashboard_of(home)
    before = dashboard.stamp()
    assert dashboard.stamp() == before
    run = propose(home, RUN).run_hash
    proposed = dashboard.stamp()
    act(home, "deny", run, {})
    denied = dashboard.stamp()
    checked(home)
    assert len({before, proposed, denied, dashboard.stamp()}) == 4
