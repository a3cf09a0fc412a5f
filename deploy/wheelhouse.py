"""A wheelhouse: what deploy/installation installs from, on machines with internet and without.

    python -m deploy.wheelhouse --out dist/wheelhouse [--torch-index URL]

Made with the Python of `.venv`, which has all that requirements.lock names: which of it a site and a coordinator need
is read from what is installed. Everything but torch comes by the hashes of the lock. torch comes as in `make setup`,
outside the lock because its build depends on the machine, with the GPU libraries that this build asks for.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from email.parser import BytesParser
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from common.system.environment import for_child
from deploy.installation.manifest import ABOUT, MANIFEST, PINS, WHEELS, sha256, this_platform, write_manifest

ROOT = Path(__file__).resolve().parent.parent
NAME = "wardround"
# Of pyproject.toml: what hospitals and coordinators use. Simulations and checks are for other machines.
EXTRAS = ("client", "server", "explain", "exchange", "evidence", "prometheus", "pacs")
TORCH = "torch"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make one."""
    parser = argparse.ArgumentParser(prog="python -m deploy.wheelhouse", description="Make a wheelhouse.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist/wheelhouse", help="its folder (default: %(default)s)")
    parser.add_argument("--torch-index", metavar="URL", help="where torch comes from, such as that of its CPU builds")
    options = parser.parse_args(arguments)
    out: Path = options.out.resolve()
    if out.exists() and not (out / MANIFEST).is_file():
        print(f"{out} is there and no wheelhouse. Remove it, or name another folder with --out.", file=sys.stderr)
        return 1
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".wheelhouse-", dir=out.parent) as folder:
        made = Path(folder) / "wheelhouse"
        try:
            collect(made / WHEELS, options.torch_index)
        except subprocess.CalledProcessError as error:
            print("\n".join(error.stdout.splitlines()[-30:]), file=sys.stderr)
            print(f"pip {error.cmd[5]} failed; its last lines are above. Nothing was made.", file=sys.stderr)
            return 1
        identity = finish(made)
        if out.exists():
            shutil.rmtree(out)
        made.rename(out)
    size = sum(path.stat().st_size for path in out.rglob("*"))
    print(f"{out}: {len(list((out / WHEELS).iterdir()))} wheels, {size / 1e6:.0f} MB")
    print(f"SHA-256 of its {MANIFEST}, to be told by another way: {identity}")
    return 0


def collect(wheels: Path, torch_index: str | None) -> None:
    """Put our wheel and all that it needs into a folder."""
    wheels.mkdir(parents=True)
    lock = locked((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    wanted = {name: lock[name] for name in needed(NAME, EXTRAS) if name in lock}
    pins = wheels.parent / PINS  # written anew at the end
    pins.write_text("\n".join(entry for entries in wanted.values() for entry in entries), encoding="utf-8")
    download = ("download", "--only-binary", ":all:", "--dest", str(wheels))
    _pip(*download, "--no-deps", "--require-hashes", "--requirement", str(pins))
    version = metadata.version(TORCH).partition("+")[0]
    index = ("--index-url", torch_index) if torch_index else ()
    _pip(*download, "--no-deps", *index, f"{TORCH}=={version}")
    (torch,) = wheels.glob(f"{TORCH}-*.whl")
    if sha256(torch) not in (ROOT / "torch.lock").read_text(encoding="utf-8"):
        print(f"{torch.name} is a build that torch.lock does not name: where it came from answers for it.")
    if libraries := beside(torch, wanted):  # a build for GPUs
        bound = wheels.parent / "constraints.txt"
        bound.write_text("".join(f"{name}=={version}\n" for name, version in _versions(wheels)), encoding="utf-8")
        _pip(*download, "--find-links", str(wheels), "--constraint", str(bound), *libraries)
        bound.unlink()
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT))


def finish(folder: Path) -> str:
    """Add to the wheels what installs them, and list it all; the SHA-256 of the list."""
    wheels = sorted((folder / WHEELS).glob("*.whl"))
    pins = []
    for wheel in wheels:
        name, version, _, _ = parse_wheel_filename(wheel.name)
        pins.append(f"{name}=={version} --hash=sha256:{sha256(wheel)}\n")
        if name == NAME:
            about = {"version": str(version), **this_platform()}
            (folder / ABOUT).write_text(json.dumps(about) + "\n", encoding="utf-8")
    (folder / PINS).write_text("".join(pins), encoding="utf-8")
    installation = folder / "deploy/installation"
    installation.mkdir(parents=True)
    for path in sorted((ROOT / "deploy/installation").glob("*.py")):
        shutil.copy(path, folder if path.name == "install.py" else installation)
    shutil.copytree(ROOT / "deploy/systemd", folder / "deploy/systemd")
    shutil.copy(ROOT / "docs/install.md", folder)
    return write_manifest(folder)


def needed(name: str, extras: Iterable[str]) -> set[str]:
    """Canonical names of all that a distribution asks for with these extras, as it is installed here; itself too."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    left = [(canonicalize_name(name), extra) for extra in ("", *extras)]
    while left:
        if (one := left.pop()) in seen:
            continue
        seen.add(one)
        found.add(one[0])
        asked = [Requirement(text) for text in metadata.requires(one[0]) or []]
        for requirement in asked:
            if requirement.marker is None or requirement.marker.evaluate({"extra": one[1]}):
                left += [(canonicalize_name(requirement.name), extra) for extra in ("", *requirement.extras)]
    return found


def locked(text: str) -> dict[str, list[str]]:
    """Entries of a lock by canonical name, each with its hashes; of one name there may be several, by marker."""
    found: dict[str, list[str]] = {}
    for entry in re.split(r"\n(?=\S)", text.strip()):
        name = re.split(r"[=<>\[; ]", entry, maxsplit=1)[0]
        if not name.startswith("#"):
            found.setdefault(canonicalize_name(name), []).append(entry)
    return found


def beside(wheel: Path, had: Iterable[str]) -> list[str]:
    """What a wheel asks for that is not had yet."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA") and name.count("/") == 1]
        headers = BytesParser().parsebytes(archive.read(name))
    asked = [Requirement(text) for text in headers.get_all("Requires-Dist", [])]
    wanted = [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [f"{one.name}{one.specifier}" for one in wanted if canonicalize_name(one.name) not in set(had)]


def _versions(wheels: Path) -> list[tuple[str, str]]:
    return [
        (str(name), str(version))
        for name, version, _, _ in (parse_wheel_filename(path.name) for path in wheels.glob("*.whl"))
    ]


def _pip(*arguments: str) -> None:
    """Run pip; its output is in the error where it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    subprocess.run(command, check=True, env=for_child(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


if __name__ == "__main__":
    sys.exit(main())
