"""A model of a real simulated federation, scored: federated figures that add up equal those of one pooled hospital."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from client.commands.main import app as client_app
from client.commands.options.folder_options import source_of
from client.data.isolate.isolation import Readers
from client.evaluate import segmentation
from client.evaluate.model import evaluate
from client.site import Site, open_site
from common.config import SiteConfig, SourceConfig
from common.errors import ConfigError
from common.learning.network import build_model
from simulations.commands.main import app
from simulations.scenarios.homes import make_site
from tests.client.thresholds import save
from tests.json_forms import conforms
from tests.simulations.classed import classed_run, classed_site
from tests.simulations.tiny import RUN_TOML, SITES, tiny_site


def sim(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two sites of 5 and 11 patients: its folder, with the sites' images in images/."""
    folder = tmp_path_factory.mktemp("federation")
    for name, patients in (("north", 5), ("south", 11)):
        tiny_site(folder / name, name, patients)
    (folder / "mine.toml").write_text(f"{RUN_TOML}\n{SITES}")
    done = sim("run", folder / "mine.toml", "--out", folder / "out", "--rounds", 4, "--threads", 1)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in this process; intervals are not what is tested here."""
    monkeypatch.setattr("client.data.survey.Readers", lambda _count: Readers(0))
    for name in ("bootstrap", "bootstrap_each"):
        plain = getattr(segmentation, name)
        monkeypatch.setattr(segmentation, name, lambda *given, plain=plain: plain(*given, resamples=20))


def sites_of(federation: Path) -> list[Site]:
    return [open_site(federation / "out" / "sites" / name) for name in ("north", "south")]


def test_test_patients_score_as_in_the_run(federation: Path) -> None:
    summary = json.loads((federation / "out" / "summary.json").read_text())
    found = evaluate(federation / "out", sites_of(federation), readers=0)
    assert {one.wanted for one in found.sites} == {"test"}
    for one in found.sites:
        run = summary["scores"]["test"]["sites"][one.site]
        ours = one.findings.summary["mean-of-patients"]
        assert {name: ours[name]["value"] for name in run} == pytest.approx(run)
    assert found.together is not None
    assert found.together.findings.summary["mean-of-sites"]["dice"] == pytest.approx(
        summary["scores"]["test"]["mean-of-sites"]["dice"]
    )


def test_what_adds_up_over_sites_is_what_one_pooled_hospital_finds(federation: Path, tmp_path: Path) -> None:
    sites = sites_of(federation)
    found = evaluate(federation / "out", sites, wanted="all", readers=0)
    sources = tuple(source for site in sites for source in site.config.data)
    pooled = make_site(tmp_path, SiteConfig(name="pooled", data=sources))
    (alone,) = evaluate(federation / "out", [pooled], wanted="all", readers=0).sites
    assert found.together is not None
    ours, theirs = found.together.findings.summary, alone.findings.summary
    for kind in ("mean-of-patients", "pooled"):
        assert {name: one["value"] for name, one in ours[kind].items()} == pytest.approx(
            {name: one["value"] for name, one in theirs[kind].items()}, rel=1e-12
        )
    assert ours["confusion"] == theirs["confusion"]
    # To the last bit: counts of bins are whole numbers.
    for name in ("roc-auc", "average-precision"):
        one, other = (values["ranking"]["disc"][name] for values in (ours, theirs))
        assert (one["value"], one["bins"]) == (other["value"], other["bins"])
    assert ours["volumes"]["disc"]["bias"] == pytest.approx(theirs["volumes"]["disc"]["bias"])
    # Weighted by their patients the sites' means are that of all; unweighted they are not, and are called otherwise.
    weights = [one.patients for one in found.sites]
    means = [one.findings.summary["mean-of-patients"]["dice"]["value"] for one in found.sites]
    assert np.average(means, weights=weights) == pytest.approx(ours["mean-of-patients"]["dice"]["value"])
    assert ours["mean-of-sites"]["dice"] == pytest.approx(np.mean(means))
    assert ours["mean-of-sites"]["dice"] != pytest.approx(ours["mean-of-patients"]["dice"]["value"], abs=1e-6)
    aurocs = [one.findings.summary["ranking"]["disc"]["roc-auc"]["value"] for one in found.sites]
    assert np.average(aurocs, weights=weights) != pytest.approx(ours["ranking"]["disc"]["roc-auc"]["value"], abs=1e-6)


def test_the_worst_site_stands_beside_the_mean(federation: Path, tmp_path: Path) -> None:
    done = sim(
        "evaluate", federation / "out", "--scenario", federation / "mine.toml", "--out", tmp_path / "out", "--json"
    )
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    conforms("wardround-sim evaluate", printed)
    means = {site: own["dice"] for site, own in printed["sites"].items()}
    assert printed["worst-site"] == min(means, key=lambda site: means[site])
    text = (tmp_path / "out" / "report.html").read_text()
    assert f"worst site: {printed['worst-site']}" in text
    assert text.index("mean of sites") < text.index("worst site:")
    for site in ("north", "south"):
        rows = list(csv.DictReader((tmp_path / "out" / site / "patients.csv").open(newline="")))
        assert {row["split"] for row in rows} == {"test"}
    everybody = list(csv.DictReader((tmp_path / "out" / "patients.csv").open(newline="")))
    assert len(everybody) == printed["patients"]


def test_a_folder_that_is_no_site_is_scored_whole(federation: Path, tmp_path: Path) -> None:
    done = sim("evaluate", federation / "out", "--data", federation / "south", "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    conforms("wardround-sim evaluate", printed)
    assert (printed["split"], printed["patients"], printed["trained-here"]) == ("all", 11, False)
    assert "sites" not in printed
    table = sim("evaluate", federation / "out", "--data", federation / "south", "--out", tmp_path / "other")
    assert "Hausdorff 95" in table.output


def test_a_classifier_is_scored_on_a_folder_with_a_table_of_classes(tmp_path: Path) -> None:
    run = classed_run()
    classed_site(tmp_path / "pictures", "north", patients=9)
    model = save(tmp_path / "model", run, build_model(run))
    asked = [
        "evaluate",
        model,
        "--data",
        tmp_path / "pictures",
        "--csv",
        "table.csv",
        "--label-map",
        "clear=background",
    ]
    done = sim(*asked, "--class-column", "finding", "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["patients"] == 9
    with (tmp_path / "out" / "patients.csv").open(newline="") as file:
        labelled = Counter(row["labelled"] for row in csv.DictReader(file))
    with (tmp_path / "pictures" / "table.csv").open(newline="") as file:
        words = Counter(row["finding"] for row in csv.DictReader(file))
    assert [labelled[word] for word in ("bright", "dark")] == [words["bright"], words["dark"]] == [3, 3]


def test_a_folder_is_described_by_the_options_of_data_add_and_by_all_of_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--kind=images", "--csv=t.csv", "--image-column=i", "--mask-column=m", "--patient-column=p"]
    options += ["--class-column=c", "--region-column=r", "--class-attribute=0040,0254", "--class-reports"]
    options += ["--where=site=drive", "--images=pictures", "--labels=masks", "--patient-pattern=(.)", "--label-map=1=a"]
    options += ["--fractional-threshold=0.25", "--empty-labels-are-negative", "--labels-checked", "--channel=1"]
    options += ["--pixel-text-checked", "--image-pattern=(.)_i", "--label-pattern=(.)_l"]
    found: list[SourceConfig] = []

    def stop(*given: object, **keys: object) -> None:
        found.append(source_of(*given, **keys))  # type: ignore[arg-type]
        raise ConfigError("seen")

    (tmp_path / "data").mkdir()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "site.toml").write_text('name = "north"\n')
    monkeypatch.setattr("client.commands.sources.source_of", stop)
    monkeypatch.setattr("simulations.commands.evaluate.source_of", stop)
    sim("evaluate", "model", "--data", tmp_path / "data", "--out", tmp_path / "out", *options)
    added = ["data", "add", str(tmp_path / "data"), "--home", str(tmp_path / "site"), *options]
    CliRunner().invoke(client_app, added)
    assert len(found) == 2
    assert found[0] == found[1]
    unset = SourceConfig(path=found[0].path)
    same = {key for key in SourceConfig.model_fields if getattr(found[0], key) == getattr(unset, key)}
    assert same == {"path", "patients"}  # patients: who of an archive belongs to a simulated site


def test_nothing_to_score_and_an_earlier_result_are_refused(federation: Path, tmp_path: Path) -> None:
    nothing = sim("evaluate", federation / "out", "--out", tmp_path / "out")
    assert nothing.exit_code != 0
    assert "--data" in nothing.stderr
    (tmp_path / "summary.json").write_text("{}")
    kept = sim("evaluate", federation / "out", "--data", federation / "south", "--out", tmp_path)
    assert kept.exit_code != 0
    assert (tmp_path / "summary.json").read_text() == "{}"


def test_only_what_is_inside_the_field_of_view_counts(federation: Path, tmp_path: Path) -> None:
    """A copy of a site's pictures with a table; the field of view is their left half."""
    rows = ["id,image,mask,fov"]
    for path in sorted((federation / "south" / "images").iterdir()):
        image, mask = (Image.open(federation / "south" / kind / path.name) for kind in ("images", "labels"))
        half = np.zeros((image.height, image.width), np.uint8)
        half[:, : image.width // 2] = 255
        for kind, picture in (("images", image), ("labels", mask), ("fov", Image.fromarray(half))):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "data" / kind / path.name)
        rows.append(",".join([path.stem, *(f"{kind}/{path.name}" for kind in ("images", "labels", "fov"))]))
    (tmp_path / "data" / "t.csv").write_text("\n".join(rows))
    asked = ["evaluate", federation / "out", "--data", tmp_path / "data", "--csv", "t.csv", "--json", "--out"]
    whole = json.loads(sim(*asked, tmp_path / "whole").stdout)
    inside = json.loads(sim(*asked, tmp_path / "inside", "--region-column", "fov").stdout)
    assert (whole["field-of-view"]["studies"], inside["field-of-view"]["studies"]) == (0, 11)
    pixels = [np.sum(one["confusion"]["truth-by-answer"]) for one in (whole, inside)]
    assert pixels[1] == pixels[0] // 2
    assert "inside their field of view only" in (tmp_path / "inside" / "report.html").read_text()
