"""Weights as bytes, and a model on disk: model.safetensors with model.json beside it.

Convention: weights travel and rest as safetensors (https://github.com/huggingface/safetensors), never as pickle,
so that reading a file from elsewhere runs no code. The same weights always give the same bytes, hence the same
SHA-256, which names a model in results, receipts and logs. The manifest says which run made it, and vouches for
the weights by that hash. A coordinator keeps both sealed (common/crypto/stream.py), as NAME.sealed.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from common.config import RunConfig, from_canonical
from common.crypto.stream import SUFFIX, Sealer
from common.errors import ConfigError, UpdateError
from common.learning.tensor_bytes import bytes_of
from common.system.files import write_atomically, write_private

FORMAT = 1
WEIGHTS_NAME = "model.safetensors"
MANIFEST_NAME = "model.json"


@dataclass(frozen=True)
class Manifest:
    """What a model file is: the run that made it, who took part, how good it is, what it guarantees."""

    run: str  # canonical JSON of the RunConfig
    run_hash: str
    round: int
    sites: tuple[str, ...]
    sha256: str  # of model.safetensors, hex
    guarantee: dict[str, Any] | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT


def pack(state: Mapping[str, Tensor]) -> bytes:
    """Serialise named tensors to safetensors; equal tensors give equal bytes, whatever their order or strides."""
    return bytes_of(state)


def unpack(data: bytes | memoryview) -> dict[str, Tensor]:
    """Read safetensors bytes into named CPU tensors, sorted by name.

    Raises:
        UpdateError: the bytes are not safetensors.
    """
    try:
        state = safetensors.torch.load(bytes(data))
    # A well-formed header may still name a dtype torch does not have (KeyError) or a shape it refuses (RuntimeError).
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise UpdateError("the weights are not safetensors bytes. Send the model as packed by this version.") from error
    return {name: state[name] for name in sorted(state)}


def sha256(data: bytes | memoryview) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def save_model(
    folder: Path,
    weights: bytes | memoryview,
    manifest: Manifest,
    sealer: Sealer | None = None,
    *,
    durable: bool = True,
) -> None:
    """Write weights and manifest into `folder`.

    Each file is atomic, the pair is not: a crash between them leaves a pair that `load_model` refuses. Where the old
    model must survive that, write every round to a folder of its own.

    Args:
        folder: made where it is not there.
        weights: as packed.
        manifest: of these weights.
        sealer: seals both; None: plain files.
        durable: False: whoever gives the folder its place flushes it (`common.system.files.move`).

    Raises:
        ConfigError: the manifest vouches for other weights.
    """
    if sha256(weights) != manifest.sha256:
        raise ConfigError("the manifest's sha256 is not that of the weights. Make the manifest from these weights.")
    text = json.dumps(dataclasses.asdict(manifest), sort_keys=True, indent=2, allow_nan=False)
    for name, data in ((WEIGHTS_NAME, bytes(weights)), (MANIFEST_NAME, f"{text}\n".encode())):
        if sealer is None:
            write_atomically(folder / name, data, durable=durable)
        else:
            write_private(folder / f"{name}{SUFFIX}", sealer.seal(data, name), durable=durable)


def load_model(path: Path, sealer: Sealer | None = None) -> tuple[RunConfig, dict[str, Tensor], Manifest]:
    """Read a model from its folder, or from the path of its .safetensors file.

    Args:
        path: the folder, or the file.
        sealer: opens what it has sealed, and takes nothing else; None: plain files.

    Raises:
        ConfigError: a file is missing or damaged, does not open, or the two do not belong together.
    """
    if not path.exists() and not path.with_name(f"{path.name}{SUFFIX}").exists():
        raise ConfigError(f"there is no {path}. Give the folder of a run, or its {WEIGHTS_NAME}.")
    weights_path = path / WEIGHTS_NAME if path.is_dir() else path
    manifest = _read_manifest(weights_path.with_suffix(".json"), sealer)
    data = _read(weights_path, sealer)
    if sha256(data) != manifest.sha256:
        raise ConfigError(
            f"{weights_path} has another SHA-256 than its manifest states: it is damaged or belongs to another model. "
            "Copy both files again from the run."
        )
    run = from_canonical(RunConfig, manifest.run)
    try:
        return run, unpack(data), manifest
    except UpdateError as error:
        raise ConfigError(f"{weights_path}: {error}") from error


def _read_manifest(path: Path, sealer: Sealer | None) -> Manifest:
    try:
        values = json.loads(_read(path, sealer))
        manifest = Manifest(**{**values, "sites": tuple(values["sites"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} is not a model manifest. Copy it again from the run that made the model.") from error
    if manifest.format != FORMAT:
        raise ConfigError(
            f"{path} has format {manifest.format}, this version reads format {FORMAT}. Use the version that wrote it."
        )
    return manifest


def _read(path: Path, sealer: Sealer | None) -> bytes:
    sealed = path.with_name(f"{path.name}{SUFFIX}")
    try:
        if sealer is not None:
            return sealer.open(sealed.read_bytes(), path.name)
        return path.read_bytes()
    except OSError as error:
        if sealer is None and sealed.exists():
            raise ConfigError(
                f"{sealed} is sealed and opens at its coordinator alone. Run `wardround-server export` there."
            ) from error
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}). Give the folder of a run, or its {WEIGHTS_NAME} "
            f"with {MANIFEST_NAME} beside it."
        ) from error


__all__ = ["Manifest", "load_model", "pack", "save_model", "sha256", "unpack"]
