"""A map comes back to the study's own grid, wherever preparation took the study."""

from pathlib import Path

import numpy as np
import pytest
import torch

from client.data.prepare.preprocess import preprocess
from client.explain.restoring import restored
from simulations.generators.phantoms import AXIAL, SCANNERS, write_study
from tests.client.data.studies import read_image
from tests.client.thresholds import run_for

AXES = {"axial": AXIAL, "sagittal": ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))}


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("dims", [2, 3])
def test_what_preparation_turned_is_turned_back(tmp_path: Path, axes: str, dims: int) -> None:
    """The prepared image itself, given as a map, is the study's image in its window."""
    write_study(tmp_path, scanner=SCANNERS["a"], seed=1, slices=5, rows=33, labelled=False, axes=AXES[axes])
    study = read_image(tmp_path)
    run = run_for(dims)
    prepared, _, way = preprocess(study, run)
    wanted = np.clip((study.image[0] + 100) / 400, 0, 1)
    found = restored(prepared[0] - 0.5, way)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted - 0.5, atol=1.1 / 2**17 + 1e-6)


def test_where_the_map_says_nothing_it_is_nan_and_one_value_everywhere_stays(tmp_path: Path) -> None:
    write_study(tmp_path, scanner=SCANNERS["a"], seed=1, slices=4, rows=20, labelled=False)
    study = read_image(tmp_path)
    way = preprocess(study, run_for()).way
    values = torch.full(study.image.shape[1:], -2.5)
    values[1] = torch.nan
    found = restored(values, way)
    assert np.isnan(found[1]).all()
    assert (found[[0, 2, 3]] == -2.5).all()
    assert np.isnan(restored(torch.full_like(values, torch.nan), way)).all()
