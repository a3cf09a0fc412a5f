import json
import stat
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from common.crypto.passphrase import is_sealed
from common.identity import certificates
from server.commands.main import app
from server.home.folder import ENVIRONMENT, KEY_PASSPHRASE, open_home
from server.home.root import server_credentials
from server.registry.registry import Registry
from tests.server.commands.calls import fails, invoke, succeeds
from tests.server.coordinators import RUN_TOML, free_ports


def test_init_makes_a_private_home_for_this_machine(tmp_path):
    said = invoke("init")
    assert said.exit_code == 0, said.output
    assert "Only this machine reaches it" in said.stderr
    assert "--host NAME sets both" in said.stderr
    succeeds("invite", "st-mary")
    home = open_home(tmp_path / "wardround-server")
    assert home.config.listen == "127.0.0.1"
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    files = [path for path in home.path.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_init_with_a_host_listens_to_the_world_and_certifies_the_name(tmp_path):
    ports = [str(port) for port in free_ports(3)]
    options = ("--gateway-port", ports[0], "--enrolment-port", ports[1], "--superlink-port", ports[2])
    assert "Only this machine" not in invoke("init", "--home", "other", "--host", "fl.example.org", *options).stderr
    home = open_home(tmp_path / "other")
    assert home.config.listen == "0.0.0.0"  # noqa: S104 - asked for by --host
    assert home.gateway_address == f"fl.example.org:{ports[0]}"
    certificate = certificates.load_certificate((home.path / "pki" / "server.pem").read_bytes())
    assert {"fl.example.org", "localhost", "127.0.0.1"} <= set(certificates.hosts_of(certificate))


def test_folder_of_a_hospital_is_no_coordinators(tmp_path):
    north = tmp_path / "north"
    north.mkdir()
    (north / "site.toml").touch()
    for command in ("init", "status"):
        assert "is a hospital's folder (it has site.toml)" in fails(command, "--home", str(north))
    assert [one.name for one in north.iterdir()] == ["site.toml"]


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


def test_mistakes_are_explained(home):
    assert "no site name" in fails("invite", "St Mary")
    assert "no site is called" in fails("approve", "nobody")
    assert "no site is called" in fails("approve", "nobody", "--wait")
    assert "no site is called" in fails("revoke", "nobody")
    assert "no run is called" in fails("report", "nothing")


def test_init_invites(tmp_path):
    ports = [f"--{name}-port={port}" for name, port in zip(("gateway", "superlink"), free_ports(2), strict=True)]
    shown = succeeds("init", "--home", "new", *ports, "--invite", "north", "--invite", "south")
    assert shown.splitlines()[1:] == [
        str(tmp_path / "new" / "invitations" / f"{site}.json") for site in ("north", "south")
    ]
    made = Registry(open_home(Path("new")).registry)
    assert [(site.name, site.state) for site in made.sites()] == [("north", "invited"), ("south", "invited")]


def test_next_command_can_be_pasted_where_the_home_is_another_folder_than_the_usual(tmp_path, registry, document):
    ports = [
        f"--{name}-port={port}" for name, port in zip(("gateway", "enrolment", "superlink"), free_ports(3), strict=True)
    ]
    other = tmp_path / "some where"
    assert f"Next: `wardround-server start --home '{other}'`" in invoke("init", "--home", str(other), *ports).stderr
    usual = invoke("init", "--home", "fresh/wardround-server", *ports)
    assert "--home" in usual.stderr
    invited = invoke("invite", "north", "--home", str(other)).stderr
    assert f"wardround-server requests --home '{other}'" in invited
    document = "run.toml"
    Path(document).write_text(RUN_TOML)
    told = fails("run", document, "--home", str(other))
    assert f"`wardround-server start --home '{other}'`" in told
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT, str(other))
        assert "`wardround-server start`" in fails("run", document)


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
    assert rows["server certificate"]["result"] == "WRONG"
    assert "server.pem is missing: restore the folder pki from a backup" in rows["server certificate"]["detail"]
    assert {"flwr version", "coordinator key", "disk", "coordinator", "clocks"} <= rows.keys()


def test_init_writes_no_key_in_the_clear_where_it_is_told_to_protect_it(tmp_path, monkeypatch):
    written = []

    def create(_, data):
        written.append(data)
        return True

    monkeypatch.setattr("common.crypto.keyfile.create_private", create)
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
        assert command.callback is not None
        name = command.name or command.callback.__name__
        assert f"wardround-server {name}" in " ".join(succeeds(name, "--help").split()), name


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


# init and restore make one.
WITH_A_HOME = [
    words
    for words, command in leaves(typer.main.get_command(app))
    if words not in {("init",), ("restore",)} and any("--home" in parameter.opts for parameter in command.params)
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
