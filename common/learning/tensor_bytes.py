"""Weights as safetensors, written with one copy and read without any.

    length of the header (8 bytes, little-endian) | header, JSON: {NAME: {dtype, shape, data_offsets}} | tensors

As in https://github.com/huggingface/safetensors the tensors follow each other without gaps from the first byte to the
last; anything else is refused. That library copies a model four times to write it and once to read it: 24 and 2 ms of
CPU time for 30 MB. What is written here is the same to the byte. What is read is no more than the library reads, and
less: no type that is not in the table below, no name twice, nothing said of a tensor but these three.
"""

import json
import math
import warnings
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from common.errors import UpdateError

_PREFIX = 8  # bytes; the header is filled up with spaces to as many, or a multiple
_MOST_HEADER = 1 << 20  # bytes: of some 10,000 tensors
_MOST_DIMENSIONS = 16
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_SAID = {"dtype", "shape", "data_offsets"}


def bytes_of(state: Mapping[str, Tensor]) -> bytes:
    """Named tensors; equal ones give equal bytes, whatever their order or strides."""
    plain = {name: state[name].detach().cpu().contiguous() for name in sorted(state)}
    types = {one.dtype for one in plain.values()}
    if len(types) != 1 or not types <= _NAMES.keys():  # in which order types come is the library's affair
        return safetensors.torch.save(plain)
    (dtype,) = types
    header, end = {}, 0
    for name, one in plain.items():
        begin, end = end, end + one.numel() * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(one.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _PREFIX)
    values = (one.reshape(-1).view(torch.uint8).numpy().data for one in plain.values())
    return b"".join((len(text).to_bytes(_PREFIX, "little"), text, *values))


def views_of(data: bytes | memoryview) -> dict[str, Tensor]:
    """Named CPU tensors, sorted by name. Their values are those bytes: nobody may change them.

    A tensor that does not begin where its type may is copied.

    Raises:
        UpdateError: the bytes are not safetensors, or of a type that no network has.
    """
    try:
        size = int.from_bytes(data[:_PREFIX], "little")
        if not 0 < size <= _MOST_HEADER:
            raise ValueError("no header, or too large a one")
        header = _header(bytes(data[_PREFIX : _PREFIX + size]))
        found = sorted(header.items(), key=lambda one: one[1]["data_offsets"])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            state, end = {}, _PREFIX + size
            for name, about in found:
                state[name], end = _view(data, about, _PREFIX + size, end)
        if end != len(data):
            raise ValueError("bytes that belong to no tensor")
    # What is not as expected shows as one of these; RecursionError: JSON in JSON in JSON.
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, RecursionError) as error:
        raise UpdateError("the weights are not safetensors bytes. Send the model as packed by this version.") from error
    return {name: state[name] for name in sorted(state)}


def _header(text: bytes) -> dict[str, Any]:
    """What is said of each tensor; what is said of the file must be a map of strings, and is left out.

    Python reads more as JSON than there is in it: NaN, halves of characters, a name twice; and -0 is a number.
    """
    header = json.loads(
        text.decode(), object_pairs_hook=_once, parse_int=_size, parse_float=_size, parse_constant=_size
    )
    said = header.pop("__metadata__", None)
    about = {} if said is None else said
    "".join((*header, *about, *about.values())).encode()  # fails, where one is no string or no text
    return dict(header)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name that stands there twice")
    return found


def _size(text: str) -> int:
    """No other number is in a header."""
    if not text.isdecimal():
        raise ValueError("a number that is no size")
    return int(text)


def _view(data: bytes | memoryview, about: dict[str, Any], first: int, start: int) -> tuple[Tensor, int]:
    """One tensor, which must begin at `start`, and the place after it; its offsets count from `first`."""
    if about.keys() != _SAID:
        raise ValueError("more said of a tensor than there is to say, or less")
    dtype, shape, (begin, end) = _DTYPES[about["dtype"]], about["shape"], about["data_offsets"]
    if any(type(one) is not int or one < 0 for one in (*shape, begin, end)) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError("sizes that are none")
    count = math.prod(shape)
    if (first + begin, end - begin) != (start, count * dtype.itemsize) or first + end > len(data):
        raise ValueError("a tensor that does not lie where it must, or is cut off")
    if not count:
        return torch.empty(shape, dtype=dtype), start
    if start % dtype.itemsize:
        return torch.frombuffer(bytearray(data[start : first + end]), dtype=dtype).reshape(shape), first + end
    return torch.frombuffer(data, dtype=dtype, count=count, offset=start).reshape(shape), first + end


__all__ = ["bytes_of", "views_of"]
