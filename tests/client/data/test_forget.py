"""A patient who is forgotten is gone from the cohort, the check and all that was kept; the others stay as they were."""

import hashlib
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from client.commands.main import app
from client.data.cohort import Cohort
from client.data.deidentify.pseudonym import pseudonym
from client.data.forget import forget
from client.site import open_site
from client.trail.audit_trail import open_log
from common.config import RunConfig, parse
from common.errors import ConfigError
from tests.client.coordinator import Authority
from tests.client.data.tables import make_table, opened_table

RUN = parse(
    RunConfig,
    """
name = "dots"
data = { modality = "photo", classes = ["dot"] }
preprocessing = { intensity = "zscore", rows = 16 }
training = { patch-size = [16, 16] }
federation = { rounds = 1 }
""",
)
PATIENTS = tuple(f"patient-{number}" for number in range(8))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    random = np.random.default_rng(1)
    for folder in ("images", "labels"):
        (tmp_path / "pictures" / folder).mkdir(parents=True)
    for name in PATIENTS:
        pixels = random.integers(0, 255, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / "images" / f"{name}.png")
        Image.fromarray((pixels > 100).astype(np.uint8)).save(tmp_path / "pictures" / "labels" / f"{name}.png")
    made = tmp_path / "home"
    Authority().admit(made, "north", "127.0.0.1:1")
    result = CliRunner().invoke(
        app, ["data", "add", str(tmp_path / "pictures"), "--home", str(made), "--label-map", "1=dot"]
    )
    assert result.exit_code == 0, result.output
    return made


def cohort_of(home: Path) -> Cohort:
    return open_site(home).cohort(RUN)


def kept(home: Path) -> set[Path]:
    return set((home / "cache").glob("*/*.case"))


def forgotten_in(home: Path, patient: str) -> int:
    site = open_site(home)
    return forget(home, site.key, site.config.data, patient)


def test_forgotten_patient_is_gone_and_the_others_stay_where_they_were(home: Path) -> None:
    before, files = cohort_of(home), kept(home)
    gone = pseudonym(open_site(home).key, PATIENTS[3])
    assert forgotten_in(home, PATIENTS[3]) == 1
    assert len(files - kept(home)) == 1
    after = cohort_of(home)
    assert {case.patient: case.split for case in before.cases if case.patient != gone} == {
        case.patient: case.split for case in after.cases
    }
    assert after.size == before.size - 1
    records = opened_table(home / "state" / "splits.sealed", open_site(home).key, "splits")["splits"].values()
    assert [len(record) for record in records] == [len(PATIENTS) - 1]
    assert not any(gone in record for record in records)


def test_nothing_that_is_kept_says_who_it_was(home: Path) -> None:
    cohort_of(home)
    forgotten_in(home, PATIENTS[3])
    cohort_of(home)
    names = [PATIENTS[3].encode(), hashlib.sha256(PATIENTS[3].encode()).hexdigest().encode()]
    for path in home.rglob("*"):
        assert not path.is_file() or not any(name in path.read_bytes() for name in names), path.name


def test_check_leaves_the_patient_out_and_its_pictures_are_removed(home: Path) -> None:
    check = ["data", "check", "--json", "--home", str(home)]
    assert CliRunner().invoke(app, check).exit_code == 0
    forgotten_in(home, PATIENTS[3])
    assert not (home / "check").exists()
    result = CliRunner().invoke(app, check)
    assert pseudonym(open_site(home).key, PATIENTS[3]) not in result.output
    assert pseudonym(open_site(home).key, PATIENTS[4]) in result.output


def test_command_records_it_without_identity_and_says_what_it_cannot_undo(home: Path) -> None:
    result = CliRunner().invoke(app, ["data", "forget", PATIENTS[3], "--home", str(home)])
    assert result.exit_code == 0
    assert "1 study is left out" in result.output
    assert "Models trained already cannot forget" in result.output
    last = open_log(home).entries()[-1]
    assert (last.kind, dict(last.fields)) == ("data-forgotten", {})


def test_unknown_patient_changes_nothing_unless_asked_for(home: Path) -> None:
    command = ["data", "forget", "nobody", "--home", str(home)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert not (home / "forgotten.sealed").exists()
    assert CliRunner().invoke(app, [*command, "--absent"]).exit_code == 0
    key = open_site(home).key
    assert opened_table(home / "forgotten.sealed", key, "forgotten")["patients"] == [pseudonym(key, "nobody")]
    assert stat.S_IMODE((home / "forgotten.sealed").stat().st_mode) == 0o600
    assert cohort_of(home).size == len(PATIENTS)


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda data: data[:-1],
        lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
        lambda _: b'{"format": 1, "patients": []}',
    ],
)
def test_altered_list_stops_the_reading_and_stays(home: Path, damage: Callable[[bytes], bytes]) -> None:
    forgotten_in(home, PATIENTS[3])
    path = home / "forgotten.sealed"
    broken = damage(path.read_bytes())
    path.write_bytes(broken)
    for deed in (lambda: cohort_of(home), lambda: forgotten_in(home, PATIENTS[4])):
        with pytest.raises(ConfigError, match=r"forgotten\.sealed .* Restore it"):
            deed()
    assert path.read_bytes() == broken


def test_list_of_another_site_is_refused(home: Path) -> None:
    make_table(home / "forgotten.sealed", bytes(32), "forgotten", b'{"format": 1, "patients": []}')
    with pytest.raises(ConfigError, match="another site key"):
        cohort_of(home)


def test_plain_list_of_an_earlier_version_is_refused_not_passed_over(home: Path) -> None:
    (home / "forgotten.json").write_text('{"format": 1, "cohort": "", "patients": []}')
    with pytest.raises(ConfigError, match=r"forgotten\.json, which an earlier version wrote in the clear"):
        cohort_of(home)


def test_data_added_is_recorded_by_a_bucketed_count(home: Path) -> None:
    kinds = {entry.kind: dict(entry.fields) for entry in open_log(home).entries()}
    assert kinds["data-added"] == {}  # eight patients are too few to be counted
