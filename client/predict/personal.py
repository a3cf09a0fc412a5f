"""A site's own model of a run in place of the one that all share: see `common.strategies.personal`.

What the site keeps takes the place of the shared model's tensors of the same names: all of them, or its normalisations.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from common.errors import ConfigError
from common.learning.checkpoint import load_model, pack, save_model, sha256, unpack

# The hash of a run -> what the site keeps of it (client.home.kept.personal).
Personal: TypeAlias = Callable[[str], bytes]


def overlaid(shared: Mapping[str, Tensor], kept: bytes) -> dict[str, Tensor]:
    """The tensors of the shared model, the site's own in their place.

    Raises:
        ConfigError: the site's are none of the shared model's.
    """
    own = {name.partition("/")[2]: one for name, one in unpack(kept).items()}
    if any(name not in shared or shared[name].shape != one.shape for name, one in own.items()):
        raise ConfigError(
            "the personal model does not fit the model that was given. Give the model of the run that made it."
        )
    return {**shared, **own}


def export(model: Path, personal: Personal, site: str, out: Path) -> None:
    """Write a site's own model as a model of its own, for the eyes of its owner only.

    It carries no guarantee and no score: those of the run are of the shared model.

    Args:
        model: of the run, or its folder.
        personal: what the site keeps.
        site: its name.
        out: folder; model.safetensors and model.json.

    Raises:
        ConfigError: the model cannot be loaded, the site keeps none of its run, or `out` holds a model.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError("--out holds files already. Give another folder.")
    _, state, manifest = load_model(model)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    out.chmod(0o700)
    weights = pack(overlaid(state, personal(manifest.run_hash)))
    about = dataclasses.replace(manifest, sha256=sha256(weights), sites=(site,), guarantee=None, scores={})
    save_model(out, weights, about)


__all__ = ["Personal", "export", "overlaid"]
