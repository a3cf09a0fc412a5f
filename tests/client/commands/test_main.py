"""Commands as a person types them: exit code 0 only on success, one message on failure, JSON where there is a table."""

import contextlib
import datetime
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
import typer
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from client.agent.status import is_running, only_one
from client.commands.main import app
from client.home.offer import Offer
from client.home.sitefile import add_source
from client.rules import approvals
from client.rules.approvals import Appraisal
from client.site import open_site
from common.config import RunConfig, SiteConfig, SourceConfig, load, parse, sha256_of
from common.errors import ConfigError
from common.identity import certificates
from common.identity.invitation import Invitation
from common.identity.operators import Signer
from common.privacy.guarantee import charge_round
from common.privacy.scores import held_out_cohort
from common.wire.endings import Ending
from tests import ROOT
from tests.client.coordinator import Authority
from tests.documents import carried
from tests.patience import PATIENCE_S, eventually

RUN_TOML = """
name = "lesions"
data = { modality = "photo", channels = 3, classes = ["vessel"] }
training = { patch-size = [32, 32] }
federation = { rounds = 3 }
privacy = { target-epsilon = 4.0 }
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    Authority().admit(tmp_path / "site", "north", "127.0.0.1:9")
    return tmp_path / "site"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(generator.integers(0, 255, (33, 35, 3), np.uint8)).save(folder / "images" / f"{number}.png")
        mask = np.zeros((33, 35), np.uint8)
        mask[5:20, 7:9] = 255
        Image.fromarray(mask).save(folder / "labels" / f"{number}.png")
    return folder


def call(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"WARDROUND_HOME": str(home)})


def succeed(home: Path, *arguments: str) -> str:
    result = call(home, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def fail(home: Path, *arguments: str) -> str:
    """The one message of a command that must fail."""
    result = call(home, *arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: "), result.output
    assert "Traceback" not in result.output
    return result.stderr


def propose(home: Path) -> str:
    run = parse(RunConfig, RUN_TOML)
    return approvals.record(home, carried(run), is_open=True, keys=[Signer("maria", "ab" * 32)]).run_hash


def test_added_folder_is_listed_checked_and_the_file_keeps_its_comments(home: Path, pictures: Path) -> None:
    before = (home / "site.toml").read_text()
    assert "4 studies of 4 patients" in succeed(home, "data", "add", str(pictures), "--label-map", "255=vessel")
    assert (home / "site.toml").read_text().startswith(before.rstrip())
    (source,) = load(SiteConfig, home / "site.toml").data
    assert (source.path, source.label_map) == (str(pictures), {"255": "vessel"})
    (row,) = json.loads(succeed(home, "data", "list", "--json"))
    assert row["path"] == str(pictures)
    assert json.loads(succeed(home, "data", "check", "--json"))["counts"]["usable"] == 4


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_folder_without_studies_is_not_added(home: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    before = (home / "site.toml").read_text()
    assert "Nothing was added" in fail(home, "data", "add", str(tmp_path / name))
    assert (home / "site.toml").read_text() == before


def test_malformed_label_map_is_explained(home: Path, pictures: Path) -> None:
    assert "KEY=VALUE" in fail(home, "data", "add", str(pictures), "--label-map", "vessel")


@pytest.mark.parametrize("text", ['a "quoted" name', "back\\slash", "ümläut", "tab\there", "equals = [1]", "del\x7f"])
def test_any_path_survives_the_site_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "site.toml"
    path.write_text('name = "north"')  # no newline at the end
    source = SourceConfig(path=text, kind="images", where={text: text}, label_map={text: "vessel"}, patients=(text,))
    assert add_source(path, source).data == (source,)
    assert load(SiteConfig, path).data == (source,)


def test_start_without_data_says_what_to_do(home: Path) -> None:
    assert "wardround-client data add" in fail(home, "start")


def test_start_without_having_joined_says_what_to_do(tmp_path: Path) -> None:
    assert "wardround-client join" in fail(tmp_path, "start")


def test_who_waits_for_approval_is_told_so_with_the_phrase_wherever_they_look(home: Path, tmp_path: Path) -> None:
    """Not that they have not joined, and need an invitation."""
    expires = (certificates.now() + datetime.timedelta(hours=1)).isoformat()
    root = (home / "tls" / "root.pem").read_text()
    invitation = Invitation("west", "c0" * 16, root, "127.0.0.1:9", "127.0.0.1:9", "ab" * 32, expires)
    (tmp_path / "west.json").write_text(invitation.to_text())
    west, request = tmp_path / "west", tmp_path / "request"
    phrase = succeed(west, "join", str(tmp_path / "west.json"), "--request", str(request)).split()[1]
    told = [fail(west, "start"), json.loads(call(west, "status", "--json").stdout)["problem"]]
    told.append(call(west, "runs").stderr)
    for said in told:
        assert f"waits for the coordinator's approval. Tell the coordinator the phrase {phrase}" in said
        assert "Ask the coordinator for an invitation" not in said
    (west / "tls" / "token.sha256").unlink()  # as where the port was closed
    assert "its request has not reached the coordinator" in fail(west, "start")


def test_no_runs_are_explained(home: Path) -> None:
    assert "They come while the agent runs: `wardround-client start" in call(home, "runs").stderr
    with only_one(home):
        assert call(home, "runs").stderr == "No run has been proposed to this hospital yet.\n"
        propose(home)
        assert call(home, "runs").stderr == ""


def test_runs_say_as_of_when_they_are_known_where_no_agent_learns_news_of_them(home: Path) -> None:
    run_hash = propose(home)
    commands = (("runs",), ("runs", "--json"), ("show", run_hash[:8]))
    not_running = "the agent is not running, and learns no news of runs. Start it with `wardround-client start"
    for command in commands:
        assert call(home, *command).stderr.startswith(f"T{not_running[1:]}")
    (home / "status.json").write_text(json.dumps({"state": "connected", "since": 5.0}))
    with only_one(home):
        assert [call(home, *command).stderr for command in commands] == ["", "", ""]
        (home / "status.json").write_text(json.dumps({"state": "connecting", "since": 5.0}))
        for command in commands:
            said = "As of 1970-01-01 00:00 UTC: the agent is not connected (connecting), and learns no news of runs.\n"
            assert call(home, *command).stderr == said
    for name in ("status.json", "agent.lock"):
        os.utime(home / name, (86_400.0, 86_400.0))
    for command in commands:
        assert call(home, *command).stderr.startswith(f"As of 1970-01-02 00:00 UTC: {not_running}")


def test_join_looks_at_all_it_is_given_before_anybody_is_asked(home: Path, tmp_path: Path) -> None:
    """The invitation is gone once it was used, and a folder is looked for before the approval."""
    gone, new = str(tmp_path / "north.json"), tmp_path / "new"
    assert "has joined already, as 'north'" in fail(home, "join", gone)
    assert "typo is no folder that is there" in fail(new, "join", gone, "--data", str(tmp_path / "typo"))
    inside = ("join", gone, "--data", str(tmp_path), "--start")
    assert "lies inside a data folder" in fail(new, *inside)
    assert "has no data yet to start with" in fail(new, "join", gone, "--start")
    (tmp_path / "images").mkdir()
    for given in ([], ["--data", str(tmp_path / "images"), "--start"]):
        assert "north.json cannot be read" in fail(new, "join", gone, *given)
    assert not new.exists()


def test_folder_of_a_coordinator_is_no_hospitals(tmp_path: Path) -> None:
    (tmp_path / "server.toml").touch()
    for command in (["status"], ["join", "north.json"], ["data", "add", str(tmp_path)]):
        assert "is a coordinator's folder (it has server.toml)" in fail(tmp_path, *command)
    assert [one.name for one in tmp_path.iterdir()] == ["server.toml"]


def test_start_under_another_name_than_the_certificates_is_refused(home: Path, pictures: Path) -> None:
    succeed(home, "data", "add", str(pictures))
    text = (home / "site.toml").read_text()
    (home / "site.toml").write_text(text.replace('name = "north"', 'name = "south"'))
    assert 'name = "north"' in fail(home, "start")


def test_home_has_one_agent(home: Path, pictures: Path) -> None:
    succeed(home, "data", "add", str(pictures))
    assert not is_running(home)
    with only_one(home):
        assert is_running(home)
        assert "already" in fail(home, "start")
    assert not is_running(home)


def test_started_agent_ends_on_sigterm_while_no_coordinator_answers(home: Path, pictures: Path) -> None:
    succeed(home, "data", "add", str(pictures))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WARDROUND_HOME": str(home)}
    process = subprocess.Popen(
        [sys.executable, "-m", "client.commands.main", "start"], env=environment, stderr=subprocess.DEVNULL
    )
    log = home / "logs" / "agent.log"
    eventually(lambda: log.exists() and "is away" in log.read_text(), "it says that the coordinator is away")
    assert call(home, "status").exit_code == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=PATIENCE_S) == 0
    assert log.read_text().count("is away") == 1
    assert json.loads((home / "status.json").read_text())["state"] == "stopped"
    told = json.loads(call(home, "status", "--json").stdout)
    assert "it was stopped then" in told["problem"]


def test_status_where_no_agent_has_run_fails_is_json_and_says_how_to_start_one(home: Path) -> None:
    result = call(home, "status", "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["state"] == "not running"
    assert told["problem"] == "no agent has run here yet. Start it with `wardround-client start`."


@pytest.mark.parametrize(
    ("last", "how"), [("stopped", "it was stopped then"), ("failed", "it failed then"), ("connected", "it was killed")]
)
def test_status_after_the_end_says_since_when_and_nothing_of_a_process_that_is_gone(
    home: Path, last: str, how: str
) -> None:
    work = {"run": "ab" * 32, "round": 2, "kind": "train", "seconds": 1.0, "at": 1_000.0}
    written = {"state": last, "since": 5.0, "pid": 7, "node-id": 3, "worker": 8, "network": "removed", "clock": "right"}
    (home / "status.json").write_text(json.dumps(written | {"last-round": work}))
    with only_one(home):
        pass
    os.utime(home / "status.json", (80_000.0, 80_000.0))
    os.utime(home / "agent.lock", (86_400.0, 86_400.0))
    told = json.loads(call(home, "status", "--json").stdout)
    assert (told["state"], told["since"]) == ("not running", "1970-01-02T00:00:00+00:00")
    assert told["last-round"]["round"] == 2
    assert told.keys() & {"pid", "node-id", "worker", "network", "clock"} == set()
    assert how in told["problem"]
    assert told["problem"].endswith("Start it with `wardround-client start`.")


@pytest.mark.parametrize(
    ("ending", "how", "then"),
    [
        (Ending("completed", "", 3), "completed, 3 of 3 rounds done", "`wardround-client evaluate MODEL`"),
        (Ending("stopped", "", 0), "stopped by the coordinator, no round done", "`wardround-client deny"),
        (Ending("failed", "too-few-updates", 1), "failed, 1 of 3 rounds done", "`wardround-client status`"),
        (Ending("failed", "bad-request"), "failed (bad-request)", "Ask the coordinator why."),
        (None, "the coordinator does not tell how it ended", "Nothing has to be done."),
    ],
)  # fmt: skip
def test_run_that_has_ended_says_how_and_what_can_be_done(
    home: Path, ending: Ending | None, how: str, then: str
) -> None:
    run_hash = propose(home)
    approvals.answer(home, run_hash, approved=True, by="person")
    approvals.set_open(home, run_hash, is_open=False, ending=ending)
    shown = succeed(home, "show", run_hash[:8])
    assert how in shown
    assert then in shown
    (row,) = json.loads(succeed(home, "runs", "--json"))
    told = (None, None, None) if ending is None else (ending.how, ending.code or None, ending.rounds)
    assert (row["state"], row["ended"], row["code"] or None, row["done"]) == ("closed", *told)
    assert json.loads(call(home, "status", "--json").stdout)["last-ended"].startswith(f"lesions {run_hash[:8]}, ")
    assert how.split(":", maxsplit=1)[0] in json.loads(call(home, "status", "--json").stdout)["last-ended"]
    approvals.set_open(home, run_hash, is_open=True)
    assert how not in succeed(home, "show", run_hash[:8])
    assert "last-ended" not in json.loads(call(home, "status", "--json").stdout)


def test_site_that_is_shut_out_is_told_where_the_reason_stands(home: Path) -> None:
    (home / "status.json").write_text(json.dumps({"state": "refused"}))
    with only_one(home):
        shown = call(home, "status", "--json")
        checks = {one["check"]: one for one in json.loads(call(home, "doctor", "--json").stdout)}
    assert shown.exit_code == 1
    assert "wardround-client doctor" in json.loads(shown.stdout)["problem"]
    assert checks["agent"]["result"] == "WRONG"
    assert "refused" in checks["agent"]["detail"]


def test_closed_run_is_found_by_its_name_and_not_approved_by_it(home: Path) -> None:
    """It may be resumed, so it can be denied; a run of the same name that is still to come is waited for."""
    run_hash = propose(home)
    approvals.set_open(home, run_hash, is_open=False)
    assert "lesions" in succeed(home, "runs")
    assert json.loads(succeed(home, "policy", "check", "lesions", "--json"))["run"]["sha256"] == run_hash
    refused = call(home, "approve", "lesions", "--yes", "--timeout", "0")
    assert refused.exit_code == 1
    assert f"give its hash: {run_hash[:8]}" in refused.stderr
    assert approvals.load(home, run_hash).answer is None
    succeed(home, "deny", "lesions")
    denied = approvals.load(home, run_hash).answer
    assert denied is not None
    assert not denied.approved


def test_approval_shows_consequences_and_is_kept(home: Path) -> None:
    run_hash = propose(home)
    approvals.note_appraisal(
        home, run_hash, Appraisal(Offer(12, 10, "cohort", 14, {}, {"weights": {"w": (10, 100)}}, training=9), None)
    )
    output = succeed(home, "approve", "lesions", "--yes")
    expected = (run_hash, "12 of our patients", "(4,000 of weights", "to 4.00")
    assert [text for text in expected if text not in output] == []
    stored = approvals.load(home, run_hash)
    assert stored.approved
    (row,) = json.loads(succeed(home, "runs", "--json"))
    assert (row["answer"], row["patients"], row["policy"]) == ("approved", 12, "allows")


def test_a_run_beyond_the_privacy_budget_is_a_verdict_wherever_it_is_asked_and_is_not_approved(home: Path) -> None:
    run_hash = propose(home)  # epsilon 4 over 3 rounds
    offer = Offer(12, 10, "cohort", 14, {}, {"weights": {"w": (10, 100)}}, training=9)
    approvals.note_appraisal(home, run_hash, Appraisal(offer, None))
    earlier = carried(parse(RunConfig, RUN_TOML.replace("4.0", "8.0")))
    ledger = open_site(home).ledger
    for number in (1, 2, 3):
        charge_round(
            ledger, earlier, cohort="cohort", cohort_size=10, round_=number, attempt=f"a{number}", lifetime_epsilon=10.0
        )
    (row,) = json.loads(succeed(home, "runs", "--json"))
    assert row["policy"].startswith("beyond the budget: of 3 rounds like its own ")
    assert "would fit" in row["policy"]
    for command in (("approve", "lesions", "--yes"), ("policy", "check", "lesions")):
        assert "beyond the budget: of 3 rounds" in fail(home, *command)
    assert call(home, "policy", "check", "lesions").stdout.startswith("BEYOND THE BUDGET, though policy.toml allows it")
    assert json.loads(call(home, "policy", "check", "lesions", "--json").stdout)["run"]["allowed"] is False
    assert approvals.load(home, run_hash).answer is None
    approvals.answer(home, run_hash, approved=True, by="person")  # as by an agent of before
    approvals.set_open(home, run_hash, is_open=False, ending=Ending("failed", "too-few-updates", 0))
    shown = succeed(home, "show", run_hash[:8])
    assert "it does not go on here as things are: beyond the budget" in shown
    assert "it goes on here under" not in shown
    (home / "policy.toml").write_text("lifetime-epsilon = 20.0\n")  # counts at once
    assert json.loads(succeed(home, "runs", "--json"))[0]["policy"] == "allows"
    assert "it goes on here under your approval" in succeed(home, "show", run_hash[:8])


def test_a_private_run_whose_patients_nobody_has_counted_is_not_approved_where_budget_is_spent(home: Path) -> None:
    """Else it would be refused after the yes, with its first round, and where it is counted before."""
    run_hash = propose(home)
    earlier = carried(parse(RunConfig, RUN_TOML.replace("4.0", "2.0")))
    charge_round(
        open_site(home).ledger, earlier, cohort="cohort", cohort_size=10, round_=1, attempt="a", lifetime_epsilon=10.0
    )
    said = " ".join(fail(home, "approve", "lesions", "--yes").split())
    assert "is not known to be within what is left of the privacy budget: its patients are not counted yet" in said
    assert approvals.load(home, run_hash).answer is None
    offer = Offer(12, 10, "cohort", 14, {}, {"weights": {"w": (10, 100)}}, training=9)
    approvals.note_appraisal(home, run_hash, Appraisal(offer, None))
    succeed(home, "approve", "lesions", "--yes")


def test_rounds_that_other_runs_have_reserved_forbid_no_approval(home: Path) -> None:
    run_hash = propose(home)
    offer = Offer(12, 10, "cohort", 14, {}, {"weights": {"w": (10, 100)}}, training=9)
    approvals.note_appraisal(home, run_hash, Appraisal(offer, None))
    earlier = carried(parse(RunConfig, RUN_TOML.replace("4.0", "8.0")))
    charge_round(
        open_site(home).ledger,
        earlier,
        cohort="cohort",
        cohort_size=10,
        round_=1,
        attempt="a",
        lifetime_epsilon=10.0,
    )
    assert json.loads(succeed(home, "runs", "--json"))[0]["policy"].startswith("beyond the budget for now: of 3 rounds")
    succeed(home, "approve", "lesions", "--yes")


def test_status_says_what_the_last_refusal_means_until_something_goes_well(home: Path) -> None:
    values = {"state": "connected", "last-error": {"kind": "train", "code": "budget-spent", "at": 20.0}}
    for done, told in ((10.0, True), (30.0, False)):
        (home / "status.json").write_text(json.dumps(values | {"last-round": {"kind": "train", "at": done}}))
        with only_one(home):
            result = call(home, "status", "--json")
        shown = json.loads(result.stdout)
        assert "policy check RUN" in shown["last-error"]["what-to-do"]
        assert ("budget-spent" in shown.get("problem", "")) is told
        assert result.exit_code == int(told)


@pytest.mark.parametrize("code", ["outside-hours", "rate-limited"])
def test_what_the_policy_puts_off_is_no_problem(home: Path, code: str) -> None:
    error = {"kind": "train", "code": code, "at": 20.0}
    (home / "status.json").write_text(json.dumps({"state": "connected", "last-error": error}))
    with only_one(home):
        shown = json.loads(succeed(home, "status", "--json"))
    assert "problem" not in shown
    assert "policy.toml" in shown["last-error"]["what-to-do"]


def test_approval_against_the_policy_is_refused(home: Path) -> None:
    run_hash = propose(home)
    (home / "policy.toml").write_text("max-rounds = 2\n")
    assert "max-rounds 2" in fail(home, "approve", run_hash[:8])
    assert approvals.load(home, run_hash).answer is None


def test_nothing_is_approved_or_called_allowed_while_the_hospital_does_not_participate(home: Path) -> None:
    run_hash = propose(home)
    (home / "policy.toml").write_text("participate = false\n")
    for command in (("approve", run_hash[:8], "--yes"), ("policy", "check", run_hash[:8])):
        assert "participate = false" in " ".join(fail(home, *command).split())
    (row,) = json.loads(succeed(home, "runs", "--json"))
    assert "participate = false" in row["policy"]
    assert approvals.load(home, run_hash).answer is None
    (home / "policy.toml").write_text("")
    succeed(home, "approve", run_hash[:8], "--yes")


def test_run_that_too_few_operators_signed_is_not_approved_and_the_check_says_so_too(home: Path) -> None:
    run_hash = propose(home)
    (home / "policy.toml").write_text("operators = 2\n")
    for command in (("approve", run_hash[:8], "--yes"), ("policy", "check", run_hash[:8])):
        assert "fewer than operators 2" in " ".join(fail(home, *command).split())
    assert approvals.load(home, run_hash).answer is None


def test_denied_run_is_denied(home: Path) -> None:
    run_hash = propose(home)
    succeed(home, "approve", "lesions", "--yes")
    succeed(home, "deny", "lesions")
    stored = approvals.load(home, run_hash)
    assert stored.answer is not None
    assert not stored.approved


def test_a_persons_no_is_a_denial_and_the_policys_a_refusal(home: Path) -> None:
    run_hash = propose(home)
    for by, said in (("person", "denied"), ("policy", "refused")):
        approvals.answer(home, run_hash, approved=False, by="policy" if by == "policy" else "person")
        (row,) = json.loads(succeed(home, "runs", "--json"))
        assert (row["answer"], row["by"]) == (said, by)


def test_a_refused_run_ends_each_command_that_asks_for_the_verdict_with_one_code(
    home: Path, pictures: Path, tmp_path: Path
) -> None:
    succeed(home, "data", "add", str(pictures), "--label-map", "255=vessel")
    (tmp_path / "run.toml").write_text(RUN_TOML)
    (home / "policy.toml").write_text("max-rounds = 2\n")
    propose(home)
    for command in (
        ("approve", "lesions", "--yes"),
        ("policy", "check", "lesions"),
        ("policy", "check", str(tmp_path / "run.toml")),
        ("data", "check", "--run", "lesions"),
        ("data", "check", "--run", "lesions", "--json"),
    ):
        result = call(home, *command)
        assert result.exit_code == 1, command
        (line,) = [one for one in result.stderr.splitlines() if one.startswith("error: ")]
        assert line.startswith("error: policy.toml refuses run 'lesions': its 3 rounds exceed max-rounds 2")


def test_approve_says_at_once_that_a_run_of_that_name_is_closed(home: Path) -> None:
    run_hash = propose(home)
    approvals.set_open(home, run_hash, is_open=False)
    result = call(home, "approve", "lesions", "--timeout", "0.5")
    assert f"Closed runs of that name: {run_hash[:8]};" in result.stderr.splitlines()[0]
    assert "is closed at the coordinator" in fail(home, "approve", "lesions", "--yes")  # nobody brings another


def test_approve_says_at_once_which_run_is_probably_meant_and_waits_for_another_only_while_an_agent_runs(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_hash = propose(home)
    monkeypatch.setattr(approvals, "_PATIENCE_S", 1e9)
    assert "Did you mean 'lesions'?" in fail(home, "approve", "lesion", "--yes")
    monkeypatch.setattr(approvals, "_PATIENCE_BESIDE_S", 0.5)
    with only_one(home):
        waited = call(home, "approve", "lesion", "--yes")
    assert waited.exit_code == 1
    first, last = waited.stderr.splitlines()
    assert first.startswith("Waiting for a run 'lesion' to be proposed here, ")
    assert first.endswith(" s at most. Ctrl-C ends. Did you mean 'lesions'?")
    assert "Did you mean 'lesions'?" in last
    assert approvals.load(home, run_hash).answer is None


def test_unknown_run_is_explained(home: Path) -> None:
    assert "wardround-client runs" in fail(home, "approve", "nothing", "--timeout", "0")


def test_approve_waits_for_the_proposal_and_then_for_the_count_of_patients(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent's part is played by hand: while it is waited for, it brings the run, and then counts."""
    run_hash = sha256_of(parse(RunConfig, RUN_TOML))
    offer = Offer(12, 10, "cohort", 14, {}, {"weights": {"w": (10, 100)}}, training=9)
    later = [lambda: propose(home), lambda: approvals.note_appraisal(home, run_hash, Appraisal(offer, None))]
    waits = SimpleNamespace(monotonic=time.monotonic, time=time.time, sleep=lambda _: later.pop(0)())
    monkeypatch.setattr(approvals, "time", waits)
    with only_one(home):
        result = call(home, "approve", "lesions", "--yes")
    assert result.exit_code == 0, result.output
    assert "12 of our patients" in result.stdout
    assert "not counted" not in result.stdout
    said = [line.partition(",")[0] for line in result.stderr.splitlines()]
    assert said == [
        "Waiting for a run 'lesions' to be proposed here",
        "Waiting for the count of patients for 'lesions'",
    ]


def test_approve_gives_up_in_time_and_says_what_it_lacks(home: Path) -> None:
    assert "no proposed run is called 'lesions'" in call(home, "approve", "lesions", "--timeout", "0.5").stderr
    propose(home)
    with only_one(home):
        result = call(home, "approve", "lesions", "--timeout", "0.5", "--yes")
    assert result.exit_code == 1
    assert "not counted yet" in result.stderr
    assert approvals.find(home, "lesions").answer is None


def test_approve_without_an_agent_does_not_wait_for_a_count_that_nobody_makes(home: Path) -> None:
    propose(home)
    assert "not counted yet" in succeed(home, "approve", "lesions", "--yes")


@pytest.mark.parametrize(
    ("typed", "told"), [("n\n", "Nothing was done"), ("", "nobody answered"), ("\n", "Nothing was")]
)
def test_approve_takes_anything_but_a_yes_for_a_no_whether_or_not_there_is_a_terminal(
    home: Path, typed: str, told: str
) -> None:
    propose(home)
    command = [sys.executable, "-P", "-m", "client.commands.main", "approve", "lesions", "--home", str(home)]
    done = subprocess.run(command, input=typed, text=True, capture_output=True, check=False)
    assert (done.returncode, told in done.stderr) == (1, True), done
    assert approvals.find(home, "lesions").answer is None
    done = subprocess.run(command, input="y\n", text=True, capture_output=True, check=False)
    assert done.returncode == 0, done
    assert approvals.find(home, "lesions").approved


def test_agent_in_the_background_of_a_terminal_writes_nothing_over_what_is_typed_there(tmp_path: Path) -> None:
    """In the foreground, or away from a terminal, its log is on the screen as well."""
    code = (
        "import logging, os, sys; from pathlib import Path; from client.commands.main import _log_to\n"
        "_log_to(Path(sys.argv[1]) / 'agent.log'); logging.getLogger('x').warning('said %s', sys.argv[2])\n"
    )
    (tmp_path / "say.py").write_text(code)
    line = f"{sys.executable} {tmp_path / 'say.py'} {tmp_path}"
    script = f"set -m; {line} front; {line} behind & wait; {line} piped 2>&1 | cat"
    terminal, other = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    bash = subprocess.Popen(
        ["setsid", "--ctty", "bash", "-c", script], stdin=other, stdout=other, stderr=other, env=environment
    )
    os.close(other)
    screen = ""
    with contextlib.suppress(OSError):  # the terminal's other end is closed when all have ended
        while chunk := os.read(terminal, 65536):
            screen += chunk.decode()
    assert bash.wait() == 0
    os.close(terminal)
    assert [word for word in ("front", "behind", "piped") if f"said {word}" in screen] == ["front", "piped"], screen
    assert (tmp_path / "agent.log").read_text().count("said") == 3


def test_policy_check_says_the_verdict_first_then_the_hash_then_why_and_the_rules(home: Path, tmp_path: Path) -> None:
    document = tmp_path / "run.toml"
    document.write_text(RUN_TOML)
    run_hash = sha256_of(parse(RunConfig, RUN_TOML))
    verdict, digest, budget, title, *_ = succeed(home, "policy", "check", str(document)).splitlines()
    assert verdict == "ALLOWED by policy.toml, without a count of patients: lesions"
    assert digest == f"SHA-256 of the run: {run_hash}"
    assert budget.startswith("Whether the privacy budget lasts for it the policy does not say")
    assert title.strip() == "Policy"
    document.write_text(RUN_TOML.replace("4.0", "40.0").replace("rounds = 3", "rounds = 3000"))
    result = call(home, "policy", "check", str(document))
    assert result.exit_code == 1
    verdict, digest, *reasons = result.stdout.splitlines()
    assert verdict.startswith("REFUSED by policy.toml")
    assert digest != f"SHA-256 of the run: {run_hash}"
    assert [reason.split()[-2] for reason in reasons if reason.startswith("- ")] == ["lifetime-epsilon", "max-rounds"]
    assert "lifetime-epsilon" in result.stderr
    assert json.loads(call(home, "policy", "check", str(document), "--json").stdout)["run"]["allowed"] is False


def test_policy_check_of_a_proposed_run_counts_the_patients_that_the_agent_found(home: Path) -> None:
    run_hash = propose(home)
    approvals.note_appraisal(
        home, run_hash, Appraisal(Offer(4, 5, "cohort", 8, {}, {"weights": {"w": (10, 100)}}, training=3), "few")
    )
    result = call(home, "policy", "check", "lesions", "--json")
    assert result.exit_code == 1
    run = json.loads(result.stdout)["run"]
    assert (run["sha256"], run["allowed"], run["patients"]) == (run_hash, False, 4)
    assert "5 patients are declared for it, fewer than min-patients 10" in run["refusals"]


def test_hash_of_a_run_is_the_sha256sum_of_the_document_that_the_hospital_was_sent(home: Path) -> None:
    run_hash = propose(home)
    kept = home / "proposals" / run_hash / "run.json"
    shown = subprocess.run(["sha256sum", kept], capture_output=True, text=True, check=True).stdout
    assert shown.split()[0] == run_hash
    assert run_hash in succeed(home, "policy", "check", "lesions")


def test_data_check_for_a_private_run_says_that_more_patients_are_there_than_declared(
    home: Path, pictures: Path, tmp_path: Path
) -> None:
    document = tmp_path / "run.toml"
    document.write_text(RUN_TOML)
    succeed(home, "data", "add", str(pictures), "--label-map", "255=vessel")
    (home / "policy.toml").write_text("min-patients = 3\n")
    assert "has declared" not in succeed(home, "data", "check", "--run", str(document))
    (home / "policy.toml").unlink()
    settings = home / "site.toml"
    settings.write_text(f"cohort-size = 3\n{settings.read_text()}")
    shown = call(home, "data", "check", "--run", str(document)).stdout
    assert "4 patients are usable, and this site has declared 3." in shown
    assert "3 patients are declared for it, fewer than min-patients 10" in shown
    document.write_text(RUN_TOML.replace("privacy = { target-epsilon = 4.0 }", ""))
    assert "has declared" not in call(home, "data", "check", "--run", str(document)).output


def test_data_check_for_a_run_says_which_scores_will_not_leave_as_too_few_are_held_out(
    home: Path, pictures: Path, tmp_path: Path
) -> None:
    """Of four patients a fifth, at least one; the declared number is five. An approval would come first of all."""
    succeed(home, "data", "add", str(pictures), "--label-map", "255=vessel")
    document = tmp_path / "run.toml"
    sentence = "No {} score will leave: 1 patient is held out for it, fewer than min-held-out 10 in policy.toml."
    for privacy in ("privacy = { target-epsilon = 4.0 }", ""):
        document.write_text(RUN_TOML.replace("privacy = { target-epsilon = 4.0 }", privacy))
        shown = call(home, "data", "check", "--run", str(document)).stdout
        for phase in ("validation", "test"):
            assert sentence.format(phase) in shown
        verdict = json.loads(call(home, "data", "check", "--run", str(document), "--json").stdout)["policy"]
        assert verdict["too-few-held-out"] == {"validation": 1, "test": 1}
    for rules in ("min-held-out = 1\n", 'scores = "none"\n'):  # enough; none is asked for
        (home / "policy.toml").write_text(f"min-patients = 3\nrequire-privacy = false\n{rules}")
        assert "score will leave" not in succeed(home, "data", "check", "--run", str(document))


def test_data_check_for_a_run_says_whether_the_policy_lets_it_train(home: Path, pictures: Path, tmp_path: Path) -> None:
    succeed(home, "data", "add", str(pictures), "--label-map", "255=vessel")
    document = tmp_path / "run.toml"
    document.write_text(RUN_TOML)
    shown = call(home, "data", "check", "--run", str(document)).stdout
    assert "REFUSED by policy.toml, with 4 patients: lesions" in shown
    assert "- 5 patients are declared for it, fewer than min-patients 10" in shown
    (home / "policy.toml").write_text("min-patients = 3\nmax-delta = 0.02\nrequire-privacy = false\n")
    document.write_text(RUN_TOML.replace("privacy = { target-epsilon = 4.0 }", ""))
    assert "ALLOWED by policy.toml, with 4 patients" in succeed(home, "data", "check", "--run", str(document))
    verdict = json.loads(succeed(home, "data", "check", "--run", str(document), "--json"))["policy"]
    assert (verdict["allowed"], verdict["refusals"], verdict["patients"]) == (True, [], 4)
    assert json.loads(succeed(home, "data", "check", "--json"))["policy"] is None


def test_policy_check_names_the_wrong_key(home: Path) -> None:
    assert json.loads(succeed(home, "policy", "check", "--json"))["policy"]["min-patients"] == 10
    (home / "policy.toml").write_text("min-patient = 3\n")
    assert "min-patients" in fail(home, "policy", "check")


def test_ledger_shows_what_was_charged(home: Path) -> None:
    assert json.loads(succeed(home, "ledger", "--json")) == []
    run_hash = sha256_of(parse(RunConfig, RUN_TOML))
    for round_ in (1, 2):
        open_site(home).ledger.charge(
            "cohort",
            run_hash,
            round_,
            "a",
            noise_multiplier=2.0,
            sampling_rate=0.25,
            steps=20,
            delta=1e-3,
            lifetime_epsilon=10.0,
        )
    run, total = json.loads(succeed(home, "ledger", "--json"))
    assert (run["run"], run["charges"]) == (run_hash, 2)
    assert run["epsilon"] == total["epsilon"] > 0
    assert run["reserved-steps"] == total["reserved-steps"] == 0


def test_ledger_names_a_run_that_was_proposed_here_and_has_a_dash_for_one_that_was_not(home: Path) -> None:
    run = parse(RunConfig, RUN_TOML)
    propose(home)
    for run_hash in (sha256_of(run), "ab" * 32):
        open_site(home).ledger.charge(
            "cohort", run_hash, 1, "a",
            noise_multiplier=2.0, sampling_rate=0.25, steps=20, delta=1e-3, lifetime_epsilon=90.0,
        )  # fmt: skip
    rows = json.loads(succeed(home, "ledger", "--json"))
    assert [(row["run"], row["name"]) for row in rows] == [
        (sha256_of(run), run.name), ("ab" * 32, None), ("all", None)
    ]  # fmt: skip
    shown = succeed(home, "ledger")
    assert run.name in shown
    assert "None" not in shown


def test_ledger_tells_the_budgets_of_those_trained_on_and_held_out_apart(home: Path) -> None:
    cohort = "0123456789abcdef"
    for charged, attempt, rate in ((cohort, "a", 0.25), (held_out_cohort(cohort), "test", 1.0)):
        open_site(home).ledger.charge(
            charged, "ab" * 32, 1, attempt,
            noise_multiplier=2.0, sampling_rate=rate, steps=1, delta=1e-3, lifetime_epsilon=10.0,
        )  # fmt: skip
    rows = json.loads(succeed(home, "ledger", "--json"))
    assert [row["cohort"] for row in rows] == ["0123456789ab", "0123456789ab/held-out"] * 2
    assert rows[0]["epsilon"] == rows[2]["epsilon"] < rows[1]["epsilon"] == rows[3]["epsilon"]
    said = call(home, "ledger").stderr
    assert "10 of those trained on" in said
    assert "10 of held-out patients (lifetime-scores-epsilon)" in said


def test_ledger_shows_what_a_run_has_reserved_and_gives_it_back_when_told(home: Path) -> None:
    for run_hash in ("ab" * 32, "ac" * 32):
        open_site(home).ledger.charge(
            "cohort", run_hash, 1, "a",
            noise_multiplier=2.0, sampling_rate=0.25, steps=20, delta=1e-3, lifetime_epsilon=10.0, rounds=3,
        )  # fmt: skip
    assert [row["reserved-steps"] for row in json.loads(succeed(home, "ledger", "--json"))] == [40, 40, 80]
    assert "2 runs" in fail(home, "ledger", "--release", "a")
    assert "0 runs" in fail(home, "ledger", "--release", "x")
    rows = json.loads(succeed(home, "ledger", "--release", "ab", "--json"))
    assert [(row["reserved-steps"], row["charges"]) for row in rows] == [(0, 1), (40, 1), (40, 2)]


def test_doctor_names_what_is_wrong_and_goes_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.commands.diagnosis.REACH_S", 0.3)
    (home / "tls" / "key.pem").chmod(0o644)
    result = call(home, "doctor", "--json")
    assert result.exit_code == 1
    rows = {row["check"]: (row["result"], row["detail"]) for row in json.loads(result.stdout)}
    assert rows["certificate"][0] == "ok"
    assert rows["private files"][0] == "WRONG"
    assert "data add" in rows["data"][1]
    assert "does not answer" in rows["coordinator"][1]
    assert "wardround-client start" in rows["agent"][1]


@pytest.mark.parametrize(
    "command",
    [
        "join",
        "start",
        "status",
        "doctor",
        "data add",
        "data list",
        "data check",
        "runs",
        "approve",
        "deny",
        "policy check",
        "ledger",
        "predict",
    ],
)
def test_help_has_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert f"wardround-client {command}" in " ".join(result.stdout.split())


def test_lock_is_the_kernels_so_a_crash_leaves_none(home: Path) -> None:
    with (home / "agent.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError), only_one(home):
            pass
    with only_one(home):
        pass


def leaves(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from leaves(child, (*words, name))
    else:
        yield words, command


WITH_A_HOME = [
    words
    for words, command in leaves(typer.main.get_command(app))
    if words not in (("join",), ("restore",)) and any("--home" in parameter.opts for parameter in command.params)
]


@pytest.mark.parametrize("words", WITH_A_HOME, ids=" ".join)
@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_mistyped_home_is_an_error_and_makes_no_folder(tmp_path, monkeypatch, words, how):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WARDROUND_HOME", raising=False)
    command = dict(leaves(typer.main.get_command(app)))[words]
    (tmp_path / "images").mkdir()
    needed = ["images" for one in command.params if isinstance(one, click.Argument) and one.required]
    needed += [text for one in command.params if isinstance(one, click.Option) and one.required
               for text in (one.opts[0], "out")]  # fmt: skip
    home = ["--home", "hospitl"] if how == "option" else []
    result = CliRunner().invoke(app, [*words, *needed, *home], env={} if home else {"WARDROUND_HOME": "hospitl"})
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert "hospitl" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
