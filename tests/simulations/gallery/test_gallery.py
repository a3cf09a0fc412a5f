"""The gallery in the docs is what the command draws, and shows every preparation step."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from common.preparation import STEP_CHOICE
from simulations.commands.main import app
from simulations.gallery.page import BY_HAND, Entry, write_gallery
from tests import ROOT

MOST_BYTES = 600_000


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a gallery made anew; its page lies beside."""
    folder = tmp_path_factory.mktemp("docs") / "gallery"
    done = CliRunner().invoke(app, ["gallery", "--out", str(folder)])
    assert done.exit_code == 0, done.output
    return folder


def test_the_page_in_the_docs_is_the_one_that_is_made(drawn: Path) -> None:
    kept = (ROOT / "docs" / "gallery.md").read_text()
    assert kept.partition(f"\n{BY_HAND}\n")[0] == drawn.with_name("gallery.md").read_text()


def test_the_pictures_in_the_docs_are_those_that_are_drawn(drawn: Path) -> None:
    """As far as another version of a library may draw a grey otherwise."""
    kept = {path.name: path for path in (ROOT / "docs" / "gallery").iterdir()}
    assert kept.keys() == {path.name for path in drawn.iterdir()}
    for name, path in kept.items():
        now, then = (np.asarray(Image.open(one).convert("RGB"), np.int16) for one in (drawn / name, path))
        assert now.shape == then.shape, name
        assert np.abs(now - then).mean() < 4, name
    assert sum(path.stat().st_size for path in kept.values()) < MOST_BYTES


@pytest.mark.parametrize("kind", STEP_CHOICE.by_name)
def test_every_step_is_shown_and_the_picture_shows_a_difference(drawn: Path, kind: str) -> None:
    assert f"\n### {kind}\n" in drawn.with_name("gallery.md").read_text()
    picture = np.asarray(Image.open(drawn / f"{kind}.png").convert("L"), np.float64)
    half = (picture.shape[1] - 6) // 2
    assert np.abs(picture[:, :half] - picture[:, -half:]).max() > 30


def test_a_section_can_be_added(tmp_path: Path) -> None:
    one = Entry("a-thing", "What it is.", "key = 1", Image.new("L", (9, 9)))
    tail = f"\n{BY_HAND}\n\n## By hand\n"
    (tmp_path / "gallery.md").write_text(f"# Before\n{tail}")
    page = write_gallery(tmp_path / "gallery", {"Things": lambda: [one]})
    assert page == tmp_path / "gallery.md"
    assert page.read_text().endswith(
        "## Things\n\n### a-thing\n\nWhat it is.\n\n```toml\nkey = 1\n```\n\n![a-thing](gallery/a-thing.png)\n" + tail
    )
    assert Image.open(tmp_path / "gallery" / "a-thing.png").size == (9, 9)
