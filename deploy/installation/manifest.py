"""A wheelhouse: all that an installation needs in one folder, for machines without internet.

SHA256SUMS            of every other file, in the form of sha256sum(1); whoever knows its hash knows them all
about.json            version, and the Python and the machine that the wheels fit
requirements.txt      every wheel with its hash, for pip
wheels/               ours, and all that it needs
install.py, deploy/   what installs them; install.md says how
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import sysconfig
from pathlib import Path

from deploy.installation.places import InstallError

MANIFEST, ABOUT, PINS, WHEELS = "SHA256SUMS", "about.json", "requirements.txt", "wheels"

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def check_wheelhouse(folder: Path, expected: str | None = None) -> str:
    """Whether a wheelhouse is as its maker left it, and for this Python and machine; its version.

    Args:
        folder: of the wheelhouse.
        expected: SHA-256 of its manifest in hexadecimal; None: the manifest is believed.

    Raises:
        InstallError: a file is changed, missing or not in the manifest, or the wheels do not fit.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise InstallError(f"{folder} is no wheelhouse: it has no {MANIFEST}. Make one with `make wheelhouse`.")
    found = sha256(manifest)
    if expected is not None and found != expected.strip().lower():
        raise InstallError(f"{manifest} has SHA-256 {found}, which is not the one given. Copy the wheelhouse again.")
    listed = read_manifest(manifest)
    there = files(folder)
    wrong = {
        "changed": [name for name in sorted(listed.keys() & there) if _hash_of(folder / name) != listed[name]],
        "missing": sorted(listed.keys() - there),
        "not listed": sorted(there - listed.keys()),
    }
    if any(wrong.values()):
        said = "; ".join(f"{what}: {', '.join(names)}" for what, names in wrong.items() if names)
        raise InstallError(f"this wheelhouse is not as it was made ({said}). Copy it again, whole.")
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    ours = this_platform()
    if any(about[name] != value for name, value in ours.items()):
        raise InstallError(
            f"this wheelhouse is for Python {about['python']} on {about['machine']}, and this is Python "
            f"{ours['python']} on {ours['machine']}. Run it with python{about['python']}, or make one that fits."
        )
    return str(about["version"])


def read_manifest(path: Path) -> dict[str, str]:
    """File name, with its folders, to SHA-256 in hexadecimal.

    Raises:
        InstallError: it is not in the form of sha256sum, names a file twice, or one outside of its folder.
    """
    listed: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        match = _LINE.fullmatch(line)
        if match is None or Path(match[2]).is_absolute() or ".." in Path(match[2]).parts or match[2] in listed:
            raise InstallError(f"{path} is damaged: one of its lines is no hash and name. Copy the wheelhouse again.")
        listed[match[2]] = match[1]
    return listed


def write_manifest(folder: Path) -> str:
    """List every file of a folder; the SHA-256 of the list."""
    lines = [f"{sha256(folder / name)}  {name}\n" for name in sorted(files(folder))]
    (folder / MANIFEST).write_text("".join(lines), encoding="utf-8")
    return sha256(folder / MANIFEST)


def files(folder: Path) -> set[str]:
    """Names of what lies in a folder and its folders, links too, but for the manifest."""
    there = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {str(path.relative_to(folder)) for path in there} - {MANIFEST}


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def this_platform() -> dict[str, str]:
    """What wheels must fit: the Python, and the machine."""
    return {"python": f"{sys.version_info.major}.{sys.version_info.minor}", "machine": sysconfig.get_platform()}


def _hash_of(path: Path) -> str:
    """Of a file that is one; a link is none, whatever it leads to."""
    return sha256(path) if path.is_file() and not path.is_symlink() else ""
