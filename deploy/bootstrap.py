"""From a clean clone to a working environment, and from there to the demo or to every check.

Standard library only: it runs before anything is installed. The environment is `.venv`, made once from
requirements.lock with `pip --require-hashes`; a marker holds the hash of what it was made from, so that a second
call starts at once. torch comes first and outside that lock, because its build (CPU, CUDA) depends on the machine: it
is held to torch.lock, which names the files of the package index. The right version that is already in `.venv` stays.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "requirements.lock"
# The files of torch that the package index has; builds for one kind of machine alone lie elsewhere.
TORCH_LOCK = ROOT / "torch.lock"
PROJECT = ROOT / "pyproject.toml"
MARKER = VENV / ".wardround"
OLDEST, NEWEST = (3, 11), (3, 13)

# What the commands leave behind. The environment is not among it: it takes minutes and gigabytes to make.
GENERATED = ("build", "dist", "demo", "out", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache")


class SetupError(Exception):
    """The environment cannot be made; the text says what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 only if it succeeded."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        print(
            "wardround: needs Python 3.11, 3.12 or 3.13, and this is {}.{}.".format(*sys.version_info), file=sys.stderr
        )
        print("Run it with one of those, such as: python3.12 deploy/bootstrap.py demo", file=sys.stderr)
        return 1
    options = _parser().parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except SetupError as error:
        print(f"\nwardround: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nwardround: interrupted", file=sys.stderr)
        return 130


def setup(_: argparse.Namespace | None = None) -> int:
    """Make `.venv`, or do nothing where it is up to date."""
    fingerprint = _fingerprint()
    if PYTHON.exists() and MARKER.exists() and MARKER.read_text(encoding="utf-8") == fingerprint:
        return 0
    if not PYTHON.exists():
        _say("making .venv")
        _create_venv()
    MARKER.unlink(missing_ok=True)
    torch = _torch_requirement()
    if _installed_torch() != torch.partition("==")[2]:
        _say(f"installing {torch} (large: minutes on a slow line)")
        _install_torch(torch)
    _say("installing requirements.lock, every file checked against its hash")
    # --no-deps: the lock is complete, and torch, which it leaves out, is there.
    _pip("install", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--requirement", str(LOCK))
    _say("installing wardround")
    _pip("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    _pip("check")
    MARKER.write_text(fingerprint, encoding="utf-8")
    _say("ready")
    return 0


def demo(options: argparse.Namespace) -> int:
    """Three hospitals train one U-Net on this machine."""
    setup()
    arguments = [str(PYTHON), "-m", "deploy.demo"]
    if options.data is not None:
        arguments += ["--data", str(Path(options.data).resolve())]
    sys.stdout.flush()
    # In place of this process, so that a signal reaches the demo and not a parent that waits for it.
    os.execve(arguments[0], arguments, _environment())


def check(_: argparse.Namespace) -> int:
    """Format, lint, types, imports."""
    setup()
    return _run_all(_quick_checks())


def test(options: argparse.Namespace) -> int:
    """Every check a reviewer would make."""
    setup()
    # One worker more than cores, as many tests wait for processes that they started; a file's tests stay together
    # because they share processes and fixtures; in the order of tests/conftest.py.
    workers = ["--numprocesses", str(min(_cores(), 8) + 1), "--dist", "loadfile", "--no-loadscope-reorder"]
    pytest = ["-m", "pytest", *workers, *options.pytest]
    # The imports are among the tests.
    return _run_all([*(step for step in _quick_checks() if step[0] != "imports"), ("tests", pytest)])


def bench(_: argparse.Namespace) -> int:
    """What a deployed round and an idle deployment cost."""
    setup()
    return _run_all([("bench", ["-m", "deploy.bench"])])


def sites(options: argparse.Namespace) -> int:
    """What many sites cost their coordinator."""
    setup()
    counts = [options.count] if options.count else [10, 25, 100, 200]
    command = ["-m", "simulations.commands.main", "bench", "sites", "--sites"]
    return _run_all([(f"{count} sites", [*command, str(count)]) for count in counts])


def soak(options: argparse.Namespace) -> int:
    """Hundreds of small rounds: do memory, descriptors and disk stay as they are?"""
    setup()
    command = ["-m", "simulations.commands.main", "bench", "sites", "--sites", "8", "--small", "--rounds"]
    return _run_all([("soak", [*command, str(options.count)])])


def fuzz(options: argparse.Namespace) -> int:
    """Throw mutated images at the readers."""
    setup()
    return _run_all([("fuzz", ["-m", "deploy.fuzz", "--count", str(options.count)])])


def faults(options: argparse.Namespace) -> int:
    """Break a federation of real processes again and again, and see how its runs end."""
    setup()
    only = ["--only", *options.only] if options.only else []
    arguments = ["--faults", str(options.count), "--seed", str(options.seed), *only]
    return _run_all([("faults", ["-m", "tests.faults", *arguments])])


def privacy(_: argparse.Namespace) -> int:
    """The long proofs of privacy: every history of the grid, 200 kills of a private round."""
    setup()
    files = ["tests/common/privacy/test_accountant.py", "tests/client/train/test_killed_rounds.py"]
    os.environ.update(WARDROUND_HISTORIES="all", WARDROUND_KILLS="200")
    return _run_all([("privacy", ["-m", "pytest", "--numprocesses", str(min(_cores(), 8)), *files])])


def ray(_: argparse.Namespace) -> int:
    """Simulations on a Ray cluster: two nodes, a cluster of one command, GPUs, what a killed command leaves."""
    setup()
    files = ["tests/simulations/backends/test_ray.py", "tests/simulations/backends/ray_at_length.py"]
    return _run_all([("ray", ["-m", "pytest", *files])])


def docs(_: argparse.Namespace) -> int:
    """Build the pages as a site in dist/site; a warning, such as a link to nowhere, is an error."""
    setup()
    return _run_all([("docs", ["-m", "mkdocs", "build", "--strict", "--config-file", "deploy/site/mkdocs.yml"])])


def images(options: argparse.Namespace) -> int:
    """Build the images of both sides by podman, and let a coordinator and two sites of them train together."""
    setup()
    wheelhouse = ["--wheelhouse", str(Path(options.wheelhouse).resolve())] if options.wheelhouse else []
    return _run_all([("images", ["-m", "deploy.images", *wheelhouse])])


def wheelhouse(options: argparse.Namespace) -> int:
    """All that an installation needs in one folder, for machines with and without internet."""
    setup()
    index = ["--torch-index", options.torch_index] if options.torch_index else []
    return _run_all([("wheelhouse", ["-m", "deploy.wheelhouse", *index])])


def airgap(_: argparse.Namespace) -> int:
    """Install both services from a wheelhouse without any route, and do a round under systemd; as root."""
    setup()
    pytest = ["-m", "pytest", "--override-ini", "timeout=3600", "tests/deploy/airgap_at_length.py"]
    return _run_all([("wheelhouse", ["-m", "deploy.wheelhouse"]), ("airgap", pytest)])


def audit(options: argparse.Namespace) -> int:
    """Look for known weaknesses of the code and of what it stands on, and for secrets in the checkout."""
    setup()
    return _run_all([("audit", ["-m", "deploy.supply.audit", *options.part])])


def release(_: argparse.Namespace) -> int:
    """Make what is published of this commit: a wheel, built twice to the same bytes, and lists."""
    setup()
    return _run_all([("release", ["-m", "deploy.supply.release"])])


def lock(_: argparse.Namespace) -> int:
    """Resolve pyproject.toml into requirements.lock, and torch into torch.lock; versions that still fit stay."""
    setup()
    torch = _torch_requirement()
    # --universal: one lock for Linux and macOS and each Python. No header: it would name this machine's paths.
    compile_ = [str(VENV / "bin" / "uv"), "pip", "compile", "--universal", "--python-version", "3.11", "--quiet"]
    compile_ += ["--generate-hashes", "--no-annotate", "--no-header"]
    for source, out, more in (
        (str(PROJECT), LOCK, ["--extra", "dev", "--no-emit-package", torch.partition("==")[0]]),
        ("-", TORCH_LOCK, ["--no-deps"]),
    ):
        command = [*compile_, source, "--output-file", str(out), *more]
        if subprocess.run(command, check=False, cwd=ROOT, env=_environment(), input=torch, text=True).returncode:
            return 1
    return 0


def clean(_: argparse.Namespace) -> int:
    """Remove caches, builds and the demo's output."""
    for name in GENERATED:
        shutil.rmtree(ROOT / name, ignore_errors=True)
    for package in ("client", "common", "deploy", "server", "simulations", "tests"):
        for cache in (ROOT / package).rglob("__pycache__"):
            shutil.rmtree(cache, ignore_errors=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python deploy/bootstrap.py",
        description="Set Wardround up in .venv, then run the demo or the checks.",
        epilog="Example: python deploy/bootstrap.py demo",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (
        setup,
        demo,
        test,
        check,
        bench,
        sites,
        soak,
        fuzz,
        faults,
        privacy,
        ray,
        docs,
        images,
        wheelhouse,
        airgap,
        audit,
        release,
        lock,
        clean,
    ):
        subparser = commands.add_parser(command.__name__, help=(command.__doc__ or "").splitlines()[0])
        subparser.set_defaults(command=command)
        if command is demo:
            subparser.add_argument("--data", metavar="PATH", help="folder of real images (vessels) instead of phantoms")
        if command is sites:
            subparser.add_argument("--count", type=int, help="sites (default: 10, 25, 100 and 200)")
        if command is soak:
            subparser.add_argument("--count", type=int, default=500, help="rounds (default: %(default)s)")
        if command is fuzz:
            subparser.add_argument("--count", type=int, default=100_000, help="mutations (default: %(default)s)")
        if command is faults:
            subparser.add_argument("--count", type=int, default=60, help="faults (default: %(default)s)")
            subparser.add_argument("--seed", type=int, default=1, help="of kinds and moments (default: %(default)s)")
            subparser.add_argument("--only", nargs="+", metavar="KIND", help="kinds that begin with one of these words")
        if command is images:
            subparser.add_argument("--wheelhouse", metavar="PATH", help="folder of wheels (default: dist/wheelhouse)")
        if command is wheelhouse:
            subparser.add_argument(
                "--torch-index", metavar="URL", help="where torch comes from, such as its CPU builds"
            )
        if command is audit:
            subparser.add_argument("part", nargs="*", metavar="PART", help="code, secrets or advisories (default: all)")
        if command is test:
            subparser.add_argument("pytest", nargs="*", metavar="ARGUMENT", help="for pytest, after --")
    return parser


def _quick_checks() -> list[tuple[str, list[str]]]:
    return [
        ("format", ["-m", "ruff", "format", "--check", "."]),
        ("lint", ["-m", "ruff", "check", "."]),
        ("types", ["-m", "mypy"]),
        ("imports", ["-m", "pytest", "--quiet", "tests/test_architecture.py"]),
    ]


def _run_all(steps: Sequence[tuple[str, list[str]]]) -> int:
    """Run every step, the later ones too when one fails: a reviewer wants the whole list."""
    failed = []
    for name, arguments in steps:
        _say(name)
        if subprocess.run([str(PYTHON), *arguments], check=False, cwd=ROOT, env=_environment()).returncode:
            failed.append(name)
    if failed:
        print(f"\nwardround: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _create_venv() -> None:
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        raise SetupError(
            "this Python cannot make environments: its venv module is incomplete. On Debian and Ubuntu: "
            f"apt-get install python{sys.version_info.major}.{sys.version_info.minor}-venv. Then run this again."
        )
    result = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(VENV)],
        check=False,
        capture_output=True,
        text=True,
        env=_environment(),
    )
    if result.returncode:
        raise SetupError(f".venv could not be made. {(result.stderr or result.stdout).strip()}")


def _pip(*arguments: str) -> None:
    """Run pip quietly; its output appears where it fails."""
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    result = subprocess.run(
        command, check=False, cwd=ROOT, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode:
        print("\n".join(result.stdout.splitlines()[-30:]), file=sys.stderr)
        raise SetupError(
            f"pip {arguments[0]} failed; its last lines are above. Check the network and the free space, then run this "
            "again: it goes on where it stopped. If .venv was made by another Python or moved, remove it first."
        )


def _installed_torch() -> str | None:
    """Version of torch in `.venv` without the build's suffix (+cpu, +cu130), None where it is absent."""
    code = "from importlib.metadata import version; print(version('torch').partition('+')[0])"
    try:
        result = subprocess.run(
            [str(PYTHON), "-c", code], check=False, capture_output=True, text=True, env=_environment()
        )
    except OSError as error:
        raise SetupError(f"the Python of .venv does not start ({error}). Remove .venv and run this again.") from error
    return result.stdout.strip() or None


def _install_torch(requirement: str) -> None:
    """Install torch, and say whether it is a file that torch.lock names; with WARDROUND_LOCKED_TORCH=1 it has to be."""
    report = VENV / "torch.json"
    _pip("install", "--report", str(report), requirement)
    digest = _torch_digest(report.read_text(encoding="utf-8"))
    if f"--hash=sha256:{digest}" in TORCH_LOCK.read_text(encoding="utf-8"):
        _say("torch is a file that torch.lock names, by its hash")
        return
    told = f"torch is a build that torch.lock does not name, SHA-256 {digest}"
    if os.environ.get("WARDROUND_LOCKED_TORCH") == "1":
        _pip("uninstall", "--yes", requirement.partition("==")[0])
        raise SetupError(f"{told}. It was removed again. Take it from the package index, or unset that variable.")
    _say(f"{told}: its index answers for it")


def _torch_digest(report: str) -> str:
    """SHA-256 of the file that torch came from, out of what `pip install --report` wrote."""
    (torch,) = (one for one in json.loads(report)["install"] if one["metadata"]["name"].lower() == "torch")
    return str(torch["download_info"]["archive_info"]["hashes"]["sha256"])


def _torch_requirement() -> str:
    pinned = re.search(r'"(torch==[^"]+)"', PROJECT.read_text(encoding="utf-8"))
    if pinned is None:
        raise SetupError("pyproject.toml does not pin torch. Add torch==VERSION to its dependencies.")
    return pinned.group(1)


def _fingerprint() -> str:
    """Identity of all that the environment is made from."""
    return hashlib.sha256(LOCK.read_bytes() + PROJECT.read_bytes() + str(ROOT).encode()).hexdigest()


def _environment() -> dict[str, str]:
    """This process's environment with `.venv` activated: Flower starts its parts by name."""
    not_theirs = re.compile(
        r"PYTHONHOME|PYTHONPATH|WARDROUND_.*(PASSPHRASE|KEY)(_FILE)?"
    )  # see common/system/environment.py
    environment = {name: value for name, value in os.environ.items() if not not_theirs.fullmatch(name)}
    path = os.pathsep.join([str(VENV / "bin"), environment.get("PATH", os.defpath)])
    return environment | {"VIRTUAL_ENV": str(VENV), "PATH": path}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _say(text: str) -> None:
    print(f"== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
