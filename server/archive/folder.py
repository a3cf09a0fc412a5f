"""A folder that is written once, whole, and never changes: its manifest names each file by its SHA-256, and is signed.

    manifest.json       {"wardround-archive": 1, ...about..., "files": {path: {"sha256", "bytes"}}}
    manifest.sig        Ed25519 over "wardround archive 1\n" and the manifest's bytes, hex: by the key of the audit log

The folder appears under its name with all its files or not at all, and none takes another's place. Files are read-only
(0400) and so are folders (0500), which keeps mistakes out; what shows a change by somebody who may change modes is the
signature. Nothing is read from such a folder before all of it was checked.
"""

import json
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.errors import ConfigError
from common.system.files import move, write_private

MANIFEST_NAME, SIGNATURE_NAME = "manifest.json", "manifest.sig"
FORMAT = 1

_PREFIX = b"wardround archive 1\n"
_FILE, _FOLDER = 0o400, 0o500


@dataclass(frozen=True)
class Kept:
    """A folder that was checked."""

    path: Path
    manifest: Mapping[str, Any]

    def read(self, name: str) -> bytes:
        """One of its files, by the name in the manifest.

        Raises:
            ConfigError: there is none of that name, or it has changed since it was checked.
        """
        if name not in self.manifest["files"]:
            raise ConfigError(f"{self.path.name} has no file {name}. See its {MANIFEST_NAME}.")
        data = (self.path / name).read_bytes()
        if sha256(data).hexdigest() != self.manifest["files"][name]["sha256"]:
            raise _changed(self.path, f"{name} is not as it was written")
        return data


def write(place: Path, files: Mapping[str, bytes], about: Mapping[str, Any], key: Ed25519PrivateKey) -> bool:
    """Write a folder, unless it is there.

    Args:
        place: where it goes.
        files: path within it -> content.
        about: what the manifest says beside the files.
        key: signs the manifest.

    Returns:
        Whether it was written; False: there is one, which stays as it is.
    """
    if place.exists():
        return False
    listed = {name: {"sha256": sha256(data).hexdigest(), "bytes": len(data)} for name, data in sorted(files.items())}
    text = json.dumps({"wardround-archive": FORMAT, **about, "files": listed}, indent=2, allow_nan=False)
    manifest = f"{text}\n".encode()
    signature = key.sign(_PREFIX + manifest).hex().encode()
    fresh = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
    try:
        for name, data in {**files, MANIFEST_NAME: manifest, SIGNATURE_NAME: signature}.items():
            write_private(fresh / name, data)
        _protect(fresh)
        move(fresh, place)
    except OSError:
        if not place.exists():  # else another process was first
            raise
        return False
    finally:
        remove(fresh)
    return True


def read(place: Path, key: Ed25519PublicKey) -> Kept:
    """Check a folder: the signature, and each file.

    Args:
        place: of the folder.
        key: that the manifest must be signed with.

    Raises:
        ConfigError: it is not there, or not as it was written.
    """
    try:
        manifest, signature = (place / MANIFEST_NAME).read_bytes(), (place / SIGNATURE_NAME).read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{place} is not the folder of a finished run: it has no signed manifest.") from error
    try:
        key.verify(bytes.fromhex(signature.decode("ascii")), _PREFIX + manifest)
    except (InvalidSignature, ValueError) as error:
        raise _changed(place, "its manifest is not signed by this coordinator") from error
    told = json.loads(manifest)
    there = {str(path.relative_to(place)) for path in place.rglob("*") if not path.is_dir() or path.is_symlink()}
    if surplus := sorted(there - {*told["files"], MANIFEST_NAME, SIGNATURE_NAME}):
        raise _changed(place, f"{len(surplus)} files were added")
    for name, expected in told["files"].items():
        path = place / name
        if path.is_symlink() or not path.is_file():
            raise _changed(place, f"{name} is missing")
        if _digest(path) != expected["sha256"]:
            raise _changed(place, f"{name} is not as it was written")
    return Kept(place, told)


def remove(folder: Path) -> None:
    """Take away a folder that was not finished."""
    if folder.exists():
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                path.chmod(0o700)
        shutil.rmtree(folder)


def _protect(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.chmod(_FOLDER if path.is_dir() else _FILE)
    folder.chmod(_FOLDER)


def _digest(path: Path) -> str:
    found = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _changed(place: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{place.name} among the finished runs was changed: {what}. It is not used. Restore it from a backup, and find "
        "out who changed it; the audit log names the model that the run made."
    )


__all__ = ["MANIFEST_NAME", "Kept", "read", "remove", "write"]
