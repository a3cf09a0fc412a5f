"""The machine and the Python under an installation, for both sides' doctor: each check says what it found, or raises.

Of memory counts the least of what is free, what the container may still take (cgroups v1 and v2) and what this process
may (RLIMIT_AS); of the clock, that it does not lie before what was written already.
Source: cgroups(7), shm_overview(7), Python packaging's core metadata.
"""

import importlib.metadata
import importlib.util
import resource
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from common.console.doctor import Finding
from common.errors import ConfigError
from common.system.environment import PACKAGES
from common.text import counted, sized

DISTRIBUTION = "wardround"
OURS = ("client", "common", "server", "simulations")
LEAST_SHARED_BYTES = 32 << 20
CLOCK_SLACK_S = 120.0

_CGROUP = Path("/sys/fs/cgroup")
_NO_LIMIT_BYTES = 1 << 50  # cgroups v1 write a number beyond this for none


def memory(least: int) -> str:
    """Whether a process may still take so many bytes.

    Raises:
        ConfigError: it may not.
    """
    free, bound = min(_memory_bounds())
    said = f"{sized(free)} may still be taken ({bound}), {sized(least)} are needed"
    if free < least:
        raise ConfigError(f"{said}. Close other programs, or raise that bound.")
    return said


def total_memory() -> int:
    """Bytes that this machine has, or that its container may take."""
    most = int(psutil.virtual_memory().total)
    return min((most, *(limit for limit, _ in _container_limits())))


def shared_memory(folder: Path = Path("/dev/shm")) -> str:  # noqa: S108 - looked at
    """Whether there is room for what processes share.

    Raises:
        ConfigError: there is none, or too little; containers have 64 MB unless told otherwise.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no {folder}. Mount a tmpfs there; in a container use --shm-size.")
    free = shutil.disk_usage(folder).free
    if free < LEAST_SHARED_BYTES:
        raise ConfigError(
            f"{folder} has {sized(free)} free, at least {sized(LEAST_SHARED_BYTES)} are needed. Remove what "
            "ended programs left there, or make it larger; in a container with --shm-size."
        )
    return f"{sized(free)} free in {folder}"


def clock(written: float | None) -> str:
    """Whether this machine's clock is past what was written here before.

    Args:
        written: time of the last entry of the audit log, seconds since the epoch; None: there is none.

    Raises:
        ConfigError: it went back.
    """
    behind = 0.0 if written is None else written - time.time()
    if behind > CLOCK_SLACK_S:
        raise ConfigError(
            f"this computer's clock lies {counted(round(behind / 60), 'minute')} before the last entry of the audit "
            "log: it went back, or was ahead then. Set the clock, best by NTP."
        )
    return "not before what the audit log holds"


def versions(extras: Sequence[str]) -> Iterator[Finding]:
    """Whether what is installed fits what this version of ours was made for.

    Args:
        extras: of our distribution that this side needs.
    """
    try:
        wanted = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("versions", False, f"{DISTRIBUTION} is not installed: the sources run by themselves. Install it.")
        return
    wrong = []
    for text in wanted:
        one = Requirement(text)
        if one.marker is not None and not any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        with suppress(importlib.metadata.PackageNotFoundError):
            found = importlib.metadata.version(one.name)
            if not one.specifier.contains(found, prereleases=True):
                wrong.append(f"{one.name} {found} is installed, {one.specifier} is needed")
            continue
        if one.name != DISTRIBUTION:
            wrong.append(f"{one.name} is missing")
    remedy = ". Install Wardround again, in an environment of its own"
    yield Finding("versions", not wrong, "; ".join(wrong) + remedy if wrong else "as this version was made for")


def shadows() -> Iterator[Finding]:
    """Whether another distribution brings a package of the name of one of ours, which are common names."""
    owners = importlib.metadata.packages_distributions()
    wrong = []
    for name in OURS:
        foreign = sorted({owner.lower() for owner in owners.get(name, [])} - {DISTRIBUTION})
        if foreign:
            wrong.append(f"{', '.join(foreign)} also brings a package named {name!r}: uninstall it")
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin != str(PACKAGES / name / "__init__.py"):
            wrong.append(f"{name!r} is another package than ours, from elsewhere on Python's path")
    remedy = ". Install Wardround in an environment of its own, and start it elsewhere than beside such a folder"
    yield Finding("foreign packages", not wrong, "; ".join(wrong) + remedy if wrong else "none of the names of ours")


def graphics(device: str, *, sees: bool, devices: Path = Path("/dev")) -> str:
    """Whether a GPU that is there is used.

    Args:
        device: of site.toml: auto, cpu or cuda.
        sees: whether torch sees one.
        devices: where the driver's files are.

    Raises:
        ConfigError: there is one that torch does not see, or none where one is asked for.
    """
    there = any(devices.glob("nvidia[0-9]*"))
    if device == "cpu":
        return "not to be used, as site.toml says"
    if sees:
        return "CUDA"
    if device == "cuda":
        raise ConfigError(
            'site.toml says device = "cuda", and torch sees no GPU. Look at nvidia-smi, the driver and whether torch '
            'is a CUDA build; in a container hand the GPU in. Or set device = "auto".'
        )
    if there:
        raise ConfigError(
            "a GPU's driver is there, and torch does not see it: torch is a CPU build, or the driver is too old. "
            'Install the CUDA build, or set device = "cpu" in site.toml.'
        )
    return "none: training runs on the processor"


def _memory_bounds() -> Iterator[tuple[int, str]]:
    yield psutil.virtual_memory().available, "what this machine has free"
    yield from ((most - used, "the container's limit") for most, used in _container_limits())
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        yield soft - psutil.Process().memory_info().vms, "this account's ulimit -v"


def _container_limits() -> Iterator[tuple[int, int]]:
    """Bytes that may be taken, and that are."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # none, or the word max
            most = int((_CGROUP / limit).read_text(encoding="ascii"))
            if most < _NO_LIMIT_BYTES:
                yield most, int((_CGROUP / used).read_text(encoding="ascii"))


__all__ = ["clock", "graphics", "memory", "shadows", "shared_memory", "total_memory", "versions"]
