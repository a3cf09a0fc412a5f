"""Run a bundle without Wardround: a program of its own, in which none of our packages can be imported.

    python -I -B outside.py BUNDLE IMAGE ...      what the bundle makes of each image, into IMAGE.safetensors

What comes by standard input stands for the bundle's models/model.pt, which then need not be there.
That file has `image`, as prepared (C, *sp), `outputs` of the network (K, *sp) and `labels` on the image's own grid
(C, *sp). The program ends with an error where MONAI cannot do what the bundle says, and with its parent.
"""

import ctypes
import importlib.abc
import importlib.machinery
import io
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_PR_SET_PDEATHSIG = 1

OURS = ("client", "common", "server", "simulations")


class _Absent(importlib.abc.MetaPathFinder):
    """As if we were not installed."""

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] in OURS:
            raise ModuleNotFoundError(f"{fullname} is not there: a bundle stands by itself")
        return None


def main(bundle: str, *images: str) -> None:
    """See the module."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    given = sys.stdin.buffer.read()
    sys.meta_path.insert(0, _Absent())
    sys.path.insert(0, bundle)
    import safetensors.torch  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from monai.bundle.config_parser import ConfigParser  # noqa: PLC0415

    parser = ConfigParser()
    parser.read_config(Path(bundle) / "configs" / "inference.json")
    parser["bundle_root"] = bundle
    parser["output_dir"] = str(Path(images[0]).parent / "saved")
    parser["datalist"] = [{"image": image} for image in images]
    parser["device"] = "cpu"
    if given:
        parser["checkpoint"] = io.BytesIO(given)
    parser.parse()
    (items,) = parser.get_parsed_content("run")
    for image, item in zip(images, items, strict=True):
        prepared = parser.get_parsed_content("preprocessing")({"image": image})["image"]
        outputs = parser.get_parsed_content("predict")(prepared[None])[0]
        found = {"image": prepared, "outputs": outputs, "labels": item["pred"]}
        kept = {name: torch.as_tensor(tensor).detach().clone().contiguous() for name, tensor in found.items()}
        Path(f"{image}.safetensors").write_bytes(safetensors.torch.save(kept))
    if any(name.partition(".")[0] in OURS for name in sys.modules):
        raise SystemExit("a package of Wardround was imported")


if __name__ == "__main__":
    main(*sys.argv[1:])
