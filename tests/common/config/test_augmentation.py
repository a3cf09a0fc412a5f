"""Presets: what they fill in, what stands beside them, and that one hash is one meaning."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import AugmentationConfig, RunConfig, from_canonical, parse
from common.config.augmentation import PRESETS
from common.config.rundocument import from_bundle, from_toml, issue
from common.errors import ConfigError

BEGIN = """
format = FORMAT
name = "apart"
data = { modality = "photo", channels = 3, classes = ["disc"] }
federation = { rounds = 2 }
[training]
patch-size = [16, 16]
[training.augmentation]
"""


def a_run(table: str, format_: int = 2) -> RunConfig:
    return parse(RunConfig, BEGIN.replace("FORMAT", str(format_)) + table)


def of(table: str) -> AugmentationConfig:
    return a_run(table).training.augmentation


def test_the_guides_set_has_its_ranges() -> None:
    found = of('preset = "guide"')
    assert (found.rotation_degrees, found.shift, found.shear, found.scaling) == (40, 0.2, 0.2, 0.2)
    assert (found.flips, found.fill, found.intensity) == (True, "nearest", 0)


def test_nnunets_set_has_its_ranges_and_probabilities() -> None:
    found = of('preset = "nnunet"')
    assert found.zoom == (0.7, 1.4)
    assert found.noise**2 == pytest.approx(0.1)
    assert (found.gamma, found.inverted_gamma, found.blur) == ((0.7, 1.5), (0.7, 1.5), (0.5, 1.0))
    assert (found.rotation_degrees, found.tilt_degrees, found.low_resolution) == (30, 30, 0.5)
    assert (found.brightness, found.contrast, found.intensity) == (0.25, 0.25, 0)
    odds = {"rotation": 0.2, "scaling": 0.2, "noise": 0.1, "blur": 0.2, "brightness": 0.15, "contrast": 0.15}
    odds |= {"low_resolution": 0.25, "gamma": 0.3, "inverted_gamma": 0.1}
    assert {key: value for key, value in found.probability.model_dump().items() if value < 1} == odds


def test_a_photographs_set_is_of_light_and_colour() -> None:
    found = of('preset = "photograph"')
    assert (found.brightness, found.contrast, found.saturation, found.hue, found.intensity) == (0.2, 0.2, 0.2, 0.05, 0)
    assert (found.rotation_degrees, found.scaling, found.fill) == (15, 0.1, "zero")  # else as without it


def test_a_key_beside_a_preset_beats_it() -> None:
    found = of('preset = "guide"\nshift = 0.0\nrotation-degrees = 10\n')
    assert (found.shift, found.rotation_degrees, found.shear) == (0.0, 10.0, 0.2)
    found = of('preset = "nnunet"\n[training.augmentation.probability]\nnoise = 1.0\n')
    assert (found.probability.noise, found.probability.rotation) == (1.0, 0.2)
    assert of('preset = "nnunet"\nscaling = 0.3\n').zoom is None
    assert of('preset = "nnunet"\nscaling = 0.3\nzoom = [0.5, 2.0]\n').zoom == (0.5, 2.0)


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_issued_holds_the_values_and_not_the_preset(name: str) -> None:
    text = BEGIN.replace("FORMAT", "2") + f'preset = "{name}"\n'
    document = from_toml(text)
    assert "preset" not in document.text
    assert from_canonical(RunConfig, document.text) == document.config
    assert from_bundle(document.bundle).hash == document.hash


def test_an_issued_text_with_a_preset_is_refused() -> None:
    text = issue(a_run("shift = 0.1")).text
    with pytest.raises(ConfigError, match="preset is a key of format 2"):
        from_canonical(RunConfig, text.replace('"shift":0.1', '"preset":"guide"'))


def test_a_preset_is_a_key_of_format_2() -> None:
    with pytest.raises(ConfigError, match=r"preset is a key of format 2. Write format = 2"):
        a_run('preset = "guide"', format_=1)


def test_a_preset_that_there_is_not_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'guide'"):
        a_run('preset = "guid"')


def test_a_mistyped_key_beside_a_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match="rotation-degrees"):
        a_run('preset = "guide"\nrotation_degrees = 3')


def test_colour_of_grey_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="is for colour"):
        parse(RunConfig, BEGIN.replace("FORMAT", "2").replace("channels = 3, ", "") + 'preset = "photograph"')

    for key in ("saturation", "hue"):
        with pytest.raises(ConfigError, match=f"{key} is for colour"):
            parse(RunConfig, BEGIN.replace("FORMAT", "2").replace("channels = 3, ", "") + f"{key} = 0.1")
        assert a_run(f"{key} = 0.1")


@pytest.mark.parametrize("key", ["zoom", "blur", "gamma", "inverted-gamma"])
def test_a_range_goes_from_low_to_high(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be"):
        a_run(f"{key} = [1.2, 0.9]")
    assert a_run(f"{key} = [0.9, 0.9]")


@pytest.mark.parametrize(
    ("key", "least", "most"),
    [
        *(("shift", 0, 0.5), ("shear", 0, 0.5), ("elastic", 0, 0.4), ("scaling", 0, 0.5), ("intensity", 0, 0.5)),
        *(("noise", 0, 1), ("brightness", 0, 0.999), ("contrast", 0, 0.999), ("low-resolution", 0.1, 1)),
        *(("saturation", 0, 1), ("hue", 0, 0.5), ("mixup", 0, 10), ("tilt-degrees", 0, 180)),
        *(("zoom", 0.25, 4), ("gamma", 0.1, 10), ("inverted-gamma", 0.1, 10), ("blur", 0.001, 5)),
    ],
)
def test_changes_are_no_larger_than_makes_sense(key: str, least: float, most: float) -> None:
    """At the ends it is taken, and beyond them refused: such as a bend that folds, or images that are all black."""
    is_range = key in ("zoom", "gamma", "inverted-gamma", "blur")
    task = "classification" if key == "mixup" else "segmentation"
    model = '[model]\narchitecture = "cnn"\n' if key == "mixup" else ""

    begin = BEGIN.replace("FORMAT", "2").replace("[training]", f'[task]\nkind = "{task}"\n{model}[training]')

    def run(low: float, high: float) -> RunConfig:
        return parse(RunConfig, f"{begin}{key} = {[low, high] if is_range else low}\n")

    assert run(least, least)
    assert run(most, most)
    for low, high in ((least - 0.002, most), (most + 0.002, most + 0.002)):
        with pytest.raises(ConfigError, match=key):
            run(low, high)


KEYS = st.fixed_dictionaries(
    {},
    optional={
        "preset": st.sampled_from([*PRESETS]),
        "shift": st.sampled_from([0.0, 0.2, 0.3]),
        "zoom": st.sampled_from([[0.7, 1.4], [0.9, 1.1]]),
        "scaling": st.sampled_from([0.0, 0.1, 0.2]),
        "fill": st.sampled_from(["zero", "nearest"]),
        "noise": st.sampled_from([0.0, 0.2]),
        "probability": st.sampled_from([{}, {"noise": 0.1}, {"noise": 1.0}, {"rotation": 0.2}]),
    },
)


@settings(max_examples=150, deadline=None)
@given(KEYS, KEYS)
def test_one_hash_is_one_meaning(one: dict[str, Any], other: dict[str, Any]) -> None:
    """What a site reads from the issued text is what the file meant, and no two meanings share a text."""
    runs = [
        RunConfig.model_validate(
            {**a_run("").model_dump(by_alias=True), "training": {"patch-size": [16, 16], "augmentation": table}}
        )
        for table in (one, other)
    ]
    documents = [issue(run) for run in runs]
    for run, document in zip(runs, documents, strict=True):
        assert from_canonical(RunConfig, document.text).training == run.training
    assert (documents[0].hash == documents[1].hash) == (runs[0].training == runs[1].training)
