import hashlib
import json
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner, Result

from common.config import sha256_of
from common.config.rundocument import from_toml, issue
from common.crypto.passphrase import is_sealed
from common.identity import certificates
from common.identity.invitation import Invitation
from common.tasks.segmentation import Segmentation
from server.commands.main import app
from server.coordinator import supervisor
from server.federation.events import open_journal
from server.home.folder import ENVIRONMENT, KEY_PASSPHRASE, open_home
from server.home.root import server_credentials
from server.registry.registry import Registry
from server.views.watch import event_line, state_line
from tests.server.coordinators import RUN, RUN_TOML, asked, enrol, free_ports, new_home

HASH = sha256_of(RUN)


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(ENVIRONMENT, raising=False)


@pytest.fixture
def home(tmp_path):
    return new_home(tmp_path / "wardround-server")


@pytest.fixture
def registry(home):
    return Registry(home.registry)


@pytest.fixture
def document(tmp_path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(RUN_TOML)
    return path


@pytest.fixture
def running(monkeypatch):
    monkeypatch.setattr(supervisor, "is_running", lambda _: True)


def invoke(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def succeeds(*words: str) -> str:
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(*words: str) -> str:
    result = invoke(*words)
    assert result.exit_code == 1, result.output
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.output
    return result.stderr


def add_result(home, status: str = "completed") -> Path:
    folder = home.run_folder(issue(RUN))
    folder.mkdir(parents=True, exist_ok=True)
    dice = {"dice": 0.75}
    scores = {"test": {"round": 2, "sites": {"a": dice}, "mean-of-sites": dice, "mean-of-patients": None}}
    guarantee = {"sites": {"a": {"epsilon": 1.5, "delta": 0.001}}}
    (folder / "summary.json").write_text(json.dumps({"status": status, "scores": scores, "guarantee": guarantee}))
    for name in ("model.safetensors", "model.json"):
        (folder / f"{name}.sealed").write_bytes(home.sealer_of(HASH).seal(name.encode(), name))
    return folder


def test_init_makes_a_private_home_for_this_machine(tmp_path):
    succeeds("init")
    succeeds("invite", "st-mary")
    home = open_home(tmp_path / "wardround-server")
    assert home.config.listen == "127.0.0.1"
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    files = [path for path in home.path.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_init_with_a_host_listens_to_the_world_and_certifies_the_name(tmp_path):
    ports = [str(port) for port in free_ports(3)]
    options = ("--gateway-port", ports[0], "--enrolment-port", ports[1], "--superlink-port", ports[2])
    succeeds("init", "--home", "other", "--host", "fl.example.org", *options)
    home = open_home(tmp_path / "other")
    assert home.config.listen == "0.0.0.0"  # noqa: S104 - asked for by --host
    assert home.gateway_address == f"fl.example.org:{ports[0]}"
    certificate = certificates.load_certificate((home.path / "pki" / "server.pem").read_bytes())
    assert {"fl.example.org", "localhost", "127.0.0.1"} <= set(certificates.hosts_of(certificate))


def test_init_twice_is_refused_and_changes_nothing(home):
    before = home.root_pem
    assert "already initialised" in fails("init")
    assert home.root_pem == before


def test_the_same_port_twice_is_refused():
    assert "must differ" in fails("init", "--gateway-port", "9000", "--enrolment-port", "9000")


@pytest.mark.parametrize("port", ["0", "65536", "x"])
def test_impossible_ports_are_usage_errors(port):
    assert invoke("init", "--gateway-port", port).exit_code == 2


def test_without_a_home_the_message_says_what_to_do():
    assert "wardround-server init" in fails("sites")


def test_the_environment_names_the_home(home, monkeypatch, tmp_path):
    monkeypatch.setenv(ENVIRONMENT, str(home.path))
    monkeypatch.chdir(tmp_path.parent)
    assert json.loads(succeeds("sites", "--json")) == []


def test_a_home_open_to_others_is_refused(home):
    home.path.chmod(0o755)
    assert "chmod 700" in fails("sites")


def test_a_site_is_invited_asks_and_is_approved_and_revoked(home, registry):
    path = Path(succeeds("invite", "st-mary").strip())
    invitation = Invitation.from_text(path.read_text())
    csr = certificates.csr_for("st-mary", certificates.new_key())
    csr_pem, receipt_key, proof = asked("st-mary", csr)
    registry.redeem("st-mary", invitation.token, csr_pem, receipt_key, proof)
    rows = json.loads(succeeds("requests", "--json"))
    phrase = certificates.phrase(certificates.request_digest(csr, receipt_key))
    assert rows == [{"site": "st-mary", "wish": "joins", "phrase": phrase}]
    assert "st-mary is active until 20" in succeeds("approve", "st-mary")
    assert [row["state"] for row in json.loads(succeeds("sites", "--json"))] == ["active"]
    succeeds("revoke", "st-mary")
    assert [row["state"] for row in json.loads(succeeds("sites", "--json"))] == ["revoked"]


def test_an_invitation_can_be_written_elsewhere(home, tmp_path):
    out = tmp_path / "usb" / "st-mary.json"
    assert succeeds("invite", "st-mary", "--out", str(out.parent)).strip() == str(out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert Invitation.from_text(out.read_text()).site == "st-mary"


def test_mistakes_are_explained(home):
    assert "no site name" in fails("invite", "St Mary")
    assert "no site is called" in fails("approve", "nobody")
    assert "no site is called" in fails("approve", "nobody", "--wait")
    assert "no site is called" in fails("revoke", "nobody")
    assert "no run is called" in fails("report", "nothing")


def test_run_needs_a_running_coordinator(home, document):
    assert "wardround-server start" in fails("run", str(document))


@pytest.mark.parametrize(
    ("text", "message"),
    [("name = ", "not valid TOML"), (RUN_TOML + "\nroundz = 3\n", "unknown key"), ("", "is not there")],
)
def test_a_wrong_document_is_explained(home, running, tmp_path, text, message):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    assert message in fails("run", str(path))


def test_a_missing_document_is_explained(home, running):
    assert "cannot be read" in fails("run", "missing.toml")


def test_run_proposes_and_says_what_the_sites_type(home, registry, running, document):
    result = invoke("run", str(document))
    assert result.exit_code == 0
    assert HASH in result.stdout
    assert f"wardround-client approve {HASH[:8]}" in result.stderr
    assert registry.proposal(HASH).state == "proposed"
    assert "change its name or seed" in fails("run", str(document))


def test_run_that_names_initial_weights_needs_exactly_these(home, registry, running, document, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    assert "names no initial weights" in fails("run", str(document), "--initial", str(model))
    digest = hashlib.sha256(b"weights").hexdigest()
    document.write_text(f'{RUN_TOML}\n[initial]\nsha256 = "{digest}"\n')
    assert "is not there" in fails("run", str(document))
    (model / "model.safetensors").write_bytes(b"other weights")
    assert "another SHA-256" in fails("run", str(document), "--initial", str(model))
    assert registry.proposals() == []
    (model / "model.safetensors").write_bytes(b"weights")
    succeeds("run", str(document), "--initial", str(model))
    (proposal,) = registry.proposals()
    assert (home.run_folder(proposal.document) / "initial.safetensors").read_bytes() == b"weights"


def test_approve_waits_for_an_invited_site_only_when_it_is_told_to(home, registry):
    succeeds("invite", "st-mary")
    assert "st-mary" in fails("approve", "st-mary")
    token = json.loads(home.invitation("st-mary").read_text())["token"]
    later = threading.Timer(1.5, registry.redeem, ["st-mary", token, *asked("st-mary")])
    later.start()
    result = invoke("approve", "st-mary", "--wait")
    assert result.exit_code == 0, result.output
    assert "Waiting for st-mary" in result.stderr
    phrase = certificates.phrase(registry.site("st-mary").request_sha256)
    assert f"Phrase: {phrase}" in result.stdout
    assert registry.site("st-mary").state == "active"


def test_init_invites(tmp_path):
    ports = [f"--{name}-port={port}" for name, port in zip(("gateway", "superlink"), free_ports(2), strict=True)]
    shown = succeeds("init", "--home", "new", *ports, "--invite", "north", "--invite", "south")
    assert shown.splitlines()[1:] == [
        str(tmp_path / "new" / "invitations" / f"{site}.json") for site in ("north", "south")
    ]
    made = Registry(open_home(Path("new")).registry)
    assert [(site.name, site.state) for site in made.sites()] == [("north", "invited"), ("south", "invited")]


def test_watching_ends_with_the_table_when_the_run_is_completed(home, registry, running, document, monkeypatch):
    monkeypatch.setattr(
        "server.views.watch.time.sleep", lambda _: (add_result(home), registry.close(HASH, "completed"))
    )
    result = invoke("run", str(document), "--watch")
    assert result.exit_code == 0, result.output
    assert "0.750" in result.stdout
    assert str(home.run_folder(issue(RUN))) in result.stdout


def test_watching_a_failed_run_gives_its_reason_and_exit_code_1(home, registry, running, document, monkeypatch):
    monkeypatch.setattr("server.views.watch.time.sleep", lambda _: registry.close(HASH, "failed", "no quorum"))
    assert "failed: no quorum" in fails("run", str(document), "--watch")


def test_reason_of_a_failed_run_is_told_once_to_who_watches_it(home, registry, running, document):
    invoke("run", str(document))
    open_journal(home.run_folder(issue(RUN)), last_round=0).record("run-failed", {"reason": "no quorum"})
    registry.close(HASH, "failed", "no quorum")
    assert fails("watch", "lesions").count("no quorum") == 1


def test_next_command_can_be_pasted_where_the_home_is_another_folder_than_the_usual(tmp_path, registry, document):
    ports = [
        f"--{name}-port={port}" for name, port in zip(("gateway", "enrolment", "superlink"), free_ports(3), strict=True)
    ]
    other = tmp_path / "some where"
    assert f"Next: wardround-server start --home '{other}'" in invoke("init", "--home", str(other), *ports).stderr
    usual = invoke("init", "--home", "fresh/wardround-server", *ports)
    assert "--home" in usual.stderr
    invited = invoke("invite", "north", "--home", str(other)).stderr
    assert f"wardround-server requests --home '{other}'" in invited
    made = open_home(other)
    seen = Registry(made.registry)
    seen.propose(from_toml(RUN_TOML), ())
    assert f"wardround-server stop {HASH[:8]} --home '{other}'" in state_line(made, seen, seen.proposal(HASH))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT, str(other))
        assert state_line(made, seen, seen.proposal(HASH)).endswith(f"wardround-server stop {HASH[:8]})")


def test_hash_of_a_run_is_the_sha256sum_of_the_document_that_was_issued(home, registry, running, document):
    result = invoke("run", str(document))
    issued = home.run_folder(issue(RUN)) / "run.json"
    assert str(issued) in result.stderr.replace("\n", "")
    shown = subprocess.run(["sha256sum", issued], capture_output=True, text=True, check=True).stdout
    assert shown.split()[0] == registry.proposals()[0].run_hash == HASH
    assert HASH in result.stdout


def test_runs_stop_and_resume(home, registry, running, document):
    succeeds("run", str(document))
    succeeds("stop", "lesions")
    assert [row["state"] for row in json.loads(succeeds("runs", "--json"))] == ["stopped"]
    assert "stopped already" in fails("stop", HASH[:8])
    succeeds("resume", HASH[:8])
    assert registry.proposal(HASH).state == "proposed"
    assert "nothing to resume" in fails("resume", "lesions")


def test_export_copies_the_model_of_a_completed_run_only(home, registry, tmp_path):
    registry.propose(from_toml(RUN_TOML), ())
    assert "only a completed run" in fails("export", "lesions", "--out", "model")
    add_result(home)
    registry.close(HASH, "completed")
    succeeds("export", "lesions", "--out", "model")
    exported = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert exported == {name: name.encode() for name in ("model.json", "model.safetensors")}


def test_run_that_no_hospital_scored_ends_with_the_epsilon_of_each_and_says_why_there_is_no_dice(home, registry):
    registry.propose(from_toml(RUN_TOML), ())
    folder = add_result(home)
    summary = json.loads((folder / "summary.json").read_text())
    summary["scores"]["test"] |= {"sites": {}, "mean-of-sites": {}}
    (folder / "summary.json").write_text(json.dumps(summary))
    registry.close(HASH, "completed")
    result = invoke("watch", "lesions")
    assert result.exit_code == 0, result.output
    row = next(line for line in result.stdout.splitlines() if "1.500" in line)
    assert row.replace("│", " ").split() == ["a", "-", "-", "1.500", "0.001"]
    assert "min-held-out" in result.stderr


def test_noised_score_is_shown_beside_its_noise(home, registry):
    registry.propose(from_toml(RUN_TOML), ())
    folder = add_result(home)
    summary = json.loads((folder / "summary.json").read_text())
    summary["scores"]["test"]["sites"]["a"] |= {"dice": 0.812, "score-noise": 0.045}
    (folder / "summary.json").write_text(json.dumps(summary))
    registry.close(HASH, "completed")
    row = next(line for line in invoke("watch", "lesions").stdout.splitlines() if "0.812" in line)
    assert row.replace("│", " ").split()[:3] == ["a", "0.812", "0.045"]


def test_report_without_a_result_is_explained(home, registry):
    registry.propose(from_toml(RUN_TOML), ())
    assert "has not begun" in fails("report", "lesions")


def test_status_of_a_stopped_coordinator_is_a_failure(home):
    result = invoke("status", "--json")
    assert result.exit_code == 1
    assert {row["what"]: row["state"] for row in json.loads(result.stdout)}["gateway"] == "down"


def test_doctor_finds_an_open_key(home):
    (home.path / "pki" / "root.key").chmod(0o644)
    result = invoke("doctor", "--json")
    assert result.exit_code == 1
    wrong = {row["check"] for row in json.loads(result.stdout) if row["result"] == "WRONG"}
    assert wrong == {"pki/root.key", "coordinator"}


def test_doctor_goes_on_where_a_certificate_is_missing(home):
    (home.path / "pki" / "server.pem").unlink()
    rows = {row["check"]: row for row in json.loads(invoke("doctor", "--json").stdout)}
    assert rows["certificates"]["result"] == "WRONG"
    assert {"flwr version", "coordinator key", "disk", "coordinator", "clocks"} <= rows.keys()


def test_coordinators_key_goes_under_a_passphrase_and_out_again(home, monkeypatch):
    key = home.key_file.path.read_bytes()
    assert "no passphrase was given" in fails("key", "protect")
    monkeypatch.setenv(KEY_PASSPHRASE, "five random words would do")
    succeeds("key", "protect")
    assert key not in home.key_file.path.read_bytes()
    assert "already" in fails("key", "protect")
    succeeds("invite", "st-mary")
    monkeypatch.delenv(KEY_PASSPHRASE)
    assert f"Set {KEY_PASSPHRASE}" in fails("invite", "st-john")
    assert f"Set {KEY_PASSPHRASE}" in fails("key", "unprotect", "--yes")
    monkeypatch.setenv(KEY_PASSPHRASE, "five random words would do")
    succeeds("key", "unprotect", "--yes")
    assert home.key_file.path.read_bytes() == key
    assert "not under a passphrase" in fails("key", "unprotect", "--yes")


def test_init_writes_no_key_in_the_clear_where_it_is_told_to_protect_it(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("common.crypto.keyfile.create_private", lambda _, data: written.append(data) is None)
    monkeypatch.setenv(KEY_PASSPHRASE, "five random words would do")
    monkeypatch.setattr("server.home.folder.key_agent.ask", lambda _: None)
    invoke("init", "--protect")
    assert len(written) == 1
    assert is_sealed(written[0])


def test_doctor_says_who_keeps_the_key(home, monkeypatch):
    def found():
        rows = json.loads(invoke("doctor", "--json").stdout)
        return {row["check"]: row["detail"] for row in rows}["coordinator key"]

    assert "wardround-server key protect" in found()
    monkeypatch.setenv(KEY_PASSPHRASE, "five random words would do")
    succeeds("key", "protect")
    monkeypatch.delenv(KEY_PASSPHRASE)
    assert "under a passphrase" in found()
    home.key_file.path.chmod(0o640)
    rows = json.loads(invoke("doctor", "--json").stdout)
    assert "coordinator.key" in {row["check"] for row in rows if row["result"] == "WRONG"}


def test_every_command_shows_an_example():
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        assert f"wardround-server {name}" in " ".join(succeeds(name, "--help").split()), name


def test_the_waiting_line_names_the_silent_sites_and_what_to_type(home, registry):
    for name in ("a", "b"):
        enrol(home, registry, name)
    registry.propose(from_toml(RUN_TOML), ())
    registry.answer(HASH, "a", approved=True)
    line = state_line(home, registry, registry.proposal(HASH))
    assert "1 of 2 approvals; waiting for b" in line
    assert f"wardround-client approve {HASH[:8]}" in line


def test_a_round_line_names_who_was_left_out():
    event = {
        "event": "round", "round": 3, "sites": ["a"], "refused": {"b": "not-finite"}, "missing": ["c"],
        "seconds": 1.25, "bytes-down": 3_000_000, "bytes-up": 1_000_000,
    }  # fmt: skip
    assert (
        event_line(event, Segmentation()) == "round 3: 1 site, 1.2 s, 4.0 MB; b refused (not-finite), c did not answer"
    )


def test_the_certificate_follows_the_hosts(home):
    text = (home.path / "server.toml").read_text().replace('"localhost"', '"localhost", "fl.example.org"')
    (home.path / "server.toml").write_text(text)
    changed = open_home(home.path)
    assert "fl.example.org" in certificates.hosts_of(certificates.load_certificate(server_credentials(changed)[1]))


def leaves(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from leaves(child, (*words, name))
    else:
        yield words, command


WITH_A_HOME = [
    words
    for words, command in leaves(typer.main.get_command(app))
    if words != ("init",) and any("--home" in parameter.opts for parameter in command.params)
]


@pytest.mark.parametrize("words", WITH_A_HOME, ids=" ".join)
def test_a_mistyped_home_is_an_error_and_makes_no_folder(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    command = dict(leaves(typer.main.get_command(app)))[words]
    (tmp_path / "there").touch()
    needed = ["there" for one in command.params if isinstance(one, click.Argument) and one.required]
    needed += [text for one in command.params if isinstance(one, click.Option) and one.required
               for text in (one.opts[0], "out")]  # fmt: skip
    result = CliRunner().invoke(app, [*words, *needed, "--home", "coordinatr"])
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert "coordinatr is not a coordinator's home" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]
