"""A wheelhouse is installed from as it was made, or not at all."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.installation.manifest import ABOUT, MANIFEST, check_wheelhouse, sha256, write_manifest
from deploy.installation.places import InstallError
from tests.deploy.tiny import write_wheelhouse

WHEEL = "wheels/tiny-2.0-py3-none-any.whl"


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Path:
    return write_wheelhouse(tmp_path / "wheelhouse")


def test_a_whole_one_tells_its_version(wheelhouse: Path) -> None:
    assert check_wheelhouse(wheelhouse) == "1.0.0"
    assert check_wheelhouse(wheelhouse, sha256(wheelhouse / MANIFEST).upper()) == "1.0.0"


def test_sha256sum_reads_the_manifest_too(wheelhouse: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", MANIFEST], cwd=wheelhouse, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _link(path: Path) -> None:
    other = path.with_name("elsewhere")
    shutil.move(path, other.parent.parent.parent / "elsewhere")
    path.symlink_to(other.parent.parent.parent / "elsewhere")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: _flip(folder / WHEEL), f"changed: {WHEEL}"),
        (lambda folder: _flip(folder / "install.py"), "changed: install.py"),
        (lambda folder: (folder / WHEEL).unlink(), f"missing: {WHEEL}"),
        (lambda folder: (folder / "wheels/more.whl").write_bytes(b""), "not listed: wheels/more.whl"),
        (lambda folder: (folder / "deploy/more.py").symlink_to("/etc/passwd"), "not listed: deploy/more.py"),
        (lambda folder: _link(folder / WHEEL), f"changed: {WHEEL}"),
        (lambda folder: (folder / MANIFEST).unlink(), "is no wheelhouse"),
        (lambda folder: _add(folder, f"{'0' * 64}  ../outside"), "is damaged"),
        (lambda folder: _add(folder, f"{'0' * 64}  /etc/passwd"), "is damaged"),
        (lambda folder: _add(folder, f"{'0' * 64}  {WHEEL}"), "is damaged"),
        (lambda folder: _add(folder, "words"), "is damaged"),
    ],
)
def test_one_that_is_not_as_it_was_made_is_refused_and_says_which_file(
    wheelhouse: Path, harm: Callable[[Path], object], said: str
) -> None:
    harm(wheelhouse)
    with pytest.raises(InstallError, match=said):
        check_wheelhouse(wheelhouse)


def test_one_of_another_manifest_than_was_told_is_refused(wheelhouse: Path) -> None:
    told = sha256(wheelhouse / MANIFEST)
    _flip(wheelhouse / WHEEL)
    write_manifest(wheelhouse)
    assert check_wheelhouse(wheelhouse) == "1.0.0"
    with pytest.raises(InstallError, match="not the one given"):
        check_wheelhouse(wheelhouse, told)


def test_one_for_another_python_is_refused(wheelhouse: Path) -> None:
    about = (wheelhouse / ABOUT).read_text()
    (wheelhouse / ABOUT).write_text(about.replace('"python": "3.', '"python": "2.'))
    write_manifest(wheelhouse)
    with pytest.raises(InstallError, match=r"is for Python 2\."):
        check_wheelhouse(wheelhouse)


def _add(folder: Path, line: str) -> None:
    with (folder / MANIFEST).open("a", encoding="utf-8") as file:
        file.write(line + os.linesep)
