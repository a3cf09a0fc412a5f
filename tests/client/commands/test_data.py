"""`wardround-client data` as a data manager types it, from a folder to "ready to train" in two commands."""

import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.commands.main import app
from simulations.generators.phantoms import SCANNERS, write_study
from tests.client.data.studies import write_pair
from tests.json_forms import conforms
from tests.patience import PATIENCE_S
from tests.simulations.classed import classed_site

COMMAND = Path(sys.executable).with_name("wardround-client")
RUN_TOML = """
name = "vessels"
data = { modality = "photo", channels = 3, classes = ["vessel"] }
training = { patch-size = [32, 32] }
federation = { rounds = 3 }
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "site.toml").write_text('name = "north"\nthreads = 1\n')
    return tmp_path / "site"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a hospital has: two good series, one with a missing slice, one without label, a PDF, an empty folder."""
    ward = tmp_path / "ward"
    scanner = next(iter(SCANNERS.values()))
    for patient in (1, 2, 3, 4):
        written = write_study(
            ward / f"DOE-{patient}", scanner=scanner, seed=0, patient=patient, slices=7, rows=32, labelled=patient != 4
        )
        if patient == 3:
            written.images[3].unlink()
    (ward / "letter.pdf").write_bytes(b"%PDF-1.7\n")
    (ward / "empty").mkdir()
    return ward


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("a", "bb", "ccc", "dddd"):
        write_pair(tmp_path / "pictures", name)
    return tmp_path / "pictures"


def call(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", *arguments], env={"WARDROUND_HOME": str(home), "COLUMNS": "200"})


def succeed(home: Path, *arguments: str) -> Result:
    result = call(home, *arguments)
    assert result.exit_code == 0, result.output
    return result


def test_a_table_of_classes_is_added_and_its_classes_are_counted(home: Path, tmp_path: Path) -> None:
    site = classed_site(tmp_path / "table", "north", patients=5)
    added = ["add", str(tmp_path / "table"), "--csv", "table.csv", "--class-column", "finding"]
    result = succeed(home, *added, "--label-map", "clear=background")
    assert "5 studies of 5 patients" in result.output
    assert "None has a label" not in result.output
    assert (home / "site.toml").read_text().startswith("format = 2\n")
    checked = json.loads(succeed(home, "check", "--json").stdout)
    conforms("wardround-client data check", checked)
    # Words of a table are free text, and shown as such: two pictures are bright, one is dark.
    assert sorted(row["studies"] for row in checked["findings"]) == [1, 2, 2]
    assert checked["findings"][-1] == {"class": "none of them", "studies": 2}
    assert site.data[0].class_column == "finding"


@pytest.mark.system
def test_two_commands_lead_a_newcomer_from_a_folder_to_an_answer(
    tmp_path_factory: pytest.TempPathFactory, folder: Path
) -> None:
    desk = tmp_path_factory.mktemp("desk")
    home = desk / "wardround-site"
    command = shlex.quote(str(COMMAND))
    both = f"{command} data add {shlex.quote(str(folder))} && {command} data check --json"
    environment = {name: value for name, value in os.environ.items() if name != "WARDROUND_HOME"}
    done = subprocess.run(
        ["sh", "-c", both], cwd=desk, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout[done.stdout.index("\n{") :])
    assert (told["counts"]["usable"], told["counts"]["quarantined"], told["counts"]["ignored"]) == (2, 2, 2)
    assert [study.get("code") for study in told["studies"]] == [None, None, "missing-slices", "no-label"]
    assert all(len(study["reason"]) > 20 for study in told["studies"] if not study["usable"])
    assert told["sources"][0]["ignored"] == {"neither image nor label": 1, "empty folder": 1}
    assert "Traceback" not in done.stderr
    assert "DOE" not in done.stderr + json.dumps(told)
    for name in ("report.html", "report.json"):
        report = home / "check" / name
        assert report.stat().st_mode & 0o777 == 0o600
        assert "DOE" not in report.read_text()


def test_table_beside_pictures_without_labels_is_pointed_out_and_no_more_once_it_is_named(
    home: Path, tmp_path: Path, pictures: Path
) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    rows = ["id,image,mask"]
    for number, image in enumerate(sorted(pictures.rglob("*.png"))):
        (loose / f"{number}.png").write_bytes(image.read_bytes())
        rows.append(f"p{number},{number}.png,{number}.png")
    hint = "--csv labels.csv"
    assert hint not in succeed(home, "add", str(loose), "--dry-run").stderr
    (loose / "labels.csv").write_text("\n".join(rows))
    for more in (["--dry-run"], []):
        said = succeed(home, "add", str(loose), *more).stderr
        assert hint in said
        assert "1 CSV table lies in the folder" in said
    empty = tmp_path / "empty-but-for-a-table"
    empty.mkdir()
    (empty / "labels.csv").write_text("id,image,mask\n")
    assert hint in call(home, "add", str(empty)).stderr
    assert hint not in succeed(home, "add", str(pictures)).stderr


@pytest.mark.parametrize("stray", ["scan.nii.gz", "scan.dcm"])
def test_stray_file_that_comes_later_does_not_change_how_a_folder_is_read(
    home: Path, pictures: Path, stray: str
) -> None:
    assert "Read as: images." in succeed(home, "add", str(pictures)).stdout
    assert 'kind = "images"' in (home / "site.toml").read_text()
    for folder in (pictures, *(path for path in pictures.iterdir() if path.is_dir())):
        (folder / stray).write_bytes(bytes(128) + b"DICM")
    told = json.loads(succeed(home, "check", "--json").stdout)
    assert told["counts"]["usable"] == 4


def test_next_command_can_be_pasted_where_the_folder_is_another_than_the_usual(home: Path, folder: Path) -> None:
    done = CliRunner().invoke(app, ["data", "add", str(folder), "--home", str(home)], env={"WARDROUND_HOME": None})
    assert f"Next: `wardround-client data check --home {home}`\n" in done.stderr
    with_variable = succeed(home, "add", str(folder / "DOE-1")).stderr
    assert "Next: `wardround-client data check`\n" in with_variable


def test_report_calls_what_was_set_aside_so_as_the_tables_do(home: Path, folder: Path) -> None:
    succeed(home, "add", str(folder))
    succeed(home, "check")
    page = (home / "check" / "report.html").read_text()
    assert "set aside" in page
    assert "quarantined" not in page


def test_check_prints_what_is_usable_what_is_not_and_why(home: Path, folder: Path) -> None:
    added = succeed(home, "add", str(folder)).stdout
    assert "4 studies of 4 patients" in added
    assert "Ignored: 1 neither image nor label." in added
    result = succeed(home, "check")
    for words in ("missing-slices", "no-label", "empty folder", "neither image nor label", "7 x 32 x 32", "name 1"):
        assert words in result.stdout
    assert "4 studies, 0 of them known from an earlier check" in result.stderr
    assert str(home / "check" / "report.html") in result.stderr
    for option in ("--paths", "--names"):
        assert option in result.stderr
    assert "DOE" not in result.output.replace(str(folder), "")
    again = succeed(home, "check")
    assert again.stdout == result.stdout
    assert "4 studies, 4 of them known from an earlier check" in again.stderr


def test_paths_and_names_are_printed_when_asked_for_and_stay_out_of_the_report(home: Path, folder: Path) -> None:
    succeed(home, "add", str(folder))
    result = succeed(home, "check", "--paths", "--names")
    told = result.stdout
    assert "--paths" not in result.stderr
    assert "--names" not in result.stderr
    assert "DOE-3/series-1" in told
    assert "DOE-1/series-1" in told
    assert "lesion" in told
    for name in ("report.html", "report.json"):
        text = (home / "check" / name).read_text()
        assert "DOE" not in text
        assert "lesion" not in text


def test_paths_stay_out_of_json(home: Path, folder: Path) -> None:
    succeed(home, "add", str(folder))
    assert "DOE" not in succeed(home, "check", "--paths", "--names", "--json").stdout


def test_check_with_a_run_counts_what_that_run_can_use(home: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "labels" / "bb.png").unlink()
    (tmp_path / "run.toml").write_text(RUN_TOML)
    succeed(home, "add", str(pictures))
    told = json.loads(call(home, "check", "--run", str(tmp_path / "run.toml"), "--json").stdout)
    assert told["run"]["name"] == "vessels"
    splits = Counter(study.get("split") for study in told["studies"])
    assert splits == {"train": 1, "validation": 1, "test": 1, None: 1}
    assert [study["code"] for study in told["studies"] if not study["usable"]] == ["no-label"]
    table = call(home, "check", "--run", str(tmp_path / "run.toml")).stdout
    assert "Splits for vessels" in table
    assert not (home / "state" / "splits.sealed").exists()


def test_nothing_usable_is_a_failure_that_still_tells_why(home: Path, pictures: Path) -> None:
    succeed(home, "add", str(pictures))
    for name in ("a", "bb", "ccc", "dddd"):
        write_pair(pictures, name, mask=np.zeros((20, 31), np.uint8))
    result = call(home, "check")
    assert result.exit_code == 1
    assert result.stdout.count("label-empty") == 4
    assert result.stderr.count("error:") == 1
    assert "no study is usable" in result.stderr
    assert "empty-labels-are-negative" in (home / "check" / "report.html").read_text()


def test_check_without_data_says_what_to_do(home: Path) -> None:
    result = call(home, "check")
    assert result.exit_code == 1
    assert "wardround-client data add" in result.stderr


def test_added_folder_tells_by_code_what_was_found(home: Path, tmp_path: Path) -> None:
    scanner = next(iter(SCANNERS.values()))
    write_study(tmp_path / "ward", scanner=scanner, seed=0, slices=3, rows=16)
    (tmp_path / "ward" / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    (tmp_path / "ward" / "note.txt").write_text("hello")
    told = succeed(home, "add", str(tmp_path / "ward")).stdout
    assert "Added: 1 study of 1 patient" in told
    assert "Set aside: 1 unreadable." in told
    assert "Ignored: 1 neither image nor label." in told


def test_folder_that_went_away_is_one_clear_message(home: Path, pictures: Path) -> None:
    succeed(home, "add", str(pictures))
    pictures.rename(pictures.with_name("elsewhere"))
    result = call(home, "check")
    assert result.exit_code == 1
    assert "does not exist" in result.stderr
    assert "Traceback" not in result.output


def test_folder_that_is_added_twice_is_refused_with_its_number(home: Path, pictures: Path, tmp_path: Path) -> None:
    succeed(home, "add", str(pictures))
    before = (home / "site.toml").read_bytes()
    (home / "link").symlink_to(pictures)
    for again in (str(pictures), f"{pictures}/../pictures", str(home / "link")):
        result = call(home, "add", again)
        assert result.exit_code == 1
        assert "source 1 already" in result.stderr
        assert "data remove 1" in result.stderr
    assert (home / "site.toml").read_bytes() == before
    (tmp_path / "above").mkdir()
    pictures.rename(tmp_path / "above" / "pictures")
    pictures.symlink_to(tmp_path / "above" / "pictures")
    pictures = tmp_path / "above" / "pictures"
    assert "share files" in succeed(home, "add", str(pictures.parent), "--images", "pictures/images",
                                    "--labels", "pictures/labels").stderr  # fmt: skip


def test_source_is_removed_by_number_or_folder_and_the_rest_stays_as_it_was_written(
    home: Path, pictures: Path, folder: Path
) -> None:
    written = '# ours\nname = "north"\n\n[[data]]\npath = "/first"  # [[data]]\n\n[data.label-map]\n1 = "lesion"\n'
    (home / "site.toml").write_text(written)
    succeed(home, "add", str(pictures), "--kind", "images")
    succeed(home, "add", str(folder))
    assert "Sources: 2." in succeed(home, "remove", str(pictures)).stdout
    assert "Sources: 1." in succeed(home, "remove", "2").stdout
    assert (home / "site.toml").read_text() == written
    assert "Sources: 0." in succeed(home, "remove", "1").stdout
    assert (home / "site.toml").read_text() == '# ours\nname = "north"\n'
    assert len(list(pictures.rglob("*.png"))) == 8
    succeed(home, "add", str(pictures))


@pytest.mark.parametrize("which", ["0", "2", "/nowhere"])
def test_source_that_is_not_there_is_not_removed(home: Path, pictures: Path, which: str) -> None:
    succeed(home, "add", str(pictures))
    before = (home / "site.toml").read_bytes()
    result = call(home, "remove", which)
    assert result.exit_code == 1
    assert "wardround-client data" in result.stderr
    assert (home / "site.toml").read_bytes() == before


def test_sources_in_one_line_are_added_to_and_taken_out_of_too(home: Path, pictures: Path) -> None:
    text = f'name = "north"  # ours\ndata = [{{ path = {json.dumps(str(pictures))} }}, {{ path = "/other" }}]\n'
    (home / "site.toml").write_text(text)
    assert "Sources: 1." in succeed(home, "remove", "2").stdout
    assert "Sources: 0." in succeed(home, "remove", "1").stdout
    assert (home / "site.toml").read_text() == 'name = "north"  # ours\n'
    (home / "site.toml").write_text(text.replace(', { path = "/other" }', ""))
    succeed(home, "remove", str(pictures))
    assert "/other" not in (home / "site.toml").read_text()


def test_dry_run_tells_what_was_assumed_and_adds_nothing(home: Path, tmp_path: Path) -> None:
    write_pair(tmp_path / "flat", "a")
    flat = tmp_path / "flat"
    (flat / "images" / "a.png").rename(flat / "a.png")
    (flat / "labels" / "a.png").rename(flat / "a_mask.png")
    (flat / "b.png").symlink_to("nowhere")
    before = (home / "site.toml").read_bytes()
    told = succeed(home, "add", str(flat), "--dry-run").stdout
    assert "Found: 1 study of 1 patient. Nothing was added." in told
    assert "Assumed: 1 labels known by words" in told
    assert "Ignored: 1 link to nothing" in told
    assert (home / "site.toml").read_bytes() == before


def test_images_can_be_checked_before_there_are_labels(home: Path, pictures: Path) -> None:
    for path in (pictures / "labels").iterdir():
        path.unlink()
    (pictures / "images" / "bb.png").write_bytes(b"broken")
    assert "--without-labels" in succeed(home, "add", str(pictures)).stderr
    without = call(home, "check")
    assert without.exit_code == 1
    assert "--without-labels" in without.stderr
    told = json.loads(succeed(home, "check", "--without-labels", "--json").stdout)
    assert [study.get("code") for study in told["studies"]] == [None, "unreadable", None, None]
    assert told["counts"]["without-foreground"] == 0
    assert "3 studies" not in without.stdout
    again = succeed(home, "check", "--without-labels")
    assert "3 of them known from an earlier check" in again.stderr
    assert "labels were not looked at" in again.stderr
    assert "label not looked at" in (home / "check" / "report.html").read_text()
    assert call(home, "check", "--without-labels", "--run", "x").exit_code == 1


def test_mask_in_doubt_is_set_aside_with_the_words_to_confirm_it(home: Path, tmp_path: Path) -> None:
    doubtful = tmp_path / "doubtful"
    inverted = np.full((20, 31), 255, np.uint8)
    inverted[3:6, 3:9] = 0
    stray = np.zeros((20, 31), np.uint8)
    stray[5:9], stray[0, 0] = 255, 7
    write_pair(doubtful, "inverted", mask=inverted)
    write_pair(doubtful, "stray", mask=stray)
    (tmp_path / "run.toml").write_text(RUN_TOML)
    succeed(home, "add", str(doubtful))
    result = call(home, "check", "--run", str(tmp_path / "run.toml"), "--json")
    told = json.loads(result.stdout)
    assert [study["code"] for study in told["studies"]] == ["label-doubtful"] * 2
    assert all("labels-checked = true" in study["reason"] for study in told["studies"])
    succeed(home, "remove", "1")
    succeed(home, "add", str(doubtful), "--labels-checked")
    told = json.loads(call(home, "check", "--run", str(tmp_path / "run.toml"), "--json").stdout)
    assert told["counts"]["usable"] == 2
