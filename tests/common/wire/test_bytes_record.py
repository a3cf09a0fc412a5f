"""A record of plain bytes is Flower's own to the byte, in fewer steps."""

import copy
import hashlib
import pickle

import pytest
from flwr.app import ConfigRecord

from common.wire.bytes_record import BytesRecord, read

# Where a varint, or the number of decimal digits before it, gets longer; with what stands around the bytes.
EDGES = sorted(
    {0, 1, 9, 10} | {edge - around for edge in (100, 128, 1000, 10_000, 16_384, 2_097_152) for around in range(40)}
)


@pytest.mark.parametrize("key", ["bytes", "json", "", "k" * 127, "k" * 128, "\u00e4"])
def test_it_is_written_named_and_read_as_flower_does(key: str) -> None:
    for size in EDGES:
        data = bytes(number % 251 for number in range(min(size, 500))) + bytes(max(0, size - 500))
        mine, theirs = BytesRecord(key, data), ConfigRecord({key: data})
        content = theirs.deflate()
        assert mine.deflate() == content
        assert mine.object_id == theirs.object_id == hashlib.sha256(content).hexdigest()
        assert ConfigRecord.inflate(mine.deflate()) == theirs
        assert mine == theirs
        again = read(content)
        if 0 < len(key) < 30:
            assert again is not None
            assert (dict(again), again.deflate()) == ({key: data}, content)
        else:
            assert again is None or dict(again) == {key: data}


@pytest.mark.parametrize(
    "record",
    [
        ConfigRecord({"bytes": "text"}),
        ConfigRecord({"bytes": [b"more", b"than one"]}),
        ConfigRecord({"bytes": b"", "json": b""}),
        ConfigRecord({"bytes": 1}),
        ConfigRecord({}),
    ],
)
def test_any_other_record_is_left_to_flower(record: ConfigRecord) -> None:
    assert read(record.deflate()) is None
    mine = BytesRecord("bytes", b"x")
    del mine["bytes"]
    for key, value in record.items():
        mine[key] = value
    assert (mine.deflate(), mine.object_id) == (record.deflate(), record.object_id)


def test_what_is_altered_in_front_is_not_read_as_if_it_were_not() -> None:
    """Whatever is read is written again to the same bytes; all else is Flower's to judge."""
    content = BytesRecord("bytes", bytes(range(256))).deflate()
    start = content.index(bytes(range(256)))
    for place in range(start):
        for value in range(256):
            altered = content[:place] + bytes([value]) + content[place + 1 :]
            record = read(altered)
            assert record is None or record.deflate() == altered
    for altered in (content[:-1], content + b"x", content[:start], content[:5], b"", b"\0", content[start:]):
        assert read(altered) is None
    # Lengths that say the same in another way, one byte longer: protobuf reads them, and they hash to another name.
    longer = content.replace(b"\x0a\x05bytes", b"\x0a\x85\x00bytes", 1)
    assert read(longer) is None


def test_what_is_read_is_no_copy_and_a_copy_of_it_is_its_own() -> None:
    content = BytesRecord("bytes", bytes(range(256))).deflate()
    record = read(content)
    assert record is not None
    view = record["bytes"]
    assert isinstance(view, memoryview)
    assert (view.obj is content, view.readonly) == (True, True)
    for again in (copy.deepcopy(record), pickle.loads(pickle.dumps(record))):  # noqa: S301 - our own
        assert isinstance(again["bytes"], bytes)
        assert (again, again.deflate(), again.object_id) == (record, content, record.object_id)


def test_its_name_follows_what_it_holds() -> None:
    record = BytesRecord("bytes", b"one")
    first = record.object_id
    record["bytes"] = b"two"
    assert record.object_id == ConfigRecord({"bytes": b"two"}).object_id != first
    again = pickle.loads(pickle.dumps(record))  # noqa: S301 - our own; a simulation on Ray moves messages so
    assert (again.object_id, again.deflate()) == (record.object_id, record.deflate())
