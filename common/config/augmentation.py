"""[training.augmentation] of run.toml: random changes of a training crop that keep its label true.

A preset is an abbreviation: it is read once, and what it stands for is filled in where the table says nothing itself.
The document that is issued holds the values and never the preset, so two runs have one hash only where they do the
same, and what a preset stands for in a later version changes no run that was issued.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from common.document.formats import Since, reading
from common.document.table import Fraction, Table

_Half = Annotated[float, Field(ge=0, le=0.5)]
_FORMAT = 2  # whose keys a preset stands for

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The guide's set, as Keras' ImageDataGenerator has it.
    "guide": {
        **{"flips": True, "rotation-degrees": 40.0, "scaling": 0.2, "intensity": 0.0},
        **{"shift": 0.2, "shear": 0.2, "fill": "nearest"},
    },
    # nnU-Net's, with its probabilities (Isensee et al., Nature Methods 2021, supplementary note 4).
    "nnunet": {
        **{"flips": True, "rotation-degrees": 30.0, "tilt-degrees": 30.0, "zoom": [0.7, 1.4], "intensity": 0.0},
        **{"noise": math.sqrt(0.1), "blur": [0.5, 1.0], "brightness": 0.25, "contrast": 0.25, "low-resolution": 0.5},
        **{"gamma": [0.7, 1.5], "inverted-gamma": [0.7, 1.5]},
        "probability": {
            **{"rotation": 0.2, "scaling": 0.2, "noise": 0.1, "blur": 0.2, "brightness": 0.15, "contrast": 0.15},
            **{"low-resolution": 0.25, "gamma": 0.3, "inverted-gamma": 0.1},
        },
    },
    # Jitter of light and colour beside what a run does anyway.
    "photograph": {"intensity": 0.0, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05},
}
# Of two keys that say one thing, what is written beats what a preset has of the other.
_INSTEAD = {"scaling": "zoom"}


class AugmentationProbability(Table):
    """How often each change is made, crop by crop; 1: each crop is changed, by another amount."""

    rotation: Fraction = 1.0
    scaling: Fraction = 1.0
    shift: Fraction = 1.0
    shear: Fraction = 1.0
    elastic: Fraction = 1.0
    intensity: Fraction = 1.0
    noise: Fraction = 1.0
    blur: Fraction = 1.0
    brightness: Fraction = 1.0
    contrast: Fraction = 1.0
    low_resolution: Fraction = 1.0
    gamma: Fraction = 1.0
    inverted_gamma: Fraction = 1.0
    saturation: Fraction = 1.0
    hue: Fraction = 1.0


class AugmentationConfig(Table):
    """Which changes, and how far each goes at most; 0, or no range: none."""

    # What keys are that the table does not say; what is issued holds those values. None: the defaults below.
    preset: Annotated[Literal["guide", "nnunet", "photograph"] | None, Since(2)] = None
    flips: bool = True
    # Rotation in the image plane, drawn from [-x, x].
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 15.0
    # Of volumes, about the two axes in the image plane, where a crop's longest edge is at most 3 times its shortest.
    tilt_degrees: Annotated[float, Field(ge=0, le=180), Since(2)] = 0.0
    # Zoom drawn from [1 - x, 1 + x].
    scaling: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    # In place of scaling: from this range, as often below 1 as its logarithm says.
    zoom: Annotated[
        tuple[Annotated[float, Field(ge=0.25, le=4)], Annotated[float, Field(ge=0.25, le=4)]] | None, Since(2)
    ] = None
    # Along each axis, from [-x, x] edges of the crop.
    shift: Annotated[_Half, Since(2)] = 0.0
    # In the image plane: a row moves by [-x, x] voxels for each voxel that it lies from the middle.
    shear: Annotated[_Half, Since(2)] = 0.0
    # Of points four to an edge, along each axis, from [-x, x] of their distance; nothing folds up to 0.4.
    elastic: Annotated[float, Field(ge=0, le=0.4), Since(2)] = 0.0
    # What lies outside the image: 0 and background, or what is nearest.
    fill: Annotated[Literal["zero", "nearest"], Since(2)] = "zero"
    # Gain drawn from [1 - x, 1 + x], offset from [-x, x], per crop.
    intensity: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    # Gaussian, its variance drawn from [0, x^2] of the crop's.
    noise: Annotated[float, Field(ge=0, le=1), Since(2)] = 0.0
    # Gaussian, its standard deviation in voxels drawn from this range.
    blur: Annotated[
        tuple[Annotated[float, Field(gt=0, le=5)], Annotated[float, Field(gt=0, le=5)]] | None, Since(2)
    ] = None
    # Intensities times a factor from [1 - x, 1 + x].
    brightness: Annotated[float, Field(ge=0, lt=1), Since(2)] = 0.0
    # Distances from the crop's mean times a factor from [1 - x, 1 + x], within the crop's range.
    contrast: Annotated[float, Field(ge=0, lt=1), Since(2)] = 0.0
    # Fewer voxels along each axis, by a factor from [x, 1], and back. 1: none.
    low_resolution: Annotated[float, Field(ge=0.1, le=1), Since(2)] = 1.0
    # Exponent of the crop's intensities between its least and its largest; mean and deviation stay.
    gamma: Annotated[
        tuple[Annotated[float, Field(ge=0.1, le=10)], Annotated[float, Field(ge=0.1, le=10)]] | None, Since(2)
    ] = None
    # The same of the negative.
    inverted_gamma: Annotated[
        tuple[Annotated[float, Field(ge=0.1, le=10)], Annotated[float, Field(ge=0.1, le=10)]] | None, Since(2)
    ] = None
    # Of colour: distances from grey times a factor from [1 - x, 1 + x]; the colour circle turned by [-x, x] turns.
    saturation: Annotated[float, Field(ge=0, le=1), Since(2)] = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5), Since(2)] = 0.0
    # Of classification: two crops of a step laid over each other, by a share from Beta(x, x).
    mixup: Annotated[float, Field(ge=0, le=10), Since(2)] = 0.0
    probability: Annotated[AugmentationProbability, Since(2)] = AugmentationProbability()

    @model_validator(mode="before")
    @classmethod
    def _as_its_preset_means(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("preset") is None:
            return values
        preset = PRESETS.get(values["preset"]) if isinstance(values["preset"], str) else None
        return values if preset is None else _filled(values, preset)

    @model_validator(mode="after")
    def _goes_from_low_to_high(self) -> Self:
        for name in ("zoom", "blur", "gamma", "inverted_gamma"):
            limits = getattr(self, name)
            if limits is not None and limits[0] > limits[1]:
                raise ValueError(f"{name.replace('_', '-')} must be [low, high] with low at most high")
        return self

    def refuse(self, channels: int, *, draws: bool) -> str | None:
        """Why images of so many channels cannot be changed like this; None: they can. draws: for labels by voxel."""
        if self.mixup and draws:
            return "training.augmentation.mixup is for classification: two images have no common label of a voxel"
        if channels == 3 or not (self.saturation or self.hue):
            return None
        return (
            f"training.augmentation.{'saturation' if self.saturation else 'hue'} is for colour: the run has "
            f"data.channels = {channels}. Set it to 0, or take out the preset 'photograph'"
        )


def _filled(values: dict[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """A table with its preset's values where it has none, and without the preset."""
    format_ = reading()
    if format_ is not None and format_ < _FORMAT:
        raise ValueError(f"preset is a key of format {_FORMAT}. Write format = {_FORMAT} at the top of the run")
    said = {key: value for key, value in values.items() if key != "preset"}
    beaten = {other for written, other in _INSTEAD.items() if written in said}
    filled = _beside(said, {key: value for key, value in preset.items() if key not in beaten})
    if isinstance(own := said.get("probability"), dict):
        filled["probability"] = _beside(own, preset.get("probability", {}))
    return filled


def _beside(said: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """What a table says, and what it does not say of a preset; code may write keys as Python does."""
    return {**said, **{key: value for key, value in preset.items() if not {key, key.replace("-", "_")} & said.keys()}}


__all__ = ["PRESETS", "AugmentationConfig", "AugmentationProbability"]
