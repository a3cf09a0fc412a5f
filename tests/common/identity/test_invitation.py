"""An invitation is checked whole before a hospital writes anything of it, whoever has made it."""

import datetime
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from typer.testing import CliRunner

from client.commands.main import app
from client.home import enrolment
from client.home.templates import prepare_home
from common.errors import EnrolmentError
from common.identity import certificates
from common.identity.invitation import Invitation

ROOT_KEY = certificates.new_key()
ROOT = certificates.new_root(ROOT_KEY, "Test root")


def values(**changes: Any) -> dict[str, Any]:
    """What the coordinator writes, with changes."""
    return {
        "site": "st-mary",
        "token": "0f" * 16,
        "root_pem": certificates.to_pem(ROOT).decode(),
        "enrolment": "coordinator.example.org:9444",
        "gateway": "[2001:db8::1]:9443",
        "log_key": "ab" * 32,
        "expires": (certificates.now() + datetime.timedelta(hours=24)).isoformat(timespec="seconds"),
    } | changes


def leaf() -> x509.Certificate:
    return certificates.server_certificate(certificates.new_key(), ["h"], ROOT, ROOT_KEY)


def of_earlier(days: float) -> x509.Certificate:
    builder = x509.CertificateBuilder(ROOT.subject, ROOT.subject, ROOT.public_key(), 1)
    ends = certificates.now() - datetime.timedelta(days=days)
    builder = builder.not_valid_before(ends - datetime.timedelta(days=1)).not_valid_after(ends)
    for extension in ROOT.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(ROOT_KEY, ROOT.signature_hash_algorithm)  # type: ignore[arg-type]


SOURCE = 'north"\n\n[[data]]\npath = "/etc'
BAD: dict[str, dict[str, Any]] = {
    "a source in the name": {"site": SOURCE},
    "a comment in the name": {"site": 'north" # '},
    "a line break after the name": {"site": "north\n"},
    "a folder in the name": {"site": "../north"},
    "a name with markup": {"site": "[red]north"},
    "a token that is none": {"token": "0f" * 16 + "\n"},
    "a token of another type": {"token": 255},
    "an address with a command": {"gateway": "h:9443; rm"},
    "an address by another way": {"enrolment": "unix:/run/some.sock"},
    "an address with a user": {"enrolment": "who@h:9444"},
    "an address without a port": {"gateway": "h"},
    "a port that is none": {"gateway": "h:65536"},
    "a short log key": {"log_key": "ab" * 31},
    "a log key with spaces": {"log_key": " ".join(["ab"] * 32)},
    "a second root": {"root_pem": 2 * certificates.to_pem(ROOT).decode()},
    "words beside the root": {"root_pem": certificates.to_pem(ROOT).decode() + "trust me\n"},
    "a root that may not sign": {"root_pem": certificates.to_pem(leaf()).decode()},
    "a root of earlier": {"root_pem": certificates.to_pem(of_earlier(1)).decode()},
    "no root": {"root_pem": ""},
    "a time without a zone": {"expires": "2099-01-01T00:00:00"},
    "no time": {"expires": "never"},
}


@pytest.mark.parametrize("what", BAD)
def test_nothing_is_written_of_an_invitation_that_says_what_it_must_not(tmp_path: Path, what: str) -> None:
    home, file = tmp_path / "home", tmp_path / "invitation"
    file.write_text(json.dumps(values(**BAD[what])))
    for more in ([], ["--request", str(tmp_path / "request")]):
        result = CliRunner().invoke(app, ["join", str(file), "--home", str(home), "--timeout", "0.1", *more])
        assert result.exit_code == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["invitation"]
        assert f"its {next(iter(BAD[what]))} is not what it has to be" in result.output


@pytest.mark.parametrize("what", BAD)
def test_settings_that_are_there_stay_as_they_are(tmp_path: Path, what: str) -> None:
    prepare_home(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(EnrolmentError):
        enrolment.join(tmp_path, Invitation(**values(**BAD[what])), timeout_s=0.1, show_phrase=lambda _: None)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_name_that_is_none_is_not_written_whoever_asks(tmp_path: Path) -> None:
    with pytest.raises(EnrolmentError, match="no site name"):
        prepare_home(tmp_path / "home", SOURCE)
    assert not (tmp_path / "home").exists()


def test_invitation_as_it_is_made_is_taken(tmp_path: Path) -> None:
    phrase, _ = enrolment.request_by_file(tmp_path, Invitation(**values()))
    assert len(phrase.split("-")) == 4
    assert tomllib.loads((tmp_path / "site.toml").read_text()) == {"name": "st-mary"}


def test_invitation_survives_its_file() -> None:
    written = Invitation(**values())
    assert Invitation.from_text(written.to_text()) == written


def test_expired_invitation_is_refused_and_the_hour_is_told() -> None:
    ended = (certificates.now() - datetime.timedelta(hours=1)).isoformat()
    with pytest.raises(EnrolmentError, match=f"expired at .*it is {certificates.now():%Y-%m-%d %H}:.. UTC"):
        Invitation.from_text(Invitation(**values(expires=ended)).to_text())


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"site": 1}', "not json", "[" * 60_000, " " * 70_000 + "{}"], ids=range(8)
)
def test_other_files_are_no_invitations(text: str) -> None:
    with pytest.raises(EnrolmentError, match="not an invitation"):
        Invitation.from_text(text)


def test_field_more_than_there_are_is_refused() -> None:
    with pytest.raises(EnrolmentError, match="not an invitation"):
        Invitation.from_text(json.dumps(values(data="/etc")))
