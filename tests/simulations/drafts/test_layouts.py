"""What is drafted from each layout of a folder fits it: training reads all of it, by patients and sites as told.

The oracle is what was written into the folder, and the run's own reading of the images at each site of the scenario.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from common.config import RunConfig, SourceConfig
from simulations.drafts.text import Draft, draft
from simulations.scenarios.scenario import Scenario, ScenarioConfig, load_scenario, prepare
from tests.client.data.studies import write_picture
from tests.simulations.drafts import folders

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Read:
    """A draft, and what training reads by it: studies and patients of each site."""

    draft: Draft
    scenario: Scenario
    studies: dict[str, int]
    patients: dict[str, int]

    @property
    def run(self) -> RunConfig:
        return self.scenario.config.run

    @property
    def source(self) -> SourceConfig:
        assert self.scenario.config.partition is not None
        return self.scenario.config.partition.source


def drafted(folder: Path, out: Path, label_map: Mapping[str, str] | None = None, **options: object) -> Read:
    source = SourceConfig(path=str(folder), label_map=dict(label_map or {}))
    made = draft(source, "mine", **options)  # type: ignore[arg-type]  # of a draft
    (out / "mine.toml").write_text(made.text, encoding="utf-8")
    scenario = load_scenario(str(out / "mine.toml"))
    assert isinstance(scenario.config, ScenarioConfig)
    cohorts = {site.config.name: site.cohort(scenario.config.run) for site in prepare(scenario, out / "run")}
    assert [one for cohort in cohorts.values() for one in cohort.quarantined] == []
    for cohort in cohorts.values():
        assert all(cohort.patients(split) for split in ("train", "validation", "test"))
    sizes = {name: cohort.size for name, cohort in cohorts.items()}
    assert sizes == dict(made.sizes)
    return Read(made, scenario, {name: len(cohort.cases) for name, cohort in cohorts.items()}, sizes)


def test_pictures_and_masks_in_two_folders(tmp_path: Path) -> None:
    read = drafted(folders.pictures(tmp_path / "images of mine"), tmp_path)
    assert read.patients == {"site-1": 4, "site-2": 4, "site-3": 4}
    assert (read.run.data.modality, read.run.data.channels, read.run.data.classes) == ("photo", 1, ("foreground",))
    assert (read.run.model.dims, read.run.preprocessing.rows, read.run.training.patch_size) == (2, 48, (48, 48))
    assert read.source.label_map == {"255": "foreground"}
    assert any("each is taken for a patient of its own" in one for one in read.draft.unknown)


def test_table_tells_images_masks_patients_and_sites(tmp_path: Path) -> None:
    read = drafted(folders.with_table(tmp_path / "table"), tmp_path)
    assert read.patients == {"nord": 3, "st-anna": 3}
    assert read.studies == {"nord": 6, "st-anna": 6}
    assert (read.source.image_column, read.source.mask_column) == ("File name", "Ground truth")
    assert read.source.patient_column == "Patient ID"


def test_table_with_a_word_for_each_image_makes_a_run_that_classifies(tmp_path: Path) -> None:
    read = drafted(folders.of_classes(tmp_path / "classes"), tmp_path)
    assert read.run.task.kind == "classification"
    assert read.run.data.classes == ("tumour",)
    assert read.source.label_map == {"normal": "background"}


@pytest.mark.parametrize(
    ("write", "modality", "classes"),
    [
        (folders.nifti, "MR", ("class-1", "class-2")),
        (folders.nnunet, "MR", ("whole-gland", "lesion")),
        (folders.decathlon, "CT", ("liver", "tumour")),
    ],
)
def test_volumes_in_two_folders(
    tmp_path: Path, write: Callable[[Path], Path], modality: str, classes: tuple[str, ...]
) -> None:
    read = drafted(write(tmp_path / "volumes"), tmp_path)
    assert read.patients == {"site-1": 3, "site-2": 3}
    assert (read.run.data.modality, read.run.data.classes, read.run.data.channels) == (modality, classes, 1)
    assert read.run.model.dims == 3
    assert read.run.preprocessing.spacing_mm == (2.0, 1.5, 1.5)
    assert read.source.channel == (0 if write is folders.nnunet else None)
    assert ("1 image of a test set" in read.draft.text) == (write is folders.nnunet)


def test_sessions_of_a_bids_subject_are_one_patient(tmp_path: Path) -> None:
    read = drafted(folders.bids(tmp_path / "bids"), tmp_path)
    assert (sum(read.patients.values()), sum(read.studies.values())) == (6, 12)
    assert not any("patient of its own" in one for one in read.draft.unknown)


def test_dicom_of_two_hospitals_in_a_folder_each(tmp_path: Path) -> None:
    read = drafted(folders.dicom(tmp_path / "ct"), tmp_path)
    assert read.patients == {"hospital-a": 4, "hospital-b": 4}
    assert (read.run.data.modality, read.run.preprocessing.intensity) == ("CT", "window")
    assert read.run.model.dims == 2
    assert read.run.data.classes == ("lesion",)
    assert not any("modality" in one for one in read.draft.unknown)


def test_names_that_count_slices_of_people_tell_the_patients(tmp_path: Path) -> None:
    for number, (image, mask) in enumerate(folders.discs(18)):
        name = f"patient{number // 3:02}_slice{number % 3}"
        write_picture(tmp_path / "s" / f"{name}.png", image)
        write_picture(tmp_path / "s" / f"{name}_mask.png", mask)
    read = drafted(tmp_path / "s", tmp_path)
    assert (sum(read.patients.values()), sum(read.studies.values())) == (6, 18)
    assert any(one.startswith("patients: 6") for one in read.draft.assumed)


def test_hospitals_as_folders_below_images_and_masks_are_sites_and_one_of_too_few_is_left_out(tmp_path: Path) -> None:
    hospitals = ["Nord"] * 4 + ["Süd 2"] * 5 + ["few"] * 2
    for number, ((image, mask), hospital) in enumerate(zip(folders.discs(11), hospitals, strict=True)):
        write_picture(tmp_path / "h" / "images" / hospital / f"{number}.png", image)
        write_picture(tmp_path / "h" / "masks" / hospital / f"{number}.png", mask)
    read = drafted(tmp_path / "h", tmp_path)
    assert read.patients == {"nord": 4, "s-d-2": 5}
    assert "2 patients of 'few', too few for a site" in read.draft.text


def test_masks_of_one_and_of_255_are_one_class(tmp_path: Path) -> None:
    for number, (image, mask) in enumerate(folders.discs(8)):
        write_picture(tmp_path / "m" / "images" / f"{number}.png", image)
        write_picture(tmp_path / "m" / "masks" / f"{number}.png", mask if number % 2 else mask // 255)
    read = drafted(tmp_path / "m", tmp_path)
    assert read.run.data.classes == ("foreground",)
    assert read.source.label_map == {}


def test_value_that_a_person_says_is_background_is_no_class(tmp_path: Path) -> None:
    """The ball around it is one, and where the inner one is, nothing is marked."""
    read = drafted(folders.nifti(tmp_path / "n"), tmp_path, {"1": "shell", "2": "background"})
    assert read.run.data.classes == ("shell",)
    assert read.source.label_map == {"1": "shell", "2": "background"}


def test_colour_pictures_larger_than_the_budget_are_made_smaller_and_cropped(tmp_path: Path) -> None:
    for number, (image, mask) in enumerate(folders.discs(6, edge=400)):
        write_picture(tmp_path / "c" / f"{number}.png", np.stack([image] * 3, axis=-1))
        write_picture(tmp_path / "c" / f"{number}_seg.png", mask)
    read = drafted(tmp_path / "c", tmp_path)
    assert (read.run.data.channels, read.run.preprocessing.rows, read.run.training.patch_size) == (3, 256, (96, 96))
