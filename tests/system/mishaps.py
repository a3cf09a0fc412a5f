"""What can go wrong at a hospital, one function each, with `disguises.TEXT` in its way.

A mishap changes the hospital and asks the coordinator's double for work; what it changed is put back by `kept`. These
are met by the real worker; for those within the programs see `breakages`.
"""

import itertools
import json
import os
import resource
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from safetensors.numpy import load, save

from client.agent.worker_process import Worker
from client.worker.protocol import Describe, PipeError
from common.config import RunConfig, sha256_of
from common.config.rundocument import issue
from common.wire.messages import EvaluateRequest, TrainRequest
from tests.patience import PATIENCE_S, eventually
from tests.system.disguises import IDENTIFIERS, TEXT
from tests.system.patients import first_file

Kind = Literal["real", "scripted", "inline", "agent"]
Ask = Callable[..., None]


@dataclass
class Hospital:
    """The site under test: `ask` sends a request and waits for the reply."""

    folder: Path
    home: Path
    plain: RunConfig
    private: RunConfig
    greedy: RunConfig  # spends the budget in its only round
    worker: Worker
    frames: dict[str, bytes]  # what an honest worker says
    weights: bytes
    run_hash: str
    ask: Ask
    patch: pytest.MonkeyPatch = field(repr=False)
    round: int = 0  # a round is done once

    def write(self, name: str, text: str) -> None:
        """Write a file of the home."""
        (self.home / name).write_text(text)

    def say(self, part: str, words: bytes) -> None:
        """What the scripted worker says."""
        (self.folder / "said" / part).write_bytes(words)

    def train(self, **changes: Any) -> None:
        """Ask for a round of training that was not done before."""
        self.round += 1
        self.ask(replace(TrainRequest(self.run_hash, self.round, {"weights": self.weights}), **changes))


@dataclass(frozen=True)
class Mishap:
    """One way to go wrong."""

    name: str
    kind: Kind
    happen: Callable[[Hospital], None]
    done: bool = False  # whether the round may succeed nevertheless


@contextmanager
def kept(site: Hospital) -> Iterator[None]:
    """Put back the hospital's files after a mishap."""
    spare = site.folder.parent / "spare"
    names = ("pacs", "nifti", "photos", "said")
    if not spare.exists():
        spare.mkdir()
        for name in names:
            shutil.copytree(site.folder / name, spare / name)
        for name in ("site.toml", "policy.toml"):
            shutil.copy2(site.home / name, spare / name)
    try:
        yield
    finally:
        site.patch.undo()
        for name in itertools.chain(names, (IDENTIFIERS["folder"],)):
            shutil.rmtree(site.folder / name, ignore_errors=True)
        for name in names:
            shutil.copytree(spare / name, site.folder / name)
        for path in (site.home / "state" / "splits.sealed", site.home / "state" / "ledger.sqlite", site.home / "cache"):
            if path.is_file():
                path.unlink()
        shutil.rmtree(site.home / "state" / "evaluations", ignore_errors=True)
        for name in ("site.toml", "policy.toml"):
            (site.home / name).write_bytes((spare / name).read_bytes())


def at_the_site() -> list[Mishap]:
    """Files, settings, requests and the worker's end, met by the real worker; the worker is ended last."""
    return [*_honest(), *_files(), *_settings(), *_requests(), *_deaths()]


def _honest() -> Iterator[Mishap]:
    def evaluate(site: Hospital) -> None:
        site.ask(EvaluateRequest(site.run_hash, 1, "validation", {"weights": site.weights}))

    yield Mishap("a round of training", "real", lambda site: site.train(), done=True)
    yield Mishap("an evaluation", "real", evaluate, done=True)


def _files() -> Iterator[Mishap]:
    """Images, labels and tables that cannot be read."""

    def bytes_of(change: Callable[[bytes], bytes], pattern: str = "*.dcm") -> Callable[[Hospital], None]:
        def happen(site: Hospital) -> None:
            for path in (site.folder / "pacs").rglob(pattern):
                path.write_bytes(change(path.read_bytes()))
            site.train()

        return happen

    def no_file(site: Hospital) -> None:
        shutil.rmtree(first_file(site.folder).parent)
        site.train()

    def loop(site: Hospital) -> None:
        path = first_file(site.folder)
        path.unlink()
        path.symlink_to(path)
        site.train()

    def closed(site: Hospital) -> None:
        path = first_file(site.folder)
        path.chmod(0)
        path.with_name("pipe-" + path.name).mkdir()
        site.train()

    def gone(site: Hospital) -> None:
        (site.folder / "pacs").rename(site.folder / IDENTIFIERS["folder"])
        site.train()

    def strange_name(site: Hospital) -> None:
        path = first_file(site.folder)
        path.rename(path.with_name(os.fsdecode(b"\xff\xfe" + IDENTIFIERS["file"].encode())))
        site.train()

    def noise(old: bytes) -> bytes:
        return old[:132] + (TEXT * 9).encode()

    def without_pixels(old: bytes) -> bytes:
        return old.rpartition(b"\xe0\x7f\x10\x00")[0] or old  # a structure set has none

    text = IDENTIFIERS["exception"].encode()
    for name, change in {
        "every file is cut": lambda old: old[:-400],
        "noise with names in it": noise,
        "pixels are missing": without_pixels,
        "the header is text": lambda _old: text * 40,
        "empty files": lambda _old: b"",
        "a wrong type of value": lambda old: old.replace(b"DS", b"UL", 3),
        "a name for a number": lambda old: old.replace(b"\\6.0", b"\\" + text[:3]),
        "an unknown syntax": lambda old: old.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.99999.7.77\0\0"),
        "a character set of its own": lambda old: old.replace(b"ISO_IR 192", b"ANNA^LENA "),
        "slices of other sizes": lambda old: old.replace(
            b"\x28\x00\x10\x00US\x02\x00\x18", b"\x28\x00\x10\x00US\x02\x00\x19"
        ),
    }.items():
        yield Mishap(name, "real", bytes_of(change), done=True)
    yield Mishap("a label with an unknown name", "real", bytes_of(_relabel, "label-*.dcm"), done=True)
    yield Mishap("a patient's folder is gone", "real", no_file, done=True)
    yield Mishap("a link to itself", "real", loop, done=True)
    yield Mishap("a file nobody may read, and a folder with its name", "real", closed, done=True)
    yield Mishap("all images are gone", "real", gone)
    yield Mishap("a file name in no encoding", "real", strange_name, done=True)
    yield Mishap("a table that is none", "real", _table(b"\x00\xff" + TEXT.encode()), done=True)
    yield Mishap("a table that names other columns", "real", _table(TEXT.encode()), done=True)
    yield Mishap("volumes that are cut", "real", _volumes(), done=True)


def _relabel(old: bytes) -> bytes:
    for name in ("segment label", "structure name"):
        planted = IDENTIFIERS[name].encode()
        old = old.replace(planted, planted[::-1])
    return old


def _table(content: bytes) -> Callable[[Hospital], None]:
    def happen(site: Hospital) -> None:
        (site.folder / "photos" / "table.csv").write_bytes(content)
        site.train()

    return happen


def _volumes() -> Callable[[Hospital], None]:
    def happen(site: Hospital) -> None:
        for path in (site.folder / "nifti").rglob("*.nii"):
            path.write_bytes(path.read_bytes()[:300] + TEXT.encode())
        site.train()

    return happen


def _settings() -> Iterator[Mishap]:
    """site.toml, policy.toml, and what the site keeps."""

    def written(name: str, text: str) -> Callable[[Hospital], None]:
        def happen(site: Hospital) -> None:
            site.write(name, text)
            site.train()

        return happen

    def cache(site: Hospital) -> None:
        for path in (site.home / "cache").rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[:-20] + TEXT[:20].encode())
        site.train()

    def folder_for_cache(site: Hospital) -> None:
        shutil.rmtree(site.home / "cache")
        site.write("cache", TEXT)
        site.train()

    def future(site: Hospital) -> None:
        for path in [*(site.folder / "pacs").rglob("*.dcm"), site.home / "site.toml"]:
            os.utime(path, (4_102_444_800, 4_102_444_800))
        site.train()

    def budget(site: Hospital) -> None:
        site.write("policy.toml", f"# {TEXT}\nmin-patients = 1\nlifetime-epsilon = 8.0\n")
        site.ask(TrainRequest(sha256_of(site.greedy), 1, {"weights": site.weights}))
        site.train(run_hash=sha256_of(site.private))

    def ledger(content: bytes) -> Callable[[Hospital], None]:
        def happen(site: Hospital) -> None:
            (site.home / "state" / "ledger.sqlite").write_bytes(content)
            site.train(run_hash=sha256_of(site.private))

        return happen

    def locked(site: Hospital) -> None:
        site.patch.setattr("common.system.database._LOCK_TIMEOUT_S", 0.1)
        with sqlite3.connect(site.home / "state" / "ledger.sqlite") as database:
            database.execute("BEGIN EXCLUSIVE")
            site.train(run_hash=sha256_of(site.private))
            database.rollback()

    quoted = json.dumps(TEXT)
    policy = "require-privacy = false\n"
    data = '[[data]]\npath = "../pacs"\n'
    for name, text in {
        "no TOML": f"name = {TEXT}",
        "an unknown key": f'name = "north"\n{quoted} = 1\n',
        "a name for a number": f'name = "north"\nthreads = {quoted}\n',
        "another folder": f'name = "north"\nthreads = 1\n[[data]]\npath = {quoted}\n',
        "a label map": f'name = "north"\nthreads = 1\n{data}label-map = {{ {quoted} = "lesion" }}\n',
        "a pattern that is none": f'name = "north"\nthreads = 1\n{data}patient-pattern = {json.dumps("(" + TEXT)}\n',
    }.items():
        yield Mishap(
            f"site.toml with {name}", "real", written("site.toml", text), done=name == "a pattern that is none"
        )
    for name, text in {
        "no TOML": f"{TEXT}",
        "an unknown key": f"{quoted} = true\n",
        "a name for hours": f"hours = {quoted}\n",
        "too many patients wanted": f"{policy}min-patients = 1000 # {TEXT}\n",
        "privacy required": f"min-patients = 1 # {TEXT}\n",
        "other networks": f"{policy}min-patients = 1\narchitectures = [{quoted}]\n",
    }.items():
        yield Mishap(f"policy.toml with {name}", "real", written("policy.toml", text))
    yield Mishap("splits that are text", "real", written("state/splits.sealed", TEXT))
    yield Mishap("splits that were altered", "real", written("state/splits.sealed", f"WRTABLE1{TEXT}"))
    yield Mishap("a cache that was altered", "real", cache, done=True)
    yield Mishap("a file where the cache should be", "real", folder_for_cache, done=True)
    yield Mishap("files from the future", "real", future, done=True)
    yield Mishap("a private round", "real", lambda site: site.train(run_hash=sha256_of(site.private)), done=True)
    yield Mishap("a budget that is spent", "real", budget, done=True)
    yield Mishap("a ledger that is text", "real", ledger((TEXT * 9).encode()))
    yield Mishap("a ledger whose pages are damaged", "real", ledger(b"SQLite format 3\0" + (TEXT * 9).encode()))
    yield Mishap("a ledger that is locked", "real", locked)


def _requests() -> Iterator[Mishap]:
    """What a coordinator may ask to find out how a hospital fails."""

    def wider(site: Hospital) -> None:
        rng = np.random.default_rng(0)
        tensors = {
            name: tensor.reshape(1, *tensor.shape) if tensor.ndim == 1 else tensor
            for name, tensor in load(site.weights).items()
        }
        tensors |= {name: rng.random(one.shape, np.float32) for name, one in tensors.items() if one.ndim > 1}
        site.train(parts={"weights": save(tensors)})

    def scaled(factor: float) -> Callable[[Hospital], None]:
        def happen(site: Hospital) -> None:
            site.train(
                parts={"weights": save({name: one * np.float32(factor) for name, one in load(site.weights).items()})}
            )

        return happen

    yield Mishap("a model that does not fit", "real", wider)
    yield Mishap("a model near overflow", "real", scaled(900.0), done=True)
    yield Mishap("a model that is not finite", "real", scaled(float("nan")))
    yield Mishap("a model that is text", "real", lambda site: site.train(parts={"weights": TEXT.encode()}))
    yield Mishap("a round there is not", "real", lambda site: site.train(round=9999))
    yield Mishap("a run nobody proposed", "real", lambda site: site.train(run_hash="ab" * 32))


def _deaths() -> Iterator[Mishap]:
    """The real worker's end."""

    def living(site: Hospital) -> int:
        with suppress(PipeError):  # the one before may have been killed
            site.worker.ask(Describe(issue(site.plain)), PATIENCE_S)
        site.worker.ask(Describe(issue(site.plain)), PATIENCE_S)
        pid = site.worker.pid
        assert pid is not None
        return pid

    def killed(site: Hospital) -> None:
        pid = living(site)
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(1.0, os.kill, (pid, signal.SIGKILL)).start()
        site.train()

    def killed_twice(site: Hospital) -> None:
        first = living(site)

        def kill() -> None:
            os.kill(first, signal.SIGKILL)
            second = eventually(lambda: (pid := site.worker.pid) != first and pid, "the next worker", every_s=0.01)
            os.kill(second, signal.SIGKILL)

        os.kill(first, signal.SIGSTOP)
        thread = threading.Timer(1.0, kill)
        thread.start()
        try:
            site.train()
        finally:
            thread.join()

    def limited(what: int, most: int) -> Callable[[Hospital], None]:
        def happen(site: Hospital) -> None:
            pid = living(site)
            resource.prlimit(pid, what, (most, most))
            shutil.rmtree(site.home / "cache", ignore_errors=True)
            try:
                site.train()
            finally:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        return happen

    yield Mishap("a disk that is full", "real", limited(resource.RLIMIT_FSIZE, 0), done=True)
    yield Mishap("a worker without memory", "real", limited(resource.RLIMIT_AS, 1 << 28))
    yield Mishap("a worker that is killed", "real", killed, done=True)  # it is asked once more
    yield Mishap("a worker that is killed twice", "real", killed_twice)
