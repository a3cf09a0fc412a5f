"""A finished model in all its forms, in one folder that comes into being whole.

    model.safetensors   the weights, and
    model.json          what is said of them, as the run left both
    bundle/             a MONAI bundle (simulations/exchange/bundle.py)
    model.onnx          the network as ONNX (simulations/exchange/onnx_file.py)
    forms.json          each form: how far it differs from ours, or why it is left out and the command that makes it;
                        and each file with its SHA-256

A form that says something else than the model is none: it is left out, with the difference. Files are read-only, which
keeps mistakes out; a change shows by the hashes.
"""

import json
import shlex
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from common.config import RunConfig, from_canonical
from common.errors import ConfigError
from common.learning.checkpoint import MANIFEST_NAME, WEIGHTS_NAME, Manifest, unpack
from common.learning.checkpoint import load_model as read_model
from common.learning.network import load_model
from common.system.files import move, write_atomically
from simulations.exchange.bundle import Exported, bundle_of, export_bundle
from simulations.exchange.onnx_file import OnnxExported, export_onnx, onnx_of

NAME, BUNDLE, ONNX = "forms.json", "bundle", "model.onnx"
FORMAT = 1


@dataclass(frozen=True)
class Forms:
    """What was written. forms: as forms.json has it, by name."""

    path: Path
    forms: Mapping[str, Mapping[str, Any]]

    @property
    def left_out(self) -> dict[str, Mapping[str, Any]]:
        """The forms that are not there: `left-out` says why, `command` makes it."""
        return {name: form for name, form in self.forms.items() if "left-out" in form}


def export_forms(model: Path, out: Path) -> Forms:
    """Write a model in all the forms that it can be had in here.

    Args:
        model: folder of a run, or of a model that was exported.
        out: a folder that is not there.

    Raises:
        ConfigError: there is no such model, or `out` is there.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already. Give a new folder with --all.")
    _, _, manifest = read_model(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".forms-") as folder:
        fresh = Path(folder) / "forms"
        for name in (WEIGHTS_NAME, MANIFEST_NAME):
            write_atomically(fresh / name, (model / name).read_bytes())
        forms = {
            "safetensors": {"path": WEIGHTS_NAME, "largest-difference": 0.0},
            "monai-bundle": _made(
                lambda: _as_bundle(export_bundle(model, fresh / BUNDLE)), f"{shlex.quote(str(model))} --bundle {BUNDLE}"
            ),
            "onnx": _made(
                lambda: _as_onnx(export_onnx(model, fresh / ONNX)), f"{shlex.quote(str(model))} --onnx {ONNX}"
            ),
        }
        told = {
            "wardround-forms": FORMAT,
            "run-hash": manifest.run_hash,
            "model-sha256": manifest.sha256,
            "forms": forms,
            "files": {name: _listed(fresh / name) for name in _files(fresh)},
        }
        write_atomically(fresh / NAME, f"{json.dumps(told, indent=2, allow_nan=False)}\n".encode())
        for name in _files(fresh):
            (fresh / name).chmod(0o444)
        move(fresh, out)
    return Forms(out, forms)


def forms_of(weights: bytes, manifest: Manifest) -> tuple[dict[str, dict[str, Any]], dict[str, bytes]]:
    """Bundle and ONNX of a model, without its weights ever lying on the disk.

    Args:
        weights: as packed.
        manifest: of these weights.

    Returns:
        The forms as forms.json has them, but for the command; and their files, by path.

    Raises:
        ConfigError, UpdateError: these are no weights of the manifest's run.
    """
    if sha256(weights).hexdigest() != manifest.sha256:
        raise ConfigError("the weights are not those that their manifest names.")
    run = from_canonical(RunConfig, manifest.run)
    network = load_model(run, unpack(weights)).eval()
    files: dict[str, bytes] = {}

    def bundle() -> dict[str, Any]:
        done, parts = bundle_of(run, network, manifest)
        files.update((f"{BUNDLE}/{name}", data) for name, data in parts.items())
        return _as_bundle(done)

    def onnx() -> dict[str, Any]:
        files[ONNX], done = onnx_of(run, network, manifest)
        return _as_onnx(done)

    return {"monai-bundle": _made(bundle), "onnx": _made(onnx)}, files


def _made(make: Callable[[], dict[str, Any]], arguments: str | None = None) -> dict[str, Any]:
    try:
        return make()
    except ConfigError as error:  # a library that is not here, a network that has no such form, or a difference
        how = {} if arguments is None else {"command": f"wardround-sim export {arguments}"}
        return {"left-out": str(error), **how}


def _as_bundle(done: Exported) -> dict[str, Any]:
    apart = {"outputs": done.agreement.outputs, "prepared": done.agreement.prepared, "labels": done.agreement.labels}
    return {"path": BUNDLE, "largest-difference": apart, "differences": list(done.differences)}


def _as_onnx(done: OnnxExported) -> dict[str, Any]:
    return {"path": ONNX, "largest-difference": {"outputs": done.outputs}, "fixed-edges": done.fixed}


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _listed(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"sha256": sha256(data).hexdigest(), "bytes": len(data)}


__all__ = ["Forms", "export_forms", "forms_of"]
