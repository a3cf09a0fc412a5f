"""What holds of every preparation step, on studies of odd sizes, one slice and one voxel."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from client.data.prepare.preprocess import preprocess, refusal, restore, stages
from client.data.study.study import Study
from common.config import RunConfig, parse, validate
from common.errors import ConfigError, DataError, ErrorCode
from common.preparation import STEPS, Geometry, Step, Voxels
from common.preparation.step import Expected

# Settings that cost less, or leave little, on studies of a few voxels.
CHEAP: dict[str, dict[str, Any]] = {
    "n4": {"iterations": 1},
    "clahe": {"tiles": 3, "clip-limit": 0.1},
    "crop-to-foreground": {"threshold": 0.0, "margin": 1},
    "missing-values": {"most": 0.2},
    "pectoral-muscle": {"contrast": 0.01},
}
KINDS = [str(step.model_fields["kind"].default) for step in STEPS]
SHAPES = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 23), st.integers(1, 23)),
    st.tuples(st.integers(1, 31), st.integers(1, 31)),
)


def run_with(*kinds: str, dims: int = 2, **preprocessing: Any) -> RunConfig:
    """A run with these steps, under privacy, on images that they take."""
    mammogram = any(kind in ("breast-region", "pectoral-muscle") for kind in kinds)
    return validate(
        RunConfig,
        {
            "format": 2,
            "name": "test",
            "model": {"dims": dims},
            "data": {"modality": "MG" if mammogram else "MR", "classes": ["one", "two"]},
            "preprocessing": {"steps": [{"kind": kind, **CHEAP.get(kind, {})} for kind in kinds], **preprocessing},
            "training": {"patch-size": [16] * dims},
            "federation": {"rounds": 1},
            "privacy": {"target-epsilon": 1.0},
        },
    )


def a_study(shape: tuple[int, ...], seed: int) -> Study:
    """Noise with a bright part, of which some voxels are labelled: 1 the brighter, 2 the darker half of it."""
    rng = np.random.default_rng(seed)
    bright = rng.random(shape) < 0.4
    image = np.where(bright, rng.uniform(50, 150, shape), -rng.uniform(0, 20, shape)).astype(np.float32)
    label = np.where(bright, np.where(image > 100, 1, 2), 0).astype(np.uint8)
    affine = np.diag([1.0, 0.7, 0.7, 1])[[2, 1, 0, 3]] if len(shape) == 3 else None
    return Study(
        image[None], label, (1.0, 0.7, 0.7)[-len(shape) :] if affine is not None else None, affine, "", "", "", ()
    )


def unlabelled(study: Study) -> Study:
    return dataclasses.replace(study, label=None)


def with_what_is_seen_labelled(study: Study, run: RunConfig) -> Study:
    """The study without the labels on what a step blacks out, for which it would be set aside."""
    *_, last = stages(unlabelled(study), run)
    if last.made.inside is None or study.label is None:
        return study
    seen = restore(last.made.inside.astype(np.uint8), preprocess(unlabelled(study), run).way)
    return dataclasses.replace(study, label=study.label * seen)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(shape=SHAPES, seed=st.integers(0, 2**32 - 1))
def test_label_stays_whole_numbers_at_its_place_and_comes_back_exactly(
    kind: str, shape: tuple[int, ...], seed: int
) -> None:
    run, study = run_with(kind), a_study(shape, seed)
    geometry = Geometry(study.image.shape[1:], 1, study.spacing_mm, study.affine)
    assume(refusal(geometry, run) is None)
    study = with_what_is_seen_labelled(study, run)
    assert study.label is not None
    before = study.label.copy()
    study.image.flags.writeable = False
    image, label, way = preprocess(study, run)
    assert label is not None
    assert torch.isfinite(image).all()
    assert image.shape[1:] == label.shape
    assert str(label.dtype) == "torch.uint8"
    assert set(np.unique(label)) <= set(np.unique(study.label))
    # Without resampling nothing is lost: what a network that is always right says lies on the label, voxel by voxel.
    np.testing.assert_array_equal(restore(label, way), study.label)
    again = preprocess(dataclasses.replace(a_study(shape, seed), label=before), run)
    assert torch.equal(again.image, image)
    assert again.label is not None
    assert torch.equal(again.label, label)
    np.testing.assert_array_equal(study.label, before)


@pytest.mark.parametrize("dims", [2, 3])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(shape=st.tuples(st.integers(1, 9), st.integers(1, 23), st.integers(1, 23)), seed=st.integers(0, 2**32 - 1))
def test_many_steps_with_resampling_come_back_on_the_studys_own_grid(
    dims: int, shape: tuple[int, int, int], seed: int
) -> None:
    kinds = ("missing-values", "crop-to-foreground", "median", "gaussian", "field-of-view", "equalisation", "clahe")
    run, study = run_with(*kinds, dims=dims, spacing_mm=[0.8] * dims), a_study(shape, seed)
    image, _, way = preprocess(unlabelled(study), run)
    assert study.label is not None
    assert torch.isfinite(image).all()
    try:
        label = preprocess(study, run).label
    except DataError as refused:
        assert refused.code is ErrorCode.LABEL_DOUBTFUL  # noqa: PT017 - with some shapes, and not with others
        label = torch.ones(way.shape, dtype=torch.uint8)
    assert label is not None
    restored = restore(label, way)
    assert restored.shape == shape
    assert set(np.unique(restored)) <= {0, 1, 2}


def test_image_and_label_move_together() -> None:
    """Where the image is the label, it still is after all that moves voxels."""
    label = np.zeros((5, 20, 30), np.uint8)
    label[1:4, 3:11, 9:28] = 1
    study = Study(label[None].astype(np.float32), label, (1.0, 1.0, 1.0), None, "", "", "", ())
    run = run_with("crop-to-foreground", intensity="min-max", spacing_mm=[0.5, 0.5])
    image, moved, _ = preprocess(study, run)
    assert moved is not None
    assert moved.shape == (5, 20, 42)  # the box with its margin, at half the spacing
    np.testing.assert_array_equal(image[0].round(), moved)


@pytest.mark.parametrize("kind", KINDS)
def test_constant_study_gives_numbers(kind: str) -> None:
    flat = Study(np.full((1, 9, 12, 12), 7, np.float32), None, None, None, "", "", "", ())
    assert torch.isfinite(preprocess(flat, run_with(kind)).image).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_comes_out_the_same_whoever_was_prepared_before(kind: str) -> None:
    """No step keeps anything: what one patient's image is made into says nothing of another's."""
    run, one = run_with(kind), unlabelled(a_study((9, 24, 24), 3))
    alone = preprocess(one, run).image
    preprocess(unlabelled(a_study((9, 31, 17), 4)), run)
    assert torch.equal(preprocess(one, run).image, alone)


@pytest.mark.parametrize("step", STEPS, ids=KINDS)
def test_a_colour_picture_is_taken_or_the_run_is_refused(step: type[Step]) -> None:
    kind = str(step.model_fields["kind"].default)
    made = step.model_validate({"kind": kind, **CHEAP.get(kind, {})})
    rng = np.random.default_rng(0)
    if made.misfit(Expected(2, 3, "photo", scaled=True)) is not None:
        with pytest.raises(ConfigError, match=f"preprocessing.steps: {kind} is for "):
            parse(RunConfig, _colour(kind))
        return
    image = rng.random((3, 21, 17)).astype(np.float32)
    found = made.apply(Voxels(image), Geometry((21, 17), 3, None)).image
    assert found.shape[0] == 3
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def _colour(kind: str) -> str:
    return (
        'format = 2\nname = "a"\ndata = { modality = "photo", channels = 3, classes = ["b"] }\n'
        "training = { patch-size = [16, 16] }\nfederation = { rounds = 1 }\n"
        f'preprocessing = {{ steps = [{{ kind = "{kind}" }}] }}\n'
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"modality": "CT", "step": "n4"}, "n4 is for images whose brightness has no unit"),
        ({"modality": "CT", "step": "breast-region"}, "breast-region is for mammograms"),
        ({"modality": "MR", "step": "pectoral-muscle"}, "pectoral-muscle is for mammograms"),
        ({"intensity": "zscore-foreground", "step": "equalisation"}, "needs intensities on [0, 1]"),
        ({"intensity": "zscore", "step": "field-of-view"}, "needs intensities on [0, 1]"),
        ({"step": 'gaussian" }, { kind = "missing-values'}, "missing-values comes first and once"),
    ],
)
def test_a_step_that_cannot_be_in_a_run_is_refused_when_it_is_read(changes: dict[str, str], says: str) -> None:
    text = (
        f'format = 2\nname = "a"\ndata = {{ modality = "{changes.get("modality", "MR")}", classes = ["b"] }}\n'
        "training = { patch-size = [16, 16] }\nfederation = { rounds = 1 }\n"
        f'preprocessing = {{ intensity = "{changes.get("intensity", "percentile")}", '
        f'steps = [{{ kind = "{changes["step"]}" }}] }}\n'
    )
    with pytest.raises(ConfigError) as refused:
        parse(RunConfig, text)
    assert says in str(refused.value)


def test_what_is_too_small_for_a_step_is_refused_by_its_geometry() -> None:
    told = refusal(Geometry((9, 7, 30), 1, None), run_with("n4"))
    assert told is not None
    assert told.code is ErrorCode.UNSUPPORTED
    assert "7 x 30 voxels in its plane, and n4 needs 8" in str(told)
    with pytest.raises(DataError, match="n4 needs 8"):
        preprocess(a_study((9, 7, 30), 0), run_with("n4"))
