"""The floor plan, held by reading the sources: who imports whom, what nobody may use, who owns the names.

`common` <- `server`, `client` <- `simulations`. An import counts wherever it stands: in a function, under
TYPE_CHECKING, by name through importlib. The parser decides, not the import system, so a module that nobody
imports yet is held to the rules too.
"""

import ast
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

PACKAGES = ("client", "common", "server", "simulations")

# The documented parts of Flower, and its wire format. Everything else may change with any release.
FLOWER_PUBLIC = ("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.proto")
# Formats that run code when they are read.
CODE_LOADERS = ("pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib")
IMAGE_READERS = ("pydicom", "highdicom", "nibabel", "PIL")


def _modules(*packages: str) -> Iterator[Path]:
    for package in packages:
        yield from sorted((ROOT / package).rglob("*.py"))


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _imports(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports; `from a import b` gives a and a.b."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [_package(path, node.level), node.module]))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "importlib.import_module", "__import__"):
            assert node.args, f"{_place(path, node)}: an import whose name the contract cannot read"
            assert isinstance(node.args[0], ast.Constant), f"{_place(path, node)}: import by a computed name"
            yield str(node.args[0].value)


def _package(path: Path, level: int) -> str:
    """The package that a relative import of this level starts from; empty for an absolute one."""
    return ".".join(path.relative_to(ROOT).parts[:-level]) if level else ""


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def _place(path: Path, node: ast.expr) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def _within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _offenders(packages: tuple[str, ...], forbidden: tuple[str, ...], exempt: tuple[str, ...] = ()) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in _modules(*packages)
        if str(path.relative_to(ROOT)) not in exempt
        for name in _imports(path)
        if _within(name, forbidden)
    ]


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("common", ("client", "server", "simulations")),
        ("client", ("server", "simulations")),
        ("server", ("client", "simulations")),
    ],
)
def test_imports_follow_the_arrows(package: str, forbidden: tuple[str, ...]) -> None:
    assert _offenders((package,), forbidden) == []


def test_no_package_imports_tests_or_deploy() -> None:
    assert _offenders(PACKAGES, ("tests", "deploy")) == []


def test_only_the_adapter_touches_flower_internals() -> None:
    offenders = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in _modules(*PACKAGES)
        if path != ROOT / "common" / "flower.py"
        for name in _imports(path)
        if _within(name, ("flwr",)) and not _within(name, FLOWER_PUBLIC)
    ]
    assert offenders == []


def test_coordinator_cannot_read_images() -> None:
    """Nor can what it shares with the hospitals."""
    assert _offenders(("server", "common"), IMAGE_READERS) == []


def test_nothing_is_read_that_runs_code() -> None:
    assert _offenders(PACKAGES, CODE_LOADERS) == []
    assert _offenders(PACKAGES, ("torch.load", "torch.save", "numpy.load")) == []
    calls = [
        _place(path, node)
        for path in _modules(*PACKAGES)
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call)
        and (
            _called(node) in ("torch.load", "torch.save", "eval", "exec")
            or any(keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False" for keyword in node.keywords)
        )
    ]
    assert calls == []


# Whatever shows text makes foreign text safe, and nothing goes round it: what is called or imported -> where alone.
_OUTLETS = {
    ("print", "builtins.print", "typer.echo", "typer.secho", "click.echo", "click.secho", "rich"): ("common/cli.py",),
    # A program of its own, which needs nothing but cryptography; and pipes between our processes, which carry data.
    ("sys.stdout.write", "sys.stderr.write", "sys.stdout.buffer.write"): (
        "common/audit/verify.py",
        "simulations/audit_process.py",
        "simulations/bench_privacy.py",
    ),
    ("html.escape",): ("common/text.py",),
    ("logging.basicConfig", "logging.Formatter"): ("common/logs.py",),
}


@pytest.mark.parametrize("names", _OUTLETS, ids=lambda names: names[0])
def test_text_is_shown_through_the_outlets_that_make_it_safe(names: tuple[str, ...]) -> None:
    around = _offenders(PACKAGES, names, exempt=_OUTLETS[names])
    around += [
        f"{_place(path, node)} calls {_called(node)}"
        for path in _modules(*PACKAGES)
        if str(path.relative_to(ROOT)) not in _OUTLETS[names]
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call) and _called(node) in names
    ]
    assert around == []


@pytest.mark.parametrize("module", ["client.agent", "client.gate", "client.policy"])
def test_process_with_the_door_holds_neither_torch_nor_images(module: str) -> None:
    """The agent keeps the keys and the channel; a flaw in an image or tensor library must not reach them."""
    heavy = ("torch", "monai", "opacus", *IMAGE_READERS)
    code = f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


@pytest.mark.parametrize(
    "modules",
    [
        "server.gateway",
        "server.enrolment",
        "server.cli",
        "client.cli",
        "simulations.cli",
        "client.data_cli, client.data.checkup, client.data.check_report",
        "client.data.reader, client.data.answering",
    ],
)
def test_long_lived_and_interactive_processes_start_without_torch(modules: str) -> None:
    """torch costs seconds and hundreds of MB; --help, an idle gateway and a look at the data need none of it."""
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_owns_our_package_names(package: str) -> None:
    """Literal names are common names: in a shared environment another `common` could stand in for ours."""
    owners = importlib.metadata.packages_distributions().get(package, [])
    assert set(owners) <= {"wardround"}
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin == str(ROOT / package / "__init__.py")


def test_wheel_holds_the_four_packages_and_nothing_else(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120, env=environment)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
