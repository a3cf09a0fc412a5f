"""One record of a site in one file, sealed as a whole: only the site can read it, and its length tells little.

file = magic (8) | sealed for its purpose (common/crypto/record_box.py): the record as JSON, filled up to a multiple of
4 KiB
"""

import json
from pathlib import Path
from typing import TypeVar

from common.config import Table, validate
from common.crypto.record_box import RecordBox
from common.errors import ConfigError
from common.system.files import write_private

_MAGIC = b"WRTABLE1"
_BLOCK_BYTES = 4096

_Kind = TypeVar("_Kind", bound=Table)


def read_table(path: Path, kind: type[_Kind], site_key: bytes, purpose: str) -> _Kind | None:
    """The record in a file; None where there is none.

    Args:
        path: of the file.
        kind: what the record is.
        site_key: of the site that wrote it.
        purpose: what it is for; the same as it was written with.

    Raises:
        ValueError: what is wrong with the file, to be told with what that means and what to do.
    """
    if (plain := path.with_suffix(".json")).exists():
        raise ValueError(f"{plain.name}, which an earlier version wrote in the clear, is in its place")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if not data.startswith(_MAGIC):
        raise ValueError("it is not a file that this version wrote")
    try:
        text = RecordBox(site_key, purpose).unseal(data[len(_MAGIC) :], _MAGIC)
    except ValueError as error:
        raise ValueError("it was made under another site key, or altered") from error
    try:
        return validate(kind, json.loads(text))
    except (ValueError, ConfigError) as error:
        raise ValueError("it holds another record than this version reads") from error


def write_table(path: Path, record: Table, site_key: bytes, purpose: str) -> None:
    """Write a record, whole or not at all; for the eyes of its owner only, and of who has the site key."""
    text = record.model_dump_json().encode()
    filled = text.ljust(-(-len(text) // _BLOCK_BYTES) * _BLOCK_BYTES)
    write_private(path, _MAGIC + RecordBox(site_key, purpose).seal(filled, _MAGIC))


__all__ = ["read_table", "write_table"]
