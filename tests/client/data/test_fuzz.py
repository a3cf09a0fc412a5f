"""Mutated and malicious files: each is read or refused, and this process stays small. `make fuzz` does 100,000."""

import gzip
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from client.data.isolate.isolation import Job, Readers, Reading
from client.data.study.study import Kind
from common.errors import DataError, ErrorCode
from deploy import fuzz
from tests import ROOT
from tests.client.data.studies import ct_slices
from tests.patience import PATIENCE_S

MEMORY = 1 << 30
LAST_BLOCK = zlib.compressobj(9, zlib.DEFLATED, -15).flush()
# For a process of its own, so that nothing that tests loaded before counts.
MEASURED = """
import json, resource, sys
from pathlib import Path
from client.data.isolate.isolation import Job, Readers, Reading
from client.data.study.study import Reference
kind, path = sys.argv[1], Path(sys.argv[2])
with Readers(1, memory=1 << 30) as readers:
    (outcome,) = readers.read([Job(Reference(kind, "p", "k", (path,)), None)])
print(json.dumps([
    "study" if isinstance(outcome, Reading) else str(outcome.code),
    int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10,
    resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10,
]))
"""


def measured(kind: Kind, path: Path) -> tuple[str, int, int]:
    """Outcome, and the largest resident size in MiB of the parent and of its reader."""
    command = [sys.executable, "-c", MEASURED, kind, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE_S)
    outcome, ours, theirs = json.loads(done.stdout)
    return outcome, ours, theirs


def deflated(data: bytes) -> bytes:
    """Blocks that may be repeated and joined: to pack gigabytes of zeros at a stretch takes 10 s."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH)


def dicom_bomb(path: Path) -> Path:
    """A few MB of deflated DICOM whose pixels are 4 GB of zeros."""
    (ds,) = ct_slices(np.zeros((1, 8, 8), np.uint16))
    del ds.PixelData
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    plain = path.with_name("plain.dcm")
    ds.save_as(plain, enforce_file_format=True)
    # After the meta group: the data set, deflated anew with pixel data whose length is 4 GB.
    raw = plain.read_bytes()
    start = 132 + 12 + struct.unpack("<I", raw[140:144])[0]
    body = zlib.decompress(raw[start:], -15)
    element = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, 0xFFFFFFF0)
    path.write_bytes(raw[:start] + deflated(body + element) + deflated(bytes(1 << 24)) * 256 + LAST_BLOCK)
    return path


def png_bomb(path: Path) -> Path:
    """60,000 x 60,000 pixels of zeros."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    edge = 60_000
    header = struct.pack(">IIBBBBB", edge, edge, 8, 0, 0, 0, 0)
    rows = deflated(bytes((edge + 1) * 100)) * (edge // 100)
    checksum = ((edge + 1) * edge % 65521) << 16 | 1  # Adler-32 of zeros, RFC 1950
    packed = b"\x78\xda" + rows + LAST_BLOCK + struct.pack(">I", checksum)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b""))
    return path


def nifti_bomb(path: Path) -> Path:
    """A volume of 2048 x 2048 x 1024 int16 zeros, 8 GB, packed into 8 MB."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 2048, 2048, 1024, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352)
    header[344:348] = b"n+1\0"
    zeros = gzip.compress(bytes(1 << 26), 9, mtime=0)
    path.write_bytes(gzip.compress(bytes(header), 9, mtime=0) + zeros * 128)  # gzip files may follow each other
    return path


@pytest.mark.parametrize(
    ("kind", "make", "name"),
    [("dicom", dicom_bomb, "a.dcm"), ("images", png_bomb, "a.png"), ("nifti", nifti_bomb, "a.nii.gz")],
    ids=["deflated DICOM", "PNG", "NIfTI"],
)
def test_bomb_is_refused_and_takes_no_memory_of_ours(tmp_path: Path, kind: Kind, make: object, name: str) -> None:
    path = make(tmp_path / name)  # type: ignore[operator]
    assert path.stat().st_size < 16 << 20
    outcome, ours, theirs = measured(kind, path)
    assert outcome in (ErrorCode.OUT_OF_MEMORY, ErrorCode.UNREADABLE)
    assert ours < 400
    assert theirs <= MEMORY >> 20


def test_slice_of_the_mutations_is_read_or_refused(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "deploy.fuzz",
        "--count",
        "450",
        "--readers",
        "1",
        "--keep",
        str(tmp_path / "kept"),
    ]
    report = json.loads(
        subprocess.run([*command, "--first", "150"], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    )
    assert report["failures"] == []
    assert report["rss-mib"] < 1024
    assert report["slowest-s"] < 15
    assert sum(report["outcomes"].values()) >= 450
    assert {"study", "refused: unreadable"} <= report["outcomes"].keys()


def test_mutation_is_the_same_every_time_and_no_two_are_alike(tmp_path: Path) -> None:
    seeds = fuzz.material(tmp_path)
    assert {one.kind for one in seeds} == {"dicom", "label", "nifti", "picture", "csv", "mias"}
    one = max((seed for seed in seeds if seed.kind == "dicom"), key=lambda seed: len(seed.content))
    made = [fuzz.mutate(one, np.random.default_rng([1, number])) for number in (*range(40), *range(40))]
    assert made[:40] == made[40:]
    assert len(set(made)) >= 35
    assert sum(mutated != one.content for mutated in made) > 70


def test_what_fails_is_kept_with_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(self: Readers, jobs: list[Job]) -> list[Reading | DataError]:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(Readers, "read", explode)
    (tmp_path / "work").mkdir()
    tally = fuzz.fuzz(tmp_path / "work", range(300, 303), seed=1, readers=1, keep=tmp_path / "kept")
    assert len(tally.failures) == 3
    assert "ZeroDivisionError" in tally.failures[0]
    assert [path.name.split("-")[0] for path in sorted((tmp_path / "kept").iterdir())] == ["300", "301", "302"]
