"""A patient who is forgotten is gone from the cohort, the check and all that was kept; the others stay as they were."""

import hashlib
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image
from typer.testing import CliRunner

from client.commands.main import app
from client.data.cohort import Cohort
from client.data.deidentify.pseudonym import pseudonym
from client.data.forget import forget
from client.rules import approvals
from client.site import open_site
from client.trail.audit_trail import open_log
from common.audit import receipts
from common.config import PrivacyConfig, RunConfig, parse, validate
from common.config.rundocument import RunDocument, from_toml
from common.document.tomlfile import to_toml
from common.errors import ConfigError
from tests.client.coordinator import Authority
from tests.client.data.tables import make_table, opened_table
from tests.json_forms import conforms

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
    removed = forget(home, site.key, site.config.data, patient)
    return 0 if removed is None else removed.studies


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


PRIVATE = RUN.model_copy(update={"name": "noised", "privacy": validate(PrivacyConfig, {"target-epsilon": 4.0})})
ELSEWHERE = RUN.model_copy(update={"name": "other-seed", "seed": 7})


def document_of(run: RunConfig) -> RunDocument:
    return from_toml(to_toml(run.model_dump(mode="json", by_alias=True, exclude_unset=True)))


def worked_in(home: Path, run: RunConfig, rounds: int, *, keep: bool = True) -> RunDocument:
    """What the agent writes down when so many updates of a run have left, and its last model was scored."""
    document, log, key = document_of(run), open_log(home), Ed25519PrivateKey.generate()
    if keep:
        approvals.record(home, document, is_open=False)
    for number in range(1, rounds + 1):
        receipt = receipts.receipt_for(
            run=document.hash,
            round_=number,
            site="north",
            received="ab" * 32,
            update=hashlib.sha256(f"{run.name} {number}".encode()).hexdigest(),
            size=9,
            policy="cd" * 32,
            time=1_790_000_000,
            patients=10,
            spent=None,
        )
        log.append("round", receipts.entry_fields(receipt, receipts.sign(receipt, key)))
    about = {"run": document.hash, "round": rounds, "phase": "test"}
    log.append("evaluated", about | {"model": hashlib.sha256(run.name.encode()).hexdigest()})
    return document


def place_by_hand(run: RunConfig, patient: str) -> str:
    """Of an independent split, by its description in client/data/keep/split.py."""
    position = int.from_bytes(hashlib.sha256(f"{run.seed}|{patient}".encode()).digest()[:8], "big") / 2**64
    return "test" if position < 0.15 else "validation" if position < 0.3 else "train"


def forget_by_command(home: Path, patient: str, *more: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["data", "forget", patient, "--home", str(home), "--json", *more])
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    conforms("wardround-client data forget", told)
    return told


@pytest.mark.parametrize("patient", PATIENTS[2:5])
def test_certificate_lists_the_runs_that_may_have_used_the_patient_and_no_other(home: Path, patient: str) -> None:
    cohort, gone = cohort_of(home), pseudonym(open_site(home).key, patient)
    split = {case.patient: case.split for case in cohort.cases}[gone]
    first, second, _ = worked_in(home, RUN, 3), worked_in(home, PRIVATE, 2), worked_in(home, ELSEWHERE, 1)
    third = worked_in(home, RUN.model_copy(update={"name": "lost"}), 1, keep=False)
    # Noised, from weights that nobody declares to be public: that guarantees the patient nothing.
    values = PRIVATE.model_dump(mode="json", by_alias=True, exclude_unset=True)
    void = worked_in(home, validate(RunConfig, values | {"name": "void", "initial": {"sha256": "ab" * 32}}), 1)
    told = forget_by_command(home, patient)
    runs = {one["run"]: one for one in told["runs"]}
    assert runs.keys() == {
        first.hash,
        second.hash,
        third.hash,
        void.hash,
    }  # nobody was dealt a place for the other seed
    assert (runs[first.hash]["place"], runs[first.hash]["place-kept"]) == (split, True)
    assert (runs[second.hash]["place"], runs[second.hash]["place-kept"]) == (place_by_hand(PRIVATE, patient), False)
    assert (runs[third.hash]["place"], runs[third.hash]["name"]) == (None, None)
    assert [runs[one.hash]["rounds"] for one in (first, second, third)] == [[1, 2, 3], [1, 2], [1]]
    assert [runs[one.hash]["differential-privacy"] for one in (first, second, third, void)] == [
        False,
        True,
        None,
        False,
    ]
    assert runs[first.hash]["models-scored"] == [hashlib.sha256(b"dots").hexdigest()]
    updates = [hashlib.sha256(f"dots {number}".encode()).hexdigest() for number in (1, 2, 3)]
    assert runs[first.hash]["updates"] == updates


def test_certificate_counts_what_was_removed(home: Path) -> None:
    cohort_of(home)
    assert CliRunner().invoke(app, ["data", "check", "--json", "--home", str(home)]).exit_code == 0
    before, places = kept(home), opened_table(home / "state" / "splits.sealed", open_site(home).key, "splits")
    told = forget_by_command(home, PATIENTS[3])
    after = opened_table(home / "state" / "splits.sealed", open_site(home).key, "splits")
    count = {name: sum(map(len, table["splits"].values())) for name, table in (("then", places), ("now", after))}
    assert told["removed"] == {
        "studies that are left out": 1,
        "prepared copies": len(before) - len(kept(home)),
        "places in splits": count["then"] - count["now"],
        "reports of data check": 1,
    }
    assert told["removed"]["prepared copies"] == told["removed"]["places in splits"] == 1


def test_certificate_that_stays_says_the_pseudonym_and_never_the_patient(home: Path) -> None:
    cohort_of(home)
    worked_in(home, RUN, 1)
    told = forget_by_command(home, PATIENTS[3])
    assert told["patient"] == pseudonym(open_site(home).key, PATIENTS[3])
    (path,) = (home / "certificates").iterdir()
    assert json.loads(path.read_text()) == told
    assert path.name.startswith(f"{told['patient']}-")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for path in home.rglob("*"):
        assert not path.is_file() or PATIENTS[3].encode() not in path.read_bytes(), path.name
    # What the coordinator may be shown is the log: that somebody was forgotten, and nothing of whom.
    exported = open_log(home).export()
    assert told["patient"].encode() not in exported
    assert b"data-forgotten" in exported


def test_certificate_for_the_patient_names_them_in_a_file_of_its_own(home: Path, tmp_path: Path) -> None:
    cohort_of(home)
    document = worked_in(home, RUN, 2)
    paper = tmp_path / "paper.txt"
    told = forget_by_command(home, PATIENTS[3], "--certificate", str(paper))
    text = paper.read_text(encoding="utf-8")
    assert stat.S_IMODE(paper.stat().st_mode) == 0o600
    for said in (f"Patient: {PATIENTS[3]}", document.hash, "a trained model does not forget", "Site: north"):
        assert said in text
    assert told["patient"] not in text  # who holds the paper learns no pseudonym
    again = CliRunner().invoke(app, ["data", "forget", PATIENTS[4], "--home", str(home), "--certificate", str(paper)])
    assert again.exit_code == 1
    assert paper.read_text(encoding="utf-8") == text
    assert cohort_of(home).size == len(PATIENTS) - 1


def test_patient_whom_no_run_can_have_used_is_told_so(home: Path, tmp_path: Path) -> None:
    worked_in(home, ELSEWHERE, 1)
    told = forget_by_command(home, PATIENTS[3], "--certificate", str(tmp_path / "paper.txt"))
    assert told["runs"] == []
    assert "none: no update and no scores left this site" in (tmp_path / "paper.txt").read_text()


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
