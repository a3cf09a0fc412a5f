"""A hostile coordinator gains nothing by what it puts into a bundle.

A real agent with a real worker, under a policy that approves by itself, meets a coordinator whose certificates and
operator's signatures are all in order: only the bundle is wrong, in more than forty ways. The evidence is taken from
outside: processes as the kernel lists them, files before and after, a marker that any planted code would write.
"""

import contextlib
import hashlib
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import warnings
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest

from client.agent.status import read_status
from client.rules import approvals
from common.config import RunConfig, parse, sha256_of
from common.config.bundle import MAX_BUNDLE_BYTES
from common.config.rundocument import from_toml
from common.errors import ErrorCode
from common.learning.checkpoint import pack
from common.learning.network import build_model
from common.wire import wardround_pb2
from common.wire.messages import Refusal, Reply, TrainReply, TrainRequest
from tests import ROOT
from tests.client.coordinator import FLOWER_RUN, OVERRIDE, Authority
from tests.client.data.studies import ct_slices, save, segmentation
from tests.patience import PATIENCE_S, eventually
from tests.system.ear import Ear

pytestmark = pytest.mark.system

TOML = """
name = "tiny"
model = { channels = [4, 8] }
data = { modality = "CT", classes = ["lesion"] }
preprocessing = { spacing-mm = [6.0, 6.0], intensity = "window", window = [-100, 250] }
training = { local-steps = 1, batch-size = 1, patch-size = [16, 16] }
federation = { rounds = 2 }
"""
HOSTILE_TOML = TOML.replace("tiny", "hostile")
POLICY = "auto-approve = true\nrequire-privacy = false\nmin-patients = 1\nmin-held-out = 1\n"
RUN, HOSTILE = parse(RunConfig, TOML), parse(RunConfig, HOSTILE_TOML)
HONEST = from_toml(TOML).bundle
GROWTH_LIMIT = 1 << 20  # bytes
PLAIN, DEFLATED, BZIP2, LZMA = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA

Members = list[tuple[str | zipfile.ZipInfo, bytes]]


def test_forty_hostile_bundles_are_refused_and_each_refusal_is_logged(scene: "Scene") -> None:
    assert len(scene.logged) >= 40
    unlogged = [name for name, line in scene.logged.items() if "a proposal was ignored" not in line]
    assert unlogged == []


def test_no_round_is_done_for_a_hostile_bundle(scene: "Scene") -> None:
    assert set(scene.replies.values()) == {Refusal("", 0, ErrorCode.NOT_APPROVED)}
    assert len(scene.replies) == len(scene.logged)
    assert scene.answers == []


def test_no_code_of_a_bundle_is_executed(scene: "Scene") -> None:
    assert not scene.marker.exists()
    assert scene.started == set(), "processes of the agent beside its worker"
    assert scene.same_worker


def test_nothing_is_unpacked_and_the_disk_does_not_fill(scene: "Scene") -> None:
    assert scene.stray == set()
    assert scene.growth < GROWTH_LIMIT


def test_agent_goes_on_with_an_honest_run(scene: "Scene") -> None:
    assert isinstance(scene.honest, TrainReply)
    assert scene.state == "connected"
    assert scene.exit_code == 0


def test_approved_run_under_another_bundle_or_with_settings_added_is_refused(scene: "Scene") -> None:
    assert scene.after_approval == {
        # Nothing of these is fetched, so what run the content would have named is not known.
        "another bundle's hash": Refusal("", 0, ErrorCode.NOT_APPROVED),
        "settings added": Refusal("", 0, ErrorCode.WRONG_RUN),
        "a byte altered after the approval": Refusal("", 0, ErrorCode.NOT_APPROVED),
        "the run's hash for the bundle's": Refusal("", 0, ErrorCode.NOT_APPROVED),
    }
    assert scene.kept_bundle == HONEST, "the approved bundle must stay as it was approved"


def test_marker_would_have_been_written(tmp_path: Path) -> None:
    """The code in the corpus works where somebody runs it."""
    (tmp_path / "evil.py").write_bytes(evil(tmp_path / "marker"))
    subprocess.run([sys.executable, "-c", "import evil"], cwd=tmp_path, check=True)
    assert (tmp_path / "marker").exists()


@dataclass
class Scene:
    """What came of a day with a hostile coordinator."""

    marker: Path
    logged: dict[str, str] = field(default_factory=dict)
    replies: dict[str, Reply] = field(default_factory=dict)
    started: set[str] = field(default_factory=set)
    stray: set[str] = field(default_factory=set)
    growth: int = 0
    answers: list[tuple[str, bool]] = field(default_factory=list)
    after_approval: dict[str, Reply] = field(default_factory=dict)
    honest: Reply | None = None
    kept_bundle: bytes = b""
    same_worker: bool = False
    state: str = ""
    exit_code: int | None = None


def evil(marker: Path) -> bytes:
    """Python that says that it was run."""
    return f"open({str(marker)!r}, 'a').write(__name__)\nclass app: pass\n".encode()


def corpus(marker: Path) -> dict[str, bytes]:
    """Bundles, each wrong in one way; named for the log of a failure."""
    honest = from_toml(HOSTILE_TOML).bundle
    members = _members(honest)
    code = evil(marker)
    pth = f"import os; open({str(marker)!r}, 'a').write('pth')\n".encode()

    def plus(name: str | zipfile.ZipInfo, content: bytes = code) -> bytes:
        return _zip([*members, (name, content)])

    def toml(text: str | bytes) -> bytes:
        return _zip([(name, content) for name, content in members if name != "run.toml"] + [("run.toml", _raw(text))])

    def project(old: str, new: str) -> bytes:
        return _zip([(name, data.replace(old.encode(), new.encode())) for name, data in members])

    link = zipfile.ZipInfo("link")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    bits = bytearray(honest)
    bits[honest.index(b"[project]") + 3] ^= 1
    crc = bytearray(honest)
    crc[honest.index(b"PK\x03\x04") + 14] ^= 1
    locked = bytearray(honest)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := honest.find(signature, at + 1)) >= 0:
            locked[at + offset] |= 1
    zeros = b"\0" * (20 << 20)
    inner = _zip([("zeros", zeros)], DEFLATED)
    for _ in range(4):
        inner = _zip([(f"{number}.zip", inner) for number in range(3)], DEFLATED)
    return {
        "extra module": plus("evil.py"),
        "sitecustomize": plus("sitecustomize.py"),
        "usercustomize": plus("usercustomize.py"),
        "path file": plus("evil.pth", pth),
        "client package": plus("client/train/answer.py"),
        "package init": plus("server/__init__.py"),
        "compiled module": plus("evil.pyc"),
        "shared library": plus("evil.so", b"\x7fELF"),
        "pickle": plus("model.pkl", b"cos\nsystem\n(S'true'\ntR."),
        "entry points": plus("evil.dist-info/entry_points.txt", b"[console_scripts]\nwardround-client = evil:app\n"),
        "setup script": plus("setup.py"),
        "conftest": plus("conftest.py"),
        "upwards": plus("../../evil.py"),
        "upwards, deep": plus("a/../../../evil.py"),
        "absolute": plus("/tmp/evil.py"),  # noqa: S108 - a name within an archive
        "absolute, to the marker": plus(str(marker)),
        "backslashes": plus("..\\..\\evil.py"),
        "drive": plus("C:\\evil.py"),
        "symbolic link": plus(link, b"/etc/passwd"),
        "device name": plus("CON"),
        "nul in a name": plus("evil.py\0.toml"),
        "bomb": plus("zeros", zeros[: 1 << 15]),
        "bomb, deflated": _zip([*members, ("zeros", zeros)], DEFLATED),
        "bomb, nested": _zip([*members, ("inner.zip", inner[:60000])]),
        "bomb in the run": _zip([("run.toml", HOSTILE_TOML.encode() + b"#" * (20 << 20))], DEFLATED),
        "ten gigabytes announced": _announcing(honest),
        "two tables of contents": honest + _zip([("run.toml", HOSTILE_TOML.encode()), ("evil.py", code)]),
        "table of contents twice": honest + honest[honest.index(b"PK\x01\x02") :],
        "data before": code + honest,
        "executable before": b"#!/bin/sh\ntrue\n" + honest,
        "data after": honest + code,
        "comment": honest[:-2] + struct.pack("<H", len(code)) + code,
        "wrong checksum": bytes(crc),
        "altered byte": bytes(bits),
        "member twice": plus("run.toml", HOSTILE_TOML.encode()),
        "member twice, the first another": _zip([("run.toml", TOML.encode()), *members]),
        "encrypted": bytes(locked),
        "deflated": _zip(members, DEFLATED),
        "bzip2": _zip(members, BZIP2),
        "lzma": _zip(members, LZMA),
        "other order": _zip(members[::-1]),
        "manifest missing": _zip(members[:2]),
        "run missing": _zip([one for one in members if one[0] != "run.toml"]),
        "project missing": _zip([one for one in members if one[0] != "pyproject.toml"]),
        "huge document": toml(HOSTILE_TOML + "#" * MAX_BUNDLE_BYTES),
        "deeply nested list": toml(HOSTILE_TOML + "x = " + "[" * 20_000),
        "deeply nested tables": toml("[" + ".".join("a" * 20_000) + "]"),
        "deeply nested braces": toml(HOSTILE_TOML + "x = " + "{a=" * 15_000),
        "unknown key": toml(HOSTILE_TOML + 'hook = "evil:app"\n'),
        "unknown table": toml(HOSTILE_TOML + "[tool.flwr.app.components]\nclientapp = 'evil:app'\n"),
        "number of 20,000 digits": toml(HOSTILE_TOML.replace("rounds = 2", "rounds = " + "9" * 20_000)),
        "not a number": toml(HOSTILE_TOML.replace("250]", "nan]")),
        "infinite": toml(HOSTILE_TOML.replace("250]", "inf]")),
        "infinite rounds": toml(HOSTILE_TOML.replace("rounds = 2", "rounds = inf")),
        "nul": toml(HOSTILE_TOML.replace("hostile", "hos\0tile")),
        "nul, escaped": toml(HOSTILE_TOML.replace("hostile", "hos\\u0000tile")),
        "half a surrogate": toml(HOSTILE_TOML.replace("hostile", "\\ud800")),
        "half a surrogate, raw": toml(HOSTILE_TOML.encode().replace(b"hostile", b"\xed\xa0\x80")),
        "not UTF-8": toml(HOSTILE_TOML.encode().replace(b"hostile", b"\xff\xfe")),
        "byte order mark": toml(b"\xef\xbb\xbf" + HOSTILE_TOML.encode()),
        "path for a name": toml(HOSTILE_TOML.replace("hostile", "../../evil")),
        "terminal codes for a name": toml(HOSTILE_TOML.replace("hostile", "\\u001b[2J")),
        "documents disagree": _zip([(n, d.replace(b"rounds = 2", b"rounds = 1")) for n, d in members]),
        "other client app": project("client.app:app", "evil.mod:app"),
        "other server app": project("server.app:app", "evil.mod:app"),
        "dependencies": project("[tool.flwr.app]", 'dependencies = ["evil"]\n[tool.flwr.app]'),
        "scripts": project("[tool.flwr.app]", '[project.scripts]\nevil = "evil:app"\n[tool.flwr.app]'),
        "build backend": project("[project]", '[build-system]\nbuild-backend = "evil"\n[project]'),
        "other publisher": project('"wardround"', '"somebody"'),
        "a byte too many": honest + b"\0" * (MAX_BUNDLE_BYTES + 1 - len(honest)),
        "honest bundle of another run": HONEST,
        "empty": b"",
        "text": b"import os\n",
        "half": honest[: len(honest) // 2],
        "gzip": zlib.compress(honest),
        "only an end": b"PK\x05\x06" + bytes(18),
    }


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("federation")
    (folder / "tmp").mkdir()
    _write_patients(folder / "pacs", np.random.default_rng(1))
    authority = Authority()
    coordinator = Ear(authority, _free_port()).start()
    home = folder / "north"
    authority.admit(home, "north", coordinator.address)
    (home / "site.toml").write_text('name = "north"\nthreads = 1\n[[data]]\npath = "../pacs"\n')
    (home / "policy.toml").write_text(POLICY)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    agent = subprocess.Popen(
        [sys.executable, "-m", "client.commands.main", "start", "--home", str(home)],
        env=environment,
        cwd=folder / "tmp",
        stderr=subprocess.DEVNULL,  # the same as in agent.log
    )
    one = Scene(folder / "marker")
    try:
        _meet(one, coordinator, authority, home, agent.pid)
        agent.send_signal(signal.SIGTERM)
        one.exit_code = agent.wait(timeout=PATIENCE_S)
    finally:
        agent.kill()
        agent.wait()
        coordinator.stop()
    return one


def _meet(one: Scene, coordinator: Ear, authority: Authority, home: Path, agent: int) -> None:
    folder = home.parent
    eventually(lambda: read_status(home).get("network") == "removed" or "not" in read_status(home).get("network", ""))
    eventually(lambda: read_status(home).get("worker"))
    worker = read_status(home)["worker"]
    before, size = _files(folder), _bytes(folder)
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(agent, {worker}, one.started, stop))
    watcher.start()
    for name, bundle in corpus(one.marker).items():
        one.logged[name], one.replies[name] = _try(coordinator, authority, home, bundle)
    stop.set()
    watcher.join()
    one.stray, one.growth = _files(folder) - before, _bytes(folder) - size
    one.same_worker = read_status(home)["worker"] == worker
    while not coordinator.answers.empty():
        one.answers.append(coordinator.answers.get())
    _approve_and_deceive(one, coordinator, authority, home)
    one.state = read_status(home)["state"]


def _try(coordinator: Ear, authority: Authority, home: Path, bundle: bytes) -> tuple[str, Reply]:
    """Propose a bundle as the hostile run, then ask for work as if it were approved; what the log said."""
    log = home / "logs" / "agent.log"
    start = log.stat().st_size
    run_hash, digest = sha256_of(HOSTILE), hashlib.sha256(bundle).hexdigest()
    coordinator.run.fab_hash = digest
    coordinator.offer(_proposal(authority, run_hash, bundle))
    eventually(lambda: b"propos" in log.read_bytes()[start:])
    line = log.read_bytes()[start:].decode()
    coordinator.ask_in(TrainRequest(run_hash, 1, {"weights": b"no model"}))
    return line, coordinator.replies.get(timeout=PATIENCE_S)


def _approve_and_deceive(one: Scene, coordinator: Ear, authority: Authority, home: Path) -> None:
    """An honest run is approved by the policy; then what Flower is said to run is another thing."""
    run_hash, weights = sha256_of(RUN), pack(build_model(RUN).state_dict())
    coordinator.offer(_proposal(authority, run_hash, HONEST))
    assert coordinator.answers.get(timeout=PATIENCE_S) == (run_hash, True)
    altered = HONEST.replace(b"rounds = 2", b"rounds = 3")
    digests = {
        "another bundle's hash": hashlib.sha256(from_toml(HOSTILE_TOML).bundle).hexdigest(),
        "a byte altered after the approval": hashlib.sha256(altered).hexdigest(),
        "the run's hash for the bundle's": sha256_of(RUN),
        "settings added": hashlib.sha256(HONEST).hexdigest(),
    }
    for number, (name, digest) in enumerate(digests.items()):
        coordinator.run.fab_hash = digest
        if name == "settings added":
            coordinator.run.override_config["run"].CopyFrom(OVERRIDE)
        coordinator.offer(_proposal(authority, run_hash, altered))
        coordinator.ask_in(TrainRequest(run_hash, 1, {"weights": weights}), FLOWER_RUN + 1 + number)
        one.after_approval[name] = coordinator.replies.get(timeout=PATIENCE_S)
    coordinator.run.ClearField("override_config")
    coordinator.run.fab_hash = hashlib.sha256(HONEST).hexdigest()
    coordinator.ask_in(TrainRequest(run_hash, 1, {"weights": weights}))
    one.honest = coordinator.replies.get(timeout=PATIENCE_S)
    one.kept_bundle = (home / "proposals" / run_hash / "bundle.fab").read_bytes()
    assert approvals.load(home, run_hash).bundle_sha256 == coordinator.run.fab_hash


def _proposal(authority: Authority, run_hash: str, bundle: bytes) -> wardround_pb2.Proposal:
    digest = hashlib.sha256(bundle).hexdigest()
    return wardround_pb2.Proposal(
        run_hash=run_hash,
        bundle=bundle,
        bundle_sha256=digest,
        open=True,
        endorsements=[authority.endorse(run_hash, digest)],
    )


def _watch(agent: int, known: set[int], started: set[str], stop: threading.Event) -> None:
    """Note each process of the agent that is not its worker."""
    while not stop.wait(0.005):
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(agent).children(recursive=True):
                if child.pid not in known:
                    started.add(" ".join(child.cmdline()))


def _members(bundle: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def _zip(members: Members, compression: int = PLAIN) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a member twice
        for name, data in members:
            if isinstance(name, str):
                member = zipfile.ZipInfo("placeholder", date_time=(1980, 1, 1, 0, 0, 0))
                member.filename, member.create_system = name, 3
                member.compress_type = compression
            else:
                member = name
            archive.writestr(member, data)
    return buffer.getvalue()


def _announcing(bundle: bytes) -> bytes:
    """The same archive whose run.toml claims to be ten gigabytes (ZIP64, APPNOTE 4.5.3)."""
    extra = struct.pack("<HHQ", 1, 8, 10 << 30)
    at = bundle.index(b"PK\x01\x02", bundle.index(b"PK\x01\x02") + 1)
    (name_length,) = struct.unpack_from("<H", bundle, at + 28)
    changed = bytearray(bundle)
    struct.pack_into("<L", changed, at + 24, 0xFFFFFFFF)
    struct.pack_into("<H", changed, at + 30, len(extra))
    end = changed.index(b"PK\x05\x06")
    struct.pack_into("<L", changed, end + 12, struct.unpack_from("<L", changed, end + 12)[0] + len(extra))
    where = at + 46 + name_length
    return bytes(changed[:where]) + extra + bytes(changed[where:])


def _raw(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _write_patients(folder: Path, rng: np.random.Generator) -> None:
    """Four CT series with their labels."""
    for number in range(4):
        slices = ct_slices(rng.integers(900, 1200, (3, 40, 44)), patient=f"P{number}", spacing_mm=(3.0, 6.0, 6.0))
        mask = np.zeros((3, 40, 44), bool)
        mask[1:, 10:25, 12:30] = True
        save(folder / str(number), slices)
        save(folder / str(number), [segmentation(slices, {"lesion": mask})], "label{}.dcm")


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
