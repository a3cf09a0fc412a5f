"""Fill the environment of an image, in the build: first what Wardround needs, then Wardround itself.

    python3 -m deploy.containers.install dependencies NAMES     NAMES: server.txt or client.txt
    python3 -m deploy.containers.install wardround SOURCE       SOURCE: the folder with pyproject.toml

Everything but torch comes by the hashes of requirements.lock. Where a wheelhouse is mounted at /wheelhouse (as `make
wheelhouse` makes it, or a mere folder of wheels) nothing comes from elsewhere; what its requirements.txt pins, torch
among it, is checked too. Standard library only: it runs before anything is installed.
"""

import argparse
import os
import re
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from deploy.containers.requirements import names_in, selected

HERE = Path(__file__).resolve().parent
BUILD, ENVIRONMENT = Path("/opt/build"), Path("/opt/wardround")
WHEELHOUSE = Path("/wheelhouse")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one of the two."""
    parser = argparse.ArgumentParser(prog="install.py", description="Fill the environment of an image.")
    parser.add_argument("what", choices=["dependencies", "wardround"])
    parser.add_argument("of", type=Path, help="the list of names; or the source's folder")
    parser.add_argument("--lock", type=Path, default=Path("requirements.lock"))
    parser.add_argument("--torch", default="", help="its requirement, such as torch==2.13.0")
    parser.add_argument("--torch-index", default="", help="where it comes from; the usual index without")
    parser.add_argument("--torch-sha256", default="", help="of its wheel, where no wheelhouse pins it")
    options = parser.parse_args(arguments)
    try:
        if options.what == "dependencies":
            dependencies(options)
        else:
            wardround(options.of, options.lock)
    except (KeyError, OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"install.py: {error}\n")
        return 1
    return 0


def dependencies(options: argparse.Namespace) -> None:
    """Make the environment, without pip, and fill it."""
    if not options.torch:
        raise KeyError("--torch names no requirement")
    venv.create(BUILD, with_pip=True)
    venv.create(ENVIRONMENT, with_pip=False, symlinks=True)
    lock = options.lock.read_text(encoding="utf-8")
    _install(ENVIRONMENT, selected(lock, names_in(HERE / options.of)), "--no-deps", "--require-hashes")
    if pinned := _pinned(lock):
        _install(ENVIRONMENT, pinned, "--no-deps", "--require-hashes")
    elif options.torch_sha256:
        text = f"{options.torch} --hash=sha256:{options.torch_sha256}\n"
        _install(ENVIRONMENT, text, "--no-deps", "--require-hashes", *_index(options.torch_index))
    else:
        _install(ENVIRONMENT, f"{options.torch}\n", *_index(options.torch_index))


def wardround(source: Path, lock: Path) -> None:
    """Install the wheel of the wheelhouse, or one made of the source."""
    pins = _pins()
    if entry := [one for one in pins if re.match(r"wardround==", one)]:
        _install(ENVIRONMENT, "".join(entry), "--no-deps", "--require-hashes")
    else:
        _install(BUILD, selected(lock.read_text(encoding="utf-8"), names_in(HERE / "build.txt")), "--require-hashes")
        out = Path("/tmp/wheel")  # noqa: S108 - of a build of its own
        _run(BUILD / "bin/python", "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", out, source)
        (wheel,) = out.glob("wardround-*.whl")
        _install(ENVIRONMENT, f"wardround @ file://{wheel}\n", "--no-deps")
    _run(BUILD / "bin/python", "-m", "pip", "--python", ENVIRONMENT / "bin/python", "check")


def _pins() -> list[str]:
    path = WHEELHOUSE / "requirements.txt"
    return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []


def _pinned(lock: str) -> str:
    """What the wheelhouse has beside the lock: torch, and the libraries that its build for GPUs asks for."""
    locked = {re.sub(r"[-_.]+", "-", name).lower() for name in re.findall(r"^([A-Za-z0-9._-]+)==", lock, re.MULTILINE)}
    return "".join(one for one in _pins() if one.partition("==")[0].lower() not in locked | {"wardround"})


def _index(url: str) -> list[str]:
    return ["--index-url", url] if url and not _offline() else []


def _offline() -> list[str]:
    if not WHEELHOUSE.is_dir() or not any(WHEELHOUSE.iterdir()):
        return []
    wheels = WHEELHOUSE / "wheels"
    return ["--no-index", "--find-links", str(wheels if wheels.is_dir() else WHEELHOUSE)]


def _install(environment: Path, text: str, *options: str) -> None:
    wanted = Path("/tmp/wanted.txt")  # noqa: S108 - of a build of its own
    wanted.write_text(text, encoding="utf-8")
    python = str(environment / "bin/python")
    pip = [str(BUILD / "bin/python"), "-m", "pip", "--python", python, "--disable-pip-version-check"]
    _run(*pip, "install", "--no-cache-dir", "--only-binary", ":all:", *_offline(), *options, "--requirement", wanted)


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, env=dict(os.environ))


if __name__ == "__main__":
    sys.exit(main())
