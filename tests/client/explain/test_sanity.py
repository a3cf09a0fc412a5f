"""A map that does not depend on the model is caught; one that does is not."""

from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from skimage.metrics import structural_similarity

import client.explain.explanation
import client.predict.prediction
from client.data.isolate.isolation import Readers
from client.explain import METHODS
from client.explain.explanation import Wanted, explain_study
from client.explain.files import report, warnings
from client.explain.method import Answer, Method, Subject
from client.explain.sanity import ALIKE, compared, randomised
from common.errors import DataError
from common.learning.network import build_model
from tests.client.explain.subjects import subject_of
from tests.client.thresholds import run_for, save
from tests.simulations.tiny import tiny_site


def edges(subject: Subject) -> Answer:
    """What looks like an explanation, and is an edge detector: the model is never asked."""
    found = [scipy.ndimage.gaussian_gradient_magnitude(image[0].numpy(), 1.0) for image in subject.samples]
    return Answer({"disc": torch.from_numpy(np.stack(found))})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    run = run_for(modality="photo", classes=["disc"])
    return save(tmp_path / "model", run, build_model(run))


def test_edge_detector_put_in_as_a_method_is_caught(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.predict.prediction, "Readers", lambda _count: Readers(0))
    fraud = Method("edges", "nobody", "high: an edge", (), edges)
    monkeypatch.setattr(client.explain.explanation, "METHODS", (*METHODS, fraud))
    tiny_site(tmp_path / "site", "north", patients=1)
    picture = tmp_path / "site" / "images" / "north-0.png"
    explanation = explain_study(model, picture, Wanted(methods=("edges", "grad-cam"), slices=1))
    drawn, honest = (explained.maps[0].sanity for explained in explanation.methods)
    assert drawn.spearman == pytest.approx(1.0)
    assert drawn.ssim == pytest.approx(1.0)
    assert not drawn.passed
    assert honest.passed
    (warning,) = warnings(explanation)
    assert warning.startswith("edges disc: WARNING: random weights give nearly the same map (rank correlation 1.00)")
    told = report(explanation)["methods"][0]["maps"][0]["random-weights"]
    assert told["verdict"].startswith("WARNING")


def test_a_study_that_does_not_fit_into_memory_is_told_in_a_sentence(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(_subject: Subject) -> Answer:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(client.predict.prediction, "Readers", lambda _count: Readers(0))
    monkeypatch.setattr(client.explain.explanation, "METHODS", (Method("large", "nobody", "high", (), too_large),))
    tiny_site(tmp_path / "site", "north", patients=1)
    with pytest.raises(DataError, match="does not fit into memory"):
        explain_study(model, tmp_path / "site" / "images" / "north-0.png", Wanted(methods=("large",)))


def test_random_networks_have_other_weights_than_the_run_begins_with_and_follow_from_the_seed() -> None:
    subject = subject_of({"architecture": "unet", "channels": [4, 8]}, (16, 16))
    pair = randomised([*subject.networks, *subject.networks], subject.run, seed=0)
    again = randomised(subject.networks, subject.run, seed=0)
    first = [next(network.parameters()) for network in (*subject.networks, *pair, *again)]
    assert torch.equal(first[1], first[3])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])


@pytest.mark.parametrize(("factor", "passed"), [(0.0, True), (10.0, False), (-10.0, False)])
def test_maps_are_alike_from_half_of_the_ranks_variance_on(factor: float, passed: bool) -> None:
    noise = torch.randn(2, 2, 40, 50, generator=torch.Generator().manual_seed(0))
    sanity = compared(noise[0], noise[1] + factor * noise[0])
    assert sanity.passed is passed
    assert pytest.approx(0.5) == ALIKE**2


def test_of_a_flat_map_nothing_can_be_said() -> None:
    noise = torch.randn(1, 8, 9, generator=torch.Generator().manual_seed(0))
    sanity = compared(noise, torch.zeros_like(noise))
    assert (sanity.spearman, sanity.ssim, sanity.passed) == (None, None, False)


def test_likeness_is_of_the_maps_each_scaled_to_its_own_range() -> None:
    noise = torch.rand(1, 20, 24, generator=torch.Generator().manual_seed(0))
    other = torch.rand(1, 20, 24, generator=torch.Generator().manual_seed(1))
    assert compared(noise, 40 * noise - 7).ssim == pytest.approx(1.0)
    scaled = [(one - one.min()) / np.ptp(one) for one in (noise[0].numpy(), other[0].numpy())]
    expected = structural_similarity(*scaled, win_size=7, data_range=1.0)
    assert compared(noise, 40 * other - 7).ssim == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("shape", [(1, 2, 9), (1, 1, 1), (1, 4, 9), (2, 5, 6, 7)])
def test_small_and_thin_maps_are_compared_too(shape: tuple[int, ...]) -> None:
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    sanity = compared(noise, noise)
    assert sanity.spearman == (None if noise[0].numel() == 1 else pytest.approx(1.0))
