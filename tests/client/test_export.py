"""`wardround-client data export` as a person types it."""

import json
from pathlib import Path

import pydicom
import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.commands.main import app
from tests.client.data.studies import write_ct


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "site.toml").write_text('name = "north"')
    return folder


def call(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", "export", *arguments], env={"WARDROUND_HOME": str(home)})


def test_folder_is_exported_under_pseudonyms_and_bad_files_are_counted(home: Path, tmp_path: Path) -> None:
    write_ct(tmp_path / "ct", patient="Smith")
    (tmp_path / "ct" / "broken.dcm").write_bytes(bytes(128) + b"DICM" + bytes(range(200)))
    (tmp_path / "ct" / "letter.txt").write_text("Dear Mrs Smith")
    (tmp_path / "ct" / "annexed.dcm").symlink_to("nowhere")
    result = call(home, str(tmp_path / "ct"), "--out", str(tmp_path / "out"), "--profile", "retain-uids", "--json")
    assert result.exit_code == 0, result.output
    rows = {row["what"]: row["count"] for row in json.loads(result.stdout)}
    assert (rows["written"], rows["patients"], rows["ignored: not DICOM"]) == (6, 1, 1)
    assert sum(count for what, count in rows.items() if what.startswith("skipped: ")) == 1
    assert sum(count for what, count in rows.items() if what.startswith("not seen: link to nothing")) == 1
    files = list((tmp_path / "out").rglob("*.dcm"))
    assert not any("mith" in str(path.relative_to(tmp_path)) or b"mith" in path.read_bytes() for path in files)
    assert {pydicom.dcmread(path).SOPInstanceUID for path in files} == {
        pydicom.dcmread(path).SOPInstanceUID
        for path in (tmp_path / "ct").glob("*.dcm")
        if path.name not in ("broken.dcm", "annexed.dcm")
    }


def test_minimal_copies_keep_the_labels_that_the_site_has_mapped(home: Path, tmp_path: Path) -> None:
    write_ct(tmp_path / "ct", patient="Smith")
    for labels, kept in (("", {""}), ('[[data]]\npath = "ct"\nlabel-map = { lesion = "lesion" }\n', {"Lesion"})):
        (home / "site.toml").write_text(f'name = "north"\n{labels}')
        out = tmp_path / f"out{len(labels)}"
        result = call(home, str(tmp_path / "ct"), "--out", str(out), "--minimal")
        assert result.exit_code == 0, result.output
        copies = [pydicom.dcmread(path) for path in out.rglob("*.dcm")]
        assert {copy.SegmentSequence[0].SegmentLabel or "" for copy in copies if copy.Modality == "SEG"} == kept
        assert not any("PatientName" in copy or "PatientBirthDate" in copy for copy in copies)
        assert {copy.PatientIdentityRemoved for copy in copies} == {"YES"}


def test_image_that_may_show_text_is_counted_as_burned_in(home: Path, tmp_path: Path) -> None:
    write_ct(tmp_path / "ct")
    path = tmp_path / "ct" / "002.dcm"
    ds = pydicom.dcmread(path)
    ds.ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    ds.save_as(path)
    result = call(home, str(tmp_path / "ct"), "--out", str(tmp_path / "out"), "--json")
    rows = {row["what"]: row["count"] for row in json.loads(result.stdout)}
    assert (rows["written"], rows["skipped: burned-in"]) == (5, 1)


def test_folder_without_dicom_fails(home: Path, tmp_path: Path) -> None:
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "letter.txt").write_text("x")
    result = call(home, str(tmp_path / "ct"), "--out", str(tmp_path / "out"))
    assert (result.exit_code, result.stderr.count("error: ")) == (1, 1)
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--profile", "retain-everything"), "retain-uids"),
        (("--profile", "retain-long-full-dates", "--profile", "retain-long-modified-dates"), "not both"),
        (("--safe-private", "0008,MAKER,01"), "GGGG,CREATOR,EE"),
        (("--minimal", "--profile", "retain-uids"), "--minimal"),
    ],
)
def test_wrong_option_is_explained(home: Path, tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    write_ct(tmp_path / "ct", (4, 16, 22))
    result = call(home, str(tmp_path / "ct"), "--out", str(tmp_path / "out"), *arguments)
    assert result.exit_code == 1
    assert expected in result.stderr
    assert not (tmp_path / "out").exists()
