"""Who may type what at the coordinator: each role and command through the command line, on a home made for it."""

import ast
import base64
import datetime
import hashlib
import shutil
from pathlib import Path

import click
import pytest
import typer
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from typer.testing import CliRunner

from client.home import enrolment as client_enrol
from common.audit.entries import Entry
from common.config import RunConfig, parse, sha256_of
from common.config.rundocument import from_toml, issue
from common.errors import AuditError
from common.identity import certificates
from common.identity.operators import RIGHTS, Role, check_endorsements
from server.commands.main import app
from server.coordinator import supervisor
from server.federation.events import summarise, write_summary
from server.gateway import enrolment
from server.home import folder as homes
from server.home.folder import ENVIRONMENT, KEY_PASSPHRASE, Home
from server.home.root import ROOT_PASSPHRASE, rotate_root
from server.registry import operators
from server.registry.audit_trail import AUDIT_NAME, open_log
from server.registry.registry import Registry
from tests import ROOT
from tests.server.coordinators import RUN_TOML, enrol, new_home, signed

PASSPHRASE = "correct horse battery"  # noqa: S105 - of these tests alone

# By hand, from the description of the roles.
MATRIX = """
                    admin   operator    auditor
invite              may     -           -
enrol               may     -           -
approve             may     -           -
revoke              may     -           -
operator add        may     -           -
operator remove     may     -           -
root protect        may     -           -
root rotate         may     -           -
root finish         may     -           -
key protect         may     -           -
key unprotect       may     -           -
run                 may     may         -
stop                may     may         -
resume              may     may         -
export              may     may         -
purge               may     -           -
requests            may     may         -
sites               may     may         may
runs                may     may         may
runs compare        may     may         may
runs diff           may     may         may
watch               may     may         may
report              may     may         may
audit verify        may     -           may
audit export        may     -           may
"""
NAMES = {"admin": "admin", "operator": "maria", "auditor": "omar"}
TYPED = {
    "invite": "invite west",
    "enrol": "enrol east.request",
    "approve": "approve south",
    "revoke": "revoke north",
    "operator add": "operator add zoe",
    "operator remove": "operator remove ida",
    "root finish": "root finish --force",
    "key unprotect": "key unprotect --yes",
    "run": "run run.toml",
    "stop": "stop open",
    "resume": "resume halted",
    "export": "export done --out model",
    "purge": "purge done --with-record --yes",
    "runs compare": "runs compare done older",
    "runs diff": "runs diff done open",
    "watch": "watch done",
    "report": "report done",
    "audit export": "audit export --out log.jsonl",
}
# What is only looked at leaves no act in the log; it would fill with them.
LOOKS = {"requests", "sites", "runs", "runs compare", "runs diff", "watch", "audit verify"}
# For whoever has the home: to make it, to start it, to see how it is.
OPEN_TO_ALL = {"init", "new", "start", "status", "doctor", "operator list", "backup", "restore"}
# Asks for `watch`, and with each page and act for the right of that: tests/server/views/test_dashboard.py.
# Of them, `metrics` with each question: tests/server/monitoring/test_prometheus.py.
BY_OTHER_RIGHTS = {"dashboard", "metrics"}


def cells() -> list[tuple[str, str, bool]]:
    head, *rows = MATRIX.strip("\n").splitlines()
    return [
        (row[:20].strip(), role, cell == "may")
        for row in rows
        for role, cell in zip(head.split(), row[20:].split(), strict=True)
    ]


def run_of(name: str) -> tuple[RunConfig, str]:
    text = RUN_TOML.replace('"lesions"', f'"{name}"')
    return parse(RunConfig, text), text


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coordinator with somebody and something in every state; built once, copied for each test."""
    folder = tmp_path_factory.mktemp("template")
    home = new_home(folder / "wardround-server")
    registry = Registry(home.registry)
    people: list[tuple[str, Role]] = [("maria", "operator"), ("omar", "auditor"), ("ida", "operator")]
    for name, role in people:
        operators.add(home, registry, name, role)
    enrol(home, registry, "north")
    for name in ("south", "east"):
        invitation = enrolment.invite(home, registry, name)
        _, request = client_enrol.request_by_file(folder / name, invitation)
        (folder / f"{name}.request").write_text(request, encoding="utf-8")
    enrolment.redeem_file(home, registry, (folder / "south.request").read_bytes())
    for name in ("open", "halted", "done", "older"):
        run, text = run_of(name)
        registry.propose(from_toml(text), ())
        open_log(home).append("proposed", {"run": sha256_of(run)})
    halted, *completed = (sha256_of(run_of(name)[0]) for name in ("halted", "done", "older"))
    registry.close(halted, "stopped", "", signed(home, registry, "stop", halted))
    for done in completed:
        registry.close(done, "completed")
    for run_hash in (halted, *completed):
        open_log(home).append("closed", {"run": run_hash})
    for name, done in zip(("done", "older"), completed, strict=True):
        document = issue(run_of(name)[0])
        results = home.run_folder(document)
        results.mkdir(parents=True)
        (results / "metrics.jsonl").touch()
        write_summary(results, summarise(document, [], status="completed"))
        for file in ("model.safetensors", "model.json"):
            (results / f"{file}.sealed").write_bytes(home.sealer_of(done).seal(file.encode(), file))
    (folder / "run.toml").write_text(RUN_TOML, encoding="utf-8")
    return folder


@pytest.fixture
def home(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    folder = tmp_path / "office"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    for name in (ENVIRONMENT, "WARDROUND_OPERATOR", "WARDROUND_OPERATOR_KEY", operators.PASSPHRASE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(supervisor, "is_running", lambda _: True)
    monkeypatch.setattr("server.views.report.write_report", lambda results, _summary: results / "report.html")
    return homes.open_home(folder / "wardround-server")


def invoke(words: str, **environment: str) -> Result:
    return CliRunner().invoke(app, words.split(), env=environment)


def entries(home: Home) -> tuple[Entry, ...]:
    return open_log(home).entries()


def snapshot(folder: Path) -> dict[str, str]:
    """Everything but the audit log."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != AUDIT_NAME
    }


def refused(home: Home, words: str, **environment: str) -> str:
    """Nothing happens but one message and one entry; the message."""
    before, known = snapshot(home.path.parent), entries(home)
    result = invoke(words, **environment)
    assert result.exit_code == 1, result.output
    assert result.stderr.count("error: ") == 1
    assert result.stdout == ""
    assert snapshot(home.path.parent) == before
    (added,) = entries(home)[len(known) :]
    assert added.kind == "act-refused"
    return " ".join(result.stderr.split())


def prepare(home: Home, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command needs beside the template."""
    if command == "root finish":
        rotate_root(home)
    if command == "root protect":
        monkeypatch.setenv(ROOT_PASSPHRASE, PASSPHRASE)
    if command.startswith("key "):
        monkeypatch.setenv(KEY_PASSPHRASE, PASSPHRASE)
    if command == "key unprotect":
        home.key_file.write(home.key, PASSPHRASE)


@pytest.mark.parametrize(("command", "role", "may"), cells())
def test_role_may_do_what_its_description_says_and_nothing_else(
    home: Home, monkeypatch: pytest.MonkeyPatch, command: str, role: str, may: bool
) -> None:
    prepare(home, command, monkeypatch)
    name, action = NAMES[role], command.replace(" ", "-")
    words = f"{TYPED.get(command, command)} --as {name}"
    known = len(entries(home))
    if not may:
        message = refused(home, words)
        roles = [one for two, one, allowed in cells() if two == command and allowed]
        assert f"{name} is {role} and may not {command}. Who may: {', '.join(roles)}." in message
        last = entries(home)[-1].fields
        assert (last["action"], last["operator"]) == (action, name)
        return
    result = invoke(words)
    assert result.exit_code == 0, result.output
    acts = [entry.fields for entry in entries(home)[known:] if entry.kind == "act"]
    # Another root certifies the operators again: that has a test of its own.
    done = [(act["operator"], act["action"]) for act in (acts[:1] if command == "root finish" else acts)]
    assert done == ([] if command in LOOKS else [(name, action)])
    assert invoke("audit verify").exit_code == 0


def test_operators_are_certified_again_under_another_root_and_their_earlier_certificates_removed(home: Home) -> None:
    registry = Registry(home.registry)
    earlier = {one.name: one for one in registry.operators()}
    alone = invoke("audit verify").output.count("root key alone")
    rotate_root(home)
    result = invoke("root finish --force")
    assert result.exit_code == 0, result.output
    after = homes.open_home(home.path)
    for one in registry.operators():
        was = certificates.load_certificate(earlier[one.name].certificate)
        now = certificates.load_certificate(one.certificate)
        assert now.public_key() == was.public_key()
        assert one.role == earlier[one.name].role
        # A hospital that has just joined knows this root and no other.
        now.verify_directly_issued_by(certificates.load_certificate(after.root_pem))
        run, text = run_of(f"by-{one.name}")
        if one.role != "auditor":
            signer = operators.acting(after, registry, "run", one.name)
            bundle = from_toml(text).bundle
            signed_by = check_endorsements(
                [operators.endorse(signer, sha256_of(run), bundle)],
                after.root_pem,
                sha256_of(run),
                hashlib.sha256(bundle).hexdigest(),
            )
            assert [signer.name for signer in signed_by] == [one.name]
    removed = {entry.fields["certificate"] for entry in entries(home) if entry.kind == "operator-removed"}
    assert removed == {
        certificates.fingerprint(certificates.load_certificate(one.certificate)) for one in earlier.values()
    }
    assert invoke("invite late --as admin").exit_code == 0
    verified = invoke("audit verify")
    assert verified.exit_code == 0, verified.output
    assert verified.output.count("root key alone") == alone  # those of the template, and no more


# Carried out whoever asks, and however the log is: nobody is kept in, and no run kept going, by a full disk.
ENDS = {"revoke", "stop", "operator remove"}
ACTS = [command for command, role, _ in cells() if role == "admin" and command not in LOOKS]


@pytest.mark.parametrize("command", [command for command in ACTS if command not in ENDS])
def test_what_cannot_be_recorded_is_not_done(home: Home, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    prepare(home, command, monkeypatch)
    initial = home.path.parent / "public"
    if command == "run":  # with weights, which were written first
        initial.mkdir()
        (initial / "model.safetensors").write_bytes(b"weights")
        digest = hashlib.sha256(b"weights").hexdigest()
        (home.path.parent / "run.toml").write_text(f'{RUN_TOML}[initial]\nsha256 = "{digest}"\n', encoding="utf-8")
    before = snapshot(home.path.parent)

    def full(*_: object) -> None:
        raise AuditError("audit.sqlite cannot be written: database or disk is full")

    monkeypatch.setattr(operators, "enter", full)
    more = f" --initial {initial}" if command == "run" else ""
    result = invoke(TYPED.get(command, command) + more)
    assert result.exit_code == 1, result.output
    assert "disk is full" in result.stderr
    assert snapshot(home.path.parent) == before


@pytest.mark.parametrize("command", sorted(ENDS))
def test_what_ends_something_is_done_though_it_cannot_be_recorded(
    home: Home, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def full(*_: object) -> None:
        raise AuditError("audit.sqlite cannot be written: database or disk is full")

    monkeypatch.setattr(operators, "enter", full)
    assert invoke(TYPED[command]).exit_code == 1
    registry = Registry(home.registry)
    ended = {
        "revoke": registry.site("north").state == "revoked",
        "stop": registry.proposal("open").state == "stopped",
        "operator remove": not next(one for one in registry.operators() if one.name == "ida").active,
    }
    assert [name for name, done in ended.items() if done] == [command]


def test_an_act_stands_in_the_log_before_a_run_is_published(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Registry, "propose", killed)
    known = len(entries(home))
    invoke("run run.toml --as maria")
    (act,) = entries(home)[known:]
    assert (act.kind, act.fields["operator"], act.fields["action"]) == ("act", "maria", "run")


def test_whoever_may_not_run_writes_no_weights(home: Home) -> None:
    initial = home.path.parent / "public"
    initial.mkdir()
    (initial / "model.safetensors").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    (home.path.parent / "run.toml").write_text(f'{RUN_TOML}[initial]\nsha256 = "{digest}"\n', encoding="utf-8")
    assert "omar is auditor and may not run" in refused(home, f"run run.toml --initial {initial} --as omar")


@pytest.mark.parametrize(
    "words",
    [
        "stop nowhere",
        "resume nowhere",
        "export nowhere --out model",
        "revoke nowhere",
        "run nowhere.toml",
        "root finish",
        "key unprotect --yes",
    ],
)
def test_right_is_asked_for_before_anything_is_looked_up(home: Home, words: str) -> None:
    """Who may not do it learns nothing of what is there, and the log has the attempt."""
    assert "omar is auditor and may not" in refused(home, f"{words} --as omar")


def test_one_function_signs_and_enters_whatever_is_done() -> None:
    """So no command can do it in another order: in no other place of the program is an act signed or entered."""
    found = set()
    for path in sorted((ROOT / "server").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                called = {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
                if called & {"enter", "operators.enter", "signer.sign", "by.sign"}:
                    found.add(f"{path.name}: {function.name}")
    assert found == {"operators.py: carry_out"}


def test_every_command_is_in_the_table_or_open_to_all() -> None:
    found = set()

    def walk(command: click.Command, words: str) -> None:
        if isinstance(command, click.Group):
            if command.invoke_without_command:
                found.add(words)
            for name, child in command.commands.items():
                walk(child, f"{words} {name}".strip())
        else:
            found.add(words)

    walk(typer.main.get_command(app), "")
    assert found == {command for command, _, _ in cells()} | OPEN_TO_ALL | BY_OTHER_RIGHTS
    assert {command.replace(" ", "-") for command, _, _ in cells()} == set(RIGHTS)


def test_signature_in_the_log_is_over_the_statement_of_the_documentation(home: Home) -> None:
    assert invoke("revoke north").exit_code == 0
    act = next(entry for entry in entries(home) if entry.kind == "act" and entry.fields["action"] == "revoke").fields
    member = next(one for one in Registry(home.registry).operators() if one.name == "admin")
    certificate = certificates.load_certificate(member.certificate)
    assert act["certificate"] == certificates.fingerprint(certificate)
    assert act["subject"] == hashlib.sha256(b"north\n").hexdigest()
    statement = f"wardround act 1\nrevoke\n{act['subject']}\nadmin\n{act['signed-at']}\n{act['nonce']}\n"
    key = certificate.public_key()
    assert isinstance(key, Ed25519PublicKey)
    key.verify(base64.b64decode(act["signature"]), statement.encode())


def test_what_a_command_says_it_did_it_did(home: Home) -> None:
    registry = Registry(home.registry)
    for words in ("approve south", "invite west", "enrol east.request", "stop open --as maria", "resume halted"):
        assert invoke(words).exit_code == 0
    assert {site.name: site.state for site in registry.sites()} == {
        "north": "active", "south": "active", "east": "pending", "west": "invited",
    }  # fmt: skip
    assert {one.name: one.state for one in registry.proposals()} == {
        "open": "stopped", "halted": "proposed", "done": "completed", "older": "completed",
    }  # fmt: skip
    assert invoke("audit verify").exit_code == 0


def test_removed_operator_is_refused(home: Home) -> None:
    assert invoke("operator remove maria").exit_code == 0
    assert "no operator is called 'maria'" in refused(home, "stop open --as maria")


def test_stranger_is_refused(home: Home) -> None:
    assert "no operator is called 'eve'" in refused(home, "approve south --as eve")


def test_operator_whose_certificate_has_run_out_is_refused(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    later = certificates.now() + datetime.timedelta(days=366)
    monkeypatch.setattr(certificates, "now", lambda: later)
    assert "out of date" in refused(home, "revoke north")


def test_role_in_the_registry_does_not_count(home: Home) -> None:
    registry = Registry(home.registry)
    member = next(one for one in registry.operators() if one.name == "omar")
    registry.put_operator("omar", "admin", member.certificate)
    assert "omar is auditor" in refused(home, "approve south --as omar")


def test_another_operators_key_is_refused(home: Home) -> None:
    words = f"approve south --as admin --key {home.path / 'operators' / 'maria.key'}"
    assert "error:" in refused(home, words)
    (home.path / "operators" / "admin.key").unlink()
    assert "cannot be read" in refused(home, "approve south")


def test_key_that_lies_elsewhere_under_a_passphrase_is_found_by_the_environment(home: Home, tmp_path: Path) -> None:
    chosen = {operators.PASSPHRASE_VARIABLE: PASSPHRASE}
    assert invoke("operator add zoe --role admin --passphrase", **chosen).exit_code == 0
    key = tmp_path / "usb.key"
    (home.path / "operators" / "zoe.key").rename(key)
    who = {"WARDROUND_OPERATOR": "zoe", "WARDROUND_OPERATOR_KEY": str(key)}
    assert "under a passphrase" in refused(home, "approve south", **who)
    assert "does not open" in refused(home, "approve south", **who, **{operators.PASSPHRASE_VARIABLE: "another one!"})
    (tmp_path / "passphrase").write_text(PASSPHRASE + "\n")
    file = {f"{operators.PASSPHRASE_VARIABLE}_FILE": str(tmp_path / "passphrase")}
    assert "not operator maria's" in refused(home, f"stop open --as maria --key {key}", **chosen)
    assert invoke("approve south", **who, **file).exit_code == 0
    assert entries(home)[-2].fields["operator"] == "zoe"


def test_run_signed_by_two_is_entered_for_both_and_not_at_all_if_one_may_not(home: Home) -> None:
    assert "omar is auditor" in refused(home, "run run.toml --as admin --as omar")
    assert invoke("run run.toml --as admin --as maria").exit_code == 0
    acts = [entry.fields["operator"] for entry in entries(home)[-3:] if entry.kind == "act"]
    assert acts == ["admin", "maria"]


def test_environment_says_who_acts(home: Home) -> None:
    assert invoke("run run.toml", WARDROUND_OPERATOR="maria").exit_code == 0
    assert invoke("stop lesions", WARDROUND_OPERATOR="maria").exit_code == 0
    acts = [entry.fields for entry in entries(home) if entry.kind == "act"][-2:]
    assert [(act["operator"], act["action"]) for act in acts] == [("maria", "run"), ("maria", "stop")]


def test_an_admin_whose_certificate_has_run_out_is_none(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    later = certificates.now() + datetime.timedelta(days=366)
    monkeypatch.setattr(certificates, "now", lambda: later)
    assert invoke("operator add zoe --role admin").exit_code == 0
    assert invoke("operator remove admin --as zoe").exit_code == 0


def test_only_when_no_admin_is_left_the_root_key_makes_one(home: Home) -> None:
    assert "may not operator add" in refused(home, "operator add eve --role admin --as maria")
    assert invoke("operator remove admin").exit_code == 0
    assert "no operator is called 'admin'" in refused(home, "operator add eve")
    assert invoke("operator add zoe --role admin").exit_code == 0
    assert invoke("approve south --as zoe").exit_code == 0
    result = invoke("audit verify --as zoe")
    assert result.exit_code == 0
    assert "operator zoe was added with the root key alone" in result.stdout
