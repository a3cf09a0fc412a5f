"""The gallery shows what the program draws, and every preset."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from common.config.augmentation import PRESETS
from simulations.studies.augmented import SHOWN, draw_augmentations
from tests import ROOT

GALLERY = ROOT / "docs" / "gallery.md"


def test_every_preset_is_in_the_gallery() -> None:
    assert set(PRESETS) <= set(SHOWN)
    text = GALLERY.read_text(encoding="utf-8")
    assert all(f"(figures/augmentation-{name}.jpg)" in text for name in SHOWN)


def test_its_pictures_are_those_that_are_drawn(tmp_path: Path) -> None:
    """Up to what processors round otherwise."""
    for path in draw_augmentations(tmp_path):
        shown, drawn = (
            np.asarray(Image.open(io.BytesIO((folder / path.name).read_bytes())), np.float32)
            for folder in (ROOT / "docs" / "figures", tmp_path)
        )
        assert shown.shape == drawn.shape
        assert np.abs(shown - drawn).mean() < 3
