"""A record of Flower's that holds nothing but bytes, and costs one copy to write and none to read.

Flower writes a `ConfigRecord` by way of its protobuf message, which copies a model six times: 80 ms of CPU for 30 MB,
at each site and, once for the name and once for the bytes, at the coordinator. What comes out has little around the
bytes:

    "ConfigRecord  SIZE\\0"  0a <length>  0a <length> KEY  12 <length>  32 <length> BYTES

SIZE is that of all after the zero, in decimal digits; a length is a varint, and covers what follows it (protobuf's
wire format: flwr/proto/recorddict.proto, `ConfigRecord.Item` and `ConfigRecordValue`; the head:
flwr/supercore/inflatable/inflatable_object.py). A test compares both with Flower's own, to the byte.
"""

from hashlib import sha256

from flwr.app import ConfigRecord

from common.wire.frames import Buffer

_ZERO, _ITEM, _KEY, _VALUE, _BYTES = b"\0", b"\x0a", b"\x0a", b"\x12", b"\x32"
_KIND = b"ConfigRecord  "
_MOST_HEAD = 64  # of "ConfigRecord  SIZE\\0"
_LOW, _MORE, _BITS, _MOST_BITS = 0x7F, 0x80, 7, 63


class BytesRecord(ConfigRecord):
    """A `ConfigRecord` of one entry of bytes. Written and named as Flower does it, in fewer steps."""

    def __init__(self, key: str, data: Buffer) -> None:
        """Hold bytes under a key, or a view of what they came in, which Flower would refuse."""
        super().__init__({key: data} if isinstance(data, bytes) else None)
        if not isinstance(data, bytes):
            self.__dict__["_data"][key] = data

    def __setitem__(self, key: str, value: object) -> None:
        """As Flower's; the name of what was held before is forgotten."""
        self.__dict__.pop("_name", None)
        super().__setitem__(key, value)  # type: ignore[assignment, unused-ignore]  # Flower checks the type itself

    def __delitem__(self, key: str) -> None:
        """As Flower's; the name of what was held before is forgotten."""
        self.__dict__.pop("_name", None)
        super().__delitem__(key)

    def __getstate__(self) -> dict[str, object]:
        """For a copy, which has bytes of its own."""
        data = {key: bytes(one) if isinstance(one, memoryview) else one for key, one in self.items()}
        return {**self.__dict__, "_data": data}

    def deflate(self) -> bytes:
        """As it travels."""
        return b"".join(self._pieces())

    @property
    def object_id(self) -> str:
        """SHA-256 (hex) of what `deflate` returns, made once."""
        if "_name" not in self.__dict__:
            digest = sha256()
            for piece in self._pieces():
                digest.update(piece)
            self.__dict__["_name"] = digest.hexdigest()
        return str(self.__dict__["_name"])

    def _pieces(self) -> tuple[Buffer, ...]:
        """What stands before the bytes, and the bytes; what it came to hold instead is left to Flower."""
        match list(self.items()):
            case [(key, bytes() | memoryview() as data)] if key:  # protobuf leaves an empty key out
                return _before(key.encode(), len(data)), data
        return (ConfigRecord(dict(self)).deflate(),)


def read(content: bytes) -> BytesRecord | None:
    """The record that was written so, to the byte; None: it is another object, or is written in another way.

    It holds a view of `content`, not a copy.
    """
    try:
        _, place = _length(content, content.index(_ZERO, 0, _MOST_HEAD) + 1, _ITEM)
        size, place = _length(content, place, _KEY)
        key, place = content[place : place + size], place + size
        _, place = _length(content, place, _VALUE)
        _, place = _length(content, place, _BYTES)
        canonical = key and content[:place] == _before(key, len(content) - place)
        return BytesRecord(key.decode(), memoryview(content)[place:]) if canonical else None
    except (ValueError, IndexError):
        return None


def _before(key: bytes, size: int) -> bytes:
    """What stands before so many bytes."""
    value = _BYTES + _varint(size)
    entry = _KEY + _varint(len(key)) + key + _VALUE + _varint(len(value) + size) + value
    item = _ITEM + _varint(len(entry) + size) + entry
    return _KIND + str(len(item) + size).encode() + _ZERO + item


def _varint(number: int) -> bytes:
    """Seven bits a byte, the low ones first; all but the last have the high bit set."""
    digits = []
    while number > _LOW:
        digits.append(number & _LOW | _MORE)
        number >>= _BITS
    return bytes([*digits, number])


def _length(content: bytes, place: int, sign: bytes) -> tuple[int, int]:
    """The length that follows a sign, and the place after it.

    Raises:
        ValueError, IndexError: there is none.
    """
    if content[place] != sign[0]:
        raise ValueError("another sign")
    number, place = 0, place + 1
    for shift in range(0, _MOST_BITS, _BITS):
        number |= (content[place] & _LOW) << shift
        place += 1
        if not content[place - 1] & _MORE:
            return number, place
    raise ValueError("too long for a length")


__all__ = ["BytesRecord", "read"]
