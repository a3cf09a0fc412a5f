"""A wheelhouse as deploy/wheelhouse.py finishes it, of wheels that are made in a moment."""

import sys
import zipfile
from pathlib import Path

import pytest

from deploy import wheelhouse
from deploy.installation import steps
from deploy.installation.manifest import WHEELS

_PROGRAM = """
import sys
def main():
    print("wardround {version}")
"""


def write_wheelhouse(folder: Path, version: str = "1.0.0") -> Path:
    """Our distribution, with both programs, and one that it needs."""
    (folder / WHEELS).mkdir(parents=True)
    entry = "[console_scripts]\nwardround-client = wardround_stub:main\nwardround-server = wardround_stub:main\n"
    code = _PROGRAM.format(version=version)
    write_wheel(folder, "wardround", version, needs="Requires-Dist: tiny==2.0\n", code=code, entry_points=entry)
    write_wheel(folder, "tiny", "2.0")
    wheelhouse.finish(folder)
    return folder


def write_wheel(
    folder: Path, name: str, version: str, *, needs: str = "", code: str = "", entry_points: str = ""
) -> Path:
    """The smallest one that pip takes."""
    path, about = folder / WHEELS / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    members = {
        f"{name}_stub.py": code,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": entry_points,
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in members.items():
            archive.writestr(member, text)
        archive.writestr(f"{about}/RECORD", "".join(f"{member},,\n" for member in [*members, f"{about}/RECORD"]))
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments are made by hand: to make a real one takes seconds."""

    def install_wheels(folder: Path, source: Path) -> None:
        (wheel,) = (source / WHEELS).glob("wardround-*.whl")
        (folder / "bin").mkdir(parents=True)
        (folder / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).parent}\n", encoding="utf-8")
        for program in ("wardround-client", "wardround-server"):
            (folder / "bin" / program).write_text(f"#!/bin/sh\necho {wheel.name}\n", encoding="utf-8")
            (folder / "bin" / program).chmod(0o755)

    monkeypatch.setattr(steps, "install_wheels", install_wheels)
