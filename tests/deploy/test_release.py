"""The wheel: what is in it, that two people build the same bytes, and what is published beside it."""

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from deploy.supply.release import BESIDE, SUMS, build, sums
from server.evidence import sbom
from tests import ROOT
from tests.rooms import PACKAGES

EPOCH = 1_700_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this checkout."""
    return build(ROOT, tmp_path_factory.mktemp("wheel"), EPOCH)


def test_wheel_holds_the_four_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_wheel_of_another_folder_user_and_time_has_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    """Elsewhere, with other times and under another umask, as somebody who checks a release would build it."""
    source, before = tmp_path / "elsewhere", os.umask(0o077)
    try:
        for name in PACKAGES:
            copied = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=copied, copy_function=shutil.copyfile)
        for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
            shutil.copyfile(ROOT / name, source / name)
        again = build(source, tmp_path / "built", EPOCH)
    finally:
        os.umask(before)
    assert again.name == wheel.name
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(wheel.read_bytes()).digest()


def test_what_is_published_beside_it_is_there_and_listed_by_its_hash(tmp_path: Path) -> None:
    for name in BESIDE:
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / SUMS).write_text(sums(tmp_path))
    lines = {name: digest for digest, name in map(str.split, (tmp_path / SUMS).read_text().splitlines())}
    assert lines == {Path(name).name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in BESIDE}


def test_components_of_a_release_are_those_that_are_shipped() -> None:
    listed = sbom.components({"numpy", "not-installed"})
    assert listed is not None
    told = json.loads(listed)
    assert told["metadata"]["component"]["name"] == "wardround"
    assert [one["name"] for one in told["components"]] == ["numpy"]
