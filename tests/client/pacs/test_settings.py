"""pacs.toml: written by commands and by hand, refused where it is wrong, and never a place for a secret."""

import json
import re
import stat
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.commands.main import app
from client.pacs import caller
from client.pacs.settings import PACS_NAME, PacsConfig, read_peers
from common.config import parse
from common.errors import ConfigError
from tests.json_forms import conforms

DIMSE = ("--host", "pacs.example", "--port", "104", "--called", "PACS")
WEB = ("--url", "https://pacs.example/dicom-web")
BY_HAND = '# ours\n[[pacs]] # the old one\nname = "old"\nprotocol = "dimse"\nhost = "h"\nport = 104\ncalled = "OLD"\n'


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "site.toml").write_text('name = "north"\n')
    monkeypatch.setenv("WARDROUND_HOME", str(tmp_path / "site"))
    return tmp_path / "site"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("s3cret-token\n")
    (tmp_path / "token").chmod(0o600)
    return tmp_path / "token"


def typed(*words: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == code, done.output
    return done


def test_what_is_added_is_listed_and_goes_again(home: Path, secret: Path) -> None:
    typed("pacs", "add", "main", *DIMSE, "--timeout", "12")
    typed("pacs", "add", "web", *WEB, "--token-file", secret)
    listed = json.loads(typed("pacs", "list", "--json").stdout)
    conforms("wardround-client pacs list", listed)
    assert listed == [
        {"name": "main", "protocol": "dimse", "address": "PACS at pacs.example:104", "encrypted": False},
        {"name": "web", "protocol": "dicomweb", "address": "https://pacs.example/dicom-web", "encrypted": True},
    ]
    assert stat.S_IMODE((home / PACS_NAME).stat().st_mode) == 0o600
    assert read_peers(home)[0].timeout == 12
    typed("pacs", "remove", "main")
    assert [peer.name for peer in read_peers(home)] == ["web"]
    typed("pacs", "remove", "web")
    nothing = typed("pacs", "list", "--json")
    assert json.loads(nothing.stdout) == []
    assert "Next: `wardround-client pacs add" in nothing.stderr


def test_help_says_what_travels_in_the_clear_and_where_a_pull_may_not_go() -> None:
    said = " ".join(re.sub(r"[\u2500-\u257f]", " ", typed("pacs", "add", "--help").output).split())
    assert "Without --ca names travel in the clear" in said
    assert "Without https:// names travel in the clear" in said
    pull = " ".join(re.sub(r"[\u2500-\u257f]", " ", typed("data", "pull", "--help").output).split())
    assert "outside of the site's" in pull


def test_a_secret_stands_in_no_file_of_ours_and_in_no_output(home: Path, secret: Path) -> None:
    said = typed("pacs", "add", "web", *WEB, "--token-file", secret).output + typed("pacs", "list").output
    assert "s3cret-token" not in said + (home / PACS_NAME).read_text()


def test_what_a_person_wrote_stays(home: Path) -> None:
    (home / PACS_NAME).write_text(BY_HAND)
    typed("pacs", "add", "main", *DIMSE)
    text = (home / PACS_NAME).read_text()
    assert text.startswith(BY_HAND)
    typed("pacs", "remove", "main")
    assert (home / PACS_NAME).read_text() == BY_HAND


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--host, --port and --called for DIMSE, or --url"),
        ((*DIMSE, *WEB), "--host, --port and --called for DIMSE, or --url"),
        (DIMSE[:4], "called is not there"),
        ((*DIMSE[:4], "--called", "A" * 17), "1 to 16 printable signs"),
        ((*DIMSE[:4], "--called", "A\\B"), "1 to 16 printable signs"),
        ((*DIMSE, "--token-file", "SECRET"), "token"),
        ((*DIMSE, "--certificate", "SECRET"), "certificate and key go together"),
        ((*DIMSE, "--certificate", "SECRET", "--key", "SECRET"), "TLS needs ca"),
        ((*DIMSE, "--ca", "/none.pem"), "is not there"),
        ((*WEB, "--token-file", "SECRET", "--login-file", "SECRET"), "give one"),
        (("--url", "ftp://pacs.example"), "no address"),
        (("--url", "https://reader:s3cret@pacs.example/x"), "names a user"),
        (("--url", "https://pacs.example:99999/x"), "port"),
        (("--url", "http://pacs.example/x", "--token-file", "SECRET"), "in the clear"),
        ((*WEB, "--timeout", "0"), "timeout"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(
    home: Path, secret: Path, options: tuple[str, ...], said: str
) -> None:
    options = tuple(str(secret) if option == "SECRET" else option for option in options)
    output = typed("pacs", "add", "bad", *options, code=1).output
    assert said in " ".join(output.split())
    assert "s3cret" not in output
    assert not (home / PACS_NAME).exists()


def test_a_name_is_one_and_is_there_once(home: Path) -> None:
    assert "hyphens" in typed("pacs", "add", "Main PACS", *DIMSE, code=1).output
    typed("pacs", "add", "main", *DIMSE)
    before = (home / PACS_NAME).read_bytes()
    assert "a PACS main already" in typed("pacs", "add", "main", *WEB, code=1).output
    assert (home / PACS_NAME).read_bytes() == before
    assert "no PACS is called 'other'" in typed("pacs", "remove", "other", code=1).output
    assert "Known: main." in typed("pacs", "test", "other", code=1).output


def test_a_secret_that_others_may_read_is_refused_when_it_is_added_and_when_it_is_used(
    home: Path, secret: Path
) -> None:
    secret.chmod(0o644)
    assert f"chmod go-rwx {secret}" in typed("pacs", "add", "web", *WEB, "--token-file", secret, code=1).output
    secret.chmod(0o600)
    typed("pacs", "add", "web", *WEB, "--token-file", secret)
    secret.chmod(0o644)
    assert f"chmod go-rwx {secret}" in typed("pacs", "test", "web", code=1).output
    secret.unlink()
    assert "is not there" in typed("pacs", "test", "web", code=1).output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BY_HAND.replace("called", "titel"), "titel"),
        (BY_HAND.replace('"dimse"', '"dimsy"'), "dimse"),
        (BY_HAND.replace('protocol = "dimse"\n', ""), "protocol"),
        (BY_HAND + 'url = "https://x"\n', "url"),
        (BY_HAND.replace("104", "70000"), "at most 65535"),
        ("format = 2\n" + BY_HAND, "update wardround"),
        ("[[pacs]\n", "not valid TOML"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_key(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(PacsConfig, text)


def test_without_the_extra_a_command_says_what_to_install(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller, "_NEEDED", ("pynetdicom_that_is_not_here", "pydicom"))
    typed("pacs", "add", "main", *DIMSE)
    said = typed("pacs", "test", "main", code=1).output
    assert "needs pynetdicom_that_is_not_here" in said
    assert "pip install 'wardround[client,pacs]'" in said


def test_a_pull_says_what_it_lacks_before_it_asks(home: Path, tmp_path: Path) -> None:
    typed("pacs", "add", "main", *DIMSE)
    pull = ("data", "pull", "main", "--out", tmp_path / "out")
    asked = (*pull, "--query", "modality=CT")
    assert "without a query all" in typed(*pull, code=1).output
    assert "KEY=VALUE" in typed(*pull, "--query", "modality", code=1).output
    assert "no part of the day" in typed(*asked, "--hours", "7", code=1).output
    assert "--rate is 0" in typed(*asked, "--rate", "0", code=1).output
    assert "where the studies shall lie" in typed(*pull[:3], "--query", "modality=CT", code=1).output
    assert "lies inside a data folder" in typed(*pull[:4], home.parent, "--query", "modality=CT", code=1).output
    assert not (tmp_path / "out").exists()
