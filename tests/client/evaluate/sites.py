"""A site of CT series of known patients, and a model that finds what is brighter than a threshold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import client.predict.prediction
from client.data.cohort import Cohort, deal, read_studies
from client.data.deidentify.pseudonym import pseudonym
from client.home.folder import SPLITS_NAME
from client.site import Site
from common.config import RunConfig, SiteConfig, canonical, sha256_of
from common.learning.checkpoint import Manifest, pack, save_model, sha256
from simulations.scenarios.homes import make_site
from tests.client.data.studies import ct_slices, save, segmentation, source
from tests.client.thresholds import run_for, threshold_network

SHAPE = (5, 24, 31)
SPACING = (3.0, 0.8, 0.7)  # mm, of tests.client.data.studies
THRESHOLD_HU = 75.0


def lesion(number: int) -> np.ndarray:
    """Where the lesion of a patient lies."""
    mask = np.zeros(SHAPE, bool)
    mask[1:4, 4 + number % 3 : 12 + number % 4, 8 : 16 + number % 5] = True
    return mask


def shining(number: int) -> np.ndarray:
    """What a threshold finds in that patient: the lesion, and `number` columns beyond it."""
    found: np.ndarray = np.logical_or.reduce([np.roll(lesion(number), step, axis=2) for step in range(number + 1)])
    return found


def write_patient(folder: Path, number: int, *, patient: str | None = None) -> None:
    """A series of -124 to -24 HU, 300 HU more where it shines, with its label."""
    stored = np.random.default_rng(number).integers(900, 1000, SHAPE) + 300 * shining(number)
    slices = ct_slices(stored, patient=patient or raw_id(number))
    save(folder / f"p{number}", slices)
    save(folder / f"p{number}", [segmentation(slices, {"lesion": lesion(number)})], "seg{}.dcm")


def site_with(tmp_path: Path, patients: int, name: str = "north", **config: Any) -> Site:
    """A site of patients 0, 1 and so on; the later, the worse the model is on them."""
    for number in range(patients):
        write_patient(tmp_path / name, number)
    data = (source(path=str(tmp_path / name), kind="dicom"),)
    return make_site(tmp_path / "sites", SiteConfig(name=name, data=data, threads=1, **config))


def cohort_of(site: Site, run: RunConfig) -> Cohort:
    """As training sees the site, with places kept; read in this process."""
    studies = read_studies(site.config, run, root=site.home, site_key=site.key)
    return deal(studies, site.config, run, site_key=site.key, splits=site.home / SPLITS_NAME)


def threshold_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, run: RunConfig | None = None, sites: tuple[str, ...] = ("north",)
) -> Path:
    """A model that thresholds; trained, its manifest says, at these sites."""
    run = run or run_for()
    network = threshold_network(run, (THRESHOLD_HU,), (-100.0, 300.0))
    monkeypatch.setattr(client.predict.prediction, "build_model", lambda _run: network)
    weights = pack(network.state_dict())
    save_model(folder, weights, Manifest(canonical(run), sha256_of(run), 1, sites, sha256(weights)))
    return folder


def raw_id(number: int) -> str:
    return f"CANARY-{number:03}"


def name_of(site: Site, number: int) -> str:
    return pseudonym(site.key, raw_id(number))
