"""The floor plan, held by reading the sources: who imports whom, what nobody may use, who owns the names.

`common` <- `server`, `client` <- `simulations`; a room is a folder (tests/rooms.py), and every arrow between rooms
points down.
"""

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from common.models import NETWORK_CHOICE
from common.strategies import STRATEGY_CHOICE
from common.tasks import TASKS
from tests import ROOT
from tests.patience import PATIENCE_S
from tests.rooms import PACKAGES, arrows, called, circles, closure, imports, modules, place, rooms, tree

# Room -> the rooms that it imports. `common` itself, which holds errors and text, is open to all and not named here. An
# arrow that is new stands here first, and one that is gone goes from here too.
ARROWS = {
    "client": "client.data client.data.isolate client.home common.config common.privacy",
    "client.agent": (
        "client client.data.deidentify client.home client.proposals client.rules client.trail client.worker "
        "common.audit common.config common.console common.flower common.privacy common.system common.wire"
    ),
    "client.app": "client client.train common.config common.console common.wire",
    "client.commands": (
        "client client.agent client.commands.models client.commands.options client.data client.data.check "
        "client.data.deidentify client.data.isolate client.data.keep client.data.read client.data.study "
        "client.home client.pacs client.proposals client.rescue client.rules client.trail client.views "
        "common.audit common.config common.console common.crypto common.flower common.identity common.learning "
        "common.privacy common.rescue common.system common.web common.wire"
    ),
    "client.commands.models": (
        "client client.commands.options client.evaluate client.explain client.home client.pacs client.pacs.arrivals "
        "client.predict client.rules client.serve client.trail common.console"
    ),
    "client.commands.options": "client.data.keep client.home client.rules common.config common.console",
    "client.data": (
        "client.data.deidentify client.data.isolate client.data.keep client.data.prepare client.data.quality "
        "client.data.study client.home common.config"
    ),
    "client.data.check": (
        "client.data client.data.deidentify client.data.isolate client.data.keep client.data.prepare "
        "client.data.quality client.data.study client.home common.config common.pages common.preparation "
        "common.system"
    ),
    "client.data.deidentify": "client.data.dicom client.data.study common.system",
    "client.data.dicom": "client.data.study",
    "client.data.isolate": (
        "client.data.quality client.data.read client.data.study common.config common.system common.wire"
    ),
    "client.data.keep": (
        "client.data.deidentify client.data.isolate client.data.quality client.data.study client.home common.config "
        "common.crypto common.preparation common.system"
    ),
    "client.data.prepare": "client.data.study common.config common.preparation",
    "client.data.quality": "client.data.study",
    "client.data.read": "client.data.deidentify client.data.dicom client.data.study common.config",
    "client.data.study": "common.config",
    "client.evaluate": (
        "client client.data client.data.check client.data.deidentify client.data.isolate client.data.keep "
        "client.data.prepare client.data.study client.home client.predict client.rules common.config common.learning "
        "common.measures common.pages common.system common.tasks"
    ),
    "client.explain": (
        "client.data.prepare client.data.study client.predict client.predict.dicom common.config common.learning"
    ),
    "client.home": (
        "common.config common.crypto common.document common.identity common.models common.rescue common.system "
        "common.wire"
    ),
    "client.pacs": "common.config common.document common.system common.wire",
    "client.pacs.arrivals": "client.pacs common.config common.system common.web common.wire",
    "client.predict": (
        "client.data.dicom client.data.isolate client.data.prepare client.data.read client.data.study "
        "client.predict.dicom "
        "common.config common.learning common.system common.tasks"
    ),
    "client.predict.dicom": "client.data.dicom client.data.study",
    "client.proposals": (
        "client client.home client.rules client.trail client.worker common.audit common.config common.identity "
        "common.privacy common.system common.wire"
    ),
    "client.rescue": "client.home client.pacs client.rules client.trail common.config common.rescue",
    "client.rules": (
        "client client.home common.audit common.config common.identity common.privacy common.strategies common.system "
        "common.tasks common.wire"
    ),
    "client.trail": (
        "client.home client.rules common.audit common.config common.console common.crypto common.identity "
        "common.privacy common.rescue common.system common.wire"
    ),
    "client.serve": "client.data.study client.predict common.system common.web",
    "client.train": (
        "client client.data client.home client.rules client.train.strategies common.audit common.config "
        "common.crypto common.learning common.learning.augment common.privacy common.strategies common.tasks "
        "common.wire"
    ),
    "client.train.strategies": "common.config common.learning common.strategies",
    "client.views": (
        "client client.agent client.home client.proposals client.rules client.trail common.audit common.pages "
        "common.privacy common.web"
    ),
    "client.worker": "client client.home client.train common.config common.console common.system common.wire",
    "common": "",
    "common.audit": "common.console common.identity common.system",
    "common.config": "common.document common.models common.preparation common.strategies common.tasks",
    "common.console": "common.system",
    "common.crypto": "common.system",
    "common.document": "",
    "common.flower": "common.system common.wire",
    "common.identity": "",
    "common.learning": "common.config common.crypto common.learning.augment common.models common.system",
    "common.learning.augment": "common.config",
    "common.losses": "common.document",
    "common.measures": "",
    "common.models": "common.document",
    "common.pages": "common.system",
    "common.preparation": "common.document",
    "common.privacy": (
        "common.config common.crypto common.models common.strategies common.system common.tasks common.wire"
    ),
    "common.rescue": "common.console common.crypto common.system",
    "common.strategies": "common.document",
    "common.system": "",
    "common.tasks": "common.document common.losses common.measures",
    "common.web": "common.console common.pages common.system",
    "common.wire": "",
    "server.app": (
        "common.config common.console common.system server.federation server.home server.registry server.views"
    ),
    "server.archive": (
        "common.config common.crypto common.privacy common.system common.tasks common.wire server.evidence "
        "server.federation server.home server.registry server.views"
    ),
    "server.commands": (
        "common.audit common.config common.console common.crypto common.flower common.identity common.losses "
        "common.models common.rescue common.strategies common.system common.tasks common.web common.wire "
        "server.archive server.coordinator server.dashboard server.evidence server.federation server.gateway "
        "server.home server.monitoring server.registry server.rescue server.views"
    ),
    "server.coordinator": (
        "common.config common.console common.flower common.identity common.rescue common.system common.wire "
        "server.archive server.federation server.gateway server.home server.registry"
    ),
    "server.dashboard": (
        "common.config common.identity common.pages common.privacy common.web common.wire server.coordinator "
        "server.federation server.home server.registry server.views"
    ),
    "server.evidence": (
        "common.audit common.pages common.privacy common.strategies common.system server.federation server.views"
    ),
    "server.federation": (
        "common.audit common.config common.crypto common.flower common.learning common.privacy common.system "
        "common.tasks common.wire server.federation.strategies server.gateway server.home server.registry"
    ),
    "server.federation.strategies": ("common.config common.learning common.strategies common.wire server.home"),
    "server.gateway": (
        "common.audit common.console common.flower common.identity common.system common.wire server.home "
        "server.registry"
    ),
    "server.home": (
        "common.config common.crypto common.document common.flower common.identity common.rescue common.system "
        "common.wire"
    ),
    "server.monitoring": (
        "common.config common.privacy common.system common.web server.coordinator server.federation server.home "
        "server.registry server.views"
    ),
    "server.registry": (
        "common.audit common.config common.crypto common.flower common.identity common.rescue common.system "
        "common.wire server.home"
    ),
    "server.rescue": "common.identity common.rescue server.archive server.home server.registry",
    "server.views": (
        "common.audit common.config common.console common.identity common.pages common.privacy "
        "common.strategies common.system common.tasks server.federation server.home server.registry"
    ),
    "simulations": "simulations.api",
    "simulations.api": (
        "client client.data.isolate common.config common.console common.learning common.system common.tasks "
        "server.federation server.views simulations.backends simulations.scenarios simulations.studies"
    ),
    "simulations.audit": (
        "client client.home client.train common.config common.learning common.losses common.pages "
        "common.privacy common.system common.wire simulations.scenarios simulations.studies"
    ),
    "simulations.backends": (
        "client client.agent client.app client.data.deidentify client.home client.worker common.config common.console "
        "common.system common.wire"
    ),
    "simulations.bench": (
        "client client.agent client.data client.data.isolate client.data.keep client.data.read client.data.study "
        "client.trail client.train common.audit common.config common.console common.flower common.identity "
        "common.learning common.losses common.privacy common.strategies common.system common.tasks common.wire "
        "server.coordinator server.federation server.federation.strategies server.gateway server.home "
        "server.registry simulations.backends simulations.generators simulations.scenarios"
    ),
    "simulations.bench.peers": ("common.learning common.system simulations.backends simulations.bench"),
    "simulations.commands": (
        "client client.commands.models client.commands.options client.evaluate client.pacs common.config "
        "common.console common.document common.losses common.models common.preparation common.privacy "
        "common.strategies common.system common.tasks "
        "server.federation server.views simulations.api simulations.audit simulations.backends simulations.bench "
        "simulations.bench.peers simulations.diagnosis simulations.drafts simulations.exchange simulations.faults "
        "simulations.gallery simulations.partitions simulations.scenarios simulations.shifts simulations.studies"
    ),
    "simulations.diagnosis": (
        "client client.data common.config common.learning common.measures common.pages common.system common.tasks "
        "server.federation simulations.backends simulations.scenarios simulations.studies"
    ),
    "simulations.drafts": (
        "client.data client.data.isolate client.data.quality client.data.read client.data.study common.config "
        "common.document common.models common.tasks simulations.partitions simulations.scenarios"
    ),
    "simulations.exchange": (
        "client.data.prepare client.data.read client.data.study common.config common.learning common.models "
        "common.system common.wire"
    ),
    "simulations.exchange.scripts": "",
    "simulations.faults": "common.config common.document common.learning common.wire",
    "simulations.gallery": (
        "client.data.check client.data.prepare client.data.study common.config common.preparation "
        "common.system simulations.generators"
    ),
    "simulations.generators": "client.predict.dicom",
    "simulations.partitions": "client.data.read client.data.study common.config common.document",
    "simulations.scenarios": (
        "client client.data.quality client.data.read client.data.study client.home common.config common.crypto "
        "common.document common.learning common.models common.strategies common.system server.federation "
        "simulations.backends simulations.faults simulations.generators simulations.partitions simulations.shifts"
    ),
    "simulations.shifts": "client.data.study common.document",
    "simulations.studies": (
        "client client.data client.data.check client.data.study client.predict common.config common.learning "
        "common.measures common.models common.pages "
        "common.strategies common.system common.tasks common.wire server.federation server.views "
        "simulations.backends simulations.faults simulations.generators simulations.scenarios"
    ),
}
MOST_FILES = 15
MOST_LINES = 400
# Made by protoc, and tables.
LONG = ("common/wire/wardround_pb2_grpc.py", "common/wire/wardround_pb2.py", "client/data/deidentify/ps315.py")
# Process walls: what must not come into a process with the first module it loads.
HEAVY = ("torch", "monai", "opacus", "pydicom", "highdicom", "nibabel", "PIL")
WALLS = {
    "client.agent.loop": HEAVY,  # keys and channel: no tensor library, no image library
    "client.rules.exit_gate": HEAVY,
    "client.worker.main": (  # patients: no network, no keys
        "grpc",
        "flwr",
        "cryptography",
        "client.home.enrolment",
        "client.home.identity",
    ),
    "client.data.isolate.reader": (
        "grpc",
        "flwr",
        "cryptography",
        "torch",
        "client.home",
    ),  # before it has shut itself in
    "client.data.isolate.answering": ("grpc", "flwr", "cryptography", "torch", "client.home"),  # foreign files
    "client.serve.server": (  # images, and a port: no key of the federation, and no way to its coordinator
        "grpc",
        "flwr",
        "client.home",
        "client.agent",
        "client.rules",
        "client.trail",
        "client.worker",
        "common.identity",
    ),
    "client.commands.main": ("pynetdicom", "dicomweb_client", "requests"),  # of an extra
    "client.pacs.process": (  # foreign data, and the hospital's network: no key, and no way to the coordinator
        "grpc",
        "flwr",
        "cryptography",
        "torch",
        "client.home",
        "client.agent",
        "client.trail",
        "common.identity",
    ),
    "client.pacs.arrivals.listening": (  # likewise, and a port
        "grpc",
        "flwr",
        "cryptography",
        "torch",
        "client.home",
        "client.agent",
        "client.trail",
        "common.identity",
    ),
    **dict.fromkeys(  # and what these two import later
        (
            "client.pacs.dimse",
            "client.pacs.dicomweb",
            "client.pacs.arrivals.cstore",
            "client.pacs.arrivals.webserver",
        ),
        ("grpc", "flwr", "cryptography", "torch", "client.home", "client.agent", "client.trail", "common.identity"),
    ),
    "client.views.dashboard": HEAVY,  # the ledger, and a port: no tensor library, no image library
    "server.dashboard.pages": HEAVY,
    "client.views.metrics": HEAVY,
    "server.monitoring.mlflow": HEAVY,
    "server.monitoring.prometheus": HEAVY,
    "server.monitoring.tensorboard": HEAVY,
    "server.gateway.services": HEAVY,
    "server.coordinator.serve": HEAVY,
}

# The documented parts of Flower, and its wire format. Everything else may change with any release.
FLOWER_PUBLIC = ("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.proto")
# The files that touch the rest, all in one room; and the one that has Flower's own simulation measured beside ours.
FLOWER_ADAPTER = (
    "simulations/bench/peers/flower.py",
    "common/flower/calls.py",
    "common/flower/inbox.py",
    "common/flower/packing.py",
    "common/flower/processes.py",
    "common/flower/short_way.py",
)
# Formats that run code when they are read.
CODE_LOADERS = ("pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib")
IMAGE_READERS = ("pydicom", "highdicom", "nibabel", "PIL")
# Others keep weights as pickles: one file writes one, and one reads them, in a process apart and weights alone.
_OTHERS_FORMATS = ("simulations/exchange/bundle.py", "simulations/exchange/pickled.py")


def _within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _offenders(packages: tuple[str, ...], forbidden: tuple[str, ...], exempt: tuple[str, ...] = ()) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(*packages)
        if str(path.relative_to(ROOT)) not in exempt
        for name in imports(path)
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


def test_rooms_import_what_the_table_says_and_nothing_else() -> None:
    found = {room: " ".join(sorted(below - {"common"})) for room, below in arrows().items()}
    assert found == ARROWS


def test_every_arrow_points_down() -> None:
    assert circles(arrows()) == []
    assert circles({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}) == [["a", "b", "c"]]


def test_a_room_is_seen_at_a_glance() -> None:
    assert {room: len(held) for room, held in rooms().items() if len(held) > MOST_FILES} == {}
    paths = {str(path.relative_to(ROOT)): path for path in modules() if str(path.relative_to(ROOT)) not in LONG}
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in paths.items()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_every_room_says_what_lives_in_it() -> None:
    inits = [path for path in modules() if path.name == "__init__.py"]
    assert [str(path.relative_to(ROOT)) for path in inits if not ast.get_docstring(tree(path))] == []


@pytest.mark.parametrize("module", WALLS)
def test_process_walls_stand(module: str) -> None:
    """By reading: whatever is imported when the process starts, indirectly too."""
    come = closure(module)
    assert len(come) > 1
    assert sorted(name for name in come if _within(name, WALLS[module])) == []


def test_no_package_imports_tests_or_deploy() -> None:
    assert _offenders(PACKAGES, ("tests", "deploy")) == []


def test_only_the_adapter_touches_flower_internals() -> None:
    touching = {
        str(path.relative_to(ROOT)): inner
        for path in modules(*PACKAGES)
        if (inner := [name for name in imports(path) if _within(name, ("flwr",)) and not _within(name, FLOWER_PUBLIC)])
    }
    assert {path: inner for path, inner in touching.items() if path not in FLOWER_ADAPTER} == {}
    assert touching.keys() == set(FLOWER_ADAPTER)  # what touches nothing any more goes from there


def test_coordinator_cannot_read_images() -> None:
    """Nor can what it shares with the hospitals."""
    assert _offenders(("server", "common"), IMAGE_READERS) == []


def test_nothing_is_read_that_runs_code() -> None:
    assert _offenders(PACKAGES, CODE_LOADERS) == []
    assert _offenders(PACKAGES, ("torch.load", "torch.save", "numpy.load")) == []
    calls = [
        place(path, node)
        for path in modules(*PACKAGES)
        if str(path.relative_to(ROOT)) not in _OTHERS_FORMATS
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and (
            called(node) in ("torch.load", "torch.save", "eval", "exec")
            or any(keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False" for keyword in node.keywords)
        )
    ]
    assert calls == []


# Whatever shows text makes foreign text safe, and nothing goes round it: what is called or imported -> where alone.
_OUTLETS = {
    ("print", "builtins.print", "typer.echo", "typer.secho", "click.echo", "click.secho", "rich"): (
        "common/console/cli.py",
    ),
    # A program of its own, which needs nothing but cryptography; and pipes between our processes, which carry data.
    ("sys.stdout.write", "sys.stderr.write", "sys.stdout.buffer.write"): (
        "common/audit/verify.py",
        "common/system/life.py",
        "simulations/audit/fresh_process.py",
        "simulations/bench/private_steps.py",
    ),
    ("html.escape", "html.parser"): (),
    ("jinja2", "markupsafe"): ("common/pages/html.py",),
    ("logging.basicConfig", "logging.Formatter"): ("common/console/logs.py",),
}


@pytest.mark.parametrize("names", _OUTLETS, ids=lambda names: names[0])
def test_text_is_shown_through_the_outlets_that_make_it_safe(names: tuple[str, ...]) -> None:
    around = _offenders(PACKAGES, names, exempt=_OUTLETS[names])
    around += [
        f"{place(path, node)} calls {called(node)}"
        for path in modules(*PACKAGES)
        if str(path.relative_to(ROOT)) not in _OUTLETS[names]
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and called(node) in names
    ]
    assert around == []


# What writes to the disk by itself, for files that are no record of ours -> why.
_WRITES_BY_ITSELF = {
    "common/system/files.py": "the one place",
    "common/system/locks.py": "a lock's file, which is never replaced: who waits holds it open",
    "common/system/life.py": "an empty file, of which the time counts",
    "common/audit/reading.py": "a copy for SQLite in a temporary folder",
    "common/system/namespaces.py": "files of the kernel under /proc",
    "common/system/sandbox.py": "a path as a handle, and /dev/null",
    "client/serve/upload.py": "uploads as they come, in a private folder that goes with the server",
    "client/data/isolate/reader.py": "a file of the kernel under /proc",
    "server/archive/forms.py": "what a process prints, appended by the kernel, and a folder that goes with it",
    "client/agent/worker_process.py": "what the worker prints, appended by the kernel and begun anew when it is long",
    "server/coordinator/supervisor.py": "what processes print, appended by the kernel and begun anew when it is long",
    "simulations/audit/apart.py": "images and a key of a simulated site in a temporary folder",
    "simulations/bench/many_sites.py": "what processes print, appended by the kernel, in a temporary folder",
    "simulations/bench/peak.py": "a file of the kernel under /proc",
    "simulations/bench/scaling.py": "what a run prints, appended by the kernel, in a temporary folder",
    "simulations/exchange/outside.py": "a program without any of ours, in a temporary folder",
    "simulations/exchange/pickled.py": "the pipe to whoever asked",
}
_WRITING_MODES = re.compile(r"[rb]*[wax+]")


def _writes(source: ast.Module) -> Iterator[ast.Call]:
    """Calls that make, fill, rename or copy a file."""
    for node in ast.walk(source):
        if not isinstance(node, ast.Call):
            continue
        name = called(node).rpartition(".")[2]
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
                and not (name == "copy" and called(node) != "shutil.copy")
                and not (name == "truncate" and called(node) != "os.truncate")
            )
            or called(node) in ("os.replace", "os.link", "os.fsync")
            or (name == "open" and modes)
            or flags & {"O_WRONLY", "O_RDWR", "O_CREAT", "O_PATH"}
            or is_rename
        ):
            yield node


def test_files_are_written_in_one_place_whole_and_flushed_to_the_disk() -> None:
    around = {
        str(path.relative_to(ROOT)): [place(path, node) for node in calls]
        for path in modules(*PACKAGES)
        if (calls := list(_writes(tree(path))))
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
    room = tuple(str(path.relative_to(ROOT)) for path in modules("common") if path.parent.name == "crypto")
    assert _offenders(PACKAGES, ciphers, exempt=(*room, "common/privacy/noise.py")) == []


def test_what_flower_is_told_by_its_environment_stands_in_one_place() -> None:
    """Its adapter adds what only the SuperLink reads."""
    said = [
        f"{path.relative_to(ROOT)} {node.value}"
        for path in modules(*PACKAGES)
        if path != ROOT / "common" / "system" / "environment.py" and path.parent != ROOT / "common" / "flower"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch("FLWR_[A-Z_]+", node.value)
    ]
    assert said == []


def test_toml_is_written_in_one_place() -> None:
    assert _offenders(PACKAGES, ("tomlkit", "tomli_w", "toml"), exempt=("common/document/tomlfile.py",)) == []


def test_locks_are_taken_in_one_place() -> None:
    users = _offenders(PACKAGES, ("fcntl.flock", "fcntl.lockf", "filelock"))
    users += [
        place(path, node)
        for path in modules(*PACKAGES)
        if path != ROOT / "common" / "system" / "locks.py"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and called(node) in ("fcntl.flock", "fcntl.lockf", "os.lockf")
    ]
    assert users == []


@pytest.mark.parametrize("module", ["client.agent.loop", "client.rules.exit_gate", "client.rules.policy"])
def test_process_with_the_door_holds_neither_torch_nor_images(module: str) -> None:
    """The agent keeps the keys and the channel; a flaw in an image or tensor library must not reach them."""
    heavy = ("torch", "monai", "opacus", *IMAGE_READERS)
    code = f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


@pytest.mark.parametrize(
    "modules",
    [
        "server.gateway.services",
        "server.gateway.enrolment",
        "server.commands.main",
        "client.commands.main",
        "simulations.commands.main",
        "simulations.scenarios.scenario",
        "client.commands.data, client.data.check.checkup, client.data.check.report",
        "client.data.isolate.reader, client.data.isolate.answering",
    ],
)
def test_long_lived_and_interactive_processes_start_without_torch(modules: str) -> None:
    """torch costs seconds and hundreds of MB; --help, an idle gateway and a look at the data need none of it."""
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "False"


def _at_import(body: list[ast.stmt]) -> Iterator[ast.expr]:
    """All that runs when a module is imported: what stands in no function."""
    left: list[ast.AST] = list(body)
    while left:
        node = left.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            left += ast.iter_child_nodes(node)
            if isinstance(node, ast.expr):
                yield node


def _changes_the_environment(node: ast.expr) -> bool:
    changing = ("setdefault", "update", "pop", "popitem", "clear", "putenv", "unsetenv")
    if isinstance(node, ast.Call):
        return called(node).startswith("os.") and called(node).endswith(changing)
    stored = isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load)
    return stored and ast.unparse(node).startswith("os.environ")


def test_importing_a_module_changes_no_environment() -> None:
    """What a process needs is set where it starts."""
    changes = [
        place(path, node)
        for path in modules(*PACKAGES)
        for node in _at_import(tree(path).body)
        if isinstance(node, ast.expr) and _changes_the_environment(node)
    ]
    assert changes == []


@pytest.mark.parametrize("code", ["os.environ.setdefault('a', 'b')", "os.environ['a'] = 'b'", "del os.environ['a']"])
def test_every_way_to_change_the_environment_is_seen(code: str) -> None:
    assert any(map(_changes_the_environment, _at_import(ast.parse(code).body)))
    assert not any(map(_changes_the_environment, _at_import(ast.parse(f"def start():\n    {code}").body)))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_owns_our_package_names(package: str) -> None:
    """Literal names are common names: in a shared environment another `common` could stand in for ours."""
    owners = importlib.metadata.packages_distributions().get(package, [])
    assert set(owners) <= {"wardround"}
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin == str(ROOT / package / "__init__.py")


def test_no_file_but_its_own_says_the_name_of_a_network_strategy_or_headline_score() -> None:
    """They are known by their tables alone: a new one is a file and a line."""
    tables = ("common/losses", "common/measures", "common/models", "common/tasks", "common/strategies")
    halves = ("client/train/strategies", "server/federation/strategies")
    headlines = {task.SCORES[0] for task in TASKS}
    names = {*NETWORK_CHOICE.by_name, *STRATEGY_CHOICE.by_name, *headlines}
    said = [
        f"{place(path, node)} says {node.value!r}"
        for path in modules(*PACKAGES)
        if str(path.parent.relative_to(ROOT)) not in (*tables, *halves)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and (node.value in names or node.value.startswith(tuple(f"{headline}-" for headline in headlines)))
    ]
    assert said == []
