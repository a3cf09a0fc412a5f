"""Which simulators of others can be measured, what each has to be installed with, and what keeps it from calling home.

One whose dependencies clash with ours has an environment of its own, in whose Python its module is started: it finds
our four packages by links, and nothing else of ours. What both sides compute with (torch and MONAI) has to be of the
same version there.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError
from common.system.environment import PACKAGES, flower_variables, for_child
from simulations.backends.ray_cluster import NO_WAY_OUT
from simulations.bench.training import Child

_OURS = ("client", "common", "server", "simulations")
_TRAINS = "'torch==2.13.0' monai safetensors pydantic"


@dataclass(frozen=True)
class Peer:
    """A simulator. way: as it stands in the figures. imports: what must be there. option: of its Python, if any."""

    way: str
    module: str
    imports: tuple[str, ...]
    install: str
    variables: Callable[[Path], Mapping[str, str]]
    option: str = ""

    def child(self, python: Path, folder: Path) -> Child:
        """How its process is started; folder: of the bench."""
        links = folder / "packages"
        for name in _OURS:
            (links / name).parent.mkdir(exist_ok=True)
            if not (links / name).exists():
                (links / name).symlink_to(PACKAGES / name, target_is_directory=True)
        # Imported, and not run as a program: what it sends to other processes must have a name there.
        code = f"import pathlib, sys; from {self.module} import main; main(sys.argv[1], pathlib.Path(sys.argv[2]))"
        command = (str(python), "-P", "-c", code, self.way, str(folder))
        return Child(command, {"PYTHONPATH": str(links), **NO_WAY_OUT, **self.variables(folder)})

    def missing(self, python: Path) -> str:
        """Why it cannot be started with this Python, and what to do; empty where it can."""
        code = f"import sys, importlib.util as u; sys.exit(any(u.find_spec(one) is None for one in {self.imports!r}))"
        try:
            found = subprocess.run([python, "-P", "-c", code], env=for_child(), check=False)  # noqa: S603 - theirs
        except OSError as error:
            return f"{self.way} is not measured: {python} cannot be started ({error.strerror}). {self._advice}"
        return "" if found.returncode == 0 else f"{self.way} is not measured: {python} does not have it. {self._advice}"

    @property
    def _advice(self) -> str:
        own = f" in an environment of its own, and give its Python with {self.option}" if self.option else ""
        return f"Install it{own}: {self.install}"


def _of_flower(folder: Path) -> Mapping[str, str]:
    # As in `simulations.backends.ray_cluster`: Ray on loopback alone, and no reports.
    ray = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    return {**flower_variables(folder / "flower"), **ray, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


FLOWER = Peer(
    "Flower, Ray",
    "simulations.bench.peers.flower",
    ("flwr", "ray"),
    "pip install 'wardround[ray]'",
    _of_flower,
)
NVFLARE = Peer(
    "NVFlare",
    "simulations.bench.peers.nvflare",
    ("nvflare", "torch", "monai", "safetensors", "pydantic"),
    f"pip install nvflare {_TRAINS}",
    lambda _folder: {},
    "--nvflare",
)
PFL = Peer(
    "pfl-research",
    "simulations.bench.peers.pfl",
    ("pfl", "torch", "monai", "safetensors", "pydantic"),
    f"pip install pfl {_TRAINS}",
    lambda _folder: {"GLOO_SOCKET_IFNAME": "lo"},
    "--pfl",
)
PEERS = (FLOWER, NVFLARE, PFL)


def children_of(folder: Path, pythons: Mapping[str, Path], say: Callable[[str], None]) -> dict[str, Child]:
    """Those that can be measured here.

    Args:
        folder: of the bench.
        pythons: by the way of a peer, where it is not our own.
        say: told of each that cannot be, and why.

    Raises:
        ConfigError: a Python was named, and does not have its peer.
    """
    found = {}
    for peer in PEERS:
        python = pythons.get(peer.way, Path(sys.executable))
        if problem := peer.missing(python):
            if peer.way in pythons:
                raise ConfigError(problem)
            say(problem)
        else:
            found[peer.way] = peer.child(python, folder)
    return found


__all__ = ["FLOWER", "NVFLARE", "PEERS", "PFL", "Peer", "children_of"]
