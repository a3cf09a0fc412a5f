"""Frames as Flower's messages carry them: a record for the header, and one for each 32 MiB of each part.

    head      {"json": the header}
    NAME/0    {"bytes": the first 32 MiB of part NAME}, NAME/1 the next, ...

Flower moves a message as objects, one for each record, that are named by their hash: so a part that many messages carry
is one object, which is fetched once. Each object costs the SuperLink requests, and an array would be three of them: so
a part is plain bytes in a config record (see docs/adr/0006). String keys of records live here and nowhere else.
"""

import json

from flwr.app import ConfigRecord, RecordDict

from common.errors import ErrorCode, UpdateError
from common.wire.bytes_record import BytesRecord
from common.wire.frames import HEADER_LIMIT, Buffer, Frame
from common.wire.messages import (
    Reply,
    Request,
    reply_from_frame,
    reply_to_frame,
    request_from_frame,
    request_to_frame,
)

# A request to the SuperLink costs the same for 5 and for 32 MiB.
PIECE_BYTES = 32 * 1024 * 1024

_HEAD = "head"
_JSON = "json"
_BYTES = "bytes"


def request_to_record(request: Request) -> RecordDict:
    """Pack a request for Flower."""
    return _to_record(request_to_frame(request))


def request_from_record(record: RecordDict) -> Request:
    """Unpack a request.

    Raises:
        UpdateError: it is malformed.
    """
    return request_from_frame(_from_record(record))


def reply_to_record(reply: Reply) -> RecordDict:
    """Pack a reply for Flower."""
    return _to_record(reply_to_frame(reply))


def reply_from_record(record: RecordDict) -> Reply:
    """Unpack a reply.

    Raises:
        UpdateError: it is malformed.
    """
    return reply_from_frame(_from_record(record))


def _to_record(frame: Frame) -> RecordDict:
    header = json.dumps(frame.header, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
    record = RecordDict({_HEAD: BytesRecord(_JSON, header)})
    for name, part in frame.parts.items():
        for index, start in enumerate(range(0, max(1, len(part)), PIECE_BYTES)):
            record[f"{name}/{index}"] = BytesRecord(_BYTES, part[start : start + PIECE_BYTES])
    return record


def _from_record(record: RecordDict) -> Frame:
    pieces: dict[str, list[Buffer]] = {}
    for key in record:
        if key == _HEAD:
            continue
        name, _, index = key.rpartition("/")
        earlier = pieces.setdefault(name, [])
        if index != str(len(earlier)):
            raise UpdateError("the pieces of a part of the message are not in order, from 0", ErrorCode.BAD_REQUEST)
        earlier.append(_bytes(record, key, _BYTES))
    head = _bytes(record, _HEAD, _JSON)
    if len(head) > HEADER_LIMIT:  # JSON takes twenty times its bytes in memory
        raise UpdateError(
            f"the message's header has {len(head)} bytes, expected at most {HEADER_LIMIT}", ErrorCode.BAD_REQUEST
        )
    try:
        header = json.loads(bytes(head))
    except (ValueError, RecursionError) as error:
        raise UpdateError("the message's header is not JSON", ErrorCode.BAD_REQUEST) from error
    if not isinstance(header, dict):
        raise UpdateError("the message's header is no JSON object", ErrorCode.BAD_REQUEST)
    return Frame(header, {name: some[0] if len(some) == 1 else b"".join(some) for name, some in pieces.items()})


def _bytes(record: RecordDict, key: str, entry: str) -> Buffer:
    one = record.get(key)
    if not isinstance(one, ConfigRecord) or list(one) != [entry] or not isinstance(data := one[entry], Buffer):
        raise UpdateError("the message must carry a head and parts, each as plain bytes", ErrorCode.BAD_REQUEST)
    return data


__all__ = ["PIECE_BYTES", "reply_from_record", "reply_to_record", "request_from_record", "request_to_record"]
