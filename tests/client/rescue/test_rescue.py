"""wardround-client backup, restore and purge as a person types them, on a home with all that a run leaves."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.commands.main import app
from client.home import folder, kept
from client.home.version import VERSIONS
from client.rescue.contents import SIDE
from client.rules import approvals, purged
from client.site import open_site
from client.trail.audit_trail import open_log
from client.trail.usage import uses
from common.audit.receipts import entry_fields, receipt_for, sign
from common.config import RunConfig, parse
from common.identity.operators import Signer
from common.privacy.guarantee import charge_round
from common.rescue.backup import PASSPHRASE_VARIABLE
from common.rescue.migration import VERSION_NAME, version_of
from tests.client.coordinator import Authority
from tests.documents import carried
from tests.json_forms import conforms

PASSPHRASE = "correct horse battery"  # noqa: S105 - of these tests alone
RUN_TOML = """
name = "lesions"
data = { modality = "photo", channels = 3, classes = ["vessel"] }
training = { patch-size = [32, 32] }
federation = { rounds = 3 }
privacy = { target-epsilon = 4.0 }
"""


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.crypto.passphrase._N", 2**10)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    monkeypatch.delenv("WARDROUND_HOME", raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A site that has joined, with images within its home, and a private run that was charged for two rounds."""
    home = tmp_path / "site"
    identity = Authority().admit(home, "north", "127.0.0.1:9")
    (home / "images").mkdir()
    (home / "images/patient.png").write_bytes(b"pixels of a patient")
    with (home / "site.toml").open("a") as file:
        file.write('\n[[data]]\npath = "images"\n')
    run = carried(parse(RunConfig, RUN_TOML))
    approvals.record(home, run, is_open=True, keys=[Signer("maria", "ab" * 32)])
    site = open_site(home)
    for round_ in (1, 2):
        charge_round(
            site.ledger, run, cohort="cohort", cohort_size=20, round_=round_, attempt="agent.1", lifetime_epsilon=10.0
        )
    receipt = receipt_for(
        run=run.hash, round_=1, site="north", received="ab" * 32, update="cd" * 32, size=1, policy="ef" * 32,
        time=1_790_000_000.0, patients=20, spent=None,
    )  # fmt: skip
    open_log(home).append("round", entry_fields(receipt, sign(receipt, identity.receipt_key)))
    for name in (folder.STRATEGIES_NAME, folder.PERSONAL_NAME, folder.RESIDUALS_NAME, folder.LOCAL_NAME):
        kept.write(home / name / run.hash, site.key, 1, b"state")
    for place in (f"{folder.GAINS_NAME}/{run.hash}.sealed", f"{folder.STATISTICS_NAME}/{run.hash}.sealed"):
        (home / place).parent.mkdir()
        (home / place).write_bytes(b"sealed")
    for place in (f"outbox/{run.hash}", "cache/study", "check/report.html", "logs/agent.log", "status.json"):
        (home / place).parent.mkdir(exist_ok=True)
        (home / place).write_bytes(b"bytes")
    return home


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def succeed(*words: object) -> Result:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result


def fail(*words: object) -> str:
    result = call(*words)
    assert (result.exit_code, result.stderr.startswith("error: ")) == (1, True), result.output
    return " ".join(result.stderr.split())


def run_hash(home: Path) -> str:
    (one,) = approvals.load_all(home)
    return one.run_hash


def kinds(home: Path) -> list[str]:
    return [entry.kind for entry in open_log(home).entries()]


def test_restored_home_is_the_site_and_no_image_is_in_it(home: Path, tmp_path: Path) -> None:
    file, new = tmp_path / "b", tmp_path / "new"
    made = json.loads(succeed("backup", file, "--home", home, "--json").stdout)
    conforms("wardround-client backup", made)
    assert {one["name"]: one["why"] for one in made["left-out"]} | {"lock files": ""} == {
        **{name: SIDE.left_out[name] for name in ("cache", "check", "logs", "status.json")},
        "images": "a data source: images are never in a backup",
        "lock files": "",
    }
    listed = json.loads(succeed("restore", file, "--list", "--json").stdout)
    assert listed == made
    succeed("restore", file, "--home", new)
    missing = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()} - {
        str(path.relative_to(new)) for path in new.rglob("*") if path.is_file()
    }
    assert {name for name in missing if not name.endswith(".lock")} == {
        *("cache/study", "check/report.html", "logs/agent.log", "status.json", "images/patient.png")
    }
    assert succeed("ledger", "--home", new, "--json").stdout == succeed("ledger", "--home", home, "--json").stdout
    assert "All is well" in succeed("audit", "verify", "--home", new).output
    assert kinds(new) == kinds(home) == ["created", "round", "backed-up"]
    assert b"pixels of a patient" not in file.read_bytes()


def test_images_that_are_not_on_the_new_machine_are_named(home: Path, tmp_path: Path) -> None:
    succeed("backup", tmp_path / "b", "--home", home)
    assert f"{tmp_path / 'new' / 'images'} are not on this machine" in " ".join(
        succeed("restore", tmp_path / "b", "--home", tmp_path / "new").stderr.split()
    )


def test_what_is_refused_leaves_no_entry_and_no_file(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b").write_text("mine")
    assert "is there already" in fail("backup", tmp_path / "b", "--home", home)
    succeed("backup", tmp_path / "c", "--home", home)
    assert "not empty" in fail("restore", tmp_path / "c", "--home", home)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "short")
    assert "at least 12" in fail("backup", tmp_path / "d", "--home", home)
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    assert f"Set {PASSPHRASE_VARIABLE}" in fail("backup", tmp_path / "d", "--home", home)
    assert f"Set {PASSPHRASE_VARIABLE}" in fail("restore", tmp_path / "c", "--home", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c", "site"]
    assert kinds(home).count("backed-up") == 1


def test_all_that_lies_in_a_home_is_kept_or_left_out_on_purpose() -> None:
    """A name that is new in client/home/folder.py has to be one of the two."""
    names = {value.split("/")[0] for name, value in vars(folder).items() if name.endswith("_NAME")}
    assert names - {*SIDE.kept, *SIDE.left_out} == {folder.INDEX_NAME}  # within the cache


def test_home_of_before_is_brought_up_and_one_of_later_is_refused(home: Path) -> None:
    (home / VERSION_NAME).unlink()
    assert "version 1 now" in succeed("runs", "--home", home).stderr
    assert version_of(home) == VERSIONS.newest
    assert "version" not in succeed("runs", "--home", home).stderr
    (home / VERSION_NAME).write_text('{"version": 99, "side": "hospital", "program": "9.0.0"}')
    assert "Update wardround to 9.0.0" in fail("runs", "--home", home)
    assert "Update wardround to 9.0.0" in fail("start", "--home", home)


def test_purge_removes_what_the_run_left_and_keeps_what_was_spent_and_sent(home: Path) -> None:
    name = run_hash(home)
    assert "deny it first" in fail("purge", "lesions", "--home", home, "--yes")
    approvals.set_open(home, name, is_open=False)
    before = succeed("ledger", "--home", home, "--json").stdout
    asked = CliRunner().invoke(app, ["purge", "lesions", "--home", str(home)], input="n\n")
    assert (asked.exit_code, kinds(home)[-1]) == (1, "round")
    told = json.loads(succeed("purge", "lesions", "--home", home, "--yes", "--json").stdout)
    conforms("wardround-client purge", told)
    there = {str(path.relative_to(home)) for path in home.rglob("*") if name in path.name}
    assert there == {f"proposals/purged/{name}.json", f"{folder.STATISTICS_NAME}/{name}.sealed"}
    entry = open_log(home).entries()[-1]
    files = sum(one["files"] for one in told["removed"])
    assert (entry.kind, dict(entry.fields)) == ("purged", {"run": name, "files": files})
    assert {one["what"] for one in told["stays"]} >= {"privacy ledger", "audit log", "statistics that the run was told"}

    def held(text: str) -> list[object]:
        return [{**one, "reserved-steps": 0} for one in json.loads(text)]

    assert held(succeed("ledger", "--home", home, "--json").stdout) == held(before)
    assert succeed("runs", "--home", home, "--json").stdout.strip() == "[]"
    (use,) = uses(home, lambda _: "train")
    assert (use.run_hash, use.name, use.rounds) == (name, "lesions", (1,))
    # What a later crash or a worker leaves is found by the same name.
    kept.write(home / folder.STRATEGIES_NAME / name, open_site(home).key, 3, b"late")
    again = json.loads(succeed("purge", name[:8], "--home", home, "--yes", "--json").stdout)
    assert [one["what"] for one in again["removed"]] == ["state of the strategy"]


def test_text_of_a_run_is_kept_before_anything_of_it_is_removed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the purge in between: the ledger is understood, and the purge done again."""
    name = run_hash(home)
    approvals.set_open(home, name, is_open=False)
    real, known = shutil.rmtree, []

    def remove(path: Path, *arguments: object, **options: object) -> None:
        known.append(purged.documents(home)[name].config.name)
        real(path, *arguments, **options)  # type: ignore[arg-type]  # as it was called
        known.append(purged.documents(home)[name].config.name)

    monkeypatch.setattr(shutil, "rmtree", remove)
    succeed("purge", "lesions", "--home", home, "--yes")
    assert len(known) >= 4
    assert set(known) == {"lesions"}


def test_own_model_is_kept_if_that_is_asked(home: Path) -> None:
    name = run_hash(home)
    approvals.set_open(home, name, is_open=False)
    succeed("purge", "lesions", "--home", home, "--yes", "--keep-personal")
    assert [one.run_hash for one in kept.personal_models(home)] == [name]
    assert purged.names(home) == {name: "lesions"}


def test_what_was_scored_today_counts_until_tomorrow(home: Path) -> None:
    name = run_hash(home)
    place = home / folder.EVALUATIONS_NAME / f"{name}.sealed"
    place.parent.mkdir()
    place.write_bytes(b"sealed")
    approvals.set_open(home, name, is_open=False)
    succeed("purge", "lesions", "--home", home, "--yes")
    assert place.exists()


def test_purged_text_that_was_changed_is_believed_by_nobody(home: Path) -> None:
    name = run_hash(home)
    approvals.set_open(home, name, is_open=False)
    succeed("purge", "lesions", "--home", home, "--yes")
    place = home / f"proposals/purged/{name}.json"
    place.write_text(place.read_text().replace("lesions", "lesionz"))
    assert purged.documents(home) == {}
    assert "no run that was proposed here" in fail("purge", "lesions", "--home", home, "--yes")
    shutil.rmtree(place.parent)
