"""The Flower App Bundle of a run: pyproject.toml and run.toml in an archive, no code, always the same bytes.

pyproject.toml carries the run's canonical text, which is what Flower hands to the apps; run.toml is what a person
wrote, comments included. A bundle is data: nothing of it is ever unpacked to disk.
"""

import hashlib
import io
import json
import tomllib
import zipfile

from common.errors import ConfigError

MAX_BUNDLE_BYTES = 64 * 1024

_PROJECT = "pyproject.toml"
_RUN = "run.toml"
_MANIFEST = ".info/CONTENT"


def build_bundle(name: str, text: str, run_toml: str) -> bytes:
    """Make the bundle.

    Args:
        name: the run's.
        text: its canonical text; ASCII.
        run_toml: as written.

    Raises:
        ConfigError: it would exceed 64 KiB.
    """
    files = {_PROJECT: _project(name, text).encode(), _RUN: run_toml.encode()}
    files[_MANIFEST] = "\n".join(
        f"{member},{hashlib.sha256(data).hexdigest()},{len(data) * 8}" for member, data in files.items()
    ).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for member, data in files.items():
            entry = zipfile.ZipInfo(member, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # the same bytes on every operating system
            archive.writestr(entry, data)
    if buffer.tell() > MAX_BUNDLE_BYTES:
        raise ConfigError(f"the bundle has {buffer.tell()} bytes, at most {MAX_BUNDLE_BYTES} fit. Shorten run.toml.")
    return buffer.getvalue()


def read_bundle(data: bytes) -> tuple[str, str, str]:
    """The run's name, its canonical text and its run.toml, as they stand there.

    A bundle is accepted only if building it anew from these gives the same bytes: so there is no other member, no code,
    no compression and no second table of contents. What the two documents say is not looked at.

    Raises:
        ConfigError: not such a bundle.
    """
    if len(data) > MAX_BUNDLE_BYTES:
        raise ConfigError(f"the bundle has {len(data)} bytes, at most {MAX_BUNDLE_BYTES} are allowed")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            project, run_toml = (_member(archive, name) for name in (_PROJECT, _RUN))
        values = tomllib.loads(project)
        name, text = values["project"]["name"], values["tool"]["flwr"]["app"]["config"]["run"]
    except Exception as error:  # zipfile raises BadZipFile, KeyError, zlib.error, NotImplementedError, ...
        raise ConfigError("the bundle cannot be read: it must be a Flower App Bundle with a run.toml") from error
    if not (isinstance(name, str) and isinstance(text, str) and text.isascii()):
        raise ConfigError("the bundle's pyproject.toml does not carry a run. Build it with `wardround-server run`.")
    if build_bundle(name, text, run_toml) != data:
        raise ConfigError("the bundle holds more than a run, or was not built by Wardround. Treat it as hostile.")
    return name, text, run_toml


def _member(archive: zipfile.ZipFile, name: str) -> str:
    with archive.open(name) as file:
        return file.read(MAX_BUNDLE_BYTES + 1).decode()


def _project(name: str, text: str) -> str:
    # A JSON string is a TOML string as long as it is ASCII, which the canonical form of a run is.
    return f"""[project]
name = {json.dumps(name)}
version = "1.0.0"

[tool.flwr.app]
publisher = "wardround"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
run = {json.dumps(text)}
"""


__all__ = ["MAX_BUNDLE_BYTES", "build_bundle", "read_bundle"]
