"""MONAI without what it looks for and nothing here uses through it: trackers, plotters, converters, other libraries.

MONAI imports all of itself as it is imported, and with it every optional package that it finds installed. Where MLflow,
matplotlib and the like are, that took half of the start of a worker: 3.6 s of CPU in place of 1.8 s. While MONAI
imports itself these are not found, which it takes for not installed; whoever imports them elsewhere finds them.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_PACKAGE = "monai"
UNUSED = frozenset([
    "clearml", "cucim", "cupy", "huggingface_hub", "ignite", "matplotlib", "mlflow", "nni", "onnx", "onnxruntime",
    "optuna", "pandas", "scipy.signal", "skimage", "sklearn", "tensorboard", "tensorboardX", "torchaudio",
    "torchvision", "transformers",
])  # fmt: skip


class _Trimming(importlib.abc.MetaPathFinder):
    """Finds nothing, and says so of the unused packages while MONAI imports itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not UNUSED.isdisjoint((fullname, fullname.partition(".")[0])) and _is_importing():
            raise ModuleNotFoundError(f"{fullname} is not for MONAI", name=fullname)
        return None


def _is_importing() -> bool:
    module = sys.modules.get(_PACKAGE)
    return module is not None and getattr(module.__spec__, "_initializing", False)


def trim() -> None:
    """From now on; once is enough."""
    if not any(isinstance(one, _Trimming) for one in sys.meta_path):
        sys.meta_path.insert(0, _Trimming())


__all__ = ["UNUSED", "trim"]
