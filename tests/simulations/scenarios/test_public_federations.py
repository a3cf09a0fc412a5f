"""The scenarios of public federations read images that lie as each of them lays its images out, and train.

What is read here is written here, by the layouts that the data sets' own pages describe; no image is theirs.
"""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from common.config.rundocument import issue
from server.federation.rounds import federate
from simulations.api.preparation import changed
from simulations.backends import opened
from simulations.scenarios.scenario import ScenarioConfig, load_scenario, prepare

SIZE = 20
PATIENTS = 4  # of a site


def volume(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([3.0, 3.0, 3.0, 1.0])), path)


def picture(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def blob(rng: np.random.Generator, dims: int, *values: int) -> np.ndarray:
    """One ball in another for each value."""
    places = np.indices((SIZE,) * dims)
    distance = np.sqrt(((places - rng.uniform(8, 12, dims).reshape(-1, *[1] * dims)) ** 2).sum(0))
    made = np.zeros((SIZE,) * dims, np.uint8)
    for number, value in enumerate(values):
        made[distance < 7 - 2 * number] = value
    return made


def shade(rng: np.random.Generator, label: np.ndarray) -> np.ndarray:
    return (60 + 30 * label + rng.normal(0, 5, label.shape)).astype(np.float32)


def table(path: Path, columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def write_ixi(folder: Path, rng: np.random.Generator) -> None:
    number = 0
    for hospital in ("Guys", "HH", "IOP"):
        for _ in range(PATIENTS):
            number += 1
            name = f"IXI{number:03}-{hospital}-{800 + number:04}"
            label = blob(rng, 3, 1)
            place = folder / "IXI_sample" / name
            volume(place / "T1" / f"{name}_image.nii.gz", shade(rng, label))
            volume(place / "T2" / f"{name}_image.nii.gz", 300 - shade(rng, label))  # another contrast lies beside it
            volume(place / "label" / f"{name}_label.nii.gz", label)


def write_kits(folder: Path, rng: np.random.Generator) -> None:
    rows: list[tuple[object, ...]] = []
    for number in range(6 * PATIENTS + 1):
        label = blob(rng, 3, 1, 2)
        volume(folder / f"case_{number:05}" / "imaging.nii.gz", shade(rng, label))
        volume(folder / f"case_{number:05}" / "segmentation.nii.gz", label)
        if number < 6 * PATIENTS:  # the last is of no site
            rows.append((f"case_{number:05}", number % 6, "train", f"train_{number % 6}"))
    table(folder / "thresholded_sites.csv", ("case_ids", "site_ids", "train_test_split", "train_test_split_silo"), rows)


def write_isic(folder: Path, rng: np.random.Generator) -> None:
    kinds = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
    rows: list[tuple[object, ...]] = []
    for number in range(6 * PATIENTS):
        target = number % 8
        name = f"ISIC_{number:07}{'_downsampled' if number % 5 == 0 else ''}"
        pixels = shade(rng, blob(rng, 2, 1 + target % 3))
        picture(folder / "ISIC_2019_Training_Input" / f"{name}.jpg", np.stack([pixels, pixels, pixels / 2], -1))
        split = ("train", f"train_{number % 6}")
        rows.append((name, *(float(kind == kinds[target]) for kind in kinds), target, number // PATIENTS, *split))
    table(folder / "train_test_split", ("image", *kinds, "target", "center", "fold", "fold2"), rows)


def write_fets(folder: Path, rng: np.random.Generator) -> None:
    rows: list[tuple[object, ...]] = []
    for number in range(8 * PATIENTS):
        name, label = f"FeTS2022_{number:05}", blob(rng, 3, 2, 1, 4)
        for place, contrast in enumerate(("flair", "t1", "t1ce", "t2")):
            volume(folder / name / f"{name}_{contrast}.nii.gz", 1000 * place + shade(rng, label))
        volume(folder / name / f"{name}_seg.nii.gz", label)
        rows.append(((1, 4, 6, 13, 16, 18, 20, 21)[number // PATIENTS], name))
    table(folder / "partitioning_1.csv", ("Partition_ID", "Subject_ID"), rows)


def write_lgg(folder: Path, rng: np.random.Generator) -> None:
    for number, place in enumerate([*("CS", "DU", "FG", "HT") * PATIENTS, "EZ"]):
        case = f"TCGA_{place}_{4900 + number}_19960909"
        for cut in (1, 2):
            label = blob(rng, 2, 1) if cut == 1 else np.zeros((SIZE, SIZE), np.uint8)
            pixels = shade(rng, label)
            picture(folder / case / f"{case}_{cut}.tif", np.stack([pixels, pixels + 20, pixels + 40], -1))
            picture(folder / case / f"{case}_{cut}_mask.tif", label * 255)
    (folder / "README.md").write_text("Nothing to read.")
    table(folder / "data.csv", ("Patient", "tumor_tissue_site"), [("TCGA_CS_4941", 1)])


@dataclass(frozen=True)
class Layout:
    """A scenario, who writes what it reads, and changes that make its run a small one."""

    write: Callable[[Path, np.random.Generator], None]
    channels: int
    studies: int  # of a site
    values: frozenset[int]  # that labels hold
    changes: Mapping[str, Any]


VOLUMES = {
    "model": {"channels": [4, 8]},
    "training": {"patch-size": [8, 8, 8], "local-steps": 1, "batch-size": 2},
    "preprocessing": {"spacing-mm": [3.0, 3.0, 3.0]},
}
PICTURES = {
    "model": {"channels": [4, 8]},
    "training": {"patch-size": [16, 16], "local-steps": 1, "batch-size": 2},
    "preprocessing": {"rows": SIZE},
}
LAYOUTS = {
    "fed-ixi": Layout(write_ixi, 1, PATIENTS, frozenset({0, 1}), VOLUMES),
    "fed-kits19": Layout(write_kits, 1, PATIENTS, frozenset({0, 1, 2}), VOLUMES),
    "fed-isic2019": Layout(write_isic, 3, PATIENTS, frozenset({1, 2, 3, 4}), PICTURES),
    "fets2022": Layout(write_fets, 3, PATIENTS, frozenset({0, 1, 2, 3}), VOLUMES),
    "tcga-lgg": Layout(write_lgg, 3, 2 * PATIENTS, frozenset({0, 1}), PICTURES),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_public_federation_is_read_by_hospital_and_trains(name: str, tmp_path: Path) -> None:
    layout, scenario = LAYOUTS[name], load_scenario(name)
    layout.write(tmp_path / "data", np.random.default_rng(3))
    sites = prepare(scenario, tmp_path / "out", data=tmp_path / "data")
    assert isinstance(scenario.config, ScenarioConfig)
    assert [site.config.name for site in sites] == list(scenario.config.site_names)
    assert [len(site.config.data[0].patients) for site in sites] == [PATIENTS] * len(sites)
    changes = {
        **layout.changes,
        "data": {"validation-fraction": 0.25, "test-fraction": 0.25},
        "federation": {"rounds": 1, "quorum": 1, "evaluate-every": 1},
    }
    run = changed(scenario.config.run, changes)
    first = sites[0]
    cohort = first.cohort(run)
    assert not cohort.quarantined
    assert len(cohort.cases) == layout.studies
    assert {case.images.shape[1] for case in cohort.cases} == {layout.channels}
    assert {int(value) for case in cohort.cases for value in case.labels.unique()} <= layout.values
    if name != "fed-isic2019":  # four pictures do not show all kinds
        assert {int(value) for case in cohort.cases for value in case.labels.unique()} == layout.values
    document = issue(run)
    with opened([first], document) as grid:
        summary = federate(grid, document, tmp_path / "run")
    assert (summary.status, summary.rounds) == ("completed", 1)


def test_the_contrasts_of_fets_are_channels_in_the_order_of_their_names(tmp_path: Path) -> None:
    from client.data.read.sources import find, read  # noqa: PLC0415
    from client.data.study.labels import Vocabulary  # noqa: PLC0415

    write_fets(tmp_path, np.random.default_rng(3))
    (tmp_path / "FeTS2022_00001" / "FeTS2022_00001_t1ce.nii.gz").unlink()
    partition = load_scenario("fets2022").config.partition
    assert partition is not None
    found = find(partition.source.model_copy(update={"path": str(tmp_path)}), tmp_path)
    whole, lacking, *_ = found.references
    means = read(whole, Vocabulary.as_found(whole.label_map)).image.mean(axis=(1, 2, 3))
    assert [round(float(mean), -3) for mean in means] == [0.0, 2000.0, 3000.0]  # flair, t1ce, t2, and not t1
    assert lacking.problem is not None
    assert "finds 2 files of this image, and 3 of others" in str(lacking.problem)
