"""A release: a wheel that anybody can build again to the same bytes, and what is published beside it.

    python -m deploy.supply.release [--out dist/release]

The wheel is built twice, from two exports of the commit at hand, in folders of other names and with another umask; both
must be equal (https://reproducible-builds.org/docs/source-date-epoch/). Signing is for a person: see
docs/project/releasing.md.
"""

import argparse
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.system.environment import for_child
from deploy.supply.licences import complaints, listed, policy
from deploy.wheelhouse import EXTRAS, NAME, ROOT, needed
from server.evidence import sbom

SUMS = "SHA256SUMS"
# What a release is installed from and judged by, as it lies in the checkout.
BESIDE = ("requirements.lock", "torch.lock", "CHANGELOG.md", "docs/project/licences.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make one; 0 only where both wheels are equal, the checkout is what is committed, and the licences are allowed."""
    parser = argparse.ArgumentParser(prog="python -m deploy.supply.release", description="Make a release.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist/release", help="its folder (default: %(default)s)")
    out: Path = parser.parse_args(arguments).out.resolve()
    if changed := _git("status", "--porcelain").decode():
        print(f"Not what is committed:\n{changed}Commit or remove it first.", file=sys.stderr)
        return 1
    shipped = needed(NAME, EXTRAS)
    if wrong := complaints(listed(), policy(), shipped):
        print(*wrong, sep="\n", file=sys.stderr)
        return 1
    epoch = int(_git("show", "--no-patch", "--format=%ct", "HEAD"))
    with tempfile.TemporaryDirectory() as folder:
        wheels = []
        for number, mask in enumerate((0o022, 0o077)):
            source = Path(folder) / f"checkout-{number}"
            before = os.umask(mask)
            try:
                with tarfile.open(fileobj=io.BytesIO(_git("archive", "HEAD"))) as archive:
                    archive.extractall(source, filter="data")
                wheels.append(build(source, Path(folder) / f"built-{number}", epoch))
            finally:
                os.umask(before)
        one, other = (hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels)
        if one != other:
            print(f"Two builds of one commit differ: {one} and {other}. It is not reproducible.", file=sys.stderr)
            return 1
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        shutil.copy(wheels[0], out)
    for name in BESIDE:
        shutil.copy(ROOT / name, out)
    if (components := sbom.components(shipped)) is None:
        print(f"The list of components cannot be written: {sbom.EXTRA}.", file=sys.stderr)
        return 1
    (out / sbom.NAME).write_text(components, encoding="utf-8")
    (out / SUMS).write_text(sums(out), encoding="utf-8")
    print((out / SUMS).read_text(encoding="utf-8"), end="")
    print(f"SOURCE_DATE_EPOCH={epoch}; both builds are equal. To be signed: {out / SUMS}")
    return 0


def build(source: Path, out: Path, epoch: int) -> Path:
    """Build the wheel of a checkout.

    Args:
        source: the checkout.
        out: an empty or new folder for it.
        epoch: the time that files in it get, in seconds since 1970.
    """
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
    environment = for_child(SOURCE_DATE_EPOCH=str(epoch), PYTHONDONTWRITEBYTECODE="1")
    subprocess.run(command, cwd=source, env=environment, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def sums(folder: Path) -> str:
    """SHA-256 of each file of a folder, as `sha256sum --check` reads it."""
    files = sorted(path for path in folder.iterdir() if path.name != SUMS)
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)


def _git(*arguments: str) -> bytes:
    return subprocess.run(
        [shutil.which("git") or "git", *arguments], cwd=ROOT, env=for_child(), check=True, capture_output=True
    ).stdout


if __name__ == "__main__":
    sys.exit(main())
