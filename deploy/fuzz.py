"""Throw mutated images at the readers and see that nothing but a study or an error with a code comes back.

    python -m deploy.fuzz [--count 100000] [--first 0] [--seed 1] [--readers 2] [--keep FOLDER]

Every mutation is made from its number alone, so a failure is made again from the number that is printed; its bytes are
kept too. Material: with WARDROUND_DATA the real DICOM files there, always those that come with pydicom, CT phantoms
with DICOM SEG, and small NIfTI, PNG, PGM, CSV and mini-MIAS files. Each goes through `Readers.find`, then
`Readers.read`.

Asked of each: the outcome is a study or a DataError; nothing else is raised; it takes no longer than the limit for a
file; and of this process: it stays below 1 GiB. A reader process that dies is no failure, that is what it is for; they
are counted.
"""

import argparse
import gzip
import io
import json
import os
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom.data
from numpy.random import Generator
from PIL import Image

from client.data.isolate.isolation import FILE_LIMIT_S, Job, Readers, Reading
from client.data.study.labels import Vocabulary
from client.data.study.study import Reference
from common.config import SourceConfig
from common.errors import ConfigError, DataError
from simulations.generators.phantoms import SCANNERS, write_study

BATCH = 250
MOST_RSS = 1 << 30  # bytes, of this process
READER_MEMORY = 1 << 30
_MOST_BYTES = 600_000  # of a file to mutate; larger ones take long to decode and say nothing new
_GRACE_S = 5.0  # beyond the limit: to kill a reader, start another and be heard, on a busy machine

_VRS = (
    b"AE AS AT CS DA DS DT FL FD IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV"
).split()
_ELEMENT = re.compile(rb"(?s)(?:.{4})(?:" + b"|".join(_VRS) + rb")(?:.{2})")
_SIZES = (b"\x28\x00\x10\x00", b"\x28\x00\x11\x00", b"\x28\x00\x08\x00", b"\x28\x00\x02\x00", b"\x28\x00\x00\x01")
_SYNTAXES = (
    *(b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99"),
    *(f"1.2.840.10008.1.2.4.{last}".encode() for last in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)),
    b"1.2.840.10008.1.2.5",
)
_SYNTAX = re.compile(rb"1\.2\.840\.10008\.1\.2(?:\.[0-9.]+)?\0?")


@dataclass(frozen=True)
class Seed:
    """A good file to start from. kind: how it is read. images: of the series that a label belongs to."""

    kind: str
    name: str
    content: bytes = field(repr=False)
    images: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Mutant:
    """A mutated file."""

    number: int
    seed: Seed
    path: Path


@dataclass
class Tally:
    """What came of it."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    deaths: list[int] = field(default_factory=list)  # numbers after which a reader process was gone
    slowest_s: float = 0.0
    slowest: int = -1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 only if nothing failed."""
    parser = argparse.ArgumentParser(prog="python -m deploy.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="mutations")
    parser.add_argument("--first", type=int, default=0, help="number of the first; with --count 1 one is made again")
    parser.add_argument("--seed", type=int, default=1, help="of all mutations")
    parser.add_argument("--readers", type=int, default=2, help="processes that parse")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="folder for inputs that fail")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        numbers = range(options.first, options.first + options.count)
        tally = fuzz(Path(name), numbers, seed=options.seed, readers=options.readers, keep=options.keep)
    rss = _most_resident()
    if rss > MOST_RSS:
        tally.failures.append(f"this process took {rss >> 20} MiB; at most {MOST_RSS >> 20} MiB were expected")
    report = {
        "mutations": options.count,
        "first": options.first,
        "seed": options.seed,
        "outcomes": dict(tally.outcomes.most_common()),
        "reader-deaths": len(tally.deaths),
        "killed-a-reader": tally.deaths,
        "slowest": tally.slowest,
        "slowest-s": round(tally.slowest_s, 3),
        "rss-mib": rss >> 20,
        "seconds": round(time.monotonic() - started),
        "failures": tally.failures,
    }
    print(json.dumps(report, indent=1))
    return 1 if tally.failures else 0


def fuzz(folder: Path, numbers: range, *, seed: int, readers: int, keep: Path) -> Tally:
    """Mutate, read and judge.

    Args:
        folder: empty; for the material and the mutated files.
        numbers: of the mutations.
        seed: of all of them.
        readers: processes.
        keep: receives the inputs that fail.
    """
    seeds = material(folder / "material")
    kinds = sorted({one.kind for one in seeds})
    tally = Tally()
    with Readers(readers, memory=READER_MEMORY) as parsers:
        start = numbers.start
        while start < numbers.stop:
            # DICOM twice as often as all others together; the kind hangs on the number alone.
            turn = start // BATCH
            kind = "dicom" if turn % 3 else kinds[turn // 3 % len(kinds)]
            stop = min((turn + 1) * BATCH, numbers.stop)
            batch = folder / "batch"
            batch.mkdir()
            own = [one for one in seeds if one.kind == kind]
            mutants = [_mutant(batch, own, seed, number) for number in range(start, stop)]
            _judge(parsers, batch, mutants, tally, keep)
            shutil.rmtree(batch)
            if sys.stderr.isatty():
                print(f"\r{stop - numbers.start} of {len(numbers)}", end="", file=sys.stderr)
            start = stop
    return tally


def _most_resident() -> int:
    """The most memory that this process had, in bytes."""
    status = Path("/proc/self/status")  # getrusage counts what the process that started us had
    if status.exists():
        return int(status.read_text(encoding="ascii").split("VmHWM:")[1].split()[0]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def material(folder: Path) -> list[Seed]:
    """Good files of every kind."""
    found = [(path.name, path) for path in sorted(_bundled().glob("*.dcm"))]
    write_study(folder / "ct", scanner=SCANNERS["a"], seed=0, patient=1, slices=3, rows=64)
    found += [(path.name, path) for path in sorted((folder / "ct").rglob("*.dcm"))]
    places = [folder / "ct"]
    if "WARDROUND_DATA" in os.environ:
        places = [
            Path(os.environ["WARDROUND_DATA"]) / name for name in ("dicom_conformance", "dicom_labelled")
        ] + places
        found += [(path.name, path) for place in places[:2] for path in sorted(place.rglob("*")) if path.is_file()]
    seeds = [Seed("dicom", name, path.read_bytes()) for name, path in found if 200 < path.stat().st_size <= _MOST_BYTES]
    with Readers(0) as parsers:
        for place in places:
            for reference in parsers.find(SourceConfig(path=str(place), kind="dicom"), Path("/")).references:
                seeds += [
                    Seed("label", path.name, path.read_bytes(), reference.images)
                    for path in reference.labels
                    if path.stat().st_size <= _MOST_BYTES and len(reference.images) <= 50
                ]
    return seeds + _others(folder)


def mutate(seed: Seed, rng: Generator) -> bytes:
    """Other bytes, by one to four changes."""
    content = bytearray(seed.content)
    packed = seed.name.endswith(".gz") and rng.random() < 0.7  # else the compressed bytes themselves
    if packed:
        content = bytearray(gzip.decompress(content))
    changes = _DICOM_CHANGES if seed.kind in ("dicom", "label") else _CHANGES
    for _ in range(int(rng.integers(1, 5))):
        if content:
            changes[int(rng.integers(len(changes)))](content, rng)
    if seed.name.endswith(".png") and rng.random() < 0.5:
        _mend_png(content)
    return gzip.compress(bytes(content), 1) if packed else bytes(content)


def _judge(parsers: Readers, batch: Path, mutants: Sequence[Mutant], tally: Tally, keep: Path) -> None:
    def fail(mutant: Mutant, why: str) -> None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{mutant.number}-{mutant.seed.name}").write_bytes(mutant.path.read_bytes())
        tally.failures.append(f"{mutant.number} ({mutant.seed.name}): {why}")

    try:
        jobs = list(_jobs(parsers, batch, mutants, tally))
        outcomes = parsers.read([job for _, job in jobs])
        for mutant, _ in jobs:
            before, deaths = time.monotonic(), parsers.deaths
            outcome = next(outcomes)
            taken = time.monotonic() - before
            if parsers.deaths > deaths:
                tally.deaths.append(mutant.number)
            if taken > tally.slowest_s:
                tally.slowest_s, tally.slowest = taken, mutant.number
            if taken > FILE_LIMIT_S + _GRACE_S:
                fail(mutant, f"took {taken:.1f} s")
            if not isinstance(outcome, Reading | DataError):
                fail(mutant, f"came back as {type(outcome).__name__}")
            tally.outcomes["study" if isinstance(outcome, Reading) else f"refused: {outcome.code}"] += 1
    except Exception as error:  # noqa: BLE001 - that nothing is raised is what is being tested
        for mutant in mutants:
            fail(mutant, f"one of this batch: {type(error).__name__}: {error}")


def _jobs(parsers: Readers, batch: Path, mutants: Sequence[Mutant], tally: Tally) -> Iterator[tuple[Mutant, Job]]:
    """Find, and what then has to be read."""
    kind, deaths = mutants[0].seed.kind, parsers.deaths
    if kind in ("dicom", "label"):
        parsers.find(SourceConfig(path=str(batch), kind="dicom"), Path("/"))
        tally.deaths += [mutants[0].number] * (parsers.deaths - deaths)
    for mutant in mutants:
        path = mutant.path
        if kind == "dicom":
            # Each on its own: mutated copies of one file would be a series, or second copies.
            yield mutant, Job(Reference("dicom", "p", path.name, (path,)), None)
        elif kind == "label":
            yield mutant, Job(Reference("dicom", "p", path.name, mutant.seed.images, (path,)), Vocabulary(), True)
        else:
            source = SourceConfig(path=str(batch / str(mutant.number)), csv="table.csv" if kind == "csv" else None)
            try:
                found = parsers.find(source, Path("/"))
            except ConfigError:
                tally.outcomes["refused: no source"] += 1
                continue
            tally.outcomes["nothing found"] += not found.references
            for reference in found.references[:2]:
                yield mutant, Job(reference, Vocabulary(), True)


def _mutant(batch: Path, seeds: Sequence[Seed], seed: int, number: int) -> Mutant:
    """From the number alone."""
    rng = np.random.default_rng([seed, number])
    chosen = _choose(seeds, rng)
    return Mutant(number, chosen, _write(batch, number, chosen, mutate(chosen, rng)))


def _write(batch: Path, number: int, seed: Seed, content: bytes) -> Path:
    """A mutated file where its reader finds it, with what belongs to it."""
    place = batch / str(number)
    good = _picture(24)
    match seed.kind:
        case "nifti" | "picture":
            path = place / "images" / seed.name
            label = place / "labels" / seed.name
            label.parent.mkdir(parents=True)
            label.write_bytes(seed.content)
        case "csv":
            path = place / "table.csv"
            place.mkdir(parents=True)
            for name in ("a.png", "b.png"):
                (place / name).write_bytes(good)
        case "mias":
            path = place / "Info.txt"
            place.mkdir(parents=True)
            (place / "mdb001.pgm").write_bytes(_MIAS_FILM)
        case _:
            path = batch / f"{number}.dcm"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _others(folder: Path) -> list[Seed]:
    """Small files that are no DICOM."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.arange(6 * 9 * 10, dtype=np.int16).reshape(6, 9, 10) % 3
    seeds = []
    for name in ("a.nii", "a.nii.gz"):
        image = nib.Nifti1Image(values, np.diag([1.0, 2.0, 3.0, 1.0]))  # type: ignore[no-untyped-call]  # nibabel
        nib.save(image, folder / name)
        seeds.append(Seed("nifti", name, (folder / name).read_bytes()))
    for name in ("a.png", "a.pgm", "a.tif", "a.jpg", "a.bmp"):
        seeds.append(Seed("picture", name, _picture(40, Path(name).suffix)))
    seeds.append(Seed("csv", "table.csv", b"id,image,mask\np1,a.png,b.png\np2,b.png,a.png\n"))
    rows = b"mdb001 G CIRC B 535 425 197\nmdb002 G NORM\nmdb003 D CALC M 300 200 30\nmdb003 D CALC M 10 20 3\n"
    return [*seeds, Seed("mias", "Info.txt", rows)]


def _picture(edge: int, suffix: str = ".png") -> bytes:
    kinds = {".png": "PNG", ".pgm": "PPM", ".tif": "TIFF", ".jpg": "JPEG", ".bmp": "BMP"}
    buffer = io.BytesIO()
    Image.fromarray((np.arange(edge * edge) % 251).astype(np.uint8).reshape(edge, edge)).save(buffer, kinds[suffix])
    return buffer.getvalue()


def _bundled() -> Path:
    return Path(pydicom.data.__file__).parent / "test_files"


def _choose(seeds: Sequence[Seed], rng: Generator) -> Seed:
    """Small files more often: what is parsed is mostly headers."""
    weights = np.array([1 / (len(one.content) + 20_000) for one in seeds])
    return seeds[int(rng.choice(len(seeds), p=weights / weights.sum()))]


def _place(content: bytearray, rng: Generator, width: int = 1) -> int:
    """A place in the first kilobytes half of the time: that is where the headers are."""
    end = max(1, len(content) - width + 1)
    return int(rng.integers(min(end, 3000) if rng.random() < 0.5 else end))


def _flip_bits(content: bytearray, rng: Generator) -> None:
    for _ in range(int(rng.integers(1, 9))):
        content[_place(content, rng)] ^= 1 << int(rng.integers(8))


def _truncate(content: bytearray, rng: Generator) -> None:
    del content[_place(content, rng) :]


def _insert(content: bytearray, rng: Generator) -> None:
    content[(at := _place(content, rng)) : at] = rng.bytes(int(rng.integers(1, 65)))


def _remove(content: bytearray, rng: Generator) -> None:
    at = _place(content, rng)
    del content[at : at + int(rng.integers(1, 65))]


def _repeat(content: bytearray, rng: Generator) -> None:
    start = _place(content, rng)
    content[(at := _place(content, rng)) : at] = content[start : start + int(rng.integers(1, 2000))]


def _overwrite(content: bytearray, rng: Generator) -> None:
    """With numbers that are at the edge of something."""
    number = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
    chosen = struct.pack("<I", number[int(rng.integers(len(number)))])[: int(rng.choice([1, 2, 4]))]
    content[(at := _place(content, rng, 4)) : at + len(chosen)] = chosen if rng.random() < 0.5 else chosen[::-1]


def _element(content: bytearray, rng: Generator) -> int | None:
    """Where an explicitly typed element begins."""
    found = list(_ELEMENT.finditer(bytes(content[:20_000])))
    return found[int(rng.integers(len(found)))].start() if found else None


def _change_vr(content: bytearray, rng: Generator) -> None:
    if (at := _element(content, rng)) is not None:
        content[at + 4 : at + 6] = _VRS[int(rng.integers(len(_VRS)))]


def _change_length(content: bytearray, rng: Generator) -> None:
    if (at := _element(content, rng)) is not None:
        content[at + 6 : at + 8] = struct.pack("<H", int(rng.choice([0, 1, 2, 7, 255, 4096, 65535])))
        if rng.random() < 0.3:
            content[at + 8 : at + 12] = struct.pack("<I", int(rng.choice([0, 2**16, 2**31, 2**32 - 2, 2**32 - 1])))


def _swap_tags(content: bytearray, rng: Generator) -> None:
    first, second = _element(content, rng), _element(content, rng)
    if first is not None and second is not None:
        one, other = content[first : first + 4], content[second : second + 4]
        content[first : first + 4], content[second : second + 4] = other, one


def _swap_syntax(content: bytearray, rng: Generator) -> None:
    found = _SYNTAX.search(bytes(content[:1000]))
    if found is not None:
        other = _SYNTAXES[int(rng.integers(len(_SYNTAXES)))].ljust(len(found[0]), b"\0")
        content[found.start() : found.end()] = other
        length = struct.pack("<H", len(other))
        content[found.start() - 2 : found.start()] = length


def _huge(content: bytearray, rng: Generator) -> None:
    """Rows, columns, frames, samples or bits of an absurd number."""
    at = content.find(_SIZES[int(rng.integers(len(_SIZES)))])
    if at < 0:
        return
    if content[at + 4 : at + 6] == b"IS":
        length = struct.unpack("<H", content[at + 6 : at + 8])[0]
        content[at + 8 : at + 8 + length] = b"9" * length
    else:
        content[at + 8 : at + 10] = struct.pack("<H", int(rng.choice([0, 1, 8, 3000, 30000, 65535])))


def _mend_png(content: bytearray) -> None:
    """Make the checksums right again, so that the mutation reaches the decoder."""
    at = 8
    while at + 12 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        end = at + 8 + length
        if end + 4 > len(content):
            return
        content[end : end + 4] = struct.pack(">I", zlib.crc32(content[at + 4 : end]))
        at = end + 4


_MIAS_FILM = b"P5\n1024 1024\n255\n" + bytes(np.arange(1 << 20, dtype=np.uint32).astype(np.uint8))

_Change = Callable[[bytearray, Generator], None]
_CHANGES: tuple[_Change, ...] = (_flip_bits, _truncate, _insert, _remove, _repeat, _overwrite)
_DICOM_CHANGES: tuple[_Change, ...] = (
    *_CHANGES,
    *(_change_vr, _change_length, _swap_tags, _swap_syntax, _huge),
)


if __name__ == "__main__":
    sys.exit(main())
