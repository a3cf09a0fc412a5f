"""The floor plan, held by reading the sources: who imports whom, what nobody may use, who owns the names.

`common` <- `server`, `client` <- `simulations`. An import counts wherever it stands: in a function, under
TYPE_CHECKING, by name through importlib. The parser decides, not the import system, so a module that nobody
imports yet is held to the rules too.
"""

import ast
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.models import NETWORK_CHOICE
from common.strategies import STRATEGY_CHOICE
from common.tasks import TASKS
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
    ("html.escape", "html.parser"): (),
    ("jinja2", "markupsafe"): ("common/html.py",),
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


# What writes to the disk by itself, for files that are no record of ours -> why.
_WRITES_BY_ITSELF = {
    "common/files.py": "the one place",
    "common/locks.py": "a lock's file, which is never replaced: who waits holds it open",
    "common/audit/reading.py": "a copy for SQLite in a temporary folder",
    "common/namespaces.py": "files of the kernel under /proc",
    "client/confine.py": "a path as a handle, and /dev/null",
    "client/data/reader.py": "a file of the kernel under /proc",
    "client/keeper.py": "what the worker prints, appended by the kernel and begun anew when it is long",
    "server/launcher.py": "what processes print, appended by the kernel and begun anew when it is long",
    "simulations/audit_apart.py": "images and a key of a simulated site in a temporary folder",
    "simulations/bench_privacy.py": "a file of the kernel under /proc",
}
_WRITING_MODES = re.compile(r"[rb]*[wax+]")


def _writes(tree: ast.Module) -> Iterator[ast.Call]:
    """Calls that make, fill, rename or copy a file."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = _called(node).rpartition(".")[2]
        constants = [
            one.value for one in (*node.args, *(k.value for k in node.keywords)) if isinstance(one, ast.Constant)
        ]
        modes = [one for one in constants if isinstance(one, str) and _WRITING_MODES.match(one)]
        flags = {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute) and one.attr.startswith("O_")}
        # `Path.replace` takes one thing, `str.replace` two, `dataclasses.replace` and `datetime.replace` name theirs.
        is_rename = (
            name == "replace" and len(node.args) == 1 and not node.keywords and isinstance(node.func, ast.Attribute)
        )
        if (
            (
                name
                in (
                    "write_text",
                    "write_bytes",
                    "rename",
                    "touch",
                    "hardlink_to",
                    "truncate",
                    "copyfile",
                    "copy",
                    "copy2",
                )
                and not (name == "copy" and _called(node) != "shutil.copy")
                and not (name == "truncate" and _called(node) != "os.truncate")
            )
            or _called(node) in ("os.replace", "os.link", "os.fsync")
            or (name == "open" and modes)
            or flags & {"O_WRONLY", "O_RDWR", "O_CREAT", "O_PATH"}
            or is_rename
        ):
            yield node


def test_files_are_written_in_one_place_whole_and_flushed_to_the_disk() -> None:
    around = {
        str(path.relative_to(ROOT)): [_place(path, node) for node in calls]
        for path in _modules(*PACKAGES)
        if (calls := list(_writes(_tree(path))))
    }
    assert {path: calls for path, calls in around.items() if path not in _WRITES_BY_ITSELF} == {}
    assert around.keys() == _WRITES_BY_ITSELF.keys()  # a reason that is no longer one goes


@pytest.mark.parametrize(
    "code",
    [
        "path.write_text('x')",
        "path.write_bytes(b'x')",
        "open(path, 'w')",
        "path.open(mode='ab')",
        "path.open('r+b')",
        "os.open(path, os.O_CREAT | os.O_WRONLY)",
        "os.replace(one, other)",
        "one.replace(other)",
        "one.rename(other)",
    ],
)
def test_every_way_to_write_a_file_is_seen(code: str) -> None:
    assert list(_writes(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["text.replace('a', 'b')", "replace(record, name='b')", "path.open('rb')", "open(path)"]
)
def test_what_only_reads_is_not_taken_for_writing(code: str) -> None:
    assert not list(_writes(ast.parse(code)))


def test_sealing_stands_in_one_room() -> None:
    """Keys of TLS, signatures and certificates are another matter, and so are keyed names (HMAC). Noise is drawn from
    AES in counter mode, which seals nothing."""
    primitives = "cryptography.hazmat.primitives"
    ciphers = (f"{primitives}.ciphers", f"{primitives}.kdf", "Crypto", "nacl")
    room = tuple(str(path.relative_to(ROOT)) for path in _modules("common") if path.parent.name == "crypto")
    assert _offenders(PACKAGES, ciphers, exempt=(*room, "common/privacy/noise.py")) == []


def test_what_flower_is_told_by_its_environment_stands_in_one_place() -> None:
    """Its adapter adds what only the SuperLink reads."""
    said = [
        f"{path.relative_to(ROOT)} {node.value}"
        for path in _modules(*PACKAGES)
        if path not in (ROOT / "common" / "environment.py", ROOT / "common" / "flower.py")
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch("FLWR_[A-Z_]+", node.value)
    ]
    assert said == []


def test_toml_is_written_in_one_place() -> None:
    assert _offenders(PACKAGES, ("tomlkit", "tomli_w", "toml"), exempt=("common/tomlfile.py",)) == []


def test_locks_are_taken_in_one_place() -> None:
    users = _offenders(PACKAGES, ("fcntl.flock", "fcntl.lockf", "filelock"))
    users += [
        _place(path, node)
        for path in _modules(*PACKAGES)
        if path != ROOT / "common" / "locks.py"
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call) and _called(node) in ("fcntl.flock", "fcntl.lockf", "os.lockf")
    ]
    assert users == []


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


def test_no_file_but_its_own_says_the_name_of_a_network_strategy_or_headline_score() -> None:
    """They are known by their tables alone: a new one is a file and a line."""
    tables = ("common/models", "common/tasks", "common/strategies")
    halves = ("client/train/strategies", "server/federation/strategies")
    headlines = {task.SCORES[0] for task in TASKS}
    names = {*NETWORK_CHOICE.by_name, *STRATEGY_CHOICE.by_name, *headlines}
    said = [
        f"{_place(path, node)} says {node.value!r}"
        for path in _modules(*PACKAGES)
        if str(path.parent.relative_to(ROOT)) not in (*tables, *halves)
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and (node.value in names or node.value.startswith(tuple(f"{headline}-" for headline in headlines)))
    ]
    assert said == []
