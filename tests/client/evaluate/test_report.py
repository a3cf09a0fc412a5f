"""The files of an evaluation: nothing from elsewhere, nothing of a patient's name, for their owner only."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.commands.main import app
from client.data.isolate.isolation import Readers
from client.site import Site
from tests.client.evaluate.sites import name_of, site_with, threshold_model, write_patient
from tests.client.thresholds import run_for
from tests.json_forms import conforms

RUN = run_for(validation_fraction=0.2, test_fraction=0.4)
NAMES = ("patients.csv", "summary.json", "report.html")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Of five patients, read in this process."""
    monkeypatch.setattr("client.data.survey.Readers", lambda _count: Readers(0))
    threshold_model(tmp_path / "model", monkeypatch, RUN)
    return site_with(tmp_path, 5)


def evaluate(site: Site, tmp_path: Path, *options: object) -> Result:
    arguments = ["evaluate", tmp_path / "model", "--home", site.home, "--out", tmp_path / "out", *options]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


class Page(HTMLParser):
    """Tags, and all that could fetch or run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.places: list[str] = []
        self.active: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "action", "data", "xlink:href"):
                self.places.append(value or "")
            if name.startswith("on"):
                self.active.append(name)


def test_the_page_is_one_file_without_script_and_network(site: Site, tmp_path: Path) -> None:
    done = evaluate(site, tmp_path, "--split", "all")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert page.active == []
    assert page.places
    assert all(place.startswith("data:image/png;base64,") for place in page.places)
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|url\(|@import", text)
    # A picture for each patient; limits of agreement, ROC, precision-recall, calibration; in words what nothing says.
    assert page.tags.count("img") == 5
    assert page.tags.count("svg") == 4
    for title in ("Bland-Altman", "ROC curve", "Precision-recall curve", "Calibration", "Confusion matrix"):
        assert title in text
    assert "It stays at the site" in text


def test_no_file_names_a_patient_and_all_are_for_their_owner(site: Site, tmp_path: Path) -> None:
    done = evaluate(site, tmp_path, "--split", "all", "--json")
    assert done.exit_code == 0, done.output
    for name in NAMES:
        path = tmp_path / "out" / name
        assert path.stat().st_mode & 0o777 == 0o600
        assert "CANARY" not in path.read_text()
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
    assert "CANARY" not in done.output
    assert not any(name_of(site, number) in (tmp_path / "out" / "summary.json").read_text() for number in range(5))


def test_the_table_has_the_worst_patient_first_and_the_summary_is_what_json_prints(site: Site, tmp_path: Path) -> None:
    done = evaluate(site, tmp_path, "--split", "all", "--json")
    printed = json.loads(done.stdout)
    conforms("wardround-client evaluate", printed)
    assert printed == json.loads((tmp_path / "out" / "summary.json").read_text())
    with (tmp_path / "out" / "patients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["patient"] for row in rows] == [name_of(site, number) for number in (4, 3, 2, 1, 0)]
    scores = [float(row["dice"]) for row in rows]
    assert scores == sorted(scores)
    assert printed["mean-of-patients"]["dice"]["value"] == pytest.approx(sum(scores) / 5)
    assert printed["worst-patient"]["dice"] == pytest.approx(scores[0])


def test_patients_that_the_model_was_trained_on_are_told_of(site: Site, tmp_path: Path) -> None:
    done = evaluate(site, tmp_path, "--split", "all")
    sentence = "among the 5 patients scored there are 2 that it was trained on and 1 that its rounds were watched on"
    assert sentence in done.stderr
    assert sentence in (tmp_path / "out" / "report.html").read_text()
    tested = evaluate(site, tmp_path, "--overwrite", "--json")
    assert "trained on" not in tested.stderr
    assert json.loads(tested.stdout)["trained-on"] == {}
    assert json.loads(tested.stdout)["patients"] == 2


def test_an_earlier_evaluation_is_kept_and_results_do_not_lie_among_the_images(site: Site, tmp_path: Path) -> None:
    assert evaluate(site, tmp_path).exit_code == 0
    before = (tmp_path / "out" / "summary.json").read_bytes()
    again = evaluate(site, tmp_path)
    assert again.exit_code != 0
    assert "--overwrite" in again.stderr
    assert (tmp_path / "out" / "summary.json").read_bytes() == before
    for name in ("summary.json", "report.html"):
        (tmp_path / "out" / name).unlink()
        assert evaluate(site, tmp_path).exit_code != 0  # what is left of it is kept too
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"patients.csv"}
    among = evaluate(site, tmp_path, "--out", tmp_path / "north" / "out")
    assert among.exit_code != 0
    assert "among the images" in among.stderr
    assert not (tmp_path / "north" / "out").exists()


def test_what_is_left_out_is_told_by_code(site: Site, tmp_path: Path) -> None:
    write_patient(tmp_path / "north", 9)
    for file in (tmp_path / "north" / "p9").glob("seg*"):
        file.unlink()
    done = evaluate(site, tmp_path, "--split", "all")
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("1 left out: no-label: ")]
    assert said.endswith("refers to this series. Add it, or take the series out.")
    assert "1 no-label" in (tmp_path / "out" / "report.html").read_text()


def test_a_disk_that_takes_nothing_is_told(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("client.evaluate.report.write_private", full)
    done = evaluate(site, tmp_path)
    assert done.exit_code != 0
    assert "cannot be written (No space left on device)" in done.stderr
