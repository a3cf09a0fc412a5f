"""The cache gives back exactly what was put in, or nothing; it tells nobody whose it is, and never stops the work."""

import ast
import errno
import importlib.metadata
import logging
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import client.data
from client.data.isolate.isolation import Job
from client.data.keep import code
from client.data.keep.cache import Cache, Prepared
from client.data.keep.catalogue import Catalogue
from client.data.keep.code import code_digest, reading_program
from client.data.keep.vault import Vault
from client.data.prepare import changes_of
from client.data.study.labels import Vocabulary
from client.data.study.study import Reference
from common.config import RunConfig
from common.errors import DataError, ErrorCode
from common.preparation import STEPS
from tests.client.data.studies import KEY, photo_run

RUN = photo_run(rows=16)
DIGEST = "d1"
HEADER = 56  # as the vault's docstring says


def study(folder: Path, name: str = "SECRET1", **values: Any) -> Job:
    """A study of two files; only their names, sizes and times count here."""
    paths = tuple(folder / f"{name}-{part}.png" for part in ("image", "label"))
    for path in paths:
        if not path.exists():
            path.write_bytes(b"pixels of " + name.encode())
    return Job(Reference("images", name, name, paths[:1], paths[1:], **values), Vocabulary())


def tensors(seed: int = 0, slices: int = 26, rows: int = 151, columns: int = 193) -> tuple[Tensor, Tensor]:
    """3.6 chunks of odd size, with every kind of float but NaN."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn((slices, 1, rows, columns), generator=generator)
    images.view(-1)[:5] = torch.tensor([0.0, -0.0, torch.inf, 1e-42, 3.4e38])
    return images, torch.randint(0, 3, (slices, rows, columns), generator=generator, dtype=torch.uint8)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def keep(cache: Cache, one: Job, content: tuple[Tensor, Tensor]) -> Path:
    """Write an entry; returns its file."""
    entry = cache.entry(one)
    assert entry is not None
    cache.write(entry, Prepared(*content, DIGEST))
    return entry.path


def look(cache: Cache, one: Job) -> tuple[Tensor, Tensor] | None:
    entry = cache.entry(one)
    assert entry is not None
    found = cache.read(entry)
    if found is None:
        return None
    assert found.digest == DIGEST
    return found.images, found.labels


def is_hit(found: tuple[Tensor, Tensor] | None, expected: tuple[Tensor, Tensor]) -> bool:
    if found is None:
        return False
    return all(
        a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        for a, b in zip(found, expected, strict=True)
    )


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "home" / "cache", KEY, RUN)


@pytest.mark.parametrize("slices", [1, 26])
def test_what_is_read_is_what_was_written_bit_for_bit(cache: Cache, tmp_path: Path, slices: int) -> None:
    one, content = study(tmp_path), tensors(slices=slices)
    assert look(cache, one) is None
    keep(cache, one, content)
    assert is_hit(look(cache, one), content)


@pytest.mark.parametrize("damage", ["a bit", "no tensors"])
def test_damaged_entry_is_a_miss_with_a_log_line_and_is_healed_by_the_next_write(
    cache: Cache, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    one, content = study(tmp_path), tensors()
    path = keep(cache, one, content)
    if damage == "a bit":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:  # sealed as it should be, by a version that kept something else
        Vault(KEY, "cache").write(path, b'{"images": []}', path.read_bytes()[24:56])
    assert look(cache, one) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "damaged; its content is made again" in caplog.text
    assert "SECRET" not in caplog.text
    keep(cache, one, content)
    assert is_hit(look(cache, one), content)


def test_stamp_cannot_be_changed_to_make_an_old_entry_current(cache: Cache, tmp_path: Path) -> None:
    one = study(tmp_path)
    path = keep(cache, one, tensors())
    one.reference.images[0].write_bytes(b"other pixels")
    entry = cache.entry(one)
    assert entry is not None
    data = path.read_bytes()
    path.write_bytes(data[:24] + entry.stamp + data[HEADER:])
    assert cache.read(entry) is None


def test_other_site_key_opens_nothing(cache: Cache, tmp_path: Path) -> None:
    one = study(tmp_path)
    path = keep(cache, one, tensors())
    other = Cache(tmp_path / "home" / "cache", b"x" * 32, RUN)
    assert look(other, one) is None
    entry, foreign = cache.entry(one), other.entry(one)
    assert entry is not None
    assert foreign is not None
    assert other.read(entry) is None  # even when it knows the name
    assert path.exists()
    assert entry.path.parent.name != foreign.path.parent.name
    assert entry.path.name != foreign.path.name
    assert entry.stamp != foreign.stamp


def _touch(one: Job, _: Path) -> Job:
    os.utime(one.reference.images[0], ns=(1, 1))
    return one


def _grow(one: Job, _: Path) -> Job:
    with one.reference.labels[0].open("ab") as file:
        file.write(b"x")
    return one


def _replace_and_backdate(one: Job, _: Path) -> Job:
    """Same name, same length, same time of modification: only the kernel's own time tells."""
    before = one.reference.images[0].stat()
    one.reference.images[0].write_bytes(b"X" * before.st_size)
    os.utime(one.reference.images[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    return one


def _lose_label(one: Job, _: Path) -> Job:
    return replace(one, reference=replace(one.reference, labels=()))


def _other_map(one: Job, folder: Path) -> Job:
    return study(folder, label_map={"255": "vessel"})


@pytest.mark.parametrize("change", [_touch, _grow, _replace_and_backdate, _lose_label, _other_map])
def test_changed_study_is_a_quiet_miss_and_replaces_the_old_entry(
    cache: Cache, tmp_path: Path, change: Callable[[Job, Path], Job], caplog: pytest.LogCaptureFixture
) -> None:
    one = study(tmp_path)
    old = keep(cache, one, tensors(1))
    changed = change(one, tmp_path)
    assert look(cache, changed) is None
    assert caplog.records == []
    assert keep(cache, changed, tensors(2)) == old
    assert is_hit(look(cache, changed), tensors(2))


def test_study_that_changes_while_it_is_read_is_out_of_date_at_once(cache: Cache, tmp_path: Path) -> None:
    one = study(tmp_path)
    entry = cache.entry(one)
    assert entry is not None
    one.reference.images[0].write_bytes(b"new content, new length")
    cache.write(entry, Prepared(*tensors(), DIGEST))
    assert look(cache, one) is None


@pytest.mark.parametrize(
    "other",
    [
        photo_run(rows=32),
        photo_run(rows=16, intensity="zscore"),
        RUN.model_copy(update={"data": RUN.data.model_copy(update={"classes": ("disc",)})}),
        RUN.model_copy(update={"model": RUN.model.model_copy(update={"dims": 3})}),
    ],
    ids=["rows", "intensity", "classes", "dims"],
)
def test_other_settings_do_not_see_each_others_entries(cache: Cache, tmp_path: Path, other: RunConfig) -> None:
    one, second = study(tmp_path), Cache(tmp_path / "home" / "cache", KEY, other)
    keep(cache, one, tensors(1))
    assert look(second, one) is None
    keep(second, one, tensors(2))
    assert is_hit(look(cache, one), tensors(1))
    assert is_hit(look(second, one), tensors(2))


@pytest.mark.parametrize(
    "other",
    [
        RUN.model_copy(update={"seed": 5}),
        RUN.model_copy(update={"name": "other"}),
        RUN.model_copy(update={"data": RUN.data.model_copy(update={"folds": 5, "fold": 3})}),
    ],
    ids=["seed", "name", "fold"],
)
def test_settings_that_change_no_image_share_entries(cache: Cache, tmp_path: Path, other: RunConfig) -> None:
    one = study(tmp_path)
    keep(cache, one, tensors())
    assert is_hit(look(Cache(tmp_path / "home" / "cache", KEY, other), one), tensors())


def test_other_code_another_library_or_thread_count_starts_anew(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, folder = study(tmp_path), tmp_path / "home" / "cache"
    keep(cache, one, tensors())
    with monkeypatch.context() as patch:
        before = importlib.metadata.version
        patch.setattr(code, "version", lambda name: "99" if name == "pydicom" else before(name))
        assert look(Cache(folder, KEY, RUN), one) is None
    with monkeypatch.context() as patch:
        patch.setattr(code, "code_digest", lambda *_: "other")
        assert look(Cache(folder, KEY, RUN), one) is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert look(Cache(folder, KEY, RUN), one) is None


def test_what_a_check_remembers_is_out_of_date_with_another_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, folder = study(tmp_path), tmp_path / "home" / "catalogue"
    entry = Catalogue(folder, KEY).entry(one)
    assert entry is not None
    Catalogue(folder, KEY).write(entry, DataError("it is empty", ErrorCode.LABEL_EMPTY))
    before = importlib.metadata.version
    for name, known in ((None, True), ("simpleitk", False), ("scipy", False), ("scikit-image", False)):
        with monkeypatch.context() as patch:
            patch.setattr(code, "version", lambda asked, name=name: "99" if asked == name else before(asked))
            catalogue = Catalogue(folder, KEY)
            now = catalogue.entry(one)
            assert now is not None
            assert (catalogue.read(now) is not None) is known, name


def test_every_library_that_a_preparation_step_computes_with_is_counted() -> None:
    """Of their files' own import statements; settings (pydantic) compute nothing."""
    imported = set()
    for path in code.PREPARATION_STEPS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            imported |= {name.partition(".")[0] for name in names}
    imported -= {*sys.stdlib_module_names, "common", "pydantic"}
    assert "SimpleITK" in imported
    known = importlib.metadata.packages_distributions()
    assert {known[name][0].lower() for name in imported} <= {*code._LIBRARIES}


@pytest.mark.parametrize("folder", [".", "prepare", "read/deep"])
def test_code_digest_sees_every_module_of_the_package_and_of_its_folders(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    digests = set()
    for name, text in (("a.py", "x = 1"), ("b.py", "y = 1"), ("b.py", "y = 2"), ("notes.txt", "no code")):
        (tmp_path / folder / name).write_text(text)
        digests.add(code_digest.__wrapped__(tmp_path))
    assert len(digests) == 3
    (tmp_path / folder / "b.py").rename(tmp_path / folder / "c.py")
    digests.add(code_digest.__wrapped__(tmp_path))
    assert len(digests) == 4


def test_code_digest_covers_the_readers_and_every_preparation_step(tmp_path: Path) -> None:
    """Of this program's own code: a change anywhere in it makes what was kept out of date."""
    changes = [Path(sys.modules[type(one).__module__].__file__ or "") for one in changes_of(RUN)]
    steps = [Path(sys.modules[step.__module__].__file__ or "") for step in STEPS]
    reading = Path(client.data.__path__[0])
    covered = {
        code.READING_AND_PREPARING: [reading / "dicom" / "pixels.py", reading / "read" / "nifti.py", *changes],
        code.PREPARATION_STEPS: steps,
    }
    for package, files in covered.items():
        assert code_digest(package) in reading_program()
        own = tmp_path / package.name
        shutil.copytree(package, own, ignore=shutil.ignore_patterns("__pycache__"))
        before = code_digest.__wrapped__(own)
        for path in (own / file.relative_to(package) for file in files):
            text = path.read_text()
            path.write_text(f"{text}\nCHANGED = True\n")
            assert code_digest.__wrapped__(own) != before, path.name
            path.write_text(text)
        assert code_digest.__wrapped__(own) == before


def test_neither_names_nor_content_tell_whose_study_it_is(cache: Cache, tmp_path: Path) -> None:
    one = study(tmp_path)
    images = torch.full((1, 1, 64, 64), 0.25)
    path = keep(cache, one, (images, torch.ones(1, 64, 64, dtype=torch.uint8)))
    told = str(path.relative_to(tmp_path)).encode() + path.read_bytes()
    for secret in (b"SECRET", b"image.png", b"images", b"F32", b"photo", images.numpy().tobytes()[:16], KEY):
        assert secret not in told
    assert (
        np.bincount(np.frombuffer(path.read_bytes()[HEADER:], np.uint8), minlength=256).max() < 200
    )  # of 20,000 / 256


def test_files_are_for_their_owner_only(cache: Cache, tmp_path: Path) -> None:
    path = keep(cache, study(tmp_path), tensors())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700


def test_full_disk_is_said_once_and_leaves_no_debris(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = keep(cache, study(tmp_path, "before"), tensors())

    def full(*_: object) -> Iterator[bytes]:
        yield b"a part"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a path")

    monkeypatch.setattr("client.data.keep.vault.seal", full)
    keep(cache, study(tmp_path, "SECRET1"), tensors())
    monkeypatch.undo()
    keep(cache, study(tmp_path, "SECRET2"), tensors())  # no second try, no second line
    assert len(caplog.records) == 1
    assert "cannot be written (No space left on device). The work goes on without it" in caplog.text
    assert str(tmp_path) not in caplog.text
    assert files(tmp_path / "home") == [kept]


def test_cache_folder_that_cannot_be_made_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file" / "cache", KEY, RUN)
    one = study(tmp_path)
    with caplog.at_level(logging.WARNING):
        keep(cache, one, tensors())
        cache.keep_only([one])
        assert look(cache, one) is None
    assert "cannot be written (Not a directory)" in caplog.text


def test_entry_that_is_a_folder_is_a_miss(cache: Cache, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = study(tmp_path)
    entry = cache.entry(one)
    assert entry is not None
    entry.path.mkdir(parents=True)
    assert look(cache, one) is None
    assert "cannot be read" in caplog.text


def test_study_with_a_known_problem_or_a_lost_file_has_no_entry(cache: Cache, tmp_path: Path) -> None:
    one = study(tmp_path)
    keep(cache, one, tensors())
    assert cache.entry(study(tmp_path, problem=DataError("patient not known"))) is None
    one.reference.labels[0].unlink()
    assert cache.entry(one) is None


def test_studies_that_left_the_site_leave_the_cache_under_all_settings(cache: Cache, tmp_path: Path) -> None:
    stays, goes = study(tmp_path, "stays"), study(tmp_path, "goes")
    second = Cache(tmp_path / "home" / "cache", KEY, photo_run(rows=32))
    kept = {keep(cache, stays, tensors()), keep(second, stays, tensors())}
    gone = {keep(cache, goes, tensors()), keep(second, goes, tensors())}
    (next(iter(kept)).parent / "0123.partial").write_bytes(b"of a process that was killed")
    assert not kept & gone
    cache.keep_only([stays])
    assert set(files(tmp_path / "home")) == kept


def test_settings_used_longest_ago_are_dropped(tmp_path: Path) -> None:
    one, folder = study(tmp_path), tmp_path / "home" / "cache"
    caches = [Cache(folder, KEY, photo_run(rows=rows)) for rows in range(16, 22)]
    for age, cache in zip(range(6, 0, -1), caches, strict=True):
        path = keep(cache, one, tensors(slices=1))
        os.utime(path.parent, ns=(0, 10**18 - age * 10**9))
    caches[0].keep_only([one])  # in use again
    assert [look(cache, one) is not None for cache in caches] == [True, False, False, True, True, True]
